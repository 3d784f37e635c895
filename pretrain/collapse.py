"""Does the encoder still tell images apart? Always measured, warns in words."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from pretrain.losses import normalize

MIN_STD = 0.1  # of 1/√d, the value of features spread over the sphere
MIN_RANK = 1.1  # healthy runs of a mini ViT: 1.2 untrained to 5 trained
MAX_COSINE = 0.99


def monitor(features: jax.Array) -> dict[str, jax.Array]:
  """Three measures of collapse, on stopped gradients.

  Args:
    features: [b, d], the pooled features of one view.

  Returns:
    feature_std: mean over dimensions of the standard deviation of the
      unit-length features, times √d: 1 when spread evenly, 0 when constant
      (Chen & He, 2021, Fig. 2).
    effective_rank: (Σ λ)² / Σ λ² of the covariance's eigenvalues, the
      participation ratio: 1 for a line, min(b, d) for a ball. It needs no
      eigenvalues: Σ λ is the trace, Σ λ² the squared Frobenius norm.
    mean_cosine: mean cosine of two different images' features.
  """
  z = normalize(jax.lax.stop_gradient(features))
  b, d = z.shape
  mean = jnp.mean(z, axis=0)
  centered = z - mean
  small = centered.T @ centered if d <= b else centered @ centered.T
  trace, square = jnp.trace(small), jnp.sum(jnp.square(small))
  pairs = jnp.square(b * jnp.linalg.norm(mean)) - jnp.sum(jnp.square(z))
  return dict(
    feature_std=jnp.mean(jnp.std(z, axis=0)) * jnp.sqrt(d),
    effective_rank=jnp.square(trace) / jnp.maximum(square, 1e-30),
    mean_cosine=pairs / max(b * (b - 1), 1),
  )


def warnings(metrics: Mapping[str, float]) -> list[str]:
  """What a report says about collapse, in words; empty when all is well.

  Args:
    metrics: a report that may hold the values of `monitor`.

  Returns:
    One sentence per sign of collapse.
  """
  out = []
  if metrics.get('feature_std', 1.0) < MIN_STD:
    out.append(
      f'features are nearly constant (standard deviation '
      f'{metrics["feature_std"]:.3f} of 1): the encoder has collapsed; lower '
      'the learning rate or lengthen the warm-up'
    )
  if metrics.get('effective_rank', MIN_RANK) < MIN_RANK:
    out.append(
      f'features fill {metrics["effective_rank"]:.2f} dimensions: dimensional '
      'collapse; lower the learning rate or the weight decay'
    )
  if metrics.get('mean_cosine', 0.0) > MAX_COSINE:
    out.append(
      f'any two images look alike (mean cosine {metrics["mean_cosine"]:.4f})'
    )
  return out
