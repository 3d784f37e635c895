"""What must hold whatever is learned: MoCo v3 and RePre on a tiny ViT."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import (
  BATCH,
  FOLLOWS_BASE,
  LEARNED,
  OUT,
  PATCH,
  SIDE,
  TOKENS,
  TOTAL,
  WIDTH,
  arrays,
  assert_close,
  assert_same_bits,
  assert_same_steps,
  cached_run,
  collectives,
  fixed,
  follow,
  make_run,
  moments,
  start,
)

from pretrain.weighting import Fixed
from training import optim, sharding
from training.checkpoint import Checkpoints
from training.loop import train
from training.rng import drop_path_noise
from training.state import named_leaves
from training.warm_start import load_params

LITERAL = fixed(LEARNED | dict(weighting='uncertainty'))

# RePre is its base, where its branch weighs nothing.


@pytest.mark.parametrize('chunks', [1, 2])
def test_repre_of_weight_zero_follows_its_base_bit_for_bit(chunks):
  shared = dict(chunks=chunks, frozen=True)
  base = follow(3, repre=None, **shared)
  wrapped = follow(3, repre=fixed(FOLLOWS_BASE), **shared)
  for (a, report), (b, _) in zip(wrapped, base, strict=True):
    assert_same_bits({k: a.params[k] for k in b.params}, b.params)
    assert_same_bits(a.method_state, b.method_state)
    for which in ('mu', 'nu'):
      ours, theirs = moments(a, which), moments(b, which)
      assert theirs and ours.keys() - theirs.keys()  # the decoder's
      assert_same_bits({k: ours[k] for k in theirs}, theirs)
    assert report['loss_pixels'] > 0
  assert wrapped[0][1]['loss'] == base[0][1]['loss']
  moved = named_leaves(base[2][0].params)
  first = named_leaves(start(frozen=True).params)
  still = [n for n, x in moved.items() if (x == first[n]).all()]
  assert sorted(still) == [
    f'encoder/patch_embed/{n}' for n in ('bias', 'kernel')
  ]


# The teacher.


def test_teacher_gets_no_gradient():
  method, state = cached_run().method, start()
  images = jnp.asarray(arrays().images[:8, :SIDE, :SIDE] / 255, jnp.float32)
  views = dict(view1=images, view2=images[:, ::-1])

  @functools.partial(jax.grad, argnums=(0, 1))
  def gradients(params, method_state):
    return method.loss(params, method_state, views, jax.random.key(0), 0)[0]

  student, teacher = jax.jit(gradients)(state.params, state.method_state)
  for name, leaf in named_leaves(teacher).items():
    assert not np.asarray(leaf).any(), name
  for name, leaf in named_leaves(student).items():
    assert np.asarray(leaf).any(), name


def test_teacher_consists_of_encoder_and_projector():
  state = cached_run().like
  assert set(state.method_state) == {'teacher', 'weighting'}
  assert set(state.method_state['teacher']) == {'encoder', 'projector'}
  assert set(state.params) == {
    'encoder',
    'projector',
    'predictor',
    'decoder',
    'weighting',  # without a leaf, unless the weights are learned
  }
  assert not state.params['weighting']
  assert set(cached_run(repre=LITERAL).like.params['weighting']) == {
    'contrast',
    'pixels',
  }


def test_teacher_moves_with_the_next_steps_momentum():
  teacher = named_leaves(start().method_state['teacher'])
  for name, leaf in teacher.items():
    np.testing.assert_array_equal(leaf, named_leaves(start().params)[name])
  for step, (state, report) in enumerate(follow(3)):
    m = [
      1 - 0.05 * (1 + math.cos(math.pi * t / TOTAL)) for t in (step, step + 1)
    ]
    assert report['momentum'] == pytest.approx(m[0], rel=1e-6)
    student = named_leaves(state.params)
    teacher = {
      k: m[1] * v + (1 - m[1]) * student[k] for k, v in teacher.items()
    }
    for name, leaf in named_leaves(state.method_state['teacher']).items():
      np.testing.assert_allclose(leaf, teacher[name], atol=1e-6, err_msg=name)


# Devices, chunks, rematerialisation, sharded parameters.


@pytest.mark.parametrize('devices', [1, 2])
def test_fewer_devices_take_the_same_step(devices):
  got = follow(2, devices=devices)
  assert_same_steps(got, follow(3)[:2], loss=1e-5, gradient=1e-4)


def test_chunks_and_remat_take_the_same_step():
  """Every chunk drops the paths that the whole batch would."""
  assert cached_run().method.encoder.drop_path > 0
  for cut in (dict(chunks=2, remat=True), dict(chunks=4)):
    got = follow(2, **cut)
    assert_same_steps(got, follow(3)[:2], loss=1e-6, gradient=1e-5)


def test_paths_are_dropped_in_training():
  run = cached_run()
  noise = drop_path_noise(run.method.encoder, jax.random.key(0), 4)
  images = jnp.asarray(arrays().images[:4, :SIDE, :SIDE] / 255, jnp.float32)
  params = {'params': start().params['encoder']}
  dropped, whole = jax.jit(
    lambda: [
      run.method.encoder.apply(params, images, noise=n).pooled
      for n in (noise, None)
    ]
  )()
  assert np.abs(dropped - whole).max() > 1e-3


def test_sharded_parameters_take_the_same_step(monkeypatch):
  monkeypatch.setattr(sharding, 'MIN_SHARDED_SIZE', 64)  # all leaves are small
  run = cached_run(fsdp=2)
  state = run.like
  split = [
    name
    for name, leaf in named_leaves(state).items()
    if not leaf.sharding.is_fully_replicated
  ]
  assert len(split) > 30
  assert any(name.startswith('method_state/teacher') for name in split)
  assert any(name.startswith('opt_state') for name in split)
  assert_same_steps(follow(2, fsdp=2), follow(3)[:2], loss=1e-5, gradient=1e-4)
  assert run.step._cache_size() == 1


# Traffic between devices.


@pytest.mark.parametrize('chunks', [1, 2])
def test_no_images_or_tokens_travel_between_devices(chunks):
  """What may travel, and why.

  * all-reduce: sums of gradients (at most as large as the largest parameter),
    of BatchNorm statistics, of metrics.
  * all-gather: the keys [b, out] that are everyone's negatives, and what is
    smaller: that is the algorithm.
  * Nothing else. An image or a token stream that changes its device means
    that views or chunks were cut across devices; even one device's share of
    the smallest one, the decoder's input, is above the limit.
  """
  run = cached_run(**(dict(chunks=2, remat=True) if chunks == 2 else {}))
  text = run.step.lower(run.like, run.data.batch(0)).compile().as_text()
  found = collectives(text)
  parameter = max(x.size for x in jax.tree.leaves(run.like.params))
  stream = BATCH * TOKENS * WIDTH
  assert parameter < stream < BATCH * SIDE * SIDE * 3  # or nothing is tested
  keys = BATCH * OUT
  assert keys < stream // 4 // chunks
  assert ('all-reduce', parameter) in {f[:2] for f in found}  # we see them
  limits = {'all-reduce': parameter, 'all-gather': keys}
  too_much = [f for f in found if f[1] > limits.get(f[0], 0)]
  assert not too_much
  # Nor does a device work on the rows of others, which needs no traffic.
  rows = 2 * BATCH // 4 // chunks
  seen = set(re.findall(rf'\[(\d+),{TOKENS + 1},{WIDTH}\]', text))
  assert str(rows) in seen and max(map(int, seen)) <= 2 * BATCH // 4


# Determinism and resuming.


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('straight')
  run = make_run(log_every=5, checkpoint_every=0)
  train(run, workdir, total=TOTAL)
  return workdir


def last_state(run, workdir):
  checkpoints = Checkpoints(workdir)
  state, _ = checkpoints.restore(run.like)
  checkpoints.close()
  return jax.device_get(state)


def test_two_runs_take_the_same_steps_and_resuming_is_exact(straight, tmp_path):
  often = make_run(log_every=1, checkpoint_every=1)
  train(often, tmp_path, total=3)
  # Another Run, outside the loop, came to the same bits.
  assert_same_bits(last_state(often, tmp_path), follow(3)[2][0])
  seldom = make_run(log_every=2, checkpoint_every=2, resume='force')
  train(seldom, tmp_path, total=TOTAL)
  got, want = last_state(seldom, tmp_path), last_state(seldom, straight)
  assert got.step == TOTAL
  assert_same_bits(got, want)


# Learned weights of the losses.


def weighting_rules():
  run = cached_run(repre=LITERAL)
  return run.rules, run.method


def test_uncertainty_weights_settle_at_one_over_the_loss():
  rules, method = weighting_rules()
  losses = dict(contrast=jnp.float32(2.0), pixels=jnp.float32(0.05))
  params = dict(weighting=method.weighting.init())
  optimizer = optim.make_optimizer(params, rules, name='adamw')

  def update(carry, step):
    params, state = carry

    def total(params):
      return method.weighting(params['weighting'], {}, losses).total(losses)

    grads = jax.grad(total)(params)
    updates, state = optimizer.update(grads, state, params, step=step)
    return (optax.apply_updates(params, updates), state), None

  begin = params, optimizer.init(params)
  (params, _), _ = jax.jit(
    lambda c: jax.lax.scan(update, c, jnp.arange(20_000))
  )(begin)
  weights = {k: float(np.exp(-s)) for k, s in params['weighting'].items()}
  # The recorded run of the same length, with losses still falling to these,
  # came to 0.4987 and 19.995.
  assert weights['contrast'] == pytest.approx(1 / 2.0, rel=5e-3)
  assert weights['pixels'] == pytest.approx(1 / 0.05, rel=5e-3)
  weighed = method.weighting(params['weighting'], {}, losses)
  assert weighed.metrics['weight_pixels'] == pytest.approx(
    weights['pixels'], rel=1e-5
  )
  balance = 0.5 * (1 + math.log(2.0)) + 0.5 * (1 + math.log(0.05))
  assert float(weighed.total(losses)) == pytest.approx(balance, abs=1e-4)


def test_uncertainty_weights_do_not_decay():
  rules, _ = weighting_rules()
  params = dict(
    weighting=dict(contrast=jnp.float32(0.7)), decoder=dict(w=jnp.ones(3))
  )
  optimizer = optim.make_optimizer(params, rules, name='adamw')
  nothing = jax.tree.map(jnp.zeros_like, params)
  updates, _ = optimizer.update(
    nothing, optimizer.init(params), params, step=jnp.int32(0)
  )
  assert float(updates['weighting']['contrast']) == 0
  assert (updates['decoder']['w'] < 0).all()


def test_uncertainty_weights_start_at_one_and_take_adams_steps():
  first, second = follow(2, repre=LITERAL)
  assert first[1]['weight_contrast'] == first[1]['weight_pixels'] == 1
  losses = {n: first[1][f'loss_{n}'] for n in ('contrast', 'pixels')}
  assert first[1]['loss'] == pytest.approx(0.5 * sum(losses.values()), rel=1e-6)
  for name, loss in losses.items():
    slope = 0.5 * (1 - loss)
    # Adam's first step; the weights have an Adam of their own, so its epsilon
    # is the default, not the run's.
    want = -1e-3 * slope / (abs(slope) + 1e-8)
    assert first[0].params['weighting'][name] == pytest.approx(want, rel=1e-4)
    weight = second[1][f'weight_{name}']
    assert weight == pytest.approx(math.exp(-want), rel=1e-6)


def test_balanced_weights_are_one_over_the_mean_of_each_loss():
  """From the first step on, with no parameter and no rate."""
  means = dict(contrast=0.0, pixels=0.0)
  for n, (state, report) in enumerate(follow(3), start=1):
    losses = {name: float(report[f'loss_{name}']) for name in means}
    for name, loss in losses.items():
      means[name] += (loss - means[name]) / n  # fewer steps than the window
      assert report[f'weight_{name}'] == pytest.approx(
        1 / means[name], rel=1e-5
      )
      assert report[f'optimum_{name}'] == pytest.approx(1 / loss, rel=1e-5)
      kept = state.method_state['weighting'][name]
      assert kept == pytest.approx(means[name], rel=1e-5)
    assert state.method_state['weighting']['count'] == n
    ratio = means['contrast'] / means['pixels']
    want = losses['contrast'] + ratio * losses['pixels']
    assert report['loss'] == pytest.approx(want, rel=1e-5)


def test_balanced_weights_add_the_scaled_gradient_of_the_pixels():
  """The contrast's gradient is that of the base alone; no weight adds any."""
  method, state = cached_run().method, start()
  x = jax.random.uniform(jax.random.key(1), (2, 4, 16, 16, 3))
  views = dict(view1=x[0], view2=x[1])

  @jax.jit
  def slopes(params):
    def part(params, weights):
      changed = dataclasses.replace(
        method,
        weighting=Fixed(
          dict(zip(('contrast', 'pixels'), weights, strict=True))
        ),
      )
      rng = jax.random.key(0)
      return changed.loss(params, state.method_state, views, rng, 0)[0]

    def whole(params):
      rng = jax.random.key(0)
      return method.loss(params, state.method_state, views, rng, 0)

    grads, aux = jax.grad(whole, has_aux=True)(params)
    contrast = jax.grad(lambda p: part(p, (1.0, 0.0)))(params)
    pixels = jax.grad(lambda p: part(p, (0.0, 1.0)))(params)
    return grads, contrast, pixels, aux.metrics

  grads, contrast, pixels, metrics = slopes(state.params)
  ratio = metrics['weight_pixels'] / metrics['weight_contrast']
  want = jax.tree.map(lambda c, p: np.array(c + ratio * p), contrast, pixels)
  assert_close(
    named_leaves(jax.tree.map(np.array, grads)), named_leaves(want), 1e-4
  )
  assert float(ratio) > 2


