"""Losses as pure functions; float32 inside, whatever comes in."""

import jax
import jax.numpy as jnp
import optax


def normalize(x: jax.Array) -> jax.Array:
  """X / ‖x‖₂ along the last axis, float32; a zero vector stays zero."""
  x = x.astype(jnp.float32)
  square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def info_nce(
  queries: jax.Array, keys: jax.Array, *, temperature: float
) -> tuple[jax.Array, jax.Array]:
  """MoCo v3's contrastive loss (Chen et al., 2021, Algorithm 1).

  2τ · cross-entropy of n(q) n(k)ᵀ / τ with the own row as the label: the
  negatives of a query are all other keys of the global batch. Keys get no
  gradient.

  Args:
    queries: [b, d].
    keys: [b, d], row i is the positive of query i.
    temperature: τ.

  Returns:
    The mean loss, float32 scalar, and the share of queries whose own key is
    the nearest.
  """
  q, k = normalize(queries), normalize(jax.lax.stop_gradient(keys))
  # A product in bfloat16 passes would be an error of 1e-2 / τ in the logits.
  logits = jnp.matmul(q, k.T, precision=jax.lax.Precision.HIGHEST) / temperature
  labels = jnp.arange(logits.shape[0])
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  hits = jnp.argmax(logits, axis=-1) == labels
  return 2 * temperature * jnp.mean(loss), jnp.mean(hits.astype(jnp.float32))


def absolute_error(prediction: jax.Array, target: jax.Array) -> jax.Array:
  """|prediction − target|, averaged over the last axis, float32."""
  difference = prediction.astype(jnp.float32) - target.astype(jnp.float32)
  return jnp.mean(jnp.abs(difference), axis=-1)


def squared_error(prediction: jax.Array, target: jax.Array) -> jax.Array:
  """(prediction − target)², averaged over the last axis, float32."""
  difference = prediction.astype(jnp.float32) - target.astype(jnp.float32)
  return jnp.mean(jnp.square(difference), axis=-1)
