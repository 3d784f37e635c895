"""Features of data sets: every image once, in order, over all devices."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from input_pipeline.eval_batches import eval_batches
from input_pipeline.rows import LocalRows
from input_pipeline.source import Source
from training import sharding


class Extractor:
  """Runs a function of images over a data set, batch by batch.

  Args:
    encode: (weights, uint8 images [b, size, size, c]) -> float [b, ...] or a
      pytree of such; compiled once.
    mesh: batches are split over its devices.
    batch_size: images per call; rounded up to a multiple of the devices.
    size: side in pixels that the images are brought to.
    channels: of the images, where a source leaves it open.
    crop: see `input_pipeline.arrays.fit`.
    resample: likewise.

  Attributes:
    batch_size: images per call.
  """

  def __init__(
    self,
    encode: Callable[[Any, jax.Array], Any],
    *,
    mesh: Mesh,
    batch_size: int,
    size: int,
    channels: int = 3,
    crop: float = 1.0,
    resample: str = 'bilinear',
  ):
    self.batch_size = -(-batch_size // mesh.size) * mesh.size
    self._rows = LocalRows(self.batch_size, sharding.over_batch(mesh))
    self._images = dict(
      size=size, channels=channels, crop=crop, resample=resample
    )
    whole = sharding.replicated(mesh)
    self._encode = jax.jit(encode, out_shardings=whole)
    self._gather = jax.jit(lambda x: x, out_shardings=whole)

  def batches(
    self, source: Source, indices: Sequence[int] | None = None
  ) -> Iterator[Mapping[str, np.ndarray]]:
    """Batches of `eval_batches` with the rows of this process.

    Args:
      source: the data set.
      indices: which images, in this order; None for all.
    """
    return eval_batches(
      source,
      self.batch_size,
      indices=indices,
      rows=self._rows.rows,
      **self._images,
    )

  def __call__(
    self, weights: Any, batch: Mapping[str, np.ndarray]
  ) -> tuple[Any, np.ndarray]:
    """Encodes one batch.

    Args:
      weights: for `encode`.
      batch: of `batches`.

    Returns:
      What `encode` returns, as NumPy on every process, and bool [b]: False for
      padding and images that could not be read.
    """
    local = self._rows.put({n: batch[n] for n in ('images', 'readable')})
    found = self._encode(weights, local['images'])
    # Whether an image was read is known to the process that read it alone.
    found, readable = jax.device_get((found, self._gather(local['readable'])))
    return found, batch['valid'] & readable

  def images(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """The images of a batch on every process, uint8 [b, size, size, c]."""
    local = self._rows.put(dict(images=batch['images']))
    return jax.device_get(self._gather(local['images']))
