"""Where a prepared TFDS data set lies, and whether its description is whole."""

import difflib
import json
import os
import re
from collections.abc import Sequence
from typing import Any

from etils import epath

from input_pipeline.paths import expand

_VERSION = re.compile(r'\d+\.\d+\.\d+')
_WANTED = re.compile(r'(\d+|\*)\.(\d+|\*)\.(\d+|\*)')
_INFO, _FEATURES = 'dataset_info.json', 'features.json'
_SHOWN = 8  # names in an error


def prepared_folder(
  tfds_name: str, data_dir: str | os.PathLike | None = None
) -> epath.Path:
  """Finds the folder of a prepared data set without importing TFDS.

  Args:
    tfds_name: 'name' or 'name/config', with ':version' or '/version' if need
      be; of a version such as '3.*.*' the newest is taken.
    data_dir: TFDS folder; default `TFDS_DATA_DIR` or `~/tensorflow_datasets`.
      The folder of the data set, of its config or of its version serves too.

  Returns:
    The folder of the version asked for, else of the newest.

  Raises:
    FileNotFoundError: there is none; names what is there.
    ValueError: a name or version that cannot be.
  """
  root = epath.Path(
    expand(
      data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
    )
  )
  parts, wanted = _parse(tfds_name)
  above = [*root.parts[-3:]]
  if len(parts) == 1 and parts[0] in above[:-1]:
    config = above[above.index(parts[0]) + 1]  # the root names it
    parts += [] if _VERSION.fullmatch(config) else [config]
  for top, version in _tops(root, parts):
    folder = top.joinpath(*parts)
    found = [v for v in _versions(folder) if _fits(v, wanted or version)]
    if found:
      return folder / max(found, key=lambda v: [int(n) for n in v.split('.')])
  name = '/'.join(parts)
  build = f'prepare it with `tfds build {name} --data_dir={root}`'
  raise FileNotFoundError(
    f'{tfds_name} is not prepared in data_dir {root}: '
    f'{_reason(root, parts, wanted)}; {build} or set data_dir'
  )


def _parse(tfds_name: str) -> tuple[list[str], str]:
  """(name and config, version or '')."""
  name, _, version = tfds_name.strip().partition(':')
  parts = [part for part in name.split('/') if part]
  version = version.strip('/')
  if len(parts) > 1 and not version and _WANTED.fullmatch(parts[-1]):
    version = parts.pop()
  if not parts or len(parts) > 2 or {'.', '..'} & {*parts}:
    raise ValueError(
      f'tfds_name {tfds_name!r} must be NAME, NAME/CONFIG or with :VERSION, '
      "such as 'imagenette/160px-v2:1.0.0'"
    )
  if version and not _WANTED.fullmatch(version):
    raise ValueError(
      f"tfds_name {tfds_name!r}: the version must be such as '3.0.2' or "
      f"'3.*.*', got {version!r}"
    )
  return parts, version


def _tops(
  root: epath.Path, parts: Sequence[str]
) -> list[tuple[epath.Path, str]]:
  """Folders that may hold all data sets, and versions that `root` names.

  The root itself; or one above, where the root is the folder of the data set,
  its config or its version.
  """
  found, tail = [(root, '')], [*root.parts]
  for up in range(1, min(len(parts) + 2, len(tail))):
    inner = tail[-up:]
    version = inner[len(parts)] if up > len(parts) else ''
    if inner[: len(parts)] == [*parts][:up] and (
      not version or _VERSION.fullmatch(version)
    ):
      found.append((root.parents[up - 1], version))
  return found


def _versions(folder: epath.Path) -> list[str]:
  return [
    name
    for name in _folders(folder)
    if _VERSION.fullmatch(name) and (folder / name / _INFO).exists()
  ]


def _folders(folder: epath.Path) -> list[str]:
  """Names of what is in a folder; empty if it is none."""
  try:
    names = [path.name for path in folder.iterdir()]
  except Exception:  # each kind of store has errors of its own
    return []
  return sorted(name for name in names if not name.startswith('.'))


def _fits(version: str, wanted: str) -> bool:
  pairs = zip(version.split('.'), wanted.split('.'), strict=False)
  return not wanted or all(want in ('*', there) for there, want in pairs)


