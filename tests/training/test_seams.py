"""The seams: four throw-away methods, one loop that knows none of them."""

import copy
import dataclasses
import functools
import json
import shutil
import warnings

import jax
import numpy as np
import pytest
from seam_methods import (
  CLASSES,
  UNFREEZE,
  Accuracy,
  Classifier,
  Masked,
  Queue,
  Recipe,
  Spy,
  labelled_images,
  make_config,
  make_data,
  mesh_of,
)

from models.masking import random_masking
from pretrain.methods.repre import repre
from training.checkpoint import Checkpoints
from training.loop import NonFiniteError, train
from training.recipe import Recipe as Rates
from training.schedules import constant
from training.state import named_leaves
from training.step import Run

METHODS = {
  'queue': Queue(),
  'masked': Masked(),
  'classifier': Classifier(),
  'recipe': Recipe(),
}


def make_run(method, *, devices=4, n=32, **config):
  return Run(
    make_config(**config),
    mesh=mesh_of(devices),
    method=method,
    data=make_data(n, devices=devices),
  )


@functools.cache
def shared_run(name):
  """One Run, and so one compiled step, per method."""
  return make_run(METHODS[name])


def variant(run, *, poison=(), **fields):
  """The same compiled step under other intervals or on poisoned data."""
  new = copy.copy(run)
  new.config = copy.deepcopy(run.config)
  new.config.update(fields)
  new.data = dataclasses.replace(run.data, poison=poison)
  return new


def final(run, workdir):
  """What the loop left behind, on the host."""
  checkpoints = Checkpoints(workdir)
  state, _ = checkpoints.restore(run.like)
  checkpoints.close()
  return jax.device_get(state)


def rows_of(workdir, name='metrics.jsonl'):
  return [json.loads(s) for s in (workdir / name).read_text().splitlines()]


def assert_same_bits(got, want):
  got, want = named_leaves(got), named_leaves(want)
  assert got.keys() == want.keys()
  for name, leaf in want.items():
    a, b = np.asarray(got[name]), np.asarray(leaf)
    assert a.dtype == b.dtype and a.shape == b.shape, name
    assert a.tobytes() == b.tobytes(), name


def steps(run, count):
  """`count` steps outside the loop: state, and metrics of every step."""
  state, found = run.init(), []
  for step in range(count):
    state, report = run.step(state, run.data.batch(step))
    found.append(jax.device_get(report))
  return jax.device_get(state), found


# What holds for every method.


@pytest.mark.parametrize('name', METHODS)
def test_one_compilation_and_donated_state(name):
  run = shared_run(name)
  state = run.init()
  with warnings.catch_warnings():
    # 'Some donated buffers were not usable' would be memory held twice.
    warnings.filterwarnings('error', message='.*donated')
    for step in range(4):
      old, batch = state, run.data.batch(step)
      state, _ = run.step(state, batch)
      kept = [n for n, x in named_leaves(old).items() if not x.is_deleted()]
      assert not kept
      assert not any(x.is_deleted() for x in jax.tree.leaves(batch))
  assert run.step._cache_size() == 1


@pytest.mark.parametrize('name', METHODS)
def test_loop_with_saving_and_measuring_compiles_once(name, tmp_path):
  run = shared_run(name)
  often = variant(run, checkpoint_every=2, eval_every=3)
  train(often, tmp_path, total=4, evaluators=[Spy()])
  train(often, tmp_path, total=6, evaluators=[Spy()])  # restored
  assert run.step._cache_size() == 1


