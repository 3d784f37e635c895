"""Weighted k-nearest-neighbour classification of frozen features.

The protocol of DINO (Caron et al., 2021, Appendix F.1): unit-length features,
cosine similarity, votes weighted by exp(similarity / 0.07), k = 20.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, PartitionSpec

from input_pipeline.arrays import fit
from input_pipeline.eval_batches import eval_batches
from input_pipeline.rows import LocalRows
from input_pipeline.source import Source
from pretrain.losses import normalize
from training import sharding
from training.protocols import Method

BASELINE_SIZE = 32  # pixels; bounds what raw pixels and histograms hold
SCORES = (
  ('raw pixels', 'knn_raw_pixels'),
  ('histogram', 'knn_histogram'),
  ('untrained', 'knn_untrained'),
  ('trained', 'knn_top1'),
)
QUERIES = 512  # per call: bounds the [queries, bank] similarities


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _votes(queries, bank, labels, k, classes, temperature, mesh):
  """[q, classes] votes; the bank is split over devices, each finds its k."""

  def nearest(queries, bank, labels):
    similarity = jnp.matmul(
      queries, bank.T, precision=jax.lax.Precision.HIGHEST
    )
    similarity = jnp.where(labels >= 0, similarity, -jnp.inf)  # padding
    best, where = jax.lax.top_k(similarity, min(k, bank.shape[0]))
    gather = functools.partial(
      jax.lax.all_gather, axis_name=sharding.AXES, axis=1, tiled=True
    )
    best, label = gather(best), gather(labels[where])
    best, where = jax.lax.top_k(best, min(k, best.shape[1]))
    return best, jnp.take_along_axis(label, where, axis=1)

  rows = PartitionSpec(sharding.AXES)
  best, label = jax.shard_map(
    nearest,
    mesh=mesh,
    in_specs=(PartitionSpec(), rows, rows),
    out_specs=PartitionSpec(),
    check_vma=False,
  )(queries, bank, labels)
  weight = jnp.exp(best / temperature)
  # Weights reach e^(1/τ): rounded to 8 bits they would change close votes.
  return jnp.einsum(
    'qk,qkc->qc',
    weight,
    jax.nn.one_hot(label, classes),
    precision=jax.lax.Precision.HIGHEST,
  )


def knn_accuracy(
  bank: np.ndarray,
  bank_labels: np.ndarray,
  queries: np.ndarray,
  labels: np.ndarray,
  *,
  mesh: Mesh,
  k: int = 20,
  temperature: float = 0.07,
) -> dict[str, float]:
  """Accuracy of the vote of the k nearest bank features.

  Args:
    bank: [n, d] float features of the training set.
    bank_labels: [n] int.
    queries: [q, d] float features of the test set.
    labels: [q] int.
    mesh: the bank is split over its devices.
    k: number of neighbours, at most n.
    temperature: τ of the weights exp(cosine / τ).

  Returns:
    {'top1', 'top5'} in percent; top5 counts the five strongest classes.

  Raises:
    ValueError: an empty bank or no queries.
  """
  if not len(bank) or not len(queries):
    raise ValueError(
      f'k-NN needs a bank and queries; got {len(bank)} and {len(queries)}'
    )
  classes = int(max(bank_labels.max(), labels.max())) + 1
  k = min(k, len(bank))
  extra = -len(bank) % mesh.size
  bank = np.pad(_unit(bank), ((0, extra), (0, 0)))
  bank_labels = np.pad(bank_labels, (0, extra), constant_values=-1)
  rows = sharding.over_batch(mesh)
  bank, bank_labels = jax.device_put((bank, bank_labels), rows)
  hits1 = hits5 = 0
  for i in range(0, len(queries), QUERIES):
    part = queries[i : i + QUERIES]
    padded = np.pad(part, ((0, QUERIES - len(part)), (0, 0)))
    padded = jax.device_put(padded, sharding.replicated(mesh))
    votes = _votes(
      normalize(padded), bank, bank_labels, k, classes, temperature, mesh
    )
    order = np.argsort(-jax.device_get(votes)[: len(part)], kind='stable')
    hits = order[:, :5] == labels[i : i + QUERIES, None]
    hits1, hits5 = hits1 + hits[:, 0].sum(), hits5 + hits.sum()
  share = 100.0 / len(queries)
  return dict(top1=float(hits1 * share), top5=float(hits5 * share))


def _unit(x: np.ndarray) -> np.ndarray:
  """`losses.normalize` on the host: a bank need not fit on one device."""
  x = x.astype(np.float32)
  norm = np.linalg.norm(x, axis=1, keepdims=True)
  return x / np.maximum(norm, 1e-12)


def raw_pixels(images: np.ndarray) -> np.ndarray:
  """The image itself less its mean, [n, h·w·c] float32: the weakest feature."""
  flat = images.reshape(len(images), -1).astype(np.float32) / 255
  return flat - flat.mean(axis=1, keepdims=True)


def histogram(images: np.ndarray, bins: int = 8) -> np.ndarray:
  """Joint histogram of the channels, [n, bins ** c] float32, square-rooted.

  The root makes the cosine of two histograms their Bhattacharyya coefficient.

  Args:
    images: uint8 [n, h, w, c], c at most 3.
    bins: per channel; for one channel its square is used.

  Returns:
    Unit-length features.
  """
  c = images.shape[-1]
  bins = bins**2 if c == 1 else bins

  def count(image):
    steps = image.reshape(-1, c).astype(np.int64) * bins // 256
    cell = sum(steps[:, i] * bins**i for i in range(c))
    return np.bincount(cell, minlength=bins**c)

  counts = np.stack([count(image) for image in images])
  share = counts / (images.shape[1] * images.shape[2])
  return np.sqrt(share).astype(np.float32)


class Knn:
  """k-NN of the encoder while it trains, as an `Evaluator`.

  Before the first step it also measures what needs no training: raw pixels,
  histograms (both at 32 px at most), and the untrained encoder.

  Args:
    bank: labelled training images.
    queries: labelled test images.
    encode: (params, method_state, uint8 images) -> [b, d] features.
    mesh: of the run.
    size: side in pixels that the images are brought to.
    channels: of the images, where the sources leave it open.
    batch_size: images per call of `encode`.
    k: number of neighbours.
    temperature: of the votes.
    bank_images: at most so many, evenly spread over the bank.
    untrained: whether step 0 is an untrained encoder.

  Raises:
    ValueError: images without labels.
  """

  def __init__(
    self,
    *,
    bank: Source,
    queries: Source,
    encode: Callable[[Any, Any, jax.Array], jax.Array],
    mesh: Mesh,
    size: int,
    channels: int = 3,
    batch_size: int = 256,
    k: int = 20,
    temperature: float = 0.07,
    bank_images: int = 50_000,
    untrained: bool = True,
  ):
    if bank.labels is None or queries.labels is None:
      raise ValueError(
        f'k-NN needs labels, and {bank.name} or {queries.name} has none'
      )
    count = min(bank_images, len(bank))
    chosen = np.linspace(0, len(bank) - 1, count).round().astype(int)
    self._parts = dict(
      bank=(bank, chosen), queries=(queries, np.arange(len(queries)))
    )
    self._size, self._channels = size, bank.channels or channels
    self._batch_size = -(-batch_size // mesh.size) * mesh.size
    self._rows = LocalRows(self._batch_size, sharding.over_batch(mesh))
    self._numbers = dict(mesh=mesh, k=k, temperature=temperature)
    self._untrained = untrained
    whole = sharding.replicated(mesh)
    self._encode = jax.jit(encode, out_shardings=whole)
    self._gather = jax.jit(lambda images: images, out_shardings=whole)

  def names(self) -> Sequence[str]:
    """Metrics that every measurement has."""
    return ('knn_top1', 'knn_top5')

  def start(self, step: int) -> None:
    """Forgets all features."""
    self._step = step
    self._features = {part: [] for part in self._parts}
    self._images = {part: [] for part in self._parts}

  def batches(self) -> Iterator[tuple[str, Mapping[str, np.ndarray]]]:
    """Bank, then queries: (part, a batch of `eval_batches`)."""
    for part, (source, indices) in self._parts.items():
      for batch in eval_batches(
        source,
        self._batch_size,
        size=self._size,
        channels=self._channels,
        indices=indices,
        rows=self._rows.rows,
      ):
        yield part, batch

  def update(self, params: Any, method_state: Any, batch: Any) -> None:
    """Encodes one batch, split over the devices."""
    part, rows = batch
    images = self._rows.put(dict(images=rows['images']))['images']
    features = jax.device_get(self._encode(params, method_state, images))
    self._features[part].append(features[rows['valid']])
    if self._step == 0:
      images = jax.device_get(self._gather(images))[rows['valid']]
      self._images[part].append(fit(images, min(self._size, BASELINE_SIZE)))

  def _score(self, bank, queries) -> dict[str, float]:
    labels = [source.labels[i] for source, i in self._parts.values()]
    return knn_accuracy(bank, labels[0], queries, labels[1], **self._numbers)

  def finish(self) -> dict[str, float]:
    """knn_top1 and knn_top5 in percent; at step 0 the baselines too."""
    score = self._score(*map(np.concatenate, self._features.values()))
    out = dict(knn_top1=score['top1'], knn_top5=score['top5'])
    if self._step == 0:
      if self._untrained:
        out['knn_untrained'] = score['top1']
      images = [np.concatenate(part) for part in self._images.values()]
      features = dict(raw_pixels=raw_pixels, histogram=histogram)
      if self._channels > 3:  # a joint histogram would be huge
        del features['histogram']
      for name, feature in features.items():
        found = self._score(*map(feature, images))
        out[f'knn_{name}'] = found['top1']
    self.start(self._step)  # frees the features
    return out


def online_knn(
  config: Any,
  method: Method,
  *,
  bank: Source,
  queries: Source | None,
  **options,
) -> list[Knn]:
  """k-NN of a method's encoder, where there are labels and a test split.

  Args:
    config: `knn` of a config: `which` encoder and numbers of `Knn`.
    method: of the run.
    bank: training images.
    queries: test images, or None.
    **options: further arguments of `Knn`.

  Returns:
    One evaluator, or none.
  """
  if queries is None or bank.labels is None or queries.labels is None:
    logging.warning('no labels or no test split: training without k-NN')
    return []
  numbers = dict(config)
  which = numbers.pop('which')

  def encode(params, method_state, images):
    encoder = method.encoder_params(params, method_state, which)
    images = images.astype(jnp.float32) / 255
    return method.encoder.apply({'params': encoder}, images).pooled

  return [Knn(bank=bank, queries=queries, encode=encode, **numbers, **options)]


def scores_line(summary: Mapping[str, float]) -> str:
  """Measurements side by side for a person; empty where there are none."""
  scores = {name: summary[key] for name, key in SCORES if key in summary}
  row = ' | '.join(f'{name} {value:.1f}' for name, value in scores.items())
  return f'k-NN top-1 in %: {row}' if scores else ''
