"""From a config to a step, on images that are made up."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from input_pipeline.arrays import Arrays
from input_pipeline.resident import Resident
from input_pipeline.views import View
from pretrain.methods import from_config
from training import sharding
from training.protocols import Method
from training.step import Run

INPUTS = ('resident', 'views')
# A speed does not depend on the length of the run.
TOTAL_STEPS, EPOCHS = 1000, 100


@dataclasses.dataclass(frozen=True)
class ReadyViews:
  """Views that are already on the device: the step without its augmentation.

  Attributes:
    views: float32 [b, h, w, c] in [0, 1] by name.
  """

  views: Mapping[str, Any]

  @property
  def spec(self) -> Mapping[str, Any]:
    """Shapes, dtypes and shardings of what `batch` returns."""
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      self.views,
    )

  def batch(self, step: int) -> Mapping[str, Any]:
    """The same views at every step."""
    del step
    return self.views

  def render(self, batch, rng) -> dict[str, Any]:
    """The batch as it is."""
    del rng
    return dict(batch)

  def indices(self, step: int) -> np.ndarray:
    """Row numbers: there is no data set."""
    del step
    return np.arange(len(next(iter(self.views.values()))))


def variants(
  config: ml_collections.ConfigDict,
) -> dict[str, ml_collections.ConfigDict]:
  """What to compare: the base, and RePre on it where the config has it."""
  base = ml_collections.ConfigDict(config.to_dict())
  if not config.method.get('repre'):
    return dict(base=base)
  with base.unlocked():
    base.method.repre = None
  return {'base': base, '+RePre': config}


def make(config: ml_collections.ConfigDict, **fields: Any) -> Method:
  """The method of a config.

  Args:
    config: see `configs/common.py`.
    **fields: fields of the encoder that differ from the config's.

  Returns:
    The method, with schedules of `TOTAL_STEPS`.
  """
  return from_config(
    config,
    channels=1 if config.data.get('gray') else 3,
    steps_per_epoch=TOTAL_STEPS // EPOCHS,
    total=TOTAL_STEPS,
    **fields,
  )


def view_shapes(
  config: ml_collections.ConfigDict, channels: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of a batch of views, [b, h, w, c] float32 by name."""
  shapes = {}
  for name, view in _views(config).items():
    shape = (config.batch_size, *view.size, channels)
    shapes[name] = jax.ShapeDtypeStruct(shape, jnp.float32)
  return shapes


def make_run(
  config: ml_collections.ConfigDict, *, given: str, **fields: Any
) -> Run:
  """A step with its data on the devices.

  Args:
    config: see `configs/common.py`.
    given: what a step begins with: 'resident', uint8 images that it gathers,
      crops and augments as the config says; or 'views', ready float images.
    **fields: fields of the encoder that differ from the config's.

  Returns:
    The run.
  """
  mesh = sharding.make_mesh(config.fsdp)
  method = make(config, **fields)
  channels = method.encoder.in_channels
  rng = np.random.default_rng(0)
  placed = (sharding.over_batch(mesh), sharding.replicated(mesh))
  if given == 'resident':
    side = config.data.image_size
    shape = (2 * config.batch_size, side, side, channels)
    images = rng.integers(0, 256, shape, np.uint8)
    data = Resident(
      Arrays(name='noise', images=images),
      _views(config),
      batch_size=config.batch_size,
      seed=config.seed,
      shardings=placed,
    )
  else:
    data = ReadyViews(
      {
        name: jax.device_put(rng.random(like.shape, np.float32), placed[0])
        for name, like in view_shapes(config, channels).items()
      }
    )
  return Run(config, mesh=mesh, method=method, data=data)


def _views(config: ml_collections.ConfigDict) -> dict[str, View]:
  size = config.data.image_size
  return {n: View(**{'size': size, **v}) for n, v in config.views.items()}