@pytest.mark.parametrize('name', METHODS)
def test_poisoned_batch_changes_nothing_but_the_counts(name, tmp_path):
  run = variant(shared_run(name), poison=(3,))
  train(run, tmp_path, total=3)
  before = final(run, tmp_path)
  train(run, tmp_path, total=4)
  after = final(run, tmp_path)
  assert (after.step, after.bad_steps) == (4, 1)
  for part in ('params', 'opt_state', 'method_state'):
    assert_same_bits(getattr(after, part), getattr(before, part))
  (note,) = rows_of(tmp_path, 'nonfinite.jsonl')
  assert note['step'] == 3
  assert note['lr'] == pytest.approx(run.rate(3))
  assert note['indices'] == run.data.indices(3).tolist()
  assert rows_of(tmp_path)[-1]['bad_steps'] == 1
  train(run, tmp_path, total=5)
  healed = final(run, tmp_path)
  assert (healed.step, healed.bad_steps) == (5, 0)
  assert any(
    (a != b).any()
    for a, b in zip(
      jax.tree.leaves(healed.params),
      jax.tree.leaves(before.params),
      strict=True,
    )
  )


def test_poison_between_reports_is_noted_step_by_step(tmp_path):
  run = variant(shared_run('recipe'), poison=(1, 3), log_every=6)
  train(run, tmp_path, total=6)
  notes = rows_of(tmp_path, 'nonfinite.jsonl')
  assert [n['step'] for n in notes] == [1, 3]
  for note in notes:
    assert note['lr'] == pytest.approx(run.rate(note['step']))
    assert note['indices'] == run.data.indices(note['step']).tolist()
  (row,) = rows_of(tmp_path)
  assert row['bad_steps'] == 2
  assert np.isfinite(row['loss'])  # the mean of the good steps


@pytest.mark.parametrize('log_every', [1, 4])
def test_too_many_bad_steps_in_a_row_stop_the_run(log_every, tmp_path):
  run = variant(
    shared_run('recipe'),
    poison=(1, 3, 4, 5, 6, 7),  # one alone does not stop it
    nonfinite_limit=3,
    log_every=log_every,
    checkpoint_every=1,
  )
  with pytest.raises(NonFiniteError) as error:
    train(run, tmp_path, total=8)
  last = dict({1: 5, 4: 7})[log_every]
  count = dict({1: 3, 4: 5})[log_every]
  assert f'{count} steps in a row' in str(error.value)
  assert f'step {last}' in str(error.value)
  assert 'nonfinite.jsonl' in str(error.value)
  notes = rows_of(tmp_path, 'nonfinite.jsonl')
  assert [n['step'] for n in notes] == [1, *range(3, last + 1)]
  # What was saved before stays whole; it holds the last good parameters.
  left = final(run, tmp_path)
  assert left.step == last
  assert_same_bits(left.params, steps(variant(run, poison=(1,)), 3)[0].params)


def test_poisoned_step_that_is_run_again_is_noted_once(tmp_path):
  run = variant(shared_run('recipe'), poison=(3,), checkpoint_every=2)
  train(run, tmp_path, total=5)
  for step in (4, 5):
    shutil.rmtree(tmp_path / 'checkpoints' / str(step))
  train(run, tmp_path, total=5)
  assert [row['step'] for row in rows_of(tmp_path)] == [1, 2, 3, 4, 5]
  assert [n['step'] for n in rows_of(tmp_path, 'nonfinite.jsonl')] == [3]


def test_no_report_claims_a_speed_of_zero(tmp_path):
  # The first step compiles, so it has no speed; that is not a speed of 0.
  summary = train(shared_run('recipe'), tmp_path, total=1)
  assert summary.get('images_per_second') != 0


def test_limit_of_zero_bad_steps_does_not_stop_a_good_run(tmp_path):
  run = variant(shared_run('recipe'), nonfinite_limit=0)
  try:
    train(run, tmp_path, total=2)
  except ValueError as error:  # refusing the limit would do as well
    assert 'nonfinite_limit' in str(error)


# a. A queue of keys and a teacher that moves at forward time.


@pytest.fixture(scope='module')
def queued(tmp_path_factory):
  """Six steps with a checkpoint after each, every state copied."""
  run, spy = (
    variant(shared_run('queue'), checkpoint_every=1, eval_every=1),
    Spy(),
  )
  workdir = tmp_path_factory.mktemp('queued')
  train(run, workdir, total=6, evaluators=[spy])
  return run, workdir, spy


