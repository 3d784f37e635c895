"""A branch on the visible tokens alone: what a frozen teacher says of them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from models.features import Features
from models.masking import Mask
from pretrain.frozen import targets_of
from pretrain.losses import squared_error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mimic:
  """Feature mimicking at the encoder (MR-MAE, arXiv:2303.05475).

  Nothing is put in the place of hidden tokens, so that what is learned here and
  the pixels of hidden patches, after the decoder, do not meet.

  Attributes:
    levels: which levels the head gets, as names of `Features.tap`.
    head: a module: (levels) -> [b, k, f], a prediction for every visible token.
    source: name of the teacher.
    error: (prediction, target) -> [b, k].
    parts: f is so many targets one after the other (levels of the teacher),
      whose errors are averaged.
  """

  levels: tuple[int | str, ...]
  head: Any
  source: str
  error: Callable[[jax.Array, jax.Array], jax.Array] = squared_error
  parts: int = 1

  def _inputs(self, features: Features) -> tuple[Any, ...]:
    return tuple(features.tap(where) for where in self.levels)

  def init(self, rng: jax.Array, features: Features) -> Any:
    """The head's parameters."""
    return self.head.init(rng, self._inputs(features))['params']

  def predict(self, params: Any, features: Features) -> jax.Array:
    """[b, k, f] for the visible tokens."""
    return self.head.apply({'params': params}, self._inputs(features))

  def errors(
    self, params: Any, features: Features, said: jax.Array
  ) -> jax.Array:
    """The error of every visible token, [b, k].

    Args:
      params: of the head.
      features: of the encoder.
      said: by the teacher, [b, h, w, f].
    """
    index = self._inputs(features)[-1].index
    prediction = self.predict(params, features)
    target = targets_of(said, index)
    prediction, target = (
      x.reshape(*x.shape[:2], self.parts, -1) for x in (prediction, target)
    )
    return self.error(prediction, target).mean(axis=-1)

  def mean(self, error: jax.Array, mask: Mask | None = None) -> jax.Array:
    """Over all visible tokens of the batch, a float32 scalar."""
    del mask
    return jnp.mean(error)
