"""Training and testing on features that are computed once."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from input_pipeline import order
from input_pipeline.background import Background
from input_pipeline.rows import LocalRows
from training import sharding

AHEAD = 2  # batches that wait on the device


class Columns:
  """Some columns of a table that lies in parts, read row by row.

  Args:
    parts: float32 [n_i, d] each, one above the other; maps of files.
    columns: which of the d.
  """

  def __init__(self, parts: Sequence[np.ndarray], columns: slice):
    self._parts = [part[:, columns] for part in parts]
    self._starts = np.cumsum([0, *map(len, parts)])

  def __len__(self) -> int:
    return int(self._starts[-1])

  def __getitem__(self, rows: np.ndarray) -> np.ndarray:
    """float32 [n, columns] of rows int [n], in that order."""
    first = self._parts[0]
    out = np.empty((len(rows), first.shape[1]), first.dtype)
    part_of = np.searchsorted(self._starts, rows, side='right') - 1
    for i in np.unique(part_of):
      here = part_of == i
      out[here] = self._parts[i][rows[here] - self._starts[i]]
    return out

  def whole(self) -> np.ndarray:
    """All rows, in memory."""
    return np.concatenate(self._parts)


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


class StreamedFeatures:
  """As `CachedFeatures`, the same batches, of features that stay on the host.

  A process reads the rows of its own devices, ahead of the training.

  Args:
    features: {name: float32 [n, d], or `Columns`}; every process has all.
    labels: int32 [n].
    batch_size: global batch size.
    seed: of the order.
    mesh: batches are split over its devices.

  Attributes:
    steps_per_epoch: whole batches in an epoch.
    spec: shapes, dtypes and shardings of what `batch` returns.
  """

  def __init__(
    self,
    features: Mapping[str, Any],
    labels: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    mesh: jax.sharding.Mesh,
  ):
    self._features, self._labels = dict(features), labels.astype(np.int32)
    self._order = dict(size=len(labels), batch_size=batch_size)
    self.steps_per_epoch = order.steps_per_epoch(**self._order)
    self._order['seed'] = seed
    self._rows = LocalRows(batch_size, sharding.over_batch(mesh))
    one = {n: x[np.arange(1)] for n, x in self._features.items()}
    scalar = self._rows.spec((), np.int32)
    self.spec = dict(
      features={
        n: self._rows.spec(x.shape[1:], x.dtype) for n, x in one.items()
      },
      label=scalar,
      index=scalar,
    )
    self._background, self._next = None, None

  def indices(self, step: int) -> np.ndarray:
    """The examples of a step, int64 [b]."""
    return order.batch_indices(step, **self._order)

  def batch(self, step: int) -> dict[str, Any]:
    """Features, labels and indices of a step.

    Asked for in order, batches are ready before they are needed; any other step
    starts reading there.
    """
    if self._background is None or step != self._next:
      self.close()
      self._background = Background(
        map(self._read, itertools.count(step)), AHEAD
      )
    self._next = step + 1
    return next(self._background)

  def _read(self, step: int) -> dict[str, Any]:
    index = self.indices(step)[self._rows.rows]
    features = {n: x[index] for n, x in self._features.items()}
    scalars = dict(label=self._labels[index], index=index.astype(np.int32))
    return dict(features=self._rows.put(features), **self._rows.put(scalars))

  def render(self, batch: Any, rng: jax.Array) -> dict[str, Any]:
    """As it is: {'features': {name: [b, d]}, 'label', 'index' int32 [b]}."""
    del rng
    return batch

  def close(self) -> None:
    """Ends reading; a later `batch` begins anew."""
    if self._background is not None:
      self._background.close()
      self._background = None


class CachedExtractor:
  """Runs a function of features over them, like `Extractor` over images.

  Args:
    features: {name: float32 [n, d], or `Columns`}.
    labels: int32 [n].
    encode: (weights, {name: [b, d]}) -> a pytree of [b, ...].
    mesh: of the run.
    batch_size: rows per call.
  """

  def __init__(
    self,
    features: Mapping[str, Any],
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
