"""From a config to what its step costs, and what it runs on."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from input_pipeline import machine
from input_pipeline.views import View
from pretrain.footprint import Footprint, footprint
from pretrain.methods import from_config
from pretrain.sizing import Device

MOMENTS = dict(adamw=2, sgd=1, lars=1)  # of the optimisers


def device_of(mesh: Mesh) -> Device:
  """The devices of this run, as `sizing` counts them."""
  cpu = jax.default_backend() == 'cpu'
  return Device(
    memory=machine.device_memory(),
    count=mesh.size,
    cores=machine.cores() * jax.process_count() if cpu else 0.0,
  )


def cost_of(
  config: Any, *, channels: int, method: Any = None, shapes: Any = None
) -> Footprint:
  """Estimates a step of a config without open fields.

  Args:
    config: of the run.
    channels: of the images.
    method: of the config; None: it is built, which checks its fields.
    shapes: of its params and method_state; None: from `method.init`.
  """
  views = view_sizes(config)
  if method is None:
    method = from_config(config, channels=channels, steps_per_epoch=1, total=1)
  params, state = shapes or init_shapes(
    method, views, channels=channels, batch=config.batch_size
  )
  beside = config.method.get('masked') or {}
  ratio = beside.get('mask_ratio', config.method.get('mask_ratio', 0.0))
  return footprint(
    method,
    views,
    channels=channels,
    parameters=_bytes(params),
    method_state=_bytes(state),
    moments=MOMENTS.get(config.optim.name, 2),
    visible=1.0 - ratio,
  )


def view_sizes(config: Any) -> dict[str, tuple[int, int]]:
  """(height, width) in pixels of each view of a config, by name."""
  size = config.data.image_size
  return {
    name: View(**{'size': size, **view}).size
    for name, view in config.views.items()
  }


def init_shapes(
  method: Any,
  views: Mapping[str, tuple[int, int]],
  *,
  channels: int,
  batch: int,
) -> tuple[Any, Any]:
  """Shapes of a method's params and state; nothing is computed.

  Raises:
    ValueError: what the method cannot work on: views, patches, queues, words.
  """
  images = {
    name: jax.ShapeDtypeStruct((batch, *size, channels), jnp.float32)
    for name, size in views.items()
  }
  images['label'] = jax.ShapeDtypeStruct((batch,), jnp.int32)
  return jax.eval_shape(method.init, jax.random.key(0), images)


def _bytes(tree: Any) -> int:
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