# Precision.


def test_bfloat16_computes_while_everything_kept_is_float32():
  ((state, report),) = follow(1, dtype='bfloat16')
  kept = dict(p=state.params, o=state.opt_state, m=state.method_state)
  for name, leaf in named_leaves(kept).items():
    assert leaf.dtype in (np.float32, np.int32), name
    assert np.isfinite(leaf).all(), name
  want = follow(3)[0][1]
  assert report['bad_steps'] == 0
  for name in ('loss', 'loss_contrast', 'loss_pixels'):
    assert report[name] == pytest.approx(want[name], rel=0.02)
    assert report[name] != want[name]  # or nothing was computed in bfloat16


# Pictures.


def test_figures_show_input_reconstruction_and_error():
  run = cached_run()
  state = jax.tree.map(np.copy, start())
  images = jnp.asarray(arrays().images[:5, :SIDE, :SIDE] / 255, jnp.float32)
  # Half of the predictions leave [0, 1].
  bias = state.params['decoder']['out']['bias']
  state.params['decoder']['out']['bias'] = np.linspace(-1, 2, bias.size)
  views = dict(view1=images, view2=images[:, ::-1])

  @jax.jit
  def draw(params, method_state):
    features = run.method.encoder.apply({'params': params['encoder']}, images)
    figures = run.method.figures(params, method_state, views)
    return figures, run.method.branch.predict(params['decoder'], features)

  figures, predicted = draw(state.params, state.method_state)
  assert set(figures) == {'reconstruction'}
  figure = figures['reconstruction']
  assert figure.columns == ('input', 'reconstruction', 'error')
  assert figure.images.shape == (5, 3, SIDE, SIDE, 3)
  cells = np.asarray(figure.images)
  np.testing.assert_array_equal(cells[:, 0], images)
  rebuilt = np.empty_like(images)
  for i in range(SIDE // PATCH):
    for j in range(SIDE // PATCH):
      patch = np.asarray(predicted)[:, i, j].reshape(5, PATCH, PATCH, 3)
      rows, columns = (slice(PATCH * k, PATCH * (k + 1)) for k in (i, j))
      rebuilt[:, rows, columns] = patch
  assert rebuilt.min() < -0.1 and rebuilt.max() > 1.1
  np.testing.assert_allclose(cells[:, 1], rebuilt.clip(0, 1), atol=1e-5)
  np.testing.assert_allclose(cells[:, 2], abs(rebuilt - images), atol=1e-5)


def test_contrast_alone_draws_nothing():
  assert cached_run(repre=None, frozen=True).method.figures({}, {}, {}) == {}


# Starting from given weights.


def encoder_of(workdir):
  """What the checkpoint of a finished run gives another."""
  found = load_params(workdir)
  return {k: v for k, v in found.items() if k.startswith('encoder/')}


def test_given_encoder_replaces_student_and_teacher(straight):
  given = encoder_of(straight)
  warm = make_run(initial=given).init()
  student = named_leaves(warm.params)
  teacher = named_leaves(warm.method_state['teacher'])
  drawn = named_leaves(start().params)
  assert not set(given) - set(teacher)
  assert any((leaf != drawn[name]).any() for name, leaf in given.items())
  for name, leaf in student.items():
    want = given.get(name, drawn[name])
    np.testing.assert_array_equal(leaf, want, err_msg=name)
    if name in teacher:
      np.testing.assert_array_equal(teacher[name], want, err_msg=name)
  # No two leaves share memory, or donating the state would fail.
  places = [
    x.addressable_shards[0].data.unsafe_buffer_pointer()
    for x in jax.tree.leaves(warm)
  ]
  assert len(set(places)) == len(places)


def test_given_encoder_in_half_precision_becomes_float32(straight):
  half = {k: v.astype(np.float16) for k, v in encoder_of(straight).items()}
  run = make_run(initial=half)
  for name, leaf in named_leaves(run.like.params).items():
    assert leaf.dtype == jnp.float32, name
