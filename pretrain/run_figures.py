"""What the method of a run draws, from its config and checkpoint alone."""

from typing import Any

import jax
import ml_collections
import numpy as np
from flax import traverse_util

from pretrain.figures import in_windows
from pretrain.methods import from_config
from training.fields import teachers_in
from training.state import Figure
from training.warm_start import load_params


def run_figures(run: Any, images: np.ndarray, dtype: str) -> dict[str, Figure]:
  """Figures of a run's method, for images that it need not have seen.

  Args:
    run: has `config`, that of the run, and `where`, a workdir or checkpoint.
    images: float32 [n, h, w, c] in [0, 1]; where they are some times as large
      as those of the run, they are shown to it through windows.
    dtype: compute dtype.

  Returns:
    {name: Figure of host arrays}; empty where the method draws nothing,
    and for runs of other tasks.

  Raises:
    CheckpointError: no checkpoint there, or a damaged one.
  """
  config = ml_collections.ConfigDict(_tuples(run.config))
  if config.task != 'pretrain':
    return {}
  config.dtype, config.chunks = dtype, 1
  # Schedules are not asked: any length of the run will do.
  method = from_config(
    config, channels=images.shape[-1], steps_per_epoch=1, total=10**9
  )
  params, state = _loaded(run.where), {}
  _, teachers = teachers_in(config.method)
  if any(teacher.encoder for teacher in teachers.values()):
    state = dict(teachers=_loaded(run.where, which='teachers'))
  figures, side = method.figures, config.data.image_size
  if any(size > side for size in images.shape[1:3]) and not any(
    size % side for size in images.shape[1:3]
  ):
    figures = in_windows(figures, (side, side))
  batch = dict.fromkeys(config.views, images)
  return jax.device_get(jax.jit(figures)(params, state, batch))


def _loaded(where: Any, **which: str) -> Any:
  """Nested arrays of a checkpoint."""
  return traverse_util.unflatten_dict(load_params(where, **which), sep='/')


def _tuples(value: Any) -> Any:
  """JSON has no tuples, and modules cannot hold lists."""
  if isinstance(value, dict):
    return {name: _tuples(inner) for name, inner in value.items()}
  if isinstance(value, list):
    return tuple(_tuples(inner) for inner in value)
  return value
