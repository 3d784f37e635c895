"""Labels of files: from the folders they lie in, or from a table."""

import csv
import io
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from input_pipeline.names import Listing, shown

# Words of a header row, the first that is there.
PATHS = ('path', 'file', 'filename', 'file_name', 'image', 'image_path')
PATHS += ('image_id', 'name')
LABELS = ('label', 'class', 'target', 'label_id', 'class_id')
_SHOWN = 3  # examples in an error


def number_classes(names: set[str]) -> tuple[str, ...]:
  """Puts class names in order: as numbers if all are integers, else as text."""
  if all(re.fullmatch(r'-?\d{1,18}', name) for name in names):
    return tuple(sorted(names, key=lambda name: (int(name), name)))
  return tuple(sorted(names))


def by_folder(
  parts: Sequence[Listing], others: Sequence[Listing] = ()
) -> tuple[np.ndarray | None, tuple[str, ...], bytes | None]:
  """Labels images by the first folder of their paths.

  Args:
    parts: consecutive ranges that make up the listing to label.
    others: what else counts as classes, so that numbers agree between splits;
      those with images outside folders do not.

  Returns:
    (int32 [n] labels, the classes, None); (None, (), path) where an image is in
    no folder.
  """
  found = [part.folders() for part in parts]
  loose = [path for _, path in found if path is not None]
  if loose:
    return None, (), loose[0]
  pairs = [other.folders() for other in others]
  folders = [f for f, _ in found] + [f for f, p in pairs if p is None]
  classes = number_classes({shown(name) for names in folders for name in names})
  number = {name: i for i, name in enumerate(classes)}
  labels = np.empty(sum(map(len, parts)), np.int32)
  start = 0
  for part, (names, _) in zip(parts, found, strict=True):
    for name, images in names.items():
      labels[start + images.start : start + images.stop] = number[shown(name)]
    start += len(part)
  return labels, classes, None


def read_table(content: bytes, name: str) -> dict[bytes, str]:
  """Reads a table of paths and labels.

  Columns are separated by commas, semicolons or tabs. A header row names the
  columns ('path' and 'label', others are ignored); without one there are two.

  Args:
    content: of the file; UTF-8, UTF-16 with a mark, or any bytes in paths.
    name: for messages.

  Returns:
    {path: label} in the order of the table.

  Raises:
    ValueError: not such a table, a path twice, a path or label that is empty.
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
    path, label = _tidy(path.encode(errors='surrogateescape')), label.strip()
    if not path or not label:
      empty.append(f'line {line}')
    elif path in out:
      twice.append(shown(path))
    else:
      out[path] = shown(label.encode(errors='surrogateescape'))
  if empty:
    raise ValueError(
      f'{name}: {len(empty)} rows without a path or a label, such as '
      f'{_some(empty)}; leave out files that have no label'
    )
  if twice:
    raise ValueError(
      f'{name}: {len(twice)} paths occur more than once, such as {_some(twice)}'
    )
  if not out:
    raise ValueError(f'{name}: no rows of paths and labels')
  return out


def _split_rows(
  text: str, name: str
) -> tuple[list[tuple[int, list[str]]], int, int]:
  """(line, cells) of each row below the header; columns of path and label."""
  csv.field_size_limit(2**20)
  bare = None
  for delimiter in ',;\t':
    reader = csv.reader(io.StringIO(text, newline=''), delimiter=delimiter)
    try:
      rows = [
        (reader.line_num, row) for row in reader if any(map(str.strip, row))
      ]
    except csv.Error as error:
      raise ValueError(f'{name}: not a table: {error}') from error
    header = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    paths = [header.index(word) for word in PATHS if word in header]
    labels = [header.index(word) for word in LABELS if word in header]
    if paths and labels:
      return rows[1:], paths[0], labels[0]
    if bare is None and rows and all(len(row) == 2 for _, row in rows):
      bare = rows
  if bare is None:
    raise ValueError(
      f"{name}: needs a header row with the columns 'path' and 'label', or two "
      'columns without a header, separated by comma, semicolon or tab'
    )
  return bare, 0, 1


def _tidy(path: bytes) -> bytes:
  """Without './' and doubled slashes, so that spellings agree."""
  parts = [part for part in path.split(b'/') if part not in (b'', b'.')]
  return (b'/' if path.startswith(b'/') else b'') + b'/'.join(parts)


def _some(items: Sequence[str]) -> str:
  rest = ', ...' if len(items) > _SHOWN else ''
  return ', '.join(items[:_SHOWN]) + rest


def by_table(
  table: dict[bytes, str],
  classes: tuple[str, ...],
  listing: Listing,
  *,
  siblings: Callable[[], Sequence[Listing]],
  root: str,
  name: str,
) -> tuple[np.ndarray, np.ndarray]:
  """Labels images by a table.

  Args:
    table: {path: label}; paths are relative to the listing, to a folder above
      it, or absolute.
    classes: all labels in their order.
    listing: the images; those that the table does not name are left out.
    siblings: finds other splits, whose images the table may name too.
    root: absolute path of the top of the data set.
    name: of the table, for messages.

  Returns:
    int64 [n] images that have a label, in the order of the listing, and their
    int32 [n] labels.

  Raises:
    ValueError: the table names files that are not there, or one file twice.
  """
  number = {label: i for i, label in enumerate(classes)}
  found, missing = {}, []
  tops = list(listing.folders()[0])
  alone = tops[0] + b'/' if len(tops) == 1 else b''  # may be left out
  for path, label in table.items():
    row = _find(path, listing, root)
    if row is None and alone:
      row = _find(alone + path, listing, root)
    if row is None:
      if all(_find(path, other, root) is None for other in siblings()):
        missing.append(shown(path))
    elif row in found:
      raise ValueError(f'{name}: {shown(listing[row])} occurs more than once')
    else:
      found[row] = number[label]
  if missing:
    raise ValueError(
      f'{name}: {len(missing)} of {len(table)} files are not there or no '
      f'images, such as {_some(missing)}; paths are relative to data_dir'
    )
  rows = np.fromiter(found.keys(), np.int64, len(found))
  labels = np.fromiter(found.values(), np.int32, len(found))
  order = np.argsort(rows)
  return rows[order], labels[order]


def _find(path: bytes, listing: Listing, root: str) -> int | None:
  """The image that a path of a table means, seen from any folder above."""
  rows = (_find_spelled(p, listing, root) for p in _spellings(path))
  return next((row for row in rows if row is not None), None)


def _spellings(path: bytes) -> Iterator[bytes]:
  """As it stands, then with slashes and accents as on other systems."""
  yield path
  if b'\\' in path:
    path = _tidy(path.replace(b'\\', b'/'))
    yield path
  if not path.isascii():
    text = path.decode(errors='surrogateescape')
    for form in ('NFC', 'NFD'):
      other = unicodedata.normalize(form, text)
      yield other.encode(errors='surrogateescape')


def _find_spelled(path: bytes, listing: Listing, root: str) -> int | None:
  """As `_find`, of just these bytes."""
  if root and path.startswith(b'/'):
    top = os.fsencode(root).rstrip(b'/') + b'/'
    path = path[len(top) :] if path.startswith(top) else path
  above = listing.above.split(b'/')[:-1]
  for depth in range(len(above), -1, -1):  # the nearest folder first
    prefix = b'/'.join((*above[depth:], b''))
    if path.startswith(prefix):
      row = listing.find(path[len(prefix) :])
      if row is not None:
        return row
  return None
