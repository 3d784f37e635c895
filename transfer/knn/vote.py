"""Weighted k-nearest-neighbour classification of frozen features.

The protocol of DINO (Caron et al., 2021, Appendix F.1): unit-length features,
cosine similarity, votes weighted by exp(similarity / 0.07), k = 20.

The bank passes by in blocks: what is held are the queries and the best k of
each so far, split over the devices. Neither the bank nor its similarities are
ever whole.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from training import sharding

BLOCK = 4096  # bank features that are compared at once
QUERIES = 512  # and with so many queries per device: bounds the similarities
_VOTES = 2**22  # [queries, classes] that are counted at once


@functools.partial(
  jax.jit, static_argnames=('chunk', 'mesh'), donate_argnums=(0, 1)
)
def _merge(best, labels, queries, bank, bank_labels, *, chunk, mesh):
  """The best k so far and of one block, with labels, both [q, k] by rank."""
  k = best.shape[1]

  def merge(part, bank, bank_labels):
    best, labels, queries = part
    similarity = jnp.matmul(
      queries, bank.T, precision=jax.lax.Precision.HIGHEST
    )
    similarity = jnp.where(bank_labels >= 0, similarity, -jnp.inf)  # padding
    # The first of equals wins, so that the order is that of the bank.
    best, where = jax.lax.top_k(jnp.concatenate([best, similarity], 1), k)
    old = jnp.take_along_axis(labels, jnp.minimum(where, k - 1), axis=1)
    new = bank_labels[jnp.maximum(where - k, 0)]
    return best, jnp.where(where < k, old, new)

  def on_device(bank, bank_labels, *parts):
    cut = tuple(x.reshape(-1, chunk, x.shape[-1]) for x in parts)
    best, labels = jax.lax.map(lambda part: merge(part, bank, bank_labels), cut)
    return best.reshape(-1, k), labels.reshape(-1, k)

  rows, whole = PartitionSpec(sharding.AXES), PartitionSpec()
  return jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=(whole, whole, rows, rows, rows),
    out_specs=(rows, rows),
    check_vma=False,
  )(bank, bank_labels, best, labels, queries)


class Neighbors:
  """The k nearest of a bank that passes by, for each of many queries.

  Args:
    queries: [q, d] float features.
    k: number of neighbours.
    mesh: queries are split over its devices; every device sees the whole bank,
      block by block.
    block: bank features per block; changes nothing but speed and memory.

  Raises:
    ValueError: no queries, or k or block below 1.
  """

  def __init__(
    self, queries: np.ndarray, *, k: int, mesh: Mesh, block: int = BLOCK
  ):
    if not len(queries) or k < 1 or block < 1:
      raise ValueError(
        f'k-NN needs queries, k and block of at least 1; got {len(queries)}, '
        f'{k} and {block}'
      )
    self._mesh, self._block, self._count = mesh, block, len(queries)
    self._waiting, self._held = [], 0
    self.seen = 0  # bank features so far
    each = -(-len(queries) // mesh.size)
    self._chunk = min(QUERIES, each)
    rows = -(-each // self._chunk) * self._chunk * mesh.size
    split = sharding.over_batch(mesh)
    queries = np.pad(_unit(queries), ((0, rows - len(queries)), (0, 0)))
    self._queries = _put(queries, split)
    self._best = _put(np.full((rows, k), -np.inf, np.float32), split)
    self._labels = _put(np.full((rows, k), -1, np.int32), split)

  def add(self, bank: np.ndarray, labels: np.ndarray) -> None:
    """More of the bank.

    Args:
      bank: [n, d] float features, n as it comes.
      labels: [n] int, 0 or more.
    """
    self.seen += len(bank)
    start = 0
    while start < len(bank):
      stop = start + self._block - self._held
      self._waiting.append((bank[start:stop], labels[start:stop]))
      self._held += len(self._waiting[-1][1])
      start = stop
      if self._held == self._block:
        self._flush()

  def _flush(self) -> None:
    if not self._held:
      return
    bank, labels = map(np.concatenate, zip(*self._waiting, strict=True))
    extra = self._block - self._held
    self._waiting, self._held = [], 0
    bank = np.pad(_unit(bank), ((0, extra), (0, 0)))
    labels = np.pad(labels.astype(np.int32), (0, extra), constant_values=-1)
    # One block at a time on the devices.
    jax.block_until_ready(self._best)
    whole = sharding.replicated(self._mesh)
    self._best, self._labels = _merge(
      self._best,
      self._labels,
      self._queries,
      _put(bank, whole),
      _put(labels, whole),
      chunk=self._chunk,
      mesh=self._mesh,
    )

  def result(self) -> tuple[np.ndarray, np.ndarray]:
    """The neighbours among all that was added.

    Returns:
      Cosines float32 [q, m] in falling order and labels int32 [q, m], on every
      process; m is k, or the size of a smaller bank. Of equals the one that was
      added first comes first.
    """
    self._flush()
    whole = sharding.replicated(self._mesh)
    gather = jax.jit(lambda *x: x, out_shardings=whole)
    best, labels = jax.device_get(gather(self._best, self._labels))
    keep = np.s_[: self._count, : self.seen]
    return best[keep], labels[keep]


def vote(
  similarity: np.ndarray,
  neighbors: np.ndarray,
  labels: np.ndarray,
  *,
  ks: Sequence[int],
  temperature: float = 0.07,
) -> dict[int, dict[str, float]]:
  """Accuracy of the neighbours' votes for several k, from one sorted list.

  Args:
    similarity: [q, m] in falling order.
    neighbors: int [q, m], their labels.
    labels: int [q], the true ones.
    ks: numbers of neighbours, each within 1..m.
    temperature: τ of the weights exp(similarity / τ).

  Returns:
    {k: {'top1', 'top5'}} in percent; top5 counts the five strongest classes, or
    k where that is fewer. Of classes of equal votes the first is stronger.
  """
  classes = int(max(neighbors.max(), labels.max())) + 1
  hits = {k: np.zeros(2, np.int64) for k in sorted(set(ks))}
  step = max(_VOTES // classes, 1)
  for start in range(0, len(labels), step):
    rows = slice(start, start + step)
    near, true = neighbors[rows].astype(np.int64), labels[rows]
    # Divided by that of the nearest: a small τ would overflow.
    logits = similarity[rows].astype(np.float64)
    weights = np.exp((logits - logits[:, :1]) / temperature)
    cell = near + classes * np.arange(len(near))[:, None]
    votes, counted = np.zeros(len(near) * classes), 0
    for k in hits:
      more = np.s_[:, counted:k]
      votes += np.bincount(
        cell[more].ravel(), weights[more].ravel(), len(votes)
      )
      rank, counted = ranks(votes.reshape(len(near), classes), true), k
      hits[k] += (rank < 1).sum(), (rank < min(5, k)).sum()
  share = 100.0 / len(labels)
  return {
    k: dict(top1=float(one * share), top5=float(five * share))
    for k, (one, five) in hits.items()
  }


def ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """How many classes are ahead of the true one, int [q].

  Args:
    scores: [q, classes]; of equals the first class is ahead.
    labels: int [q].
  """
  true = np.take_along_axis(scores, labels[:, None], axis=1)
  before = np.arange(scores.shape[1]) < labels[:, None]
  return ((scores > true) | ((scores == true) & before)).sum(axis=1)


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
  """Accuracy of the vote of the k nearest, of a bank that is there already.

  Args:
    bank: [n, d] float features of the training set.
    bank_labels: [n] int.
    queries: [q, d] float features of the test set.
    labels: [q] int.
    mesh: see `Neighbors`.
    k: number of neighbours; of a smaller bank all.
    temperature: τ of the weights exp(cosine / τ).

  Returns:
    {'top1', 'top5'} in percent; see `vote`.

  Raises:
    ValueError: an empty bank or no queries.
  """
  if not len(bank) or not len(queries):
    raise ValueError(
      f'k-NN needs a bank and queries; got {len(bank)} and {len(queries)}'
    )
  k = min(k, len(bank))
  nearest = Neighbors(queries, k=k, mesh=mesh, block=min(BLOCK, len(bank)))
  nearest.add(bank, bank_labels)
  found = nearest.result()
  return vote(*found, labels, ks=(k,), temperature=temperature)[k]


def _unit(x: np.ndarray) -> np.ndarray:
  """Rows of unit length, on the host."""
  x = x.astype(np.float32)
  norm = np.linalg.norm(x, axis=1, keepdims=True)
  return x / np.maximum(norm, 1e-12)


def _put(x: np.ndarray, target: jax.sharding.Sharding) -> jax.Array:
  """What every process has, to the devices; `device_put` would compare it."""
  return jax.make_array_from_callback(x.shape, target, lambda i: x[i])


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
