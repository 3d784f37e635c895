"""A branch: levels of the encoder -> decoder -> target, and an error.

RePre is a contrastive method plus one branch on all tokens; masked methods are
branches on hidden or visible ones.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from models.features import Features
from models.masking import Mask
from pretrain.losses import absolute_error
from training.chunking import in_chunks

WHERE = ('all', 'masked', 'visible')


def weights(mask: Mask | None, grid: tuple[int, int], on: str) -> jax.Array:
  """Where an error counts, as float32 weights on the grid.

  Args:
    mask: of the view; None where nothing is hidden.
    grid: (h, w) of the prediction: finer or coarser than the mask's, whose
      cells then count by the part of a place that they cover.
    on: 'all', 'masked' (hidden patches) or 'visible'.

  Returns:
    [b, h, w], or [1, h, w] of ones where the mask does not matter.
  """
  if on == 'all':
    return jnp.ones((1, *grid), jnp.float32)
  hidden = mask.share(grid)
  return hidden if on == 'masked' else 1 - hidden


@dataclasses.dataclass(frozen=True, kw_only=True)
class Branch:
  """One prediction and its error.

  Attributes:
    levels: which levels the decoder gets, shallow to deep, as names of
      `Features.tap`; 'final' is what follows the encoder's final norm.
    decoder: a module: (levels as maps, or as `Level`s where a mask hid
      tokens) -> [b, h, w, f].
    target: what is predicted, [b, h, w, f], as a function of the view [b, H,
      W, c] in [0, 1] or of whatever else `loss` is given in its place.
    error: (prediction, target) -> [b, h, w].
    on: where the error counts: 'all', 'masked' or 'visible'.
    source: what the target is computed from: 'images', or the name of a teacher
      (`MaskedModeling.teachers`), whose features it is then given.
    chunks: into how many parts the batch is cut (decoders see one example at
      a time).
  """

  levels: tuple[int | str, ...]
  decoder: Any
  target: Callable[[jax.Array], jax.Array]
  error: Callable[[jax.Array, jax.Array], jax.Array] = absolute_error
  on: str = 'all'
  source: str = 'images'
  chunks: int = 1

  def __post_init__(self):
    if self.on not in WHERE:
      raise ValueError(f'Branch.on={self.on!r} must be one of {WHERE}')

  def inputs(self, features: Features) -> tuple[Any, ...]:
    """What the decoder is called with: maps, or levels with an index."""
    taps = [features.tap(where) for where in self.levels]
    return tuple(t.map() if t.index is None else t for t in taps)

  def init(self, rng: jax.Array, features: Features) -> Any:
    """The decoder's parameters."""
    return self.decoder.init(rng, self.inputs(features))['params']

  def predict(self, params: Any, features: Features) -> jax.Array:
    """[b, h, w, f]."""
    return self.decoder.apply({'params': params}, self.inputs(features))

  def loss(
    self,
    params: Any,
    features: Features,
    images: jax.Array,
    mask: Mask | None = None,
  ) -> jax.Array:
    """The mean error where it counts, a float32 scalar.

    Args:
      params: of the decoder.
      features: of the encoder, for the view `images`.
      images: what the target is computed from, [b, ...]: the view in [0, 1],
        or a teacher's features.
      mask: what was hidden from the encoder.

    Returns:
      Σ weight · error / Σ weight over the whole batch.
    """

    def errors(maps, images):
      prediction = self.decoder.apply({'params': params}, maps)
      return self.error(prediction, self.target(images))

    maps = self.inputs(features)
    return self.mean(in_chunks(errors, self.chunks, maps, images), mask)

  def errors(
    self, params: Any, features: Features, images: jax.Array
  ) -> jax.Array:
    """The error of every patch, [b, h, w]: what is work per example."""
    return self.error(self.predict(params, features), self.target(images))

  def mean(self, error: jax.Array, mask: Mask | None = None) -> jax.Array:
    """Σ weight · error / Σ weight over the whole batch, a float32 scalar."""
    weight = weights(mask, error.shape[1:], self.on)
    weight = jnp.broadcast_to(weight, error.shape)
    return jnp.sum(weight * error) / jnp.maximum(jnp.sum(weight), 1e-6)
