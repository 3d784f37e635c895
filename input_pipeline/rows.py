"""The rows of a global batch that belong to this process."""

from collections.abc import Mapping

import jax
import numpy as np


class LocalRows:
  """Which rows of a batch this process reads, and how they become global.

  Args:
    batch_size: global batch size.
    sharding: of [b, ...] arrays, the leading axis split; None for one device.

  Attributes:
    rows: int64 [local], the global numbers of the rows, increasing.
  """

  def __init__(
    self, batch_size: int, sharding: jax.sharding.Sharding | None = None
  ):
    self._batch_size = batch_size
    if sharding is None:
      sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    self._sharding = sharding
    # Asked of the sharding: a mesh may order devices other than by process.
    owned = sharding.addressable_devices_indices_map((batch_size,))
    every = np.arange(batch_size)
    self.rows = np.unique(np.concatenate([every[i] for i in owned.values()]))

  def spec(self, shape: tuple[int, ...], dtype) -> jax.ShapeDtypeStruct:
    """A global array [batch_size, *shape]."""
    return jax.ShapeDtypeStruct(
      (self._batch_size, *shape), dtype, sharding=self._sharding
    )

  def put(self, local: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Local rows -> global arrays.

    Args:
      local: arrays [len(rows), ...] by name, row i being `rows[i]`.

    Returns:
      Global arrays [batch_size, ...], split over the devices.
    """

    def build(array):
      def part(index):
        start, stop, _ = index[0].indices(self._batch_size)
        first = np.searchsorted(self.rows, start)
        return array[first : first + stop - start]

      return jax.make_array_from_callback(
        (self._batch_size, *array.shape[1:]), self._sharding, part
      )

    return {name: build(array) for name, array in local.items()}