def test_queue_follows_its_numpy_twin(queued):
  run, _, spy = queued
  method, data = run.method, run.data

  @jax.jit
  def features(encoder, images):
    return method.encoder.apply({'params': encoder}, images).pooled

  queue, index = spy.states[0]['queue'], spy.states[0]['index']
  for step in range(6):
    rows = data.indices(step)
    views = data.images[rows][:, :, ::-1]
    keys = features(spy.states[step]['teacher']['encoder'], views)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    start = step * len(rows) % method.length
    place = np.arange(start, start + len(rows))
    queue, index = queue.copy(), index.copy()
    queue[place], index[place] = keys, rows
    seen = spy.states[step + 1]
    np.testing.assert_allclose(seen['queue'], queue, atol=2e-6)
    np.testing.assert_array_equal(seen['index'], index)
    assert seen['pointer'] == (start + len(rows)) % method.length
  # The queue went round: nothing of the first draw is left.
  assert (index >= 0).all()


def test_teacher_follows_its_numpy_twin(queued):
  run, _, spy = queued
  teacher = named_leaves(spy.states[0]['teacher'])
  assert_same_bits(
    spy.states[0]['teacher']['encoder'], spy.params[0]['encoder']
  )
  twin = {k: v.astype(np.float64) for k, v in teacher.items()}
  for step in range(6):
    # 1 − ½ (1 + cos(π t/20)) · 0.1 with t of the step to come
    m = 1 - 0.5 * (1 + np.cos(np.pi * (step + 1) / 20)) * 0.1
    student = named_leaves(spy.params[step + 1])
    twin = {k: m * v + (1 - m) * student[k] for k, v in twin.items()}
    seen = named_leaves(spy.states[step + 1]['teacher'])
    for name, leaf in seen.items():
      np.testing.assert_allclose(leaf, twin[name], atol=2e-6, err_msg=name)


def test_resumed_from_the_middle_gives_the_same_bits(queued, tmp_path):
  run, workdir, _ = queued
  straight = final(run, workdir)
  broken = tmp_path / 'broken'
  shutil.copytree(workdir, broken)
  for step in (4, 5, 6):
    shutil.rmtree(broken / 'checkpoints' / str(step))
  fresh = variant(make_run(METHODS['queue']), checkpoint_every=1, eval_every=1)
  train(fresh, broken, total=6, evaluators=[Spy()])
  assert_same_bits(final(fresh, broken), straight)
  losses = [[r['loss'] for r in rows_of(w)] for w in (workdir, broken)]
  assert losses[0] == losses[1]


def test_queue_on_one_device_as_on_four():
  alone, reports1 = steps(make_run(METHODS['queue'], devices=1), 3)
  spread, reports4 = steps(shared_run('queue'), 3)
  for one, four in zip(reports1, reports4, strict=True):
    assert four['loss'] == pytest.approx(one['loss'], rel=1e-5)
  a, b = alone.method_state, spread.method_state
  np.testing.assert_array_equal(a['index'], b['index'])
  assert a['pointer'] == b['pointer']
  np.testing.assert_allclose(a['queue'], b['queue'], atol=2e-5)


def test_repre_wraps_a_method_it_has_never_seen():
  base = METHODS['queue']
  wrapped = repre(
    base,
    Rates(lr=constant(1e-3), decay=0.1, peak=1e-3, total=10),
    width=8,
    levels=2,
    weighting='fixed',
    weights=(1.0, 0.0),
  )
  want, _ = steps(shared_run('queue'), 3)
  got, reports = steps(make_run(wrapped), 3)
  assert_same_bits(got.params['encoder'], want.params['encoder'])
  assert_same_bits(got.method_state, want.method_state)
  assert reports[0]['loss_pixels'] > 0


