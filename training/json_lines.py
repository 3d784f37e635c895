"""Files of JSON lines that grow, some of which a crash may have damaged."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from absl import logging
from etils import epath

from training import storage

Row = Mapping[str, Any]


def is_report(row: Any) -> bool:
  """Whether a line of metrics.jsonl is one: a step, and numbers or null."""
  return is_note(row) and all(
    value is None or _is_number(value) for value in row.values()
  )


def is_note(row: Any) -> bool:
  """Whether a line is an object with a step: whatever else it holds."""
  return (
    isinstance(row, dict)
    and isinstance(row.get('step'), int)
    and not isinstance(row['step'], bool)
  )


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def parse(
  data: bytes, valid: Callable[[Any], bool] = is_report
) -> tuple[list[dict[str, Any]], int, bool]:
  """The lines of a file.

  Args:
    data: its content.
    valid: whether a line, parsed, is what it should be.

  Returns:
    The rows, the number of damaged lines, and whether the last line was cut
    short, as it is where a process was killed; then that one does not count as
    damaged.
  """
  rows, bad = [], []
  for line in data.splitlines(keepends=True):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except (ValueError, RecursionError):
      row = None
    if valid(row):
      rows.append(row)
    else:
      bad.append(line)
  cut = bool(bad) and not data.endswith(b'\n') and data.endswith(bad[-1])
  return rows, len(bad) - cut, cut


def read_rows(path: epath.Path) -> list[dict[str, Any]]:
  """The reports in a metrics.jsonl; damaged lines are left out, with a warning.

  Raises:
    OSError: it cannot be read.
  """
  return _read(path, is_report)[0]


def _read(path: epath.Path, valid) -> tuple[list[dict[str, Any]], bool]:
  """(rows, whether the file is damaged)."""
  if not path.exists():
    return [], False
  if path.is_dir():
    logging.warning('%s is a folder: its reports are lost', path)
    return [], True
  rows, damaged, cut = parse(path.read_bytes(), valid)
  if damaged:
    logging.warning(
      '%s: %d damaged lines are left out, %d are whole',
      path,
      damaged,
      len(rows),
    )
  elif cut:
    logging.warning('%s: left out a line that was cut short', path)
  return rows, bool(damaged)


class Rows:
  """A file of JSON lines that grows, read once when it is opened.

  A damaged file is kept as `NAME.damaged`.

  Args:
    path: the file; rows of it that are not kept are dropped there.
    keep: whether a row stays.
    valid: whether a line is a row.
  """

  def __init__(
    self,
    path: epath.Path,
    keep: Callable[[Row], bool],
    valid: Callable[[Any], bool] = is_report,
  ):
    rows, damaged = _read(path, valid)
    self._rows = [row for row in rows if keep(row)]
    data = b''.join(_dumps(row) + b'\n' for row in self._rows)
    if damaged:
      _set_aside(path)
    if path.exists() or data:
      storage.write_whole(path, data)
    self._file = storage.Growing(path, data)

  def all(self) -> list[dict[str, Any]]:
    """All rows so far."""
    return list(self._rows)

  def add(self, row: Row) -> None:
    """One more row."""
    self._rows.append(dict(row))
    self._file.write(_dumps(row) + b'\n')

  def flush(self) -> None:
    """All rows are safe when this returns."""
    self._file.flush()


def _dumps(row: Row) -> bytes:
  return json.dumps(row).encode()


def _set_aside(path: epath.Path) -> None:
  """Keeps a damaged file, or what is in its place, under another name."""
  target, count = path.with_name(f'{path.name}.damaged'), 1
  while target.exists():
    count += 1
    target = path.with_name(f'{path.name}.damaged{count}')
  if path.is_dir():
    path.rename(target)
  else:  # not moved: a run that ends here loses no report
    storage.write_whole(target, path.read_bytes())
  logging.warning('%s is kept as %s', path, target.name)
