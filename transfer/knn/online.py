"""k-NN of an encoder while it trains."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from input_pipeline.arrays import fit
from input_pipeline.source import Source, check_classes
from training import screen
from training.protocols import Method
from transfer.extract import Extractor
from transfer.knn.vote import histogram, knn_accuracy, raw_pixels

BASELINE_SIZE = 32  # pixels; bounds what raw pixels and histograms hold
SCORES = (
  ('raw pixels', 'knn_raw_pixels'),
  ('histogram', 'knn_histogram'),
  ('untrained', 'knn_untrained'),
  ('trained', 'knn_top1'),
)


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
    crop: of the images for evaluation; see `input_pipeline.arrays.fit`.
    resample: likewise.

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
    crop: float = 1.0,
    resample: str = 'bilinear',
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
    self._extractor = Extractor(
      lambda weights, images: encode(*weights, images),
      mesh=mesh,
      batch_size=batch_size,
      size=size,
      channels=self._channels,
      crop=crop,
      resample=resample,
    )
    self._numbers = dict(mesh=mesh, k=k, temperature=temperature)
    self._untrained = untrained

  def names(self) -> Sequence[str]:
    """Metrics that every measurement has."""
    return ('knn_top1', 'knn_top5')

  def start(self, step: int) -> None:
    """Forgets all features."""
    self._step = step
    self._features = {part: [] for part in self._parts}
    self._labels = {part: [] for part in self._parts}
    self._images = {part: [] for part in self._parts}
    self._unreadable = 0

  def batches(self) -> Iterator[tuple[str, Mapping[str, np.ndarray]]]:
    """Bank, then queries: (part, a batch of `eval_batches`)."""
    for part, (source, indices) in self._parts.items():
      for batch in self._extractor.batches(source, indices):
        yield part, batch

  def update(self, params: Any, method_state: Any, batch: Any) -> None:
    """Encodes one batch, split over the devices."""
    part, rows = batch
    features, keep = self._extractor((params, method_state), rows)
    self._unreadable += int((rows['valid'] & ~keep).sum())
    self._features[part].append(features[keep])
    self._labels[part].append(rows['label'][keep])
    if self._step == 0:
      images = self._extractor.images(rows)[keep]
      self._images[part].append(fit(images, min(self._size, BASELINE_SIZE)))

  def _score(self, parts) -> dict[str, float]:
    labels = map(np.concatenate, self._labels.values())
    (bank, queries), (bank_labels, labels) = parts, labels
    return knn_accuracy(bank, bank_labels, queries, labels, **self._numbers)

  def finish(self) -> dict[str, float]:
    """knn_top1 and knn_top5 in percent; at step 0 the baselines too."""
    score = self._score(map(np.concatenate, self._features.values()))
    out = dict(knn_top1=score['top1'], knn_top5=score['top5'])
    if self._unreadable:  # left out
      out['knn_unreadable'] = float(self._unreadable)
    if self._step == 0:
      if self._untrained:
        out['knn_untrained'] = score['top1']
      images = [np.concatenate(part) for part in self._images.values()]
      features = dict(raw_pixels=raw_pixels, histogram=histogram)
      if self._channels > 3:  # a joint histogram would be huge
        del features['histogram']
      for name, feature in features.items():
        found = self._score(map(feature, images))
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
    screen.say('no labels or no test split: training without k-NN')
    return []
  try:
    check_classes(bank, queries)
  except ValueError as error:
    logging.warning('%s: training without k-NN', error)
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
