"""The folder of a run: which config it belongs to and where it ran."""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from typing import Any

import jax
from absl import logging
from etils import epath

from training.metrics import write_json

PACKAGES = (
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'numpy',
  'pillow',
  'ml-collections',
  'tensorflow-cpu',
  'tensorflow',
)


class WorkdirError(ValueError):
  """A workdir that cannot be used, told in one line."""


def open_workdir(path: epath.PathLike, config: Any) -> epath.Path:
  """Creates a workdir, or checks that it belongs to the same config.

  Writes `config.json` and `environment.json`.

  Args:
    path: the folder.
    config: the resolved `ConfigDict`; `config.resume` does not count in the
      comparison, and 'force' accepts any difference.

  Returns:
    The folder.

  Raises:
    WorkdirError: another config, or a folder that cannot be written.
  """
  # Orbax takes absolute paths only; gs://bucket/run is one.
  path = epath.Path(path if '://' in str(path) else os.path.abspath(path))
  try:
    path.mkdir(parents=True, exist_ok=True)
    _check_config(path / 'config.json', config)
    if jax.process_index() == 0:
      write_json(path / 'config.json', _plain(config))
      write_json(path / 'environment.json', environment())
  except OSError as error:
    raise WorkdirError(
      f'cannot write to the workdir {path}: {error}; choose another --workdir'
    ) from error
  return path


def _plain(config: Any) -> Any:
  return json.loads(config.to_json_best_effort())


def _check_config(path: epath.Path, config: Any) -> None:
  if not path.exists():
    return
  old, new = _flat(json.loads(path.read_text())), _flat(_plain(config))
  changed = [
    f'{name}: {old.get(name, "absent")} there, {new.get(name, "absent")} now'
    for name in sorted(old.keys() | new.keys())
    if name != 'resume' and old.get(name) != new.get(name)
  ]
  if changed and config.resume != 'force':
    raise WorkdirError(
      f'{path.parent} holds a run with another config ({"; ".join(changed)}); '
      "choose another --workdir, or continue it with --config.resume='force'"
    )
  if changed:
    logging.warning('resumed with another config: %s', '; '.join(changed))


def _flat(tree: Any, prefix: str = '') -> dict[str, Any]:
  if not isinstance(tree, dict):
    return {prefix: tree}
  out = {}
  for key, value in tree.items():
    out |= _flat(value, f'{prefix}.{key}' if prefix else key)
  return out


def environment() -> dict[str, Any]:
  """Versions, devices and commit of this process."""
  versions = {}
  for name in PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      versions[name] = None
  return dict(
    python=platform.python_version(),
    platform=platform.platform(),
    packages=versions,
    devices=[str(device.device_kind) for device in jax.devices()],
    backend=jax.default_backend(),
    processes=jax.process_count(),
    commit=_commit(),
    command=sys.argv,
    started=datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
  )


def _commit() -> str | None:
  try:
    folder = epath.Path(__file__).parent
    return subprocess.run(
      ['git', 'describe', '--always', '--dirty'],
      cwd=folder,
      capture_output=True,
      text=True,
      check=True,
      timeout=10,
    ).stdout.strip()
  except (OSError, subprocess.SubprocessError):
    return None
