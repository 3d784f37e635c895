"""Attention, stochastic depth and batch normalisation on their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import linen as nn

from models.activations import gelu
from models.attention import Attention, attend, attention_weights
from models.layers import BatchNorm, drop_branch, drop_path_rates


def normal(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


def numpy_attention(params, x, heads):
  """[n, d] -> [n, d] and [heads, n, n], one head at a time, in float64."""

  def dense(name, x):
    p = params[name]
    return x @ np.asarray(p['kernel'], np.float64) + p['bias']

  q, k, v = (dense(name, x) for name in ('query', 'key', 'value'))
  e = x.shape[-1] // heads
  values, maps = [], []
  for i in range(heads):
    part = slice(i * e, (i + 1) * e)
    logits = np.exp(q[:, part] @ k[:, part].T / np.sqrt(e))
    maps.append(logits / logits.sum(axis=1, keepdims=True))
    values.append(maps[-1] @ v[:, part])
  return dense('out', np.concatenate(values, axis=1)), np.stack(maps)


@pytest.mark.parametrize('impl', ['auto', 'einsum', 'xla'])
def test_attention_equals_its_definition(impl):
  x = normal(2, 5, 12)
  layer = Attention(num_heads=3, impl=impl)
  params = layer.init(jax.random.key(1), x)['params']
  params = jax.tree.map(lambda p: p + 0.3 * normal(*p.shape, seed=2), params)
  y, no_map = layer.apply({'params': params}, x)
  assert no_map is None
  _, weights = layer.copy(with_map=True).apply({'params': params}, x)
  for i in range(2):
    want, maps = numpy_attention(params, np.asarray(x[i], np.float64), 3)
    np.testing.assert_allclose(y[i], want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(weights[i], maps, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
  'backend, impl, called',
  [
    ('cpu', 'auto', []),
    ('gpu', 'auto', [None]),
    ('gpu', 'xla', ['xla']),
    ('gpu', 'cudnn', ['cudnn']),
    ('gpu', 'einsum', []),
  ],
)
def test_attention_implementation_is_the_one_asked_for(
  monkeypatch, backend, impl, called
):
  seen = []

  def record(q, k, v, bias, implementation):
    assert bias is None
    seen.append(implementation)
    return q + k + v

  monkeypatch.setattr(jax.nn, 'dot_product_attention', record)
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  layer = Attention(num_heads=2, impl=impl, dtype=jnp.bfloat16)
  jax.eval_shape(layer.init, jax.random.key(0), normal(1, 3, 8))
  assert seen == called
  # Maps exist on the plain path only, whatever was asked for.
  jax.eval_shape(
    layer.copy(with_map=True).init, jax.random.key(0), normal(1, 3, 8)
  )
  assert seen == called


def test_gradient_of_attention_is_that_of_its_definition():
  """The one written out against what differentiation makes of the forward."""
  q, k, v, dy = (normal(2, 3, 7, 4, seed=i) for i in range(4))

  def plain(q, k, v):
    return jnp.einsum('bhnm,bhme->bhne', attention_weights(q, k), v)

  want, pull = jax.vjp(plain, q, k, v)
  got, pull_ours = jax.vjp(attend, q, k, v)
  np.testing.assert_allclose(got, want, atol=1e-6)
  for ours, theirs in zip(pull_ours(dy), pull(dy), strict=True):
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_attention_keeps_the_dtype_of_half_precision():
  half = [normal(2, 3, 7, 4, seed=i).astype(jnp.bfloat16) for i in range(4)]
  wide = [x.astype(jnp.float32) for x in half]
  y, pull = jax.vjp(attend, *half[:3])
  want, pull_wide = jax.vjp(attend, *wide[:3])
  assert y.dtype == jnp.bfloat16
  np.testing.assert_allclose(y.astype(jnp.float32), want, atol=0.02)
  for ours, theirs in zip(pull(half[3]), pull_wide(wide[3]), strict=True):
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(ours.astype(jnp.float32), theirs, atol=0.05)


def test_gelu_and_its_gradient_are_exact():
  x = jnp.concatenate([jnp.linspace(-12, 12, 4001), jnp.array([0.0, 1e-20])])
  got, pull = jax.vjp(gelu, x)
  wide = np.asarray(x, np.float64)
  cdf = 0.5 * scipy.special.erfc(-wide / np.sqrt(2))
  density = np.exp(-(wide**2) / 2) / np.sqrt(2 * np.pi)
  # XLA's erf is off by 1.5e-7; the value multiplies that by x, up to 5 or so
  # before erf is 1, and at 12 half a unit in the last place is 4.8e-7.
  np.testing.assert_allclose(got, wide * cdf, atol=8e-7)
  (slope,) = pull(jnp.ones_like(x))
  np.testing.assert_allclose(slope, cdf + wide * density, atol=2e-7)


def test_gelu_of_half_precision_is_rounded_once():
  x = jnp.linspace(-6, 6, 301).astype(jnp.bfloat16)
  got, pull = jax.vjp(gelu, x)
  assert got.dtype == pull(x)[0].dtype == jnp.bfloat16
  assert (got == gelu(x.astype(jnp.float32)).astype(jnp.bfloat16)).all()


def test_drop_branch_keeps_the_mean_and_drops_whole_examples():
  x = jnp.ones((20_000, 2, 3))
  noise = jax.random.uniform(jax.random.key(0), (20_000,))
  y = np.asarray(drop_branch(x, noise, 0.2))
  assert set(np.unique(y)) == {0.0, np.float32(1.25)}
  assert (y == y[:, :1, :1]).all()
  assert abs((y[:, 0, 0] == 0).mean() - 0.2) < 0.01
  np.testing.assert_allclose(y.mean(), 1, atol=0.015)


def test_drop_branch_border_and_off():
  x = jnp.ones((3, 1, 1), jnp.bfloat16)
  y = drop_branch(x, jnp.array([0.49, 0.5, 0.51]), 0.5)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_array_equal(y.ravel(), [0, 2, 2])
  assert drop_branch(x, None, 0.5) is x
  assert drop_branch(x, jnp.zeros(3), 0.0) is x


def test_drop_path_rates_run_from_zero():
  np.testing.assert_allclose(drop_path_rates(5, 0.2), [0, 0.05, 0.1, 0.15, 0.2])
  assert drop_path_rates(1, 0.2) == (0.0,)


@pytest.mark.parametrize('affine', [True, False])
def test_batch_norm_is_flax_batch_norm_without_averages(affine):
  x = 3 * normal(6, 4, 5) + 7
  oracle = nn.BatchNorm(
    use_running_average=False,
    momentum=0.9,
    epsilon=1e-5,
    use_fast_variance=False,
    use_scale=affine,
    use_bias=affine,
  )
  params = {}
  if affine:
    params = {'scale': normal(5, seed=1), 'bias': normal(5, seed=2)}
  state = oracle.init(jax.random.key(0), x)['batch_stats']

  def ours(params, x):
    y = BatchNorm(affine=affine).apply({'params': params}, x)
    return (y**3).sum(), y

  def flaxs(params, x):
    y, _ = oracle.apply(
      {'params': params, 'batch_stats': state}, x, mutable=['batch_stats']
    )
    return (y**3).sum(), y

  got, want = (
    jax.jit(jax.grad(f, argnums=(0, 1), has_aux=True))(params, x)
    for f in (ours, flaxs)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    got,
    want,
  )
  created = BatchNorm(affine=affine).init(jax.random.key(0), x)
  assert set(created) == ({'params'} if affine else set())


def test_batch_norm_statistics_are_float32():
  x = (1000 + normal(64, 3)).astype(jnp.bfloat16)
  y = BatchNorm(affine=False, dtype=jnp.bfloat16).apply({}, x)
  assert y.dtype == jnp.bfloat16
  want = BatchNorm(affine=False).apply({}, x.astype(jnp.float32))
  np.testing.assert_array_equal(y, want.astype(jnp.bfloat16))


def test_batch_norm_refuses_a_single_example():
  with pytest.raises(ValueError, match='at least 2 examples'):
    BatchNorm().init(jax.random.key(0), jnp.ones((1, 4)))
