"""Chunks change memory, not numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from training.chunking import in_chunks, merge_rows, split_rows


def test_rows_are_dealt_out_in_turn():
  x = jnp.arange(12).reshape(6, 2)
  np.testing.assert_array_equal(split_rows(x, 2)[0, :, 0], [0, 4, 8])
  np.testing.assert_array_equal(merge_rows(split_rows(x, 3)), x)


@pytest.mark.parametrize('chunks', [1, 2, 4])
def test_values_gradients_and_none(chunks):
  x = jax.random.normal(jax.random.key(0), (8, 5))
  w = jax.random.normal(jax.random.key(1), (5, 3))

  def loss(w):
    out = in_chunks(lambda x, none: jnp.tanh(x @ w), chunks, x, None)
    return jnp.sum(out * jnp.arange(8.0)[:, None]), out

  (_, out), grad = jax.value_and_grad(loss, has_aux=True)(w)
  np.testing.assert_allclose(out, jnp.tanh(x @ w), rtol=1e-6)
  want = jax.grad(
    lambda w: jnp.sum(jnp.tanh(x @ w) * jnp.arange(8.0)[:, None])
  )(w)
  np.testing.assert_allclose(grad, want, atol=1e-6 * np.abs(want).max())


def test_memory_is_that_of_one_chunk():
  x = jnp.ones((1024, 64))
  w = jnp.ones((64, 64))

  def temporary(chunks):
    def loss(w):
      def deep(x):
        for _ in range(8):
          x = jnp.tanh(x @ w)
        return x.sum(axis=1)

      return in_chunks(deep, chunks, x).sum()

    compiled = jax.jit(jax.grad(loss)).lower(w).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary(8) < 0.6 * temporary(1)
