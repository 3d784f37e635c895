"""Optimisers against recorded PyTorch steps; rules against their promises."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from training import optim
from training.optim import NEVER, Clip, Rule

GOLDENS = pathlib.Path(__file__).parent.parent / 'goldens' / 'optimisers.npz'
TREE = ('0.weight', '0.bias', '1.weight', '1.bias', '3.weight', '3.bias')
# The authors' LARS neither decays nor adapts what has one axis.
VECTORS = '(0.bias|1.weight|1.bias|3.bias)'


@pytest.fixture(scope='module')
def recorded():
  with np.load(GOLDENS) as file:
    return {name: file[name] for name in file.files}


def rules_of(name, lr):
  if name.startswith('lars'):
    decay = 0.01 if name == 'lars_mocov3' else 0.0
    return (
      (VECTORS, Rule(lr=lr, adaptive=False)),
      ('.*', Rule(lr=lr, decay=decay)),
    )
  decay = {'adamw': 0.1, 'adamw_b95': 0.05}.get(name, 1e-4)
  return (('.*', Rule(lr=lr, decay=decay)),)


HYPER = {
  'adamw': dict(name='adamw'),
  'adamw_b95': dict(name='adamw', b2=0.95),
  'sgd': dict(name='sgd'),
  'sgd_nesterov': dict(name='sgd', nesterov=True),
  'lars_mocov3': dict(name='lars'),
  'lars_mae': dict(name='lars'),
}


@pytest.mark.parametrize('name', HYPER)
def test_three_recorded_steps(recorded, name):
  rates = jnp.array([recorded[f'{name}/step{i}/lr'] for i in range(3)])
  params = {n: jnp.array(recorded[f'w0/{n}']) for n in TREE}
  optimizer = optim.make_optimizer(
    params, rules_of(name, lambda step: rates[step]), **HYPER[name]
  )
  state = optimizer.init(params)
  for i in range(3):
    grads = {n: jnp.array(recorded[f'{name}/step{i}/grad/{n}']) for n in TREE}
    updates, state = optimizer.update(grads, state, params, step=i)
    params = jax.tree.map(jnp.add, params, updates)
    for n in TREE:
      want = recorded[f'{name}/step{i}/after/{n}']
      np.testing.assert_allclose(
        params[n], want, rtol=2e-5, atol=2e-6 * np.abs(want).max(), err_msg=n
      )


def run(rules, params, grads, steps):
  """Parameters and optimiser states after each step with SGD or AdamW."""
  optimizer = optim.make_optimizer(params, rules)
  state = optimizer.init(params)
  out = []
  for i in range(steps):
    updates, state = optimizer.update(grads, state, params, step=jnp.array(i))
    params = jax.tree.map(jnp.add, params, updates)
    out.append((params, state))
  return out


PARAMS = {'a': jnp.array([3.0, -4.0]), 'b': {'c': jnp.array([[1.0, 2.0]])}}
GRADS = {'a': jnp.array([0.3, 0.4]), 'b': {'c': jnp.array([[6.0, 8.0]])}}


def test_a_scale_is_that_of_the_whole_update():
  """Decay included, as if the rate itself were another."""
  scaled = Rule(lr=0.5, scale=0.25, decay=0.1)
  plain = Rule(lr=0.125, decay=0.1)
  (found, _), (want, _) = (
    run((('.*', rule),), PARAMS, GRADS, 2)[-1] for rule in (scaled, plain)
  )
  jax.tree.map(np.testing.assert_array_equal, found, want)


def test_the_first_match_wins():
  rules = (('b/.*', Rule(lr=0.0)), ('.*', Rule(lr=1.0)))
  (params, _), *_ = run(rules, PARAMS, GRADS, 1)
  np.testing.assert_array_equal(params['b']['c'], PARAMS['b']['c'])
  assert not np.allclose(params['a'], PARAMS['a'])


def test_a_pattern_must_match_the_whole_path():
  with pytest.raises(ValueError, match=r"no optimiser rule matches \['b/c'\]"):
    optim.make_optimizer(PARAMS, (('a|b', Rule(lr=1.0)),))


def test_unknown_optimiser():
  with pytest.raises(ValueError, match="unknown optimiser 'adam'.*adamw"):
    optim.make_optimizer(PARAMS, (('.*', Rule(lr=1.0)),), name='adam')


def test_frozen_for_good_keeps_no_state():
  rules = (('a', Rule(lr=1.0, decay=0.5, trainable_from=NEVER)),)
  rules += (('.*', Rule(lr=1.0)),)
  (params, state), *_ = run(rules, PARAMS, GRADS, 1)
  np.testing.assert_array_equal(params['a'], PARAMS['a'])
  # Adam's two moments and count of b/c alone.
  assert len(jax.tree.leaves(state)) == 3
  assert optim.trainable(PARAMS, rules) == {'a': False, 'b/c': True}


def test_frozen_until_a_step_starts_as_if_new():
  late = (('a', Rule(lr=0.1, decay=0.5, trainable_from=2)),)
  late += (('.*', Rule(lr=0.1)),)
  frozen, _, third, fourth = run(late, PARAMS, GRADS, 4)
  np.testing.assert_array_equal(frozen[0]['a'], PARAMS['a'])
  fresh = run((('.*', Rule(lr=0.1, decay=0.5)),), PARAMS, GRADS, 2)
  # Bias correction, moments and decay begin at the first trained step.
  np.testing.assert_array_equal(third[0]['a'], fresh[0][0]['a'])
  np.testing.assert_array_equal(fourth[0]['a'], fresh[1][0]['a'])


def test_decay_may_follow_the_step():
  rules = (('.*', Rule(lr=0.1, decay=lambda step: 0.5 * step)),)
  zeros = jax.tree.map(jnp.zeros_like, GRADS)
  (first, _), (second, _) = run(rules, PARAMS, zeros, 2)
  np.testing.assert_array_equal(first['a'], PARAMS['a'])
  np.testing.assert_allclose(second['a'], PARAMS['a'] * (1 - 0.1 * 0.5))


def clipped(rules, step=0):
  transform = optim._clip(optim.assign(PARAMS, rules), rules)
  return transform.update(GRADS, None, step=step)[0]


def test_clip_per_tensor():
  out = clipped((('.*', Rule(lr=1.0, clip=Clip(norm=1.0, per='tensor'))),))
  np.testing.assert_allclose(out['a'], GRADS['a'])  # its norm is 0.5
  np.testing.assert_allclose(out['b']['c'], [[0.6, 0.8]], rtol=1e-5)


def test_tensors_that_are_one_elsewhere_share_a_norm():
  clip = Clip(norm=1.0, per='tensor', fused='a|b/c')
  out = clipped((('.*', Rule(lr=1.0, clip=clip)),))
  norm = np.sqrt(0.25 + 100.0)
  np.testing.assert_allclose(out['a'], GRADS['a'] / norm, rtol=1e-5)
  np.testing.assert_allclose(out['b']['c'], GRADS['b']['c'] / norm, rtol=1e-5)


def test_equal_clips_of_two_rules_share_a_norm():
  clip = Clip(norm=1.0)
  out = clipped((('a', Rule(lr=1.0, clip=clip)), ('.*', Rule(lr=2, clip=clip))))
  norm = np.sqrt(0.25 + 100.0)
  np.testing.assert_allclose(out['a'], GRADS['a'] / norm, rtol=1e-5)
  np.testing.assert_allclose(out['b']['c'], GRADS['b']['c'] / norm, rtol=1e-5)


def test_scopes_clip_apart():
  base, decoder = Clip(norm=1.0), Clip(norm=1.0, scope='decoder')
  out = clipped(
    (('a', Rule(lr=1.0, clip=base)), ('.*', Rule(lr=1.0, clip=decoder)))
  )
  np.testing.assert_allclose(out['a'], GRADS['a'])
  np.testing.assert_allclose(out['b']['c'], [[0.6, 0.8]], rtol=1e-5)


def test_frozen_gradients_do_not_count_for_clipping():
  clip = Clip(norm=1.0)
  rules = (
    ('b/.*', Rule(lr=1.0, clip=clip, trainable_from=5)),
    ('.*', Rule(lr=1.0, clip=clip)),
  )
  np.testing.assert_allclose(clipped(rules, step=4)['a'], GRADS['a'])
  assert np.abs(clipped(rules, step=5)['a']).max() < 0.05


def test_clip_refuses_other_words():
  with pytest.raises(ValueError, match="Clip.per='leaf' must be"):
    Clip(norm=1.0, per='leaf')
