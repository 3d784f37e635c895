"""The folder of a run: which config it belongs to and where it ran."""

import json
import os
import platform
import time
from typing import Any

import jax
from absl import logging
from etils import epath

from input_pipeline import fingerprint
from training import distributed, failures, lock, screen, storage
from training.environment import environment
from training.metrics import write_json
from training.ranges import leaves

# Fields that may differ when a run continues, and the reason why. None of them
# changes a parameter that is trained; config.json then holds the new values.
FREE = {
  'resume': 'states how to continue',
  'watchdog': 'when to report a step that hangs',
  'hang_limit': 'when to leave a step that hangs',
  'nonfinite_limit': 'when to stop after bad steps; those change nothing',
  'log_every': 'when to report',
  'eval_every': 'when to measure',
  'checkpoint_every': 'when to save',
  'keep_checkpoints': 'how many checkpoints stay',
  'check_images': 'read by check_data alone',
  'knn': 'measures the encoder and leaves it as it is',
  'chunks': 'what memory a step takes',
  'remat': 'what memory a step takes',
  'encoder.remat': 'what memory a step takes',
  'data.workers': 'threads that decode; the order of images is kept',
  'data.max_unreadable': 'when to stop because of unreadable images',
}
# Fields that older runs lack, and the value that stands for their absence.
# A field that is None there and absent here, or the other way, is equal, too.
ADDED = {
  'format': 'png',
  'method.repre.weighting_window': 10,
  'method.masked.weighting_window': 10,
  'method.masked.weighting': 'fixed',
}
SHARED_SECONDS = 30


class WorkdirError(ValueError):
  """A workdir that cannot be used, message in one line."""


def open_workdir(path: epath.PathLike) -> epath.Path:
  """Creates a workdir where there is none, and takes its lock.

  Args:
    path: the folder, also in an object store (`gs://bucket/run`).

  Returns:
    The folder, absolute; every process gets process 0's.

  Raises:
    WorkdirError: it cannot be made, or not all processes see the same.
    LockedError: another run works in it.
  """

  def create():
    found = storage.resolve(path)
    try:
      found.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise WorkdirError(_unwritable(found, error)) from error
    _take_lock(found)
    return str(found)

  path = storage.resolve(distributed.on_lead(create))
  if jax.process_count() > 1:
    _check_shared(path)
  return path


def claim(path: epath.PathLike) -> None:
  """Takes the lock of a workdir that exists, before anything long begins.

  Raises:
    LockedError: another run works in it.
  """

  def take():
    found = storage.resolve(path)
    if found.is_dir():
      _take_lock(found)

  distributed.on_lead(take)


def _take_lock(path: epath.Path) -> None:
  _why_unwritable.pop(str(path), None)
  try:
    lock.take(path)
  except OSError as error:  # a finished run may lie on a read-only disk
    _why_unwritable[str(path)] = error


# By workdir, on process 0.
_why_unwritable: dict[str, OSError] = {}


def writable(path: epath.Path) -> bool:
  """Whether this run may write to a workdir that it opened."""
  return distributed.on_lead(lambda: str(path) not in _why_unwritable)


def unwritable(path: epath.Path) -> 'WorkdirError':
  """The error of a workdir in which this run may not write, on process 0."""
  return WorkdirError(_unwritable(path, _why_unwritable[str(path)]))


def read_summary(path: epath.Path) -> dict[str, Any] | None:
  """The summary.json of a workdir; None where there is none that is whole."""
  file = path / 'summary.json'
  try:
    found = json.loads(file.read_bytes())
  except FileNotFoundError:
    return None
  except (OSError, ValueError) as error:
    logging.warning('%s is damaged (%s): it will be rewritten', file, error)
    return None
  return found if isinstance(found, dict) else None


def _check_shared(path: epath.Path) -> None:
  """Whether a file that process 0 writes is there for all."""
  mark = path / f'.shared_{distributed.on_lead(os.getpid)}'
  distributed.on_lead(lambda: mark.write_text(''))
  deadline = time.monotonic() + SHARED_SECONDS
  while not (seen := mark.exists()) and time.monotonic() < deadline:
    time.sleep(0.5)  # network file systems take a moment
  blind = [
    f'{index} on {host}'
    for index, (host, sees) in enumerate(
      distributed.gather((platform.node(), seen))
    )
    if not sees
  ]
  distributed.on_lead(mark.unlink)
  if blind:
    raise WorkdirError(
      f'the workdir {path} is not shared: processes {", ".join(blind)} do not '
      'see what process 0 writes; choose a --workdir on storage that all share'
    )


