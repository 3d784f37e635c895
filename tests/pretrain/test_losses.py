"""Losses against recorded official values and NumPy twins."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain import losses

GOLDENS = pathlib.Path(__file__).parent.parent / 'goldens' / 'loss_mocov3.npz'


@pytest.fixture(scope='module')
def recorded():
  with np.load(GOLDENS) as file:
    return {name: file[name] for name in file.files}


@pytest.mark.parametrize('temperature', [0.2, 1.0])
def test_contrast_of_moco_v3(recorded, temperature):
  q1, q2, k1, k2 = (recorded[f'in/{n}'] for n in ('q1', 'q2', 'k1', 'k2'))

  def loss(q1, q2, k1, k2):
    first, _ = losses.info_nce(q1, k2, temperature=temperature)
    second, _ = losses.info_nce(q2, k1, temperature=temperature)
    return first + second, (first, second)

  grads, (first, second) = jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(
    q1, q2, k1, k2
  )
  name = f'T{temperature}'
  for got, want in ((first, 'q1k2'), (second, 'q2k1')):
    np.testing.assert_allclose(
      got, recorded[f'out/{name}/loss_{want}'], rtol=2e-5
    )
  for got, want in zip(grads, ('q1', 'q2'), strict=False):
    want = recorded[f'grad/{name}/{want}']
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())
  for grad in grads[2:]:
    assert not np.any(grad)  # keys are targets


def test_contrast_at_random_is_the_logarithm_of_the_batch():
  rng = np.random.default_rng(0)
  q, k = rng.normal(size=(2, 512, 2048)).astype(np.float32)
  loss, accuracy = losses.info_nce(q, k, temperature=0.2)
  # 2 · 0.2 · ln 512, and again for the other view: 0.8 ln B in all.
  np.testing.assert_allclose(loss, 0.4 * np.log(512), rtol=0.01)
  assert accuracy < 0.02


def test_accuracy_counts_own_keys():
  q = jnp.eye(4)
  k = jnp.eye(4)[jnp.array([0, 1, 3, 2])]
  _, accuracy = losses.info_nce(q, k, temperature=0.2)
  assert accuracy == 0.5


def test_normalize_survives_zero():
  x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
  np.testing.assert_allclose(losses.normalize(x), [[0.6, 0.8], [0, 0]])
  grad = jax.grad(lambda x: losses.normalize(x)[0, 0])(x)
  assert np.isfinite(grad).all()


def test_errors_are_means_over_the_last_axis():
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
  np.testing.assert_allclose(
    losses.absolute_error(a, b), np.abs(a - b).mean(-1), rtol=1e-6
  )
  np.testing.assert_allclose(
    losses.squared_error(a, b), ((a - b) ** 2).mean(-1), rtol=1e-6
  )
  assert losses.absolute_error(a.astype(jnp.bfloat16), b).dtype == jnp.float32
