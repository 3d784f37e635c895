"""What must hold of masked modelling: MAE and SimMIM on tiny encoders."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import (
  BATCH,
  PATCH,
  SIDE,
  TOKENS,
  WIDTH,
  arrays,
  assert_same_bits,
  assert_same_steps,
  cached_run,
  collectives,
  follow,
  start,
)

from configs import mae as config_of_mae
from models import make_encoder
from models.masking import random_masking
from models.vit import ViT
from pretrain.methods import from_config
from pretrain.methods.mae import mae
from pretrain.targets import NormalizedPixels
from training.checkpoint import Checkpoints
from training.rng import named_key
from training.state import named_leaves

KIND = dict(method='mae')


def images(count=8):
  crop = arrays().images[:count, :SIDE, :SIDE] / 255
  return jnp.asarray(crop, jnp.float32)


# Hidden patches leave the encoder's sight, or stay as a token; on a Swin all
# images of a batch share their mask; several levels may be read.
KINDS = {
  'mae': KIND,
  'simmim': dict(method='simmim'),
  'mae-swin': dict(method='mae', encoder='swin'),
  'mae-fusion': dict(method='mae', fusion=True),
}


def each_kind(*names):
  kinds = [KINDS[name] for name in names or KINDS]
  return pytest.mark.parametrize('kind', kinds, ids=names or KINDS)


@functools.cache
def look(**kind):
  """Compiled: images -> loss, features of the visible patches, prediction."""
  method = cached_run(**kind, devices=1).method
  params = start(**kind).params

  @jax.jit
  def call(images):
    batch = dict(view1=images)
    loss, aux = method.loss(params, {}, batch, jax.random.key(0), 0)
    features = aux.features['view1']
    predict = method.branches['decoder'].predict
    return loss, features, predict(params['decoder'], features)

  return call


def hidden_pixels(**kind):
  """Which pixels `look` hides, [b, SIDE, SIDE, 1] bool."""
  method = cached_run(**kind, devices=1).method
  cells = SIDE // method.encoder.cell
  rng = named_key(jax.random.key(0), 'mask')
  mask = method.masking(rng, (cells, cells), batch=len(images()))
  hidden = mask.rows(len(images())).share((SIDE, SIDE))
  return np.asarray(hidden, bool)[..., None]


class TestHiddenPixels:
  @each_kind()
  def test_nothing_but_the_target_knows_them(self, kind):
    loss, features, prediction = look(**kind)(images())
    hidden = hidden_pixels(**kind)
    assert hidden.mean() == 0.75
    noise = np.random.default_rng(0).random(images().shape, np.float32)
    moved, *rest = look(**kind)(np.where(hidden, noise, images()))
    assert_same_bits(rest, [features, prediction])
    # Little where predictions begin at 0: normalised patches are of one size.
    assert abs(moved - loss) > 1e-4

  @each_kind()
  def test_visible_ones_do_reach_the_encoder(self, kind):
    _, features, _ = look(**kind)(images())
    hidden = hidden_pixels(**kind)
    _, changed, _ = look(**kind)(np.where(hidden, images(), 0.5))
    assert np.abs(changed.tokens - features.tokens).max() > 1e-2

  def test_the_loss_is_their_mean_squared_error(self):
    """Against NumPy; patches of random images are normalised one by one."""
    x = np.random.default_rng(1).random(images().shape, np.float32)
    loss, _, prediction = look(**KIND)(x)
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    side = SIDE // PATCH
    target = ((x - mean) / std).reshape(-1, side, PATCH, side, PATCH, 3)
    target = target.swapaxes(2, 3).reshape(len(x), side, side, -1)
    center = target - target.mean(-1, keepdims=True)
    variance = (center**2).sum(-1, keepdims=True) / (target.shape[-1] - 1)
    error = (prediction - center / np.sqrt(variance + 1e-6)) ** 2
    hidden = hidden_pixels(**KIND)[:, ::PATCH, ::PATCH, 0]
    want = float(error.mean(-1)[hidden].mean())
    assert float(loss) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize('word', ['vit_mini4', 'convvit_mini'])
def test_flops_of_the_encoder_follow_the_visible_patches(word):
  encoder = make_encoder(word)
  x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
  mask = jax.eval_shape(
    lambda: random_masking(jax.random.key(0), (8, 8), batch=2, ratio=0.75)
  )
  params = jax.eval_shape(encoder.init, jax.random.key(0), x)

  def flops(*mask):
    lowered = jax.jit(encoder.apply).lower(params, x, *mask)
    return lowered.cost_analysis()['flops']

  # 17 of 65 tokens with CLS; attention is quadratic in them.
  assert 0.2 < flops(mask) / flops() < 17 / 65


class TestSteps:
  """Four devices are the reference; paths are dropped in all of them."""

  def test_one_device_takes_the_same_step(self):
    got, want = follow(2, **KIND, devices=1), follow(2, **KIND)
    assert_same_steps(got, want, loss=1e-5, gradient=1e-4)

  @each_kind('mae', 'simmim', 'mae-swin')
  def test_chunks_on_two_devices_take_the_same_step(self, kind):
    got, want = follow(2, **kind, devices=2, chunks=2), follow(2, **kind)
    assert_same_steps(got, want, loss=1e-5, gradient=1e-4)

  @each_kind()
  def test_everything_learns(self, kind):
    (state, report) = follow(2, **kind, devices=2, chunks=2)[1]
    before, after = named_leaves(start(**kind).params), state.params
    assert {name.split('/')[0] for name in before} == {'encoder', 'decoder'}
    still = [
      n for n, x in named_leaves(after).items() if (x == before[n]).all()
    ]
    if kind.get('encoder') == 'swin':
      # One cell of four is visible: attention in the last stage has no choice.
      assert all(n.startswith('encoder/block_1/attention/') for n in still)
      assert not [n for n in still if 'value' in n or 'out' in n]
    else:  # fused levels are those before the final norm; its scale decays
      assert still == ['encoder/norm/bias'] * bool(kind.get('fusion'))
    assert report['loss'] == report['loss_decoder'] > 0
    assert report['bad_steps'] == 0 and not state.method_state

  def test_each_step_hides_other_patches(self):
    method = cached_run(**KIND).method
    one, two = (
      method.masking(jax.random.key(i), (4, 4), batch=BATCH).hidden
      for i in (0, 1)
    )
    assert 0.2 < np.mean(one != two) < 0.5

  def test_no_images_or_tokens_travel_between_devices(self):
    """Sums of gradients and metrics alone do."""
    run = cached_run(**KIND)
    text = run.step.lower(run.like, run.data.batch(0)).compile().as_text()
    found = collectives(text)
    assert {kind for kind, *_ in found} == {'all-reduce'}
    parameter = max(x.size for x in jax.tree.leaves(run.like.params))
    assert max(size for _, size, _ in found) == parameter
    assert parameter < BATCH * TOKENS * WIDTH

  def test_continued_from_a_checkpoint_it_takes_the_same_step(self, tmp_path):
    run = cached_run(**KIND)
    (first, _), (second, report) = follow(2, **KIND)
    saved = Checkpoints(tmp_path)
    saved.save(jax.device_put(first, run.shardings), step=1, meta={})
    saved.close()
    saved = Checkpoints(tmp_path)
    state, _ = saved.restore(run.like)
    saved.close()
    state, again = run.step(state, run.data.batch(1))
    assert_same_bits(jax.device_get(state), second)
    assert_same_bits(again, report)


def test_eight_images_are_learned_by_heart():
  """Twelve patches each from four, always the same ones."""
  encoder = cached_run(**KIND, devices=1).method.encoder
  method = mae(
    encoder.clone(drop_path=0.0),
    None,
    decoder=dict(width=32, depth=1, num_heads=2),
    normalize_pixels=False,
  )
  batch, adam = dict(view1=images()), optax.adam(1e-2)
  rng = jax.random.key(1)

  def update(carry, step):
    params, state = carry
    loss, grads = jax.value_and_grad(
      lambda p: method.loss(p, {}, batch, rng, step)[0]
    )(params)
    updates, state = adam.update(grads, state)
    return (optax.apply_updates(params, updates), state), loss

  @jax.jit
  def run():
    params, _ = method.init(jax.random.key(0), batch)
    begin = params, adam.init(params)
    return jax.lax.scan(update, begin, jnp.arange(200))[1]

  losses = np.asarray(run())
  assert losses[0] > 1
  assert losses[-1] < 0.01 * losses[0]


class TestFigures:
  @functools.cached_property
  def drawn(self):
    method, params = cached_run(**KIND).method, start(**KIND).params
    batch = dict(view1=images())
    figures = jax.jit(method.figures)(params, {}, batch)
    assert set(figures) == {'reconstruction'}
    return figures['reconstruction']

  def test_visible_pixels_are_the_images(self):
    assert self.drawn.columns == ('input', 'visible', 'reconstruction')
    cells = np.asarray(self.drawn.images)
    assert cells.shape == (8, 3, SIDE, SIDE, 3)
    np.testing.assert_array_equal(cells[:, 0], images())
    hidden = np.all(cells[:, 1] == 0.5, axis=-1, keepdims=True)
    assert 0.75 <= hidden.mean() < 0.8
    for column in (1, 2):
      kept = np.where(hidden, images(), cells[:, column])
      np.testing.assert_array_equal(kept, images())
    assert 0 <= cells.min() and cells.max() <= 1
    assert np.abs(np.where(hidden, cells[:, 2] - cells[:, 0], 0)).max() > 0.1

  @pytest.mark.parametrize('by_patch', [False, True])
  def test_what_the_target_did_is_undone(self, by_patch):
    target = NormalizedPixels(patch_size=PATCH, by_patch=by_patch)
    x = jax.random.uniform(jax.random.key(0), (2, 8, 12, 3))
    np.testing.assert_allclose(target.restore(target(x), x), x, atol=1e-5)


@pytest.mark.parametrize('encoder', ['vit', 'swin', 'convvit'])
def test_fused_levels_predict_patches_of_the_shallowest(encoder):
  """A Swin's levels and a ConvViT's get coarser with depth."""
  run = cached_run(method='mae', encoder=encoder, fusion=True, devices=1)
  jax.eval_shape(run.step, run.like, run.data.batch(0))
  method, branch = run.method, run.method.branches['decoder']
  side = method.encoder.strides[branch.levels[0]]
  assert branch.target.patch_size == side
  assert (side < method.encoder.cell) == (encoder != 'vit')


@pytest.mark.parametrize(
  ('word', 'size'),
  [
    ('vit_b16', 26_008_320),
    ('vit_l16', 26_008_320 + (1024 - 768) * 512),
    ('vit_h14', 26_008_320 + (1280 - 768) * 512 - 3 * (16**2 - 14**2) * 513),
  ],
)
def test_the_decoder_of_all_sizes_is_that_of_the_authors(word, size):
  config = config_of_mae.get_config(f'{word},arrays,paper')
  method = from_config(config, channels=3, steps_per_epoch=1, total=1)
  view = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
  params, _ = jax.eval_shape(method.init, jax.random.key(0), dict(view1=view))
  assert sum(x.size for x in jax.tree.leaves(params['decoder'])) == size


def test_an_unknown_decoder_is_refused():
  with pytest.raises(ValueError, match="kind 'conv'; known: 'blocks', 'fus"):
    mae(ViT(), None, decoder=dict(kind='conv'))


def test_two_views_are_refused():
  method = cached_run(**KIND).method
  views = {n: jnp.zeros((4, SIDE, SIDE, 3)) for n in ('view1', 'view2')}
  with pytest.raises(ValueError, match="one view, 'view1'.*'view2'"):
    jax.eval_shape(method.init, jax.random.key(0), views)
