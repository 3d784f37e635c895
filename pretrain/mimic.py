"""What a frozen teacher says, as the target of a branch on visible tokens."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from models.features import Features, Level
from models.layers import check_word
from models.masking import Mask
from pretrain import losses
from pretrain.branch import WHERE
from pretrain.frozen import Said

ERRORS: Mapping[str, Callable[..., jax.Array]] = {
  'l2': losses.squared_error,
  'smooth_l1': losses.smooth_l1,
  'cosine': losses.cosine_distance,
}
FUSIONS = ('none', 'sum', 'multi')
PLACES = ('encoder', 'decoder')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mimicry:
  """How a teacher is mimicked.

  Attributes:
    weight: of all mimic losses; 1 is our choice (they and MAE's have targets of
      unit variance); 0 leaves them out.
    error: 'l2' (mean squares), 'smooth_l1' (twice, β = 1) or 'cosine' (2 − 2
      cos).
    at: 'encoder', the paper's, or 'decoder', a second decoder as in methods
      that predict features of hidden patches: an ablation.
    on: at the decoder 'visible', 'masked' or 'all' patches; at the encoder
      there are visible ones only.
    fusion: 'none', the last block alone; 'sum', linear maps of four blocks at
      equal distances are added, for both losses (a ConvViT adds its stages
      itself); 'multi', mixtures of all blocks mimic the teacher's last five.
    class_token: CLS mimics the teacher's as one token more, as in MaskAlign.
  """

  weight: float = 1.0
  error: str = 'l2'
  at: str = 'encoder'
  on: str = 'visible'
  fusion: str = 'none'
  class_token: bool = False

  def __post_init__(self):
    for name, word, known in (
      ('error', self.error, tuple(ERRORS)),
      ('at', self.at, PLACES),
      ('on', self.on, WHERE),
      ('fusion', self.fusion, FUSIONS),
    ):
      check_word(f'method.mimic.{name}', word, known)
    if self.at == 'encoder' and self.on != 'visible':
      raise ValueError(
        f'method.mimic.on={self.on!r}: the encoder has no hidden patches; set '
        "method.mimic.at='decoder'"
      )
    for field, asked in (
      ("fusion='multi'", self.fusion == 'multi'),
      ('class_token=True', self.class_token),
    ):
      if self.at == 'decoder' and asked:
        raise ValueError(
          f"method.mimic.{field} needs method.mimic.at='encoder'"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mimic:
  """Feature mimicking at the encoder (MR-MAE, arXiv:2303.05475).

  Nothing is put in the place of hidden tokens, so that what is learned here and
  the pixels of hidden patches, after the decoder, do not meet.

  Attributes:
    levels: which levels the head gets, as names of `Features.tap`.
    head: a module: (levels) -> [b, k, f], a prediction for every token.
    source: name of the teacher.
    error: (prediction, target) -> [b, k].
    parts: f is so many targets one after the other (levels of the teacher),
      whose errors are averaged.
    class_token: the CLS token, which is always visible, comes first.
  """

  levels: tuple[int | str, ...]
  head: Any
  source: str
  error: Callable[[jax.Array, jax.Array], jax.Array] = losses.squared_error
  parts: int = 1
  class_token: bool = False

  def _inputs(self, features: Features) -> tuple[Level, ...]:
    levels = tuple(features.tap(where) for where in self.levels)
    if not self.class_token:
      return levels
    return tuple(_with_class_token(level) for level in levels)

  def init(self, rng: jax.Array, features: Features) -> Any:
    """The head's parameters."""
    return self.head.init(rng, self._inputs(features))['params']

  def predict(self, params: Any, features: Features) -> jax.Array:
    """[b, k, f] for CLS, where it counts, and the visible tokens."""
    return self.head.apply({'params': params}, self._inputs(features))

  def errors(self, params: Any, features: Features, said: Said) -> jax.Array:
    """The error of every one of these tokens, [b, k].

    Args:
      params: of the head.
      features: of the encoder.
      said: by the teacher.
    """
    index = features.tap(self.levels[-1]).index
    prediction = self.predict(params, features)
    target = said.tokens(index, class_token=self.class_token)
    prediction, target = (
      x.reshape(*x.shape[:2], self.parts, -1) for x in (prediction, target)
    )
    return self.error(prediction, target).mean(axis=-1)

  def mean(self, error: jax.Array, mask: Mask | None = None) -> jax.Array:
    """Over all these tokens of the batch, a float32 scalar."""
    del mask
    return jnp.mean(error)


def _with_class_token(level: Level) -> Level:
  """CLS as the first of the tokens that a head maps; without a place."""
  tokens = jnp.concatenate([level.prefix[:, :1], level.tokens], axis=1)
  return level.replace(tokens=tokens, index=None)
