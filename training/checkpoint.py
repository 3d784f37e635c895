"""Checkpoints: Orbax for the arrays, a checksum per leaf, and fallback.

Orbax notices broken metadata but not a flipped bit inside an array, so every
checkpoint carries a checksum of every leaf, taken on the devices before it is
written and compared after it is read.
"""

import contextlib
import json
import logging as python_logging
import sys
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from flax import traverse_util

from training.checksum import checksums
from training.state import named_leaves


class CheckpointError(ValueError):
  """A checkpoint that cannot be used, told in one line."""


def describe(tree: Any) -> dict[str, dict[str, Any]]:
  """{leaf path: shape, dtype and checksum}, plain data for JSON."""
  leaves = named_leaves(tree)
  sums = checksums(leaves)
  return {
    name: dict(shape=list(x.shape), dtype=str(x.dtype), checksum=sums[name])
    for name, x in leaves.items()
  }


def check_same_leaves(wanted: Mapping, found: Mapping, *, what: str) -> None:
  """Compares names and shapes of two trees.

  Args:
    wanted: {path: leaf with a shape} of this run.
    found: {path: dict with 'shape'} of the checkpoint.
    what: names the checkpoint in the message.

  Raises:
    CheckpointError: lists missing, unexpected and mis-shaped names.
  """
  missing = sorted(wanted.keys() - found.keys())
  unexpected = sorted(found.keys() - wanted.keys())
  shapes = [
    f'{name} is {tuple(found[name]["shape"])} here {tuple(leaf.shape)}'
    for name, leaf in wanted.items()
    if name in found and tuple(found[name]['shape']) != tuple(leaf.shape)
  ]
  if missing or unexpected or shapes:
    raise CheckpointError(
      f'{what} holds another architecture or method; '
      f'missing: {_some(missing)}; unexpected: {_some(unexpected)}; '
      f'mis-shaped: {_some(shapes)}'
    )


def _some(names: list[str], most: int = 8) -> str:
  more = f' and {len(names) - most} more' if len(names) > most else ''
  return ', '.join(names[:most]) + more if names else 'none'


