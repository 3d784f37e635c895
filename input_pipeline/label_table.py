"""Tables of paths and labels, as people and programs write them."""

import csv
import difflib
import io
import os
import re
from collections.abc import Sequence

from input_pipeline.names import shown

# Words of a header row, the first that is there.
PATHS = ('path', 'file', 'filename', 'file_name', 'image', 'image_path')
PATHS += ('image_id', 'name', 'filepath', 'file_path', 'image_name', 'img')
PATHS += ('img_path', 'img_name')
LABELS = ('label', 'class', 'target', 'label_id', 'class_id', 'class_name')
LABELS += ('label_name', 'labels', 'category', 'category_id')
_DELIMITERS = ',;\t'
_SHOWN = 3  # examples in an error


def read_table(content: bytes, name: str) -> dict[bytes, str]:
  """Reads a table of paths and labels.

  Columns are separated by commas, semicolons or tabs. A header row names the
  columns (one of `PATHS` and one of `LABELS` in any case of letters, others are
  ignored); without one there are two.

  Args:
    content: of the file; UTF-8, UTF-16 with a mark, or any bytes in paths.
    name: for messages.

  Returns:
    {path: label} in the order of the table.

  Raises:
    ValueError: not such a table, a header without such words, a path twice, a
      path or label that is empty.
  """
  if content.startswith((b'\xff\xfe', b'\xfe\xff')):
    text = content.decode('utf-16', 'replace')
  else:
    text = content.decode('utf-8-sig', 'surrogateescape')
  rows, path_column, label_column = _split_rows(text, name)
  out = {}
  empty, twice = [], []
  for line, row in rows:
    columns = (path_column, label_column)
    path, label = (row[i] if i < len(row) else '' for i in columns)
    path, label = tidy(path.encode(errors='surrogateescape')), label.strip()
    if not path or not label:
      empty.append(f'line {line}')
    elif path in out:
      twice.append(shown(path))
    else:
      out[path] = shown(label.encode(errors='surrogateescape'))
  if empty:
    raise ValueError(
      f'{name}: {len(empty)} rows without a path or a label, such as '
      f'{some(empty)}; leave out files that have no label'
    )
  if twice:
    raise ValueError(
      f'{name}: {len(twice)} paths occur more than once, such as {some(twice)}'
    )
  if not out:
    raise ValueError(f'{name}: no rows of paths and labels')
  return out


def _split_rows(
  text: str, name: str
) -> tuple[list[tuple[int, list[str]]], int, int]:
  """(line, cells) of each row below the header; columns of path and label."""
  found = [_rows(text, delimiter, name) for delimiter in _DELIMITERS]
  found = [rows for rows in found if rows and len(rows[0][1]) > 1]
  for rows in found:
    header = [_word(cell) for cell in rows[0][1]]
    paths = [header.index(word) for word in PATHS if word in header]
    labels = [header.index(word) for word in LABELS if word in header]
    if paths and labels:
      return rows[1:], paths[0], labels[0]
  for rows in found:
    if _is_header(rows):
      raise ValueError(f'{name}: {_unknown_header(rows[0][1])}')
    if all(len(row) == 2 for _, row in rows):
      return rows, 0, 1
  raise ValueError(
    f"{name}: needs a header row with the columns 'path' and 'label', or two "
    'columns without a header, separated by comma, semicolon or tab'
  )


def _rows(text: str, delimiter: str, name: str) -> list[tuple[int, list[str]]]:
  """(line, cells) of each row that is not empty."""
  csv.field_size_limit(2**20)
  # Excel may begin a table with a line that names the delimiter.
  text = re.sub(r'\A"?sep=.?"?\r?\n', '\n', text)
  reader = csv.reader(io.StringIO(text, newline=''), delimiter=delimiter)
  out = []
  try:
    for row in reader:
      while len(row) > 2 and not row[-1].strip():
        row.pop()
      if any(map(str.strip, row)):
        out.append((reader.line_num, row))
  except csv.Error as error:
    raise ValueError(f'{name}: not a table: {error}') from error
  return out


def _word(cell: str) -> str:
  """A cell of a header as one of its words is written."""
  return re.sub(r'[\s.-]+', '_', cell.strip().lstrip('#').strip().lower())


def _is_header(rows: Sequence[tuple[int, Sequence[str]]]) -> bool:
  """Whether the first row is none of files: no cell of it can be a path."""
  first, *others = (row for _, row in rows)
  if any(map(_may_be_path, first)):
    return False
  known = {*PATHS, *LABELS} & set(map(_word, first))
  return bool(known) or any(any(map(_may_be_path, row)) for row in others)


def _may_be_path(cell: str) -> bool:
  cell = cell.strip()
  return bool(os.path.splitext(cell)[1]) or '/' in cell or '\\' in cell


def _unknown_header(cells: Sequence[str]) -> str:
  """What a header lacks, the nearest words and all known ones."""
  words = [_word(cell) for cell in cells]
  lacks, near = [], []
  for kind, known in (('paths', PATHS), ('labels', LABELS)):
    if not set(words) & set(known):
      lacks.append(kind)
      for cell, word in zip(cells, words, strict=True):
        if word in (*PATHS, *LABELS):
          continue
        for close in difflib.get_close_matches(word, known, n=1, cutoff=0.7):
          near.append(f"'{close}' for {cell.strip()!r}")
  header = shown(','.join(cells).encode(errors='surrogateescape'))
  return (
    f'the header {header!r} names no column of {" and none of ".join(lacks)}'
    + f' (did you mean {" and ".join(near)}?)' * bool(near)
    + f'; columns of paths may be called {", ".join(PATHS)}; of labels '
    + f'{", ".join(LABELS)}'
  )


def tidy(path: bytes) -> bytes:
  """Without './' and doubled slashes, so that spellings agree."""
  parts = [part for part in path.split(b'/') if part not in (b'', b'.')]
  return (b'/' if path.startswith(b'/') else b'') + b'/'.join(parts)


def some(items: Sequence[str]) -> str:
  """The first few of them, for a message."""
  rest = ', ...' if len(items) > _SHOWN else ''
  return ', '.join(items[:_SHOWN]) + rest