def _reason(root: epath.Path, parts: Sequence[str], wanted: str) -> str:
  """What is there instead of a data set."""
  if not root.exists():
    return 'there is no such folder'
  for top, _ in _tops(root, parts):
    versions = _versions(top.joinpath(*parts))
    if versions:
      return f'no version {wanted}, found {_listed(versions)}'
    configs = [
      config
      for config in _folders(top / parts[0])
      if _versions(top / parts[0] / config)
    ]
    if len(parts) == 1 and configs:
      return (
        f'it has configs, found {_listed(configs)}; name one, such as '
        f"tfds_name='{parts[0]}/{configs[0]}'"
      )
    if configs or _versions(top / parts[0]):
      without = [] if configs else ['none']
      return (
        f'no config {parts[1]!r}, found {_listed(configs or without)}'
        f'{_near(parts[1], configs)}'
      )
    others = _folders(top.joinpath(*parts))
    if others:
      return (
        f'no folder of a version with a {_INFO} in {top.joinpath(*parts)}, '
        f'found {_listed(others)}'
      )
  for name in _folders(root):
    if _versions(root.joinpath(name, *parts)):
      return f'it lies in {root / name}, set data_dir to that'
  names = [name for name in _folders(root) if _holds(root / name)]
  if not names:
    return f'no data set is, found {_listed(_folders(root))}'
  return f'found {_listed(names)}{_near(parts[0], names)}'


def _holds(folder: epath.Path) -> bool:
  """Whether a folder is that of a data set."""
  inside = _folders(folder)
  return any(map(_VERSION.fullmatch, inside)) or any(
    _VERSION.fullmatch(name)
    for config in inside[:_SHOWN]
    for name in _folders(folder / config)
  )


def _listed(names: Sequence[str]) -> str:
  more = ', ...' if len(names) > _SHOWN else ''
  return (', '.join(names[:_SHOWN]) or 'nothing') + more


def _near(word: str, known: Sequence[str]) -> str:
  lower = {name.lower(): name for name in known}
  near = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.5)
  return f'; did you mean {lower[near[0]]!r}?' if near else ''


def check_description(folder: epath.Path) -> None:
  """Raises `ValueError`, one line with the path, if a description is damaged.

  Args:
    folder: from `prepared_folder`.
  """
  _check_info(folder / _INFO)
  _read_json(folder / _FEATURES)


def _read_json(path: epath.Path) -> dict[str, Any]:
  remedy = 'prepare or copy the data set again'
  try:
    content = path.read_bytes()
  except Exception as error:  # each kind of store has errors of its own
    text = ' '.join(str(error).split())[:200]
    raise ValueError(f'{path} cannot be read: {text}; {remedy}') from error
  try:
    found = json.loads(content)
  except (ValueError, RecursionError) as error:
    text = 'it is empty' if not content.strip() else f'no JSON ({error})'
    raise ValueError(f'{path} is damaged: {text}; {remedy}') from error
  if not isinstance(found, dict):
    raise ValueError(
      f'{path} is damaged: it must be an object of JSON, not '
      f'{type(found).__name__}; {remedy}'
    )
  return found


def _check_info(path: epath.Path) -> None:
  """Raises `ValueError` for a field that is missing or of another type."""
  info = _read_json(path)

  def require(fields, name, kind, where):
    if not isinstance(fields.get(name), kind):
      state = f'{fields[name]!r:.40}' if name in fields else 'missing'
      word = {str: 'a text', list: 'a list'}[kind]
      raise ValueError(
        f'{path} is damaged: {where}{name} must be {word}, but is {state}; '
        'prepare or copy the data set again'
      )
    return fields[name]

  require(info, 'name', str, '')
  require(info, 'version', str, '')
  for number, split in enumerate(require(info, 'splits', list, '')):
    where = f'splits[{number}].'
    split = split if isinstance(split, dict) else {}
    require(split, 'name', str, where)
    lengths = require(split, 'shardLengths', list, where)
    if not all(re.fullmatch(r'\d+', str(length)) for length in lengths):
      raise ValueError(
        f'{path} is damaged: {where}shardLengths must be numbers of examples, '
        f'but is {lengths!r:.40}; prepare or copy the data set again'
      )