class Checkpoints:
  """The folder `checkpoints/` of a workdir.

  Args:
    workdir: the run's folder.
    keep: how many of the newest checkpoints stay.
  """

  def __init__(self, workdir: epath.PathLike, *, keep: int = 3):
    self.workdir = epath.Path(workdir)
    self.path = self.workdir / 'checkpoints'
    self._keep = keep
    self._manager = None

  def _open(self) -> ocp.CheckpointManager:
    if self._manager is None:
      self._manager = ocp.CheckpointManager(
        self.path,
        options=ocp.CheckpointManagerOptions(
          max_to_keep=self._keep, create=True, cleanup_tmp_directories=True
        ),
        item_names=('state', 'meta'),
      )
    return self._manager

  def steps(self) -> list[int]:
    """Steps that have a finished checkpoint, oldest first."""
    return sorted(self._open().all_steps()) if self.path.exists() else []

  def save(self, state: Any, *, step: int, meta: Mapping[str, Any]) -> None:
    """Writes in the background; a later call or `close` waits for it.

    Args:
      state: a pytree of arrays.
      step: names the checkpoint.
      meta: plain data kept beside it.

    Raises:
      CheckpointError: the disk is full or the folder not writable.
    """
    leaves = named_leaves(state)
    record = dict(meta, step=step, leaves=describe(state))
    try:
      self._open().save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(_nest(leaves)),
          meta=ocp.args.JsonSave(dict(record=record, crc=_crc(record))),
        ),
        force=True,
      )
    except OSError as error:
      raise CheckpointError(_unwritable(self.path, error)) from error

  def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
    """The newest intact checkpoint.

    A damaged one is named in a warning and moved to `damaged/STEP`, and the
    one before it is tried. Nothing is deleted.

    Args:
      like: a pytree of `ShapeDtypeStruct`s with shardings.

    Returns:
      (state, meta), or None where there is no checkpoint yet.

    Raises:
      CheckpointError: another architecture, or no checkpoint is intact.
    """
    steps = self.steps()
    for step in reversed(steps):
      try:
        return self._read(step, like)
      except _Damaged as error:
        self._set_aside(step, error)
    if steps:
      raise CheckpointError(
        f'none of the checkpoints {steps} in {self.path} is intact; they were '
        f'moved to {self.workdir / "damaged"}; start again to train from '
        f'scratch'
      )
    return None

  def _read(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
    wanted = named_leaves(like)
    meta = _read_meta(self.path / str(step))
    what = f'{self.path / str(step)}'
    check_same_leaves(wanted, meta['leaves'], what=what)
    leaves = _read_leaves(self.path / str(step), wanted)
    _verify(leaves, meta['leaves'])
    state = jax.tree.unflatten(
      jax.tree.structure(like), [leaves[name] for name in wanted]
    )
    return state, meta

  def _set_aside(self, step: int, error: Exception) -> None:
    target = self.workdir / 'damaged' / str(step)
    while target.exists():
      target = target.parent / f'{target.name}_again'
    logging.warning(
      'Checkpoint %d is damaged (%s); it is moved to %s and the one before it '
      'is used.',
      step,
      error,
      target,
    )
    self.close()
    if jax.process_index() == 0:
      target.parent.mkdir(parents=True, exist_ok=True)
      (self.path / str(step)).rename(target)
    ocp.utils.sync_global_processes(f'set_aside_{step}')

  def wait(self) -> None:
    """Waits until the last `save` is on disk.

    Raises:
      CheckpointError: writing failed.
    """
    if self._manager is not None:
      try:
        self._manager.wait_until_finished()
        self._manager.check_for_errors()
      except OSError as error:
        raise CheckpointError(_unwritable(self.path, error)) from error

  def close(self) -> None:
    """Waits for writing to end and lets go of the folder."""
    if self._manager is not None:
      self.wait()
      self._manager.close()
      self._manager = None


class _Damaged(Exception):
  """Why a checkpoint cannot be trusted."""


def load_params(path: epath.PathLike) -> dict[str, jax.Array]:
  """The parameters of a run, verified, without building its method.

  Args:
    path: a workdir (its newest checkpoint) or one `checkpoints/STEP` folder.

  Returns:
    {parameter path: array}, for example `encoder/block_0/mlp/fc1/kernel`.

  Raises:
    CheckpointError: no checkpoint there, or a damaged one.
  """
  path = epath.Path(path)
  if not (path / 'meta').exists():
    steps = Checkpoints(path).steps()
    if not steps:
      raise CheckpointError(
        f'{path} is neither a workdir with checkpoints nor a checkpoint'
      )
    path = path / 'checkpoints' / str(steps[-1])
  try:
    meta = _read_meta(path)
    wanted = {
      name: jax.ShapeDtypeStruct(tuple(leaf['shape']), leaf['dtype'])
      for name, leaf in meta['leaves'].items()
    }
    leaves = _read_leaves(path, wanted)
    _verify(leaves, meta['leaves'])
  except _Damaged as error:
    raise CheckpointError(f'{path} is damaged: {error}') from error
  head = 'params/'
  return {k[len(head) :]: v for k, v in leaves.items() if k.startswith(head)}


def _nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """Plain nested dicts: files that any Orbax reader understands."""
  return traverse_util.unflatten_dict(dict(leaves), sep='/')


def _crc(record: Mapping[str, Any]) -> int:
  return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _read_meta(path: epath.Path) -> dict[str, Any]:
  try:
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
      meta = reader.restore(path / 'meta')
    intact = meta['crc'] == _crc(meta['record'])
  except Exception as error:  # any byte of it may be broken, in any way
    raise _Damaged(f'unreadable metadata: {_line(error)}') from error
  if not intact or meta['record']['step'] != int(path.name):
    raise _Damaged('its metadata was changed')
  return meta['record']


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """One damaged file makes asyncio print pages, once per array."""
  logger, hook = python_logging.getLogger('asyncio'), sys.unraisablehook
  level = logger.level
  logger.setLevel(python_logging.CRITICAL + 1)
  sys.unraisablehook = lambda unraisable: None
  try:
    yield
  finally:
    logger.setLevel(level)
    sys.unraisablehook = hook


def _read_leaves(path: epath.Path, wanted: Mapping) -> dict[str, jax.Array]:
  try:
    with _quiet(), ocp.StandardCheckpointer() as reader:
      tree = reader.restore(path / 'state', _nest(wanted))
  except Exception as error:  # likewise; architecture was compared before
    raise _Damaged(f'unreadable arrays: {_line(error)}') from error
  return traverse_util.flatten_dict(tree, sep='/')


def _verify(leaves: Mapping[str, jax.Array], record: Mapping) -> None:
  found = checksums(leaves)
  wrong = [n for n in leaves if found[n] != record[n]['checksum']]
  if wrong:
    raise _Damaged(f'checksums differ for {_some(wrong)}')


def _line(error: Exception) -> str:
  text = str(error).strip().split('\n')[0]
  return f'{type(error).__name__}: {text[:200]}'


def _unwritable(path: epath.Path, error: Exception) -> str:
  return (
    f'cannot write a checkpoint to {path}: {_line(error)}; free space or '
    'choose another --workdir; the last good checkpoint stays'
  )
