"""Image features for probes: of the last blocks, pooled in several ways."""

from typing import Any

import jax
import jax.numpy as jnp

from models.features import Features, Level

POOLINGS = ('auto', 'cls', 'mean', 'cls_mean')


def pool_blocks(
  encoder: Any,
  params: Any,
  features: Features,
  *,
  blocks: int = 1,
  pooling: str = 'auto',
) -> jax.Array:
  """The last blocks' features side by side, as DINO's linear probe reads them.

  Every block goes through the encoder's final norm (Caron et al., 2021,
  `eval_linear.py`); stages of another width than the last (Swin) have no such
  norm and are normalised without scale and bias.

  Args:
    encoder: the module.
    params: its parameters; those of the final `norm` are read.
    features: what it returned.
    blocks: n, the last blocks (stages of Swin), shallow to deep.
    pooling: 'auto', the encoder's own; 'cls'; 'mean' of the patch tokens;
      'cls_mean', the CLS tokens of the n blocks and the mean of the last
      block's patch tokens.

  Returns:
    float32 [b, d'].

  Raises:
    ValueError: fewer blocks, an unknown pooling, or 'cls' of an encoder without
      a CLS token.
  """
  if not 1 <= blocks <= len(features.levels):
    raise ValueError(
      f'blocks={blocks} must be within 1..{len(features.levels)}, what this '
      'encoder has'
    )
  if pooling not in POOLINGS:
    raise ValueError(
      f'unknown pooling {pooling!r}; known: {", ".join(POOLINGS)}'
    )
  if pooling == 'auto':
    pooling = encoder.pool
  if pooling != 'mean' and features.cls is None:
    raise ValueError(
      f'pooling={pooling!r} needs a CLS token, and this encoder has none: use '
      "'mean'"
    )
  # The last one is normed already.
  last = dict(cls=features.cls, mean=features.tokens.mean(axis=1))
  part = 'mean' if pooling == 'mean' else 'cls'
  out = [
    _pooled(level, params['norm'], encoder.norm_epsilon, part)
    for level in features.levels[len(features.levels) - blocks : -1]
  ]
  out.append(last[part])
  if pooling == 'cls_mean':
    out.append(last['mean'])
  return jnp.concatenate(out, axis=-1)


def _pooled(
  level: Level, norm: dict[str, jax.Array], epsilon: float, part: str
) -> jax.Array:
  x = level.prefix[:, 0] if part == 'cls' else level.tokens
  x = x.astype(jnp.float32)
  mean = x.mean(axis=-1, keepdims=True)
  x = (x - mean) * jax.lax.rsqrt(x.var(axis=-1, keepdims=True) + epsilon)
  if norm['scale'].shape == x.shape[-1:]:
    x = x * norm['scale'] + norm['bias']
  return x if part == 'cls' else x.mean(axis=1)