def record(path: epath.Path, config: Any, *, finished: bool = False) -> bool:
  """Writes config.json and environment.json, once the run is known to fit.

  Args:
    path: the workdir.
    config: of the run.
    finished: whether nothing is left to do, so that the workdir may be one in
      which this run may not write.

  Returns:
    Whether it wrote them.

  Raises:
    WorkdirError: the folder cannot be written.
  """

  def write():
    try:
      if error := _why_unwritable.get(str(path)):
        raise error
      failures.keep_in(path)
      write_json(path / 'config.json', _plain(config))
      write_json(path / 'environment.json', environment())
    except OSError as error:
      raise WorkdirError(_unwritable(path, error)) from error

  if finished and not writable(path):
    return False
  distributed.on_lead(write)
  return True


def _unwritable(path: epath.Path, error: OSError) -> str:
  return (
    f'cannot write to the workdir {path}: {error}; choose another --workdir'
  )


def _plain(config: Any) -> Any:
  return json.loads(config.to_json_best_effort())


def check_config(workdir: epath.Path, config: Any) -> None:
  """Whether a workdir with checkpoints belongs to this config.

  Args:
    workdir: the folder.
    config: the resolved `ConfigDict`; what changes no trained parameter
      (`FREE`) does not count in the comparison, and `config.resume='force'`
      accepts any difference.

  Raises:
    WorkdirError: another config, or one that cannot be read.
  """
  distributed.on_lead(lambda: _check_config(workdir, config))


def _check_config(workdir: epath.Path, config: Any) -> None:
  path = workdir / 'config.json'
  if not path.exists():
    return
  try:
    old = json.loads(path.read_bytes())
    if not isinstance(old, dict):
      raise ValueError(f'a {type(old).__name__}, not an object')
  except (OSError, ValueError, RecursionError) as error:
    raise WorkdirError(
      f'{path} is not readable JSON ({error}); restore it, or move it away to '
      'continue with the config of this command'
    ) from error
  old = dict(leaves(old))
  new = dict(leaves(_plain(config)))
  old = ADDED | old
  differ = [
    name
    for name in sorted(old.keys() | new.keys())
    if old.get(name) != (ADDED | new).get(name)
  ]
  free = [name for name in differ if is_free(name) and name != 'resume']
  changed = [
    f'{name}: {old.get(name, "absent")} there, {new.get(name, "absent")} now'
    for name in differ
    if not is_free(name)
  ]
  if changed and config.resume != 'force':
    raise WorkdirError(
      f'{workdir} holds a run with another config ({"; ".join(changed)}); '
      "choose another --workdir, or continue it with --config.resume='force'"
    )
  if changed:
    logging.warning('resumed with another config: %s', '; '.join(changed))
  for name in free:
    screen.say(
      f'config.{name}: {old.get(name, "absent")} until now, from now on '
      f'{new.get(name, "absent")}'
    )


def is_free(name: str) -> bool:
  """Whether a field, with dots, may differ when a run continues."""
  parts = name.split('.')
  return any('.'.join(parts[: i + 1]) in FREE for i in range(len(parts)))


def check_data(
  workdir: epath.Path, config: Any, then: str | None, now: str | None
) -> None:
  """Whether a run continues with the data that it began with.

  Args:
    workdir: the folder.
    config: its `resume` 'force' accepts other data.
    then: what the data were known by at the checkpoint; None if not known.
    now: what they are known by.

  Raises:
    WorkdirError: other data.
  """
  if None in (then, now) or then == now:
    return
  if fingerprint.same(then, now):
    if fingerprint.changed_times(then, now):
      logging.warning(
        '%s: the files of the training data have other time stamps than when '
        'the run began; their names, sizes and what is read of them are the '
        'same, so the run continues',
        workdir,
      )
    return
  message = (
    f'{workdir} holds a run on other training data: '
    f'{fingerprint.difference(then, now)} differ ({then}; now {now})'
  )
  if config.resume != 'force':
    raise WorkdirError(
      f'{message}: the order of images and the epochs would differ; bring the '
      'data back, choose another --workdir, or continue with '
      "--config.resume='force'"
    )
  logging.warning('%s: continued with the present data', message)
