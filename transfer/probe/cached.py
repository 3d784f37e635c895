"""Training and testing on features that are computed once."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from input_pipeline import order
from training import sharding


class CachedFeatures:
  """Training batches of features on the device, as `training.protocols.Data`.

  Args:
    features: {name: float32 [n, d]}.
    labels: int32 [n].
    batch_size: global batch size.
    seed: of the order.
    mesh: batches are split over its devices; the features are whole on each.

  Attributes:
    steps_per_epoch: whole batches in an epoch.
  """

  def __init__(
    self,
    features: Mapping[str, np.ndarray],
    labels: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    mesh: jax.sharding.Mesh,
  ):
    self._order = dict(size=len(labels), batch_size=batch_size)
    self.steps_per_epoch = order.steps_per_epoch(**self._order)
    self._order['seed'] = seed
    self._over_batch = sharding.over_batch(mesh)
    self._constant = jax.device_put(
      dict(features=dict(features), labels=labels.astype(np.int32)),
      sharding.replicated(mesh),
    )

  @property
  def spec(self) -> Any:
    """Shapes, dtypes and shardings of what `batch` returns."""
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      self.batch(0),
    )

  def indices(self, step: int) -> np.ndarray:
    """The examples of a step, int64 [b]."""
    return order.batch_indices(step, **self._order)

  def batch(self, step: int) -> dict[str, Any]:
    """The indices of a step, and all features by reference."""
    index = self.indices(step).astype(np.int32)
    with jax.transfer_guard_host_to_device('allow'):
      return self._constant | dict(
        index=jax.device_put(index, self._over_batch)
      )

  def render(self, batch: Any, rng: jax.Array) -> dict[str, Any]:
    """{'features': {name: [b, d]}, 'label' int32 [b], 'index' int32 [b]}."""
    del rng

    def rows(x):
      return x.at[batch['index']].get(mode='promise_in_bounds')

    return dict(
      features=jax.tree.map(rows, batch['features']),
      label=rows(batch['labels']),
      index=batch['index'],
    )

  def close(self) -> None:
    """Nothing to end."""


class CachedExtractor:
  """Runs a function of features over them, like `Extractor` over images.

  Args:
    features: {name: float32 [n, d]}.
    labels: int32 [n].
    encode: (weights, {name: [b, d]}) -> a pytree of [b, ...].
    mesh: of the run.
    batch_size: rows per call.
  """

  def __init__(
    self,
    features: Mapping[str, np.ndarray],
    labels: np.ndarray,
    encode: Callable[[Any, Mapping[str, jax.Array]], Any],
    *,
    mesh: jax.sharding.Mesh,
    batch_size: int,
  ):
    self._features, self._labels = dict(features), labels
    self._batch_size = min(batch_size, len(labels))
    self._whole = sharding.replicated(mesh)
    self._encode = jax.jit(encode, out_shardings=self._whole)

  def batches(self, source: Any = None) -> Iterator[Mapping[str, Any]]:
    """Rows in order; the last batch is filled up with the first rows."""
    del source
    count = len(self._labels)
    for start in range(0, count, self._batch_size):
      rows = np.arange(start, start + self._batch_size)
      yield dict(
        features={n: x[rows % count] for n, x in self._features.items()},
        label=self._labels[rows % count],
        valid=rows < count,
      )

  def __call__(self, weights: Any, batch: Any) -> tuple[Any, np.ndarray]:
    """What `encode` finds, and which rows count."""
    features = jax.device_put(batch['features'], self._whole)
    return jax.device_get(self._encode(weights, features)), batch['valid']
