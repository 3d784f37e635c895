"""Linear layers on tokens against plain products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from models.dense import Dense, flat_product


@pytest.mark.parametrize('leading', [(6,), (2, 3), (2, 3, 4), (0, 3)])
def test_the_product_and_its_gradients_are_those_of_matmul(leading):
  x = jax.random.normal(jax.random.key(0), (*leading, 5))
  kernel = jax.random.normal(jax.random.key(1), (5, 7))
  dy = jax.random.normal(jax.random.key(2), (*leading, 7))
  want, pull = jax.vjp(jnp.matmul, x, kernel)
  got, pull_ours = jax.vjp(flat_product, x, kernel)
  assert got.shape == want.shape
  np.testing.assert_allclose(got, want, atol=1e-6)
  for ours, theirs in zip(pull_ours(dy), pull(dy), strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_parameters_and_dtype_are_those_of_flax():
  x = jax.random.normal(jax.random.key(0), (2, 3, 5))
  ours, theirs = (kind(7, dtype=jnp.bfloat16) for kind in (Dense, nn.Dense))
  params = theirs.init(jax.random.key(1), x)
  got, want = ours.apply(params, x), theirs.apply(params, x)
  assert got.dtype == want.dtype == jnp.bfloat16
  np.testing.assert_array_equal(
    jax.tree.leaves(ours.init(jax.random.key(1), x)['params'])[1],
    params['params']['kernel'],
  )
  np.testing.assert_allclose(
    got.astype(jnp.float32), want.astype(jnp.float32), rtol=0.01, atol=0.01
  )
