"""Readable names of classes: of a table, or of `classes.json` by the data."""

import csv
import errno
import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from training import distributed, storage

BESIDE = 'classes.json'
# Of WordNet's lists: 'n01440764 tench, Tinca tinca'.
_WORDS = re.compile(r'^(n\d{8}) +([^,\n]+)', re.MULTILINE)


def class_names(config: Any, classes: Sequence[str]) -> tuple[str, ...]:
  """What classes are called in pictures.

  Args:
    config: of a job; read here: `class_names`, a table, or None; and
      `data.data_dir`, in which, in whose folders, or beside which a
      `classes.json` may lie, in a .zip, too.
    classes: as the data set calls them, often names of folders.

  Returns:
    A name for every class: what a table says, else the class itself. Of a
    `classes.json` that names none of the classes nothing is taken.

  Raises:
    FileNotFoundError: there is no such table.
    ValueError: a table that cannot be read, or names none of the classes.
  """
  return tuple(distributed.on_lead(lambda: _names(config, classes)))


def _names(config: Any, classes: Sequence[str]) -> list[str]:
  if config.class_names:
    table = read_table(config.class_names)
    if classes and not table.keys() & set(classes):
      raise ValueError(
        f'config.class_names={config.class_names} names none of the classes, '
        f'which are {", ".join(list(classes)[:5])}'
        f'{", ..." if len(classes) > 5 else ""}'
      )
    return [table.get(name, name) for name in classes]
  for content in _beside(config.data.get('data_dir')):
    try:
      table = read_names(content)
    except ValueError:
      continue  # somebody else's file of that name
    if table.keys() & set(classes):
      return [table.get(name, name) for name in classes]
  return list(classes)


def read_table(path: epath.PathLike) -> Mapping[str, str]:
  """{class: name} of the table that `config.class_names` is.

  Raises:
    FileNotFoundError: there is no such table.
    ValueError: it cannot be read.
  """
  path = epath.Path(path).expanduser()
  if not path.exists():
    raise FileNotFoundError(
      errno.ENOENT, 'config.class_names is no file', str(path)
    )
  try:
    return read_names(path.read_bytes())
  except (OSError, ValueError) as error:
    raise ValueError(
      f'config.class_names={path} is neither JSON nor a table of classes and '
      f'names ({error})'
    ) from error


def _beside(data_dir: str | None) -> Iterator[bytes]:
  """Contents of files named `classes.json`, the nearest first."""
  if not data_dir:
    return
  root = epath.Path(data_dir).expanduser()
  try:
    if root.is_dir():
      places = [root, *sorted(p for p in root.iterdir() if p.is_dir())]
      yield from _there(place / BESIDE for place in places)
    elif root.suffix.lower() == '.zip' and not storage.is_remote(root):
      with zipfile.ZipFile(root) as file:
        inside = [n for n in file.namelist() if n.split('/')[-1] == BESIDE]
        for name in sorted(inside, key=lambda name: name.count('/')):
          yield file.read(name)
    yield from _there([root.parent / BESIDE])
  except (OSError, zipfile.BadZipFile):
    return  # names are best effort; the data's own errors come elsewhere


def _there(paths) -> Iterator[bytes]:
  for path in paths:
    if path.exists():
      yield path.read_bytes()


def read_names(content: bytes) -> Mapping[str, str]:
  """{class: name} of a file.

  Args:
    content: JSON, `{"n01440764": "tench"}`, names in a list per class (the
      first counts) or ImageNet's `{"0": ["n01440764", "tench"]}`; or lines of
      class and name, with a comma or a tab between, or of WordNet's.

  Raises:
    ValueError: it is none of these.
  """
  text = content.decode('utf-8-sig')
  if text.lstrip()[:1] in ('{', '['):
    table = json.loads(text)
    if not isinstance(table, dict):
      raise ValueError('JSON, but no object')
    return dict(_pair(key, value) for key, value in table.items())
  if lines := _WORDS.findall(text):
    return {key: name.strip() for key, name in lines}
  comma = '\t' if '\t' in text else ','
  rows = [row for row in csv.reader(io.StringIO(text), delimiter=comma) if row]
  if not rows or any(len(row) < 2 for row in rows):
    raise ValueError('a line without two columns')
  return {row[0].strip(): row[1].strip() for row in rows}


def _pair(key: str, value: Any) -> tuple[str, str]:
  if isinstance(value, str):
    return key, value
  texts = isinstance(value, list) and all(isinstance(v, str) for v in value)
  if not texts or not value:
    raise ValueError(f'the name of {key!r} is {value!r}')
  indexed = key.isdigit() and len(value) > 1
  return (value[0], value[1]) if indexed else (key, value[0])