# b. Masking with a teacher's hints, and two branches.


def test_both_branches_learn_and_the_teacher_stays(tmp_path):
  run = variant(shared_run('masked'), eval_every=60)
  run.data = make_data(8)
  spy = Spy()
  train(run, tmp_path, total=60, evaluators=[spy])
  assert_same_bits(spy.states[60]['teacher'], spy.states[0]['teacher'])
  rows = [row for row in rows_of(tmp_path) if 'loss' in row]
  for name in ('loss_pixels', 'loss_mimic'):
    assert rows[-1][name] < 0.6 * rows[0][name], name


@pytest.fixture(scope='module')
def masked_start():
  """Eight images, parameters, the teacher, its mask and its tokens."""
  run = shared_run('masked')
  state = jax.device_get(run.init())
  images = run.data.images[:8]
  teacher = state.method_state['teacher']['encoder']
  guide = jax.jit(run.method.guide)
  mask, tokens = guide(teacher, images, jax.random.key(1))
  assert mask.visible.shape == (8, 8) and tokens.shape == (8, 4, 4, 16)
  return images, state.params, state.method_state, mask


def test_hidden_pixels_do_not_reach_the_encoder(masked_start):
  images, params, _, mask = masked_start
  encoder = METHODS['masked'].encoder

  @jax.jit
  def encode(images):
    return encoder.apply({'params': params['encoder']}, images, mask=mask)

  hidden = np.asarray(mask.hidden).reshape(8, 4, 4)
  hidden = np.kron(hidden, np.ones((1, 2, 2)))[..., None].astype(bool)
  noise = np.random.default_rng(1).uniform(size=images.shape)
  noise = noise.astype(np.float32)
  plain = encode(images)
  assert_same_bits(encode(np.where(hidden, noise, images)), plain)
  changed = encode(np.where(hidden, images, noise))
  assert np.abs(changed.pooled - plain.pooled).max() > 1e-3


def test_teacher_tells_the_mask_what_to_hide(masked_start):
  images, _, state, mask = masked_start
  teacher = {'params': state['teacher']['encoder']}
  encoder = METHODS['masked'].encoder
  seen = jax.jit(lambda x: encoder.apply(teacher, x, attention=(-1,)))(images)
  weight = np.asarray(seen.attention[-1]).mean(axis=1)[:, 0, 1:]
  for row, hidden in zip(weight, np.asarray(mask.hidden), strict=True):
    assert row[hidden].min() > row[~hidden].max() - 1e-5


def test_masking_that_needs_no_hints_takes_the_same_call():
  method = Masked(masking=functools.partial(random_masking, ratio=0.75))
  run = make_run(method)
  loss, aux = jax.eval_shape(
    method.loss,
    run.like.params,
    run.like.method_state,
    jax.eval_shape(run.data.render, run.data.batch(0), None),
    jax.random.key(0),
    0,
  )
  assert loss.shape == () and set(aux.metrics) == {'loss_pixels', 'loss_mimic'}


def test_masked_branches_in_chunks_give_the_same_gradients(masked_start):
  images, params, state, _ = masked_start
  got, want = (
    jax.jit(jax.grad(method.loss, has_aux=True))(
      params, state, dict(view1=images), jax.random.key(1), 0
    )[0]
    for method in (Masked(chunks=2), Masked())
  )
  want = named_leaves(want)
  most = max(np.abs(leaf).max() for leaf in want.values())
  for name, leaf in named_leaves(got).items():
    # Biases of keys have a gradient of zero and show the rounding of others'.
    scale = np.abs(want[name]).max() + 1e-4 * most
    np.testing.assert_allclose(
      leaf, want[name], atol=1e-5 * scale, err_msg=name
    )


# c. Supervised, with running statistics and an evaluator of its own.

EVALUATION = labelled_images(30, seed=9)


