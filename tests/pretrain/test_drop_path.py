"""Paths are dropped in the student and never in a teacher."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from tiny import LEARNED, cached_run, fixed, start

from training.state import named_leaves

# Of the last block; the first one drops nothing. So nearly all that nothing
# of it is left in a batch.
RATE = 1 - 2**-20
LAST = 'encoder/block_1/'
# One without a teacher, one that moves it ahead, one with local crops.
NAMES = ('simclr', 'moby', 'dino')


@functools.cache
def method_and_state(name):
  """A method whose student loses its last block; its first state."""
  run = cached_run(method=name, repre=None, devices=1)
  encoder = run.method.encoder.clone(drop_path=RATE)
  method = dataclasses.replace(run.method, encoder=encoder)
  views = run.data.render(run.data.batch(0), jax.random.key(0))
  state = start(method=name, repre=fixed(LEARNED))
  params = {k: state.params[k] for k in run.like.params}

  @jax.jit
  def gradient(params, method_state):
    rng = jax.random.key(0)
    loss = jax.value_and_grad(method.loss, has_aux=True)
    (value, _), grads = loss(params, method_state, views, rng, 0)
    return value, grads

  return gradient, params, state.method_state


def changed(tree):
  """Other weights in the last block of `tree['encoder']`."""
  block = jax.tree.map(lambda x: 1.5 * x + 0.1, tree['encoder']['block_1'])
  return dict(tree, encoder=dict(tree['encoder'], block_1=block))


@pytest.mark.parametrize('name', NAMES)
def test_the_student_learns_nothing_where_its_paths_are_dropped(name):
  gradient, params, method_state = method_and_state(name)
  loss, grads = gradient(params, method_state)
  for path, leaf in named_leaves(grads).items():
    assert np.isfinite(leaf).all(), path
    if path.startswith('encoder/block_'):
      assert np.any(leaf) != path.startswith(LAST), path
  other, _ = gradient(changed(params), method_state)
  assert other == loss


@pytest.mark.parametrize('name', NAMES[1:])
def test_the_teacher_keeps_all_paths(name):
  gradient, params, method_state = method_and_state(name)
  loss, grads = gradient(params, method_state)
  teacher = changed(method_state['teacher'])
  other, others = gradient(params, dict(method_state, teacher=teacher))
  assert abs(other - loss) > 1e-4 * abs(loss)
  path = 'encoder/block_0/mlp/fc1/kernel'
  assert np.any(named_leaves(grads)[path] != named_leaves(others)[path])
