"""Weighted k-nearest-neighbour classification of frozen features.

The protocol of DINO (Caron et al., 2021, Appendix F.1): unit-length features,
cosine similarity, votes weighted by exp(similarity / 0.07), k = 20.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from training import sharding

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
    part = _unit(queries[i : i + QUERIES])
    padded = np.pad(part, ((0, QUERIES - len(part)), (0, 0)))
    padded = jax.device_put(padded, sharding.replicated(mesh))
    votes = _votes(padded, bank, bank_labels, k, classes, temperature, mesh)
    order = np.argsort(-jax.device_get(votes)[: len(part)], kind='stable')
    hits = order[:, :5] == labels[i : i + QUERIES, None]
    hits1, hits5 = hits1 + hits[:, 0].sum(), hits5 + hits.sum()
  share = 100.0 / len(queries)
  return dict(top1=float(hits1 * share), top5=float(hits5 * share))


def _unit(x: np.ndarray) -> np.ndarray:
  """Rows of unit length, on the host: a bank need not fit on one device."""
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