@pytest.fixture(scope='module')
def supervised(tmp_path_factory):
  run = variant(shared_run('classifier'), eval_every=4, log_every=5)
  accuracy, spy = Accuracy(run.method, *EVALUATION), Spy()
  workdir = tmp_path_factory.mktemp('supervised')
  summary = train(run, workdir, total=30, evaluators=[accuracy, spy])
  return run, workdir, accuracy, spy, summary


def test_evaluator_runs_at_the_start_in_between_and_at_the_end(supervised):
  run, workdir, accuracy, spy, summary = supervised
  assert accuracy.steps == [*range(0, 30, 4), 30]
  rows = [row for row in rows_of(workdir) if 'test_accuracy' in row]
  assert [row['step'] for row in rows] == accuracy.steps
  logits = run.method.predict(
    spy.params[30], spy.states[30], dict(view1=EVALUATION[0])
  )
  share = np.mean(np.argmax(logits, axis=1) == EVALUATION[1])
  assert rows[-1]['test_accuracy'] == pytest.approx(share)
  assert summary['test_accuracy'] == pytest.approx(share)
  assert share > rows[0]['test_accuracy'] and share > 1.5 / CLASSES
  assert json.loads((workdir / 'summary.json').read_text()) == summary
  assert summary['steps'] == 30


def test_finished_run_is_not_measured_again(supervised):
  run, workdir, accuracy, _, summary = supervised
  again = Accuracy(run.method, *EVALUATION)
  assert (
    train(run, workdir, total=30, evaluators=[again])['loss']
    == (summary['loss'])
  )
  assert again.steps == []


def test_running_statistics_follow_their_numpy_twin(supervised):
  run, _, _, spy, _ = supervised
  norm = spy.states[0]['statistics']['norm']
  mean, var = norm['mean'].astype(np.float64), norm['var'].astype(np.float64)
  for step in range(30):
    rows = run.data.images[run.data.indices(step)].reshape(8, -1)
    mean = 0.8 * mean + 0.2 * rows.mean(0, dtype=np.float64)
    var = 0.8 * var + 0.2 * rows.var(0, dtype=np.float64)
  norm = spy.states[30]['statistics']['norm']
  np.testing.assert_allclose(norm['mean'], mean, atol=1e-6)
  np.testing.assert_allclose(norm['var'], var, atol=1e-6)


def test_predictions_do_not_depend_on_the_rest_of_the_batch(supervised):
  run, _, _, spy, _ = supervised
  predict = jax.jit(run.method.predict)
  images = EVALUATION[0]
  state = spy.params[30], spy.states[30]
  together = predict(*state, dict(view1=images))
  alone = predict(*state, dict(view1=images[:1]))
  np.testing.assert_allclose(alone[0], together[0], atol=1e-5)


def test_evaluator_may_report_a_loss_of_its_own(tmp_path):
  class Validation(Accuracy):
    def finish(self):
      return dict(loss=0.25, **super().finish())

    def names(self):
      return ('loss', 'test_accuracy')

  run = variant(shared_run('classifier'), eval_every=2)
  summary = train(
    run, tmp_path, total=2, evaluators=[Validation(run.method, *EVALUATION)]
  )
  assert summary['test_accuracy'] <= 1


# d. A recipe with freezing, schedules and clipping, against torch's AdamW.


class TorchLikeAdamW:
  """`torch.optim.AdamW` for one tensor, float64, its own step count."""

  def __init__(self, w):
    self.w, self.m, self.v, self.t = w.astype(np.float64), 0.0, 0.0, 0

  def step(self, grad, lr, decay):
    self.t += 1
    self.w = self.w * (1 - lr * decay)
    self.m = 0.9 * self.m + 0.1 * grad
    self.v = 0.999 * self.v + 0.001 * grad**2
    m, v = self.m / (1 - 0.9**self.t), self.v / (1 - 0.999**self.t)
    self.w = self.w - lr * m / (np.sqrt(v) + 1e-8)


