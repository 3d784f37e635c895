"""What must hold of every contrastive method, with RePre on it."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import (
  BATCH,
  LEARNED,
  METHODS,
  TOTAL,
  assert_same_bits,
  assert_same_steps,
  cached_run,
  fixed,
  follow,
  make_run,
  moments,
  start,
)

from training.checkpoint import Checkpoints
from training.state import named_leaves

EVERY = sorted(METHODS)
OTHERS = [name for name in EVERY if name != 'moco_v3']  # see test_invariants
WITH_TEACHER = [n for n in OTHERS if n not in ('simclr', 'simsiam')]
# The queues are half full by then, and DINO's last layer is about to move.
STOP, END = 3, 5
NOT_YET = 'teacher/projector/last/'
KEPT = dict(
  simclr=set(),
  byol={'teacher'},
  simsiam=set(),
  moco_v2={'teacher', 'queue', 'pointer'},
  moco_v3={'teacher'},
  moby={'teacher', 'queue1', 'queue2', 'pointer'},
  dino={'teacher', 'centre'},
)


def run_of(name, **fields):
  return dict(method=name, repre=fixed(LEARNED), **fields)


@functools.cache
def steps(name, **fields):
  return follow(2, **run_of(name, **fields))


@pytest.mark.parametrize('name', OTHERS)
def test_four_devices_and_chunks_do_what_one_device_does(name):
  """Negatives, BatchNorm, centres and queues are those of the whole batch."""
  many = steps(name, devices=4, chunks=2)
  one = steps(name, devices=1)
  assert_same_steps(many, one, loss=1e-5, gradient=1e-4)


@pytest.mark.parametrize('name', OTHERS)
def test_a_step_moves_what_it_should(name):
  first = start(method=name, repre=fixed(LEARNED))
  state, report = steps(name, devices=1)[1]
  before, after = named_leaves(first.params), named_leaves(state.params)
  still = {n for n in before if (before[n] == after[n]).all()}
  # DINO's last layer waits for an epoch (three steps here).
  assert still == {n for n in before if n.startswith('projector/last/')}
  assert np.isfinite(report['loss']) and report['loss_pixels'] > 0
  assert report['bad_steps'] == 0
  teacher = state.method_state.get('teacher', {})
  assert set(teacher) == ({'encoder', 'projector'} if teacher else set())
  assert bool(teacher) == (name in WITH_TEACHER)


@pytest.mark.parametrize('name', WITH_TEACHER)
def test_the_teacher_is_the_moving_average_of_its_student(name):
  states = [start(method=name, repre=fixed(LEARNED))]
  states += [state for state, _ in steps(name, devices=1)]
  ahead = name in ('moco_v2', 'moby')  # moved at the beginning of a step
  for step in (0, 1):
    when = step + ahead
    momentum = 1 - 0.1 * (1 + math.cos(math.pi * when / TOTAL)) / 2
    if name == 'moco_v2':
      momentum = 0.9
    old = named_leaves(states[step].method_state['teacher'])
    new = named_leaves(states[step + 1].method_state['teacher'])
    student = named_leaves(states[step + 1].params)
    for path, leaf in new.items():
      want = momentum * old[path] + (1 - momentum) * student[path]
      np.testing.assert_allclose(leaf, want, atol=1e-6, err_msg=path)


@pytest.mark.parametrize('name', WITH_TEACHER)
def test_teachers_and_queues_get_no_gradient(name):
  run = cached_run(**run_of(name, devices=1))
  state = start(method=name, repre=fixed(LEARNED))
  views = run.data.render(run.data.batch(0), jax.random.key(0))

  @functools.partial(jax.grad, allow_int=True)
  def gradient(method_state):
    rng = jax.random.key(0)
    return run.method.loss(state.params, method_state, views, rng, 0)[0]

  for path, leaf in named_leaves(gradient(state.method_state)).items():
    assert leaf.dtype == jax.dtypes.float0 or not np.any(leaf), path


@pytest.mark.parametrize('name', EVERY)
def test_swin_learns_with_every_method(name):
  """Two steps; the decoder reads maps of two sizes."""
  (first, _), (second, report) = steps(name, devices=1, encoder='swin')
  assert np.isfinite(report['loss']) and report['bad_steps'] == 0
  before, after = named_leaves(first.params), named_leaves(second.params)
  moved = {n for n in before if (before[n] != after[n]).any()}
  table = [n for n in before if n.endswith('position_bias')]
  assert len(table) == 2 and set(table) <= moved
  assert {n for n in before if n.startswith('decoder')} <= moved


def test_convvit_learns_with_repre():
  """Two steps; the decoder reads maps of two strides and two widths."""
  kind = dict(devices=1, encoder='convvit')
  (first, _), (second, report) = steps('simsiam', **kind)
  assert np.isfinite(report['loss']) and report['loss_pixels'] > 0
  assert report['bad_steps'] == 0
  before, after = named_leaves(first.params), named_leaves(second.params)
  assert all((before[n] != after[n]).any() for n in before)
  branch = cached_run(**run_of('simsiam', **kind)).method.branch
  assert branch.levels == (0, 2) and branch.target.patch_size == 2


def test_level_gradients_are_those_of_the_pixel_error():
  """Against moving each level that the decoder reads by a little."""
  added = dict(LEARNED, level_gradients=True, view='both')
  run = cached_run(method='simsiam', devices=1, repre=fixed(added))
  first = start(method='simsiam', repre=fixed(LEARNED))
  params, state = first.params, first.method_state
  views = run.data.render(run.data.batch(0), jax.random.key(0))
  method = run.method
  _, aux = jax.jit(method.loss)(params, state, views, jax.random.key(0), 0)
  assert method.views == ('view1', 'view2')
  features, image = aux.features['view1'], aux.images['view1']
  for level in method.branch.levels:
    norm = float(aux.metrics[f'grad_level_{level}'])
    tokens = features.levels[level].tokens

    def error(t, level=level, tokens=tokens, norm=norm):
      moved = list(features.levels)
      moved[level] = moved[level].replace(tokens=tokens + t)
      return method.branch.loss(
        params['decoder'], features.replace(levels=tuple(moved)), image
      )

    slope = jax.grad(error)(jnp.zeros_like(tokens))
    assert norm == pytest.approx(float(jnp.linalg.norm(slope)), rel=1e-4)
    assert norm > 0


def test_both_views_count_half_each():
  both, first, second = (
    cached_run(
      method='simsiam', devices=1, repre=fixed(dict(LEARNED, view=view))
    )
    for view in ('both', 'view1', 'view2')
  )
  state = start(method='simsiam', repre=fixed(LEARNED))
  views = both.data.render(both.data.batch(0), jax.random.key(0))

  def pixels(run):
    rng = jax.random.key(0)
    _, aux = run.method.loss(state.params, state.method_state, views, rng, 0)
    return float(aux.metrics['loss_pixels'])

  want = (pixels(first) + pixels(second)) / 2
  assert pixels(both) == pytest.approx(want, rel=1e-6)


class TestFirstLoss:
  """Of random features: what counting says (spread features, no structure)."""

  def loss(self, name):
    return float(steps(name, devices=1)[0][1]['loss_contrast'])

  def test_byol_is_at_most_that_of_unrelated_views(self):
    assert 0 < self.loss('byol') < 4.5

  def test_simsiam_is_one_less_the_cosine(self):
    report = steps('simsiam', devices=1)[0][1]
    assert report['loss_contrast'] == pytest.approx(1 - report['cosine'])
    assert 0 < report['loss_contrast'] < 2

  def test_queues_are_negatives_of_unit_length(self):
    for name, low, high in (('moby', 1, 2), ('moco_v2', 1, 2)):
      bound = high * math.log(1 + METHODS[name]['queue'])
      assert 0.2 * low < self.loss(name) < bound + high / 0.2


class TestQueues:
  def test_moby_keeps_each_views_keys_apart(self):
    state = steps('moby', devices=4, chunks=2)[1][0].method_state
    assert state['pointer'] == 2 * BATCH % 32
    norms = np.linalg.norm(state['queue1'], axis=1)
    np.testing.assert_allclose(norms, 1, rtol=1e-5)
    assert np.abs(state['queue1'] - state['queue2']).max() > 0.01

  def test_moco_v2_queues_the_keys_of_both_views(self):
    first = start(method='moco_v2', repre=fixed(LEARNED)).method_state
    after = steps('moco_v2', devices=1)[0][0].method_state
    assert after['pointer'] == 2 * BATCH
    changed = np.any(first['queue'] != after['queue'], axis=1)
    assert changed[: 2 * BATCH].all() and not changed[2 * BATCH :].any()

  def test_a_queue_that_batches_do_not_fill_is_refused(self):
    run = cached_run(**run_of('moby', devices=1))
    views = {n: jnp.zeros((12, 16, 16, 3)) for n in ('view1', 'view2')}
    with pytest.raises(ValueError, match='nearest lengths that work: 24, 36'):
      jax.eval_shape(run.method.init, jax.random.key(0), views)


class TestViews:
  @pytest.mark.parametrize('name', ['byol', 'simclr'])
  def test_local_crops_are_refused_where_no_loss_has_them(self, name):
    run = cached_run(**run_of(name, devices=1))
    views = {n: jnp.zeros((4, 16, 16, 3)) for n in ('view1', 'view2')}
    views['local1'] = jnp.zeros((4, 8, 8, 3))
    with pytest.raises(ValueError, match='only DINO takes local crops'):
      jax.eval_shape(run.method.init, jax.random.key(0), views)

  def test_dino_needs_the_crops_that_it_was_told_of(self):
    run = cached_run(**run_of('dino', devices=1))
    views = {n: jnp.zeros((4, 16, 16, 3)) for n in ('view1', 'view2')}
    with pytest.raises(ValueError, match="'local1', 'local2'"):
      jax.eval_shape(run.method.init, jax.random.key(0), views)


def kind_of(name):
  """Every second method on Swin."""
  swin = dict(encoder='swin') if EVERY.index(name) % 2 else {}
  return run_of(name, devices=1, **swin)


@pytest.mark.parametrize('name', METHODS)
def test_continued_from_a_checkpoint_it_takes_the_same_steps(name, tmp_path):
  kind = kind_of(name)
  whole = follow(END, **kind)
  stopped = whole[STOP - 1][0]
  run = cached_run(**kind)
  saved = Checkpoints(tmp_path)
  saved.save(jax.device_put(stopped, run.shardings), step=STOP, meta={})
  saved.close()

  fresh = make_run(**kind | dict(repre=LEARNED))
  assert fresh.method is not run.method
  saved = Checkpoints(tmp_path)
  state, meta = saved.restore(fresh.like)
  saved.close()
  assert meta['step'] == STOP
  assert_same_bits(state, stopped)
  for step in range(STOP, END):
    state, report = fresh.step(state, fresh.data.batch(step))
    assert_same_bits(report, whole[step][1])
  assert_same_bits(state, whole[END - 1][0])


@pytest.mark.parametrize('name', METHODS)
def test_whatever_is_lost_would_be_noticed(name):
  """At the stop nothing that is kept is what a new run begins with."""
  kind = kind_of(name)
  stopped = follow(END, **kind)[STOP - 1][0]
  kind.pop('devices')  # of which the first state is independent
  first = start(**kind)
  assert set(stopped.method_state) == KEPT[name] | {'weighting'}
  old = named_leaves(first.method_state)
  for path, leaf in named_leaves(stopped.method_state).items():
    # The mean of a teacher and a student that are equal may round.
    moved = not np.allclose(leaf, old[path], rtol=1e-6, atol=0)
    assert moved != path.startswith(NOT_YET), path
  for path, leaf in moments(stopped).items():
    assert np.any(leaf) != path.startswith('projector/last/'), path
