"""Checkpoints: Orbax for the arrays, a checksum per leaf, and fallback.

Orbax notices broken metadata but not a flipped bit inside an array, so every
checkpoint carries a checksum of every leaf, taken on the devices before it is
written and compared after it is read.
"""

import functools
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from training import distributed, storage, verified
from training.state import named_leaves


class CheckpointError(ValueError):
  """A checkpoint that cannot be used, told in one line."""


def _kind(shape, dtype, **unused) -> str:
  del unused
  return f'{jnp.dtype(dtype).name}{list(shape)}'


def check_same_leaves(wanted: Mapping, found: Mapping, *, what: str) -> None:
  """Compares names, shapes and dtypes of two trees.

  Args:
    wanted: {path: leaf with shape and dtype} of this run.
    found: {path: dict with 'shape' and 'dtype'} of the checkpoint.
    what: names the checkpoint in the message.

  Raises:
    CheckpointError: lists missing, unexpected and mis-shaped names.
  """
  missing = sorted(wanted.keys() - found.keys())
  unexpected = sorted(found.keys() - wanted.keys())
  both = sorted(wanted.keys() & found.keys())
  kinds = {
    name: (_kind(**found[name]), _kind(wanted[name].shape, wanted[name].dtype))
    for name in both
  }
  shapes = [
    f'{name} is {there} there, {here} here'
    for name, (there, here) in kinds.items()
    if there != here
  ]
  if missing or unexpected or shapes:
    raise CheckpointError(
      f'{what} holds another architecture or method; '
      f'missing: {verified.some(missing)}; '
      f'unexpected: {verified.some(unexpected)}; '
      f'mis-shaped: {verified.some(shapes)}'
    )


class Checkpoints:
  """The folder `checkpoints/` of a workdir.

  Args:
    workdir: the run's folder.
    keep: how many of the newest checkpoints stay.
  """

  def __init__(self, workdir: epath.PathLike, *, keep: int = 3):
    self.workdir = storage.resolve(workdir)
    self.path = self.workdir / 'checkpoints'
    self._keep = keep
    self._manager = None

  def _open(self) -> ocp.CheckpointManager:
    if self._manager is None:
      self._manager = ocp.CheckpointManager(
        self.path,
        options=ocp.CheckpointManagerOptions(
          max_to_keep=self._keep,
          create=True,
          cleanup_tmp_directories=True,
          # Shared file systems may show other processes an older folder.
          single_host_load_and_broadcast=jax.process_count() > 1,
        ),
        item_names=('state', 'meta'),
      )
    return self._manager

  def steps(self) -> list[int]:
    """Steps that have a finished checkpoint, oldest first.

    Every process gets process 0's answer.
    """
    return distributed.on_lead(self._steps)

  def _steps(self) -> list[int]:
    # Asked of the folder: a manager would clean up what it takes for left over,
    # and another process may be writing there.
    if not self.path.is_dir():
      self._check_absent()
      return []
    found = set(ocp.utils.checkpoint_steps(self.path))
    if not storage.is_remote(self.path):
      # A link whose target is not there, or a file, is no checkpoint to Orbax;
      # here it is a damaged one, so that it is named and out of the way.
      names = [p.name for p in self.path.iterdir() if not p.is_dir()]
      found |= {int(n) for n in names if n.isdecimal() and str(int(n)) == n}
    return sorted(found)

  def _check_absent(self) -> None:
    """Raises CheckpointError where something hides the folder.

    A run that began again here would take another's place.
    """
    if storage.is_remote(self.path) or not os.path.lexists(self.path):
      return
    what = 'is no folder'
    if os.path.islink(self.path):
      what = f'is a link to {os.readlink(self.path)}, which is not there'
    raise CheckpointError(
      f'{self.path} {what}; bring the checkpoints back, or move it away to '
      'train from scratch'
    )

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
    record = dict(meta, step=step, leaves=verified.describe(leaves))
    try:
      self._open().save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(verified.nest(leaves)),
          meta=ocp.args.JsonSave(verified.seal(record)),
        ),
        force=True,
      )
    except Exception as error:  # OSError, or what tensorstore makes of it
      raise CheckpointError(_unwritable(self.path, error)) from error

  def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
    """The newest intact checkpoint.

    Where it is not the newest, the damaged ones after it are named in warnings
    and moved to `damaged/STEP`. Nothing is deleted, and nothing is moved unless
    an intact one was found: what cannot be read may be whole on another day.

    Args:
      like: a pytree of `ShapeDtypeStruct`s with shardings.

    Returns:
      (state, meta), or None where there is no checkpoint yet.

    Raises:
      CheckpointError: another architecture, or no checkpoint is intact.
    """
    steps, damaged = self.steps(), {}
    for step in reversed(steps):
      try:
        found = self._read(step, like)
      except verified.DamagedError as error:
        damaged[step] = error
        logging.warning('Checkpoint %d is damaged (%s).', step, error)
      else:
        for later in damaged:
          distributed.on_lead(functools.partial(self._set_aside, later))
        return found
    if steps:
      raise CheckpointError(
        f'none of the checkpoints {steps} in {self.path} is intact; move the '
        'folder away to train from scratch'
      )
    return None

  def _read(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
    path = self.path / str(step)
    wanted = named_leaves(like)
    meta = verified.read_meta(path)
    check_same_leaves(wanted, meta['leaves'], what=str(path))
    leaves = verified.read_leaves(path, wanted, meta['leaves'])
    state = jax.tree.unflatten(
      jax.tree.structure(like), [leaves[name] for name in wanted]
    )
    return state, meta

  def _set_aside(self, step: int) -> None:
    target = self.workdir / 'damaged' / str(step)
    while target.exists() or os.path.lexists(target):
      target = target.parent / f'{target.name}_again'
    logging.warning(
      'Checkpoint %d is moved to %s; the one before it is used.', step, target
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    (self.path / str(step)).rename(target)

  def wait(self) -> None:
    """Waits until the last `save` is on disk.

    Raises:
      CheckpointError: writing failed.
    """
    if self._manager is not None:
      try:
        self._manager.wait_until_finished()
        self._manager.check_for_errors()
      except Exception as error:  # OSError, or what tensorstore makes of it
        raise CheckpointError(_unwritable(self.path, error)) from error

  def close(self) -> None:
    """Waits for writing to end and lets go of the folder."""
    if self._manager is not None:
      self.wait()
      self._manager.close()
      self._manager = None


def _unwritable(path: epath.Path, error: Exception) -> str:
  return (
    f'cannot write a checkpoint to {path}: {verified.one_line(error)}; free '
    'space or choose another --workdir; the last good checkpoint stays'
  )