@pytest.fixture(scope='module')
def recipe(tmp_path_factory):
  """Runs of 0..8 steps of the same length, so that every state is on disk."""
  run = variant(shared_run('recipe'), checkpoint_every=1, eval_every=1)
  spy, workdir = Spy(), tmp_path_factory.mktemp('recipe')
  states = {}
  for total in (2, UNFREEZE, UNFREEZE + 1, 8):
    train(run, workdir, total=total, evaluators=[spy])
    states[total] = final(run, workdir)
  return run, spy, states


def clipped(grads, norm):
  size = np.sqrt(sum(np.sum(g**2) for g in grads.values()))
  factor = min(1.0, norm / (size + 1e-6))
  return {name: g * factor for name, g in grads.items()}, factor


def test_recipe_follows_its_torch_like_twin(recipe):
  run, spy, _ = recipe
  start = named_leaves(spy.params[0])
  twins = {name: TorchLikeAdamW(w) for name, w in start.items()}
  factors = []
  for step in range(8):
    images = run.data.images[run.data.indices(step)].astype(np.float64)
    mean = images.mean(axis=(0, 2, 3))
    grads = {
      name: scale * (twins[name].w - mean)
      for name, scale in run.method.scales.items()
    }
    scope = ['encoder/plain'] + ['encoder/late'] * (step >= UNFREEZE)
    used, factor = clipped({name: grads[name] for name in scope}, 1.5)
    factors.append(factor)
    for name in ('head/a', 'head/b'):
      used |= clipped({name: grads[name]}, 0.3)[0]
    used |= clipped({'added/a': grads['added/a']}, 1.5)[0]
    lr, decay = 0.02 / (1 + step), 0.1 + 0.05 * step
    for name, grad in used.items():
      fixed = dict(head=(0.01, 0.0), added=(0.03, 0.0))
      twins[name].step(grad, *fixed.get(name.split('/')[0], (lr, decay)))
    for name, leaf in named_leaves(spy.params[step + 1]).items():
      np.testing.assert_allclose(
        leaf, twins[name].w, rtol=2e-6, atol=2e-6, err_msg=f'{name} {step}'
      )
  assert factors[0] < 1  # or clipping was never tried
  assert twins['encoder/late'].t == 8 - UNFREEZE


def test_frozen_layers_have_no_update_no_moments_no_count(recipe):
  _, spy, states = recipe
  for step in range(UNFREEZE + 1):
    late = [spy.params[s]['encoder']['late'] for s in (0, step)]
    assert late[0].tobytes() == late[1].tobytes()
  assert (spy.params[4]['encoder']['late'] != late[0]).any()
  still = [spy.params[s]['encoder']['still'] for s in (0, 8)]
  assert still[0].tobytes() == still[1].tobytes()
  opt = {step: named_leaves(s.opt_state) for step, s in states.items()}
  moments = [n for n in opt[2] if n.endswith('encoder/late')]
  assert len(moments) == 2
  for name in moments:
    assert not opt[2][name].any() and not opt[UNFREEZE][name].any()
    assert opt[UNFREEZE + 1][name].any()
    count = name.replace('mu/encoder/late', 'count')
    if count != name:
      assert [int(opt[s][count]) for s in (2, 3, 4, 8)] == [0, 0, 1, 5]
  assert not [n for n in opt[8] if 'encoder/still' in n]


def test_gradients_of_what_never_trains_do_not_count(recipe):
  """The reported norm is that of what can move."""
  run, spy, _ = recipe
  images = run.data.images[run.data.indices(0)].astype(np.float64)
  mean = images.mean(axis=(0, 2, 3))
  start = named_leaves(spy.params[0])
  square = sum(
    np.sum((scale * (start[name] - mean)) ** 2)
    for name, scale in run.method.scales.items()
    if name != 'encoder/still'
  )
  _, reports = steps(run, 1)
  assert reports[0]['grad_norm'] == pytest.approx(np.sqrt(square), rel=1e-5)
