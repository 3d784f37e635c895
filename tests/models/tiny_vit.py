"""A small ViT and what the tests of it share."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from models.vit import ViT


def tiny(**fields):
  return ViT(
    **dict(patch_size=4, width=16, depth=3, num_heads=2, mlp_ratio=2) | fields
  )


def images(*shape, seed=0):
  return jax.random.uniform(jax.random.key(seed), shape)


def initial(encoder, x):
  return jax.jit(encoder.init)(jax.random.key(0), x)['params']


def away_from_zero(params):
  """Parameters with noise, so that each of them matters."""
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  return treedef.unflatten(
    [
      leaf + 0.2 * jax.random.normal(key, leaf.shape)
      for leaf, key in zip(leaves, keys, strict=True)
    ]
  )


@functools.cache
def tiny_params():
  """Parameters of `tiny` with every one away from 0."""
  return away_from_zero(initial(tiny(), images(1, 12, 12, 3)))


def encode(encoder, params, x, **kwargs):
  """One compiled call; what is static is closed over."""
  static = {k: kwargs.pop(k) for k in ('cuts', 'attention') if k in kwargs}

  @jax.jit
  def call(params, x, kwargs):
    return encoder.apply({'params': params}, x, **static, **kwargs)

  return call(params, x, kwargs)


def gradient(encoder, params, x, scalar, **static):
  def loss(params):
    return scalar(encoder.apply({'params': params}, x, **static))

  return jax.jit(jax.grad(loss))(params)


def assert_close(got, want, tolerance=2e-5, name=''):
  want = np.asarray(want)
  error = np.abs(np.asarray(got) - want).max() / np.abs(want).max()
  assert error < tolerance, f'{name}: {error}'


def count(params):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def largest(params):
  return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(params))
