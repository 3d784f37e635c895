"""A small data set that lives on the device, cropped and augmented there.

The images are put there once; a step receives nothing but the indices of its
batch. No host work, no TensorFlow.
"""

import math
from collections.abc import Mapping

import jax
import numpy as np

from input_pipeline import order
from input_pipeline.arrays import Arrays
from input_pipeline.augment import augment, row_keys
from input_pipeline.views import View, check_views


class Resident:
  """Training batches from arrays on the device.

  Attributes:
    source: the data set on the host.
    views: the views by name; their order numbers the keys of the augmentation.
    batch_size: global batch size.
    seed: of the order.
    repeats: see `order.batch_indices`.
    size: number of examples.
    steps_per_epoch: whole batches in an epoch; the remainder is dropped.
  """

  def __init__(
    self,
    arrays: Arrays,
    views: Mapping[str, View],
    *,
    batch_size: int,
    seed: int,
    repeats: int = 1,
    shardings: tuple[jax.sharding.Sharding, jax.sharding.Sharding]
    | None = None,
  ):
    """Checks everything and puts the data on the device.

    Args:
      arrays: the data set; every process passes the same.
      views: a `View` by name.
      batch_size: global batch size.
      seed: of the order.
      repeats: see `order.batch_indices`.
      shardings: (of [b] arrays over the batch, of the replicated data set);
        None for the default device.

    Raises:
      ValueError: no views, a reserved name, a crop below one pixel, a batch
        larger than the data set.
    """
    self.source, self.views = arrays, dict(views)
    self.batch_size, self.seed, self.size = batch_size, seed, len(arrays)
    self.repeats = repeats
    self.steps_per_epoch = order.steps_per_epoch(
      size=self.size, batch_size=batch_size
    )
    _check_views(self.views, arrays)
    batch_sharding, data_sharding = shardings or (None, None)
    self._batch_sharding = batch_sharding
    self._constant = {
      'images': _put(arrays.images, data_sharding),
      'row': _put(np.arange(batch_size, dtype=np.int32), batch_sharding),
    }
    if arrays.labels is not None:
      self._constant['labels'] = _put(arrays.labels, data_sharding)
    if arrays.replaced is not None:
      replaced = arrays.replaced.astype(np.int32)
      self._constant['replaced'] = _put(replaced, data_sharding)

  @property
  def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of what `batch` returns."""
    like = self._constant | {'index': self._constant['row']}
    return {
      name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
      for name, x in like.items()
    }

  def indices(self, step: int) -> np.ndarray:
    """The examples of a step, on the host.

    Args:
      step: training step, from 0.

    Returns:
      int64 [batch_size], indices into the data set.
    """
    return order.batch_indices(
      step,
      size=self.size,
      batch_size=self.batch_size,
      seed=self.seed,
      repeats=self.repeats,
    )

  def batch(self, step: int) -> dict[str, jax.Array]:
    """What the jitted step receives.

    Args:
      step: training step, from 0.

    Returns:
      'index' int32 [b] and 'row' int32 [b] (place in the global batch), both
      sharded; 'images' uint8 [n, h, w, c] and, if there are any, 'labels' and
      'replaced' int32 [n]: the whole data set, by reference.
    """
    index = _put(self.indices(step).astype(np.int32), self._batch_sharding)
    return self._constant | {'index': index}

  def close(self) -> None:
    """Nothing to end; see `Stream.close`."""

  def render(
    self, batch: Mapping[str, jax.Array], rng: jax.Array
  ) -> dict[str, jax.Array]:
    """Gathers and augments the images of a batch; pure, for use inside jit.

    An image's key is folded from `rng`, the number of the view and the global
    row, so the result does not depend on how rows are spread over devices.

    Args:
      batch: from `batch`.
      rng: typed PRNG key of the step.

    Returns:
      Each view by name, float32 [b, *size, c] in [0, 1]; 'index' int32 [b]; if
      there are any, 'label' and 'replaced' (1 for another image than the one
      meant, which cannot be read) int32 [b].
    """
    index, row = batch['index'], batch['row']
    images = batch['images'].at[index].get(mode='promise_in_bounds')
    out = {'index': index}
    if 'labels' in batch:
      out['label'] = batch['labels'].at[index].get(mode='promise_in_bounds')
    if 'replaced' in batch:
      out['replaced'] = (
        batch['replaced'].at[index].get(mode='promise_in_bounds')
      )
    for number, (name, view) in enumerate(self.views.items()):
      out[name] = augment(images, view, row_keys(rng, number, row))
    return out


def _check_views(views: Mapping[str, View], arrays: Arrays) -> None:
  check_views(views)
  height, width = arrays.images.shape[1:3]
  for name, view in views.items():
    if (side := math.sqrt(view.scale[0] * height * width)) < 1:
      raise ValueError(
        f'view {name!r}: crops of {view.scale[0]} of {height}x{width} px have '
        f'{side:.2f} px a side; use a scale of at least '
        f'{1 / (height * width):.2g}'
      )


def _put(
  array: np.ndarray, sharding: jax.sharding.Sharding | None
) -> jax.Array:
  """Host array, the same on every process -> global device array."""
  if sharding is None:
    return jax.device_put(array)
  # With several processes each one fills in what its devices own. A transfer
  # guard around the training loop would take this for an implicit transfer.
  with jax.transfer_guard_host_to_device('allow'):
    return jax.make_array_from_callback(
      array.shape, sharding, lambda index: array[index]
    )
