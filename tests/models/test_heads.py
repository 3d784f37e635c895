"""Projector and predictor against the official MoCo v3."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.heads import MLPHead

GOLDEN = pathlib.Path(__file__).parents[1] / 'goldens' / 'heads_mocov3.npz'
CASES = {
  'projector': (MLPHead(hidden=64, out=16, layers=3), 48),
  'predictor': (MLPHead(hidden=64, out=16, layers=2), 16),
  'predictor_resnet': (
    MLPHead(hidden=64, out=16, layers=2, last_norm=False),
    16,
  ),
}


def official_params(z, group, layers):
  """A torch Sequential of Linear, BatchNorm, ReLU ... as our tree."""
  params = {}
  for i in range(layers):
    params[f'dense_{i}'] = {'kernel': z[f'{group}/{3 * i}.weight'].T}
    if i < layers - 1:
      params[f'norm_{i}'] = {
        'scale': z[f'{group}/{3 * i + 1}.weight'],
        'bias': z[f'{group}/{3 * i + 1}.bias'],
      }
  return params


def assert_close(got, want, tolerance=2e-5):
  assert np.abs(got - want).max() / np.abs(want).max() < tolerance


@pytest.mark.parametrize('name', CASES)
def test_moco_v3_heads(name):
  z = np.load(GOLDEN)
  head, _ = CASES[name]

  def loss(params, x):
    y = head.apply({'params': params}, x)
    return (y * z[f'{name}/in/cotangent']).sum(), y

  params = official_params(z, f'{name}/w', head.layers)
  x = jnp.asarray(z[f'{name}/in/x'])
  (grads, grad_x), y = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)
  assert_close(y, z[f'{name}/out/y'])
  assert_close(grad_x, z[f'{name}/grad_x/x'])
  want = official_params(z, f'{name}/grad', head.layers)
  jax.tree.map(assert_close, grads, want)


@pytest.mark.parametrize('name', CASES)
def test_heads_store_parameters_and_nothing_else(name):
  head, width = CASES[name]
  created = head.init(jax.random.key(0), jnp.ones((2, width)))
  assert set(created) == {'params'}
  want = official_params(np.load(GOLDEN), f'{name}/w', head.layers)
  assert jax.tree.structure(created['params']) == jax.tree.structure(want)


def test_parameter_counts_of_the_paper():
  def count(layers, width):
    head = MLPHead(hidden=4096, out=256, layers=layers)
    x = jax.ShapeDtypeStruct((2, width), jnp.float32)
    leaves = jax.tree.leaves(jax.eval_shape(head.init, jax.random.key(0), x))
    return sum(math.prod(leaf.shape) for leaf in leaves)

  assert count(3, 384) == 19_415_040
  assert count(2, 256) == 2_105_344


def test_kernels_start_as_pytorch_does():
  head = MLPHead(hidden=400, out=100, layers=2)
  params = head.init(jax.random.key(0), jnp.ones((2, 64)))['params']
  for name, bound in (('dense_0', 64**-0.5), ('dense_1', 400**-0.5)):
    kernel = params[name]['kernel']
    assert 0.99 * bound < float(jnp.abs(kernel).max()) <= bound
    np.testing.assert_allclose(kernel.std(), bound / math.sqrt(3), rtol=0.02)


def test_bfloat16_head_returns_float32():
  x = jax.random.normal(jax.random.key(0), (32, 48))
  head = MLPHead(hidden=64, out=16, layers=3)
  params = head.init(jax.random.key(1), x)
  full = head.apply(params, x)
  half = head.copy(dtype='bfloat16').apply(params, x)
  assert half.dtype == full.dtype == jnp.float32
  assert (half != full).any()
  assert_close(half, full, 0.05)


def test_a_head_needs_a_layer():
  with pytest.raises(ValueError, match='at least 1 layer, not 0'):
    MLPHead(hidden=4, out=4, layers=0).init(jax.random.key(0), jnp.ones((2, 4)))
