"""What stands between a masked encoder and a teacher's features."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from models import layers
from models.dense import Dense
from models.features import Features, Level
from models.initializers import XAVIER


class SumOfLevels(nn.Module):
  """Adds up several blocks' outputs: MR-MAE's fusion, ConvMAE's way.

  Every level passes a linear layer; the norm of their sum takes the place of
  what follows the encoder's final norm, for all branches. What probes read,
  `pooled`, stays the encoder's own.

  Parameters: `dense_i` for every level and `norm`.

  Attributes:
    levels: 0-based numbers of levels of one grid and width.
    dtype: 'float32' or 'bfloat16': products.
  """

  levels: Sequence[int]
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, features: Features) -> Features:
    """The same features with other `tokens` and `cls`, float32."""
    total = 0
    for i, where in enumerate(self.levels):
      level = features.levels[where]
      x = jnp.concatenate([level.prefix, level.tokens], axis=1)
      dense = Dense(
        x.shape[-1],
        dtype=layers.compute_dtype(self.dtype),
        kernel_init=XAVIER,
        name=f'dense_{i}',
      )
      total += dense(x).astype(jnp.float32)
    x = layers.layer_norm('norm')(total)
    prefix = features.levels[-1].prefix.shape[1]
    cls = None if features.cls is None else x[:, 0]
    return features.replace(tokens=x[:, prefix:], cls=cls)


class MimicHead(nn.Module):
  """A linear map of visible tokens to a teacher's features.

  Parameters: `out`.

  Attributes:
    out_features: width of the teacher's features.
    dtype: 'float32' or 'bfloat16': the product.
  """

  out_features: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, levels: tuple[Level]) -> jax.Array:
    """Maps one level, tokens [b, k, d], to [b, k, f] float32."""
    (level,) = levels
    dtype = layers.compute_dtype(self.dtype)
    dense = Dense(
      self.out_features, dtype=dtype, kernel_init=XAVIER, name='out'
    )
    return dense(level.tokens).astype(jnp.float32)


class MixedHeads(nn.Module):
  """Predicts several levels of a teacher from mixtures of all levels.

  Deep supervision as in MaskAlign (Xue et al., 2023): for each of the T targets
  a learned mixture of the L levels (which starts as the T last ones, the others
  with 0.01), LayerNorm, and a linear map.

  Parameters: `mixture` [T, L], `norm_i` and `out_i` for every target.

  Attributes:
    out_features: width of the teacher's features.
    targets: number T of the teacher's levels.
    dtype: 'float32' or 'bfloat16': products.
  """

  out_features: int
  targets: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, levels: tuple[Level, ...]) -> jax.Array:
    """Maps L levels, tokens [b, k, d], to [b, k, T * f] float32."""

    def last(rng, shape, dtype=jnp.float32):
      del rng
      return jnp.eye(*shape, k=shape[1] - shape[0], dtype=dtype) + 0.01

    shape = (self.targets, len(levels))
    mixture = self.param('mixture', last, shape)
    dtype = layers.compute_dtype(self.dtype)
    out = []
    for i in range(self.targets):
      x = sum(
        mixture[i, j] * level.tokens.astype(jnp.float32)
        for j, level in enumerate(levels)
      )
      x = layers.layer_norm(f'norm_{i}', dtype)(x)
      dense = Dense(
        self.out_features, dtype=dtype, kernel_init=XAVIER, name=f'out_{i}'
      )
      out.append(dense(x).astype(jnp.float32))
    return jnp.concatenate(out, axis=-1)
