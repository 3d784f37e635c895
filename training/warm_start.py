"""Starting from the parameters of another run."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from training import distributed, screen, storage, verified
from training.checkpoint import CheckpointError, Checkpoints, check_same_leaves
from training.missing import check_folder
from training.state import named_leaves, path_name

# Where a checkpoint keeps them.
HEADS = dict(
  student='params/',
  teacher='method_state/teacher/',
  teachers='method_state/teachers/',
)
# Stands among an encoder's parameters, and belongs to the task that hides
# patches (SimMIM): whole images never meet it.
TASKS_OWN = 'encoder/mask_token/'


def load_params(
  path: epath.PathLike, *, which: str = 'student'
) -> dict[str, np.ndarray]:
  """The parameters of a run, verified, without building its method.

  Args:
    path: a workdir (its newest intact checkpoint) or one `checkpoints/STEP`.
    which: 'student', 'teacher' for those of a moving teacher, or 'teachers' for
      those of frozen ones, by name.

  Returns:
    {parameter path: array}, for example `encoder/block_0/mlp/fc1/kernel`.

  Raises:
    CheckpointError: no checkpoint there, a damaged one, or one without a
      teacher.
  """
  if which not in HEADS:
    raise ValueError(f'which={which!r} must be one of {", ".join(HEADS)}')
  path = storage.resolve(path)
  check_folder(path)
  folders = [path]
  if not distributed.on_lead((path / 'meta').exists):
    steps = Checkpoints(path).steps()
    folders = [path / 'checkpoints' / str(step) for step in reversed(steps)]
  if not folders:
    raise CheckpointError(
      f'{path} is neither a workdir with checkpoints nor a checkpoint'
    )
  for folder in folders:
    try:
      return _read_params(folder, which)
    except verified.DamagedError as error:
      logging.warning('%s is damaged (%s)', folder, error)
  raise CheckpointError(f'{path} is damaged: no checkpoint there is intact')


def _read_params(path: epath.Path, which: str) -> dict[str, np.ndarray]:
  head = HEADS[which]
  record = verified.read_meta(path)['leaves']
  # Saved on any number of devices, read onto one and handed over as NumPy.
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  wanted = {
    name: jax.ShapeDtypeStruct(
      tuple(leaf['shape']), leaf['dtype'], sharding=here
    )
    for name, leaf in record.items()
  }
  if not any(name.startswith(head) for name in record):
    raise CheckpointError(f'{path} has no {which}: its method keeps none')
  leaves = jax.device_get(verified.read_leaves(path, wanted, record))
  return {
    name.removeprefix(head): leaf
    for name, leaf in leaves.items()
    if name.startswith(head)
  }


def check_fits(
  found: Mapping[str, np.ndarray], params: Any, *, what: str
) -> None:
  """Raises where a method cannot start from another run's encoder.

  Args:
    found: {parameter path: array} of the other run.
    params: the parameters of this method, or their shapes.
    what: names the other run in messages.

  Raises:
    CheckpointError: another encoder; lists missing, unexpected and mis-shaped
      names.
  """
  wanted = named_leaves(params)

  def encoder(leaves):
    return {
      name: leaf
      for name, leaf in leaves.items()
      if name.startswith('encoder/') and not name.startswith(TASKS_OWN)
    }

  # Only shapes matter: weights kept in half precision become float32.
  records = {
    name: dict(shape=leaf.shape, dtype=jnp.float32)
    for name, leaf in encoder(found).items()
  }
  check_same_leaves(encoder(wanted), records, what=what)


def matching(
  found: Mapping[str, np.ndarray], params: Any, *, what: str
) -> dict[str, np.ndarray]:
  """Selects the parameters that another method can start from.

  The encoder must fit as a whole; heads, decoders and a mask token are taken
  where name and shape agree, and what is not taken is logged.

  Args:
    found: {parameter path: array} of the other run.
    params: the parameters of this method, or their shapes.
    what: names the other run in messages.

  Returns:
    {parameter path: array}, a part of `found`.

  Raises:
    CheckpointError: see `check_fits`.
  """
  check_fits(found, params, what=what)
  wanted = named_leaves(params)
  taken = {
    name: leaf
    for name, leaf in found.items()
    if name in wanted and leaf.shape == wanted[name].shape
  }
  fresh = sorted(wanted.keys() - taken.keys())
  unused = sorted(found.keys() - taken.keys())
  lines = [f'start: {len(taken)} of {len(found)} arrays of {what}']
  for words, names in (('start fresh', fresh), ('not used', unused)):
    if names:
      lines.append(f'  {words}: {_by_part(names)}')
  screen.say('\n'.join(lines))
  return taken


def _by_part(names: Sequence[str], most: int = 5) -> str:
  """'decoder (20), head (2)': how many arrays each part of a model has."""
  parts = [name.partition('/')[0] for name in names]
  counts = {part: parts.count(part) for part in parts}
  words = [f'{part} ({count})' for part, count in counts.items()]
  return verified.some(words, most)


def given(params: Any, initial: Mapping[str, jax.Array] | None) -> Any:
  """Replaces freshly drawn parameters by given ones of the same path.

  Args:
    params: a pytree.
    initial: {path: array}; shapes were checked by the caller. None or a path
      that is absent keeps the drawn value.

  Returns:
    The pytree.
  """
  initial = initial or {}

  def pick(path, drawn):
    # Weights may be kept in half precision; parameters are float32.
    return jnp.asarray(initial.get(path_name(path), drawn), drawn.dtype)

  return jax.tree_util.tree_map_with_path(pick, params)
