"""Top-1 and top-5 accuracy of classifiers while they train."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.source import Source

TOP = 5


class Extracts(Protocol):
  """What classifies batch by batch: `transfer.extract.Extractor`, or alike."""

  def batches(self, source: Source) -> Iterator[Mapping[str, np.ndarray]]:
    """Batches with 'label' and 'valid'."""

  def __call__(self, weights: Any, batch: Any) -> tuple[Any, np.ndarray]:
    """(what was found of each row, which rows count)."""


def strongest(logits: jax.Array) -> jax.Array:
  """The classes of the highest logits, best first.

  Args:
    logits: [..., b, classes], leading axes for several classifiers.

  Returns:
    int32 [b, ..., at most 5].
  """
  k = min(TOP, logits.shape[-1])
  best = jax.lax.top_k(logits, k)[1]
  return jnp.moveaxis(best, -2, 0)


def classify(method: Any) -> Callable[[Any, Any], dict[str, jax.Array]]:
  """What an extractor runs: ((params, method_state), inputs) -> `strongest`.

  Args:
    method: with `predict`; its inputs are uint8 images, as its 'view1' in
      [0, 1], or ready features by name.
  """

  def run(weights, inputs):
    if isinstance(inputs, Mapping):
      batch = dict(features=inputs)
    else:
      batch = dict(view1=inputs.astype(jnp.float32) / 255)
    logits = method.predict(*weights, batch)
    return {name: strongest(x) for name, x in logits.items()}

  return run


class Accuracy:
  """Share of test images whose class is found, as an `Evaluator`.

  Args:
    extractor: finds `strongest` of each classifier: ((params, method_state),
      images) -> {name: int32 [b, ..., k]}.
    source: labelled test images.
    label: names one of the several classifiers under a name: (name, index) ->
      text; None where each name is one classifier.
    prefix: of the metrics' names.
    headline: the name whose accuracy is `top1`; None for the best one's.
  """

  def __init__(
    self,
    extractor: Extracts,
    source: Source,
    label: Callable[[str, int], str] | None = None,
    *,
    prefix: str = '',
    headline: str | None = None,
  ):
    self._extractor, self._source, self._label = extractor, source, label
    self._prefix, self._headline = prefix, headline

  def names(self) -> Sequence[str]:
    """Metrics that every measurement has."""
    return (f'{self._prefix}top1', f'{self._prefix}top5')

  def start(self, step: int) -> None:
    """Forgets all counts."""
    del step
    self._hits: dict[str, np.ndarray] = {}
    self._count = 0

  def batches(self) -> Iterator[Mapping[str, np.ndarray]]:
    """The test images."""
    return self._extractor.batches(self._source)

  def update(self, params: Any, method_state: Any, batch: Any) -> None:
    """Classifies one batch."""
    found, keep = self._extractor((params, method_state), batch)
    self._count += int(keep.sum())
    for name, classes in found.items():
      right = batch['label'].reshape(-1, *(1,) * (classes.ndim - 1))
      hit = (classes == right)[keep]
      hits = np.stack([hit[..., 0].sum(0), hit.any(-1).sum(0)])
      self._hits[name] = self._hits.get(name, 0) + hits

  def finish(self) -> dict[str, float]:
    """top1 and top5 in percent, of the best classifier and of all of them.

    Which is best is told by the test images: of many, the best one's accuracy
    is a little too good.

    Raises:
      ValueError: no image could be read.
    """
    if not self._count:
      raise ValueError(f'none of the images of {self._source.name} can be read')
    grid = {}
    for name, hits in self._hits.items():
      top = 100.0 * hits / self._count
      if top.ndim == 1:
        grid[name] = top
      else:
        grid |= {self._label(name, i): top[:, i] for i in range(top.shape[1])}
    best = max(grid.values(), key=tuple)
    chosen = grid[self._headline] if self._headline else best
    out = dict(zip(self.names(), map(float, chosen), strict=True))
    if len(grid) > 1:
      for name, accuracies in grid.items():
        for kind, value in zip(self.names(), accuracies, strict=True):
          out[f'{kind}/{name}'] = float(value)
    return out
