"""LocalMIM: where its tasks sit, what they cost, and what reaches what."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import (
  assert_same_bits,
  assert_same_steps,
  cached_run,
  follow,
  start,
)

from models import make_encoder
from models.convvit import ConvViT
from models.masking import random_masking
from models.vit import ViT
from pretrain.hog import Hog, random_offset
from pretrain.methods.local_mim import local_mim
from pretrain.targets import NormalizedPixels
from training.checkpoint import Checkpoints
from training.state import named_leaves

SMALL = dict(width=16, depth=1, num_heads=2)


def images(count=2, side=32, seed=0):
  rng = np.random.default_rng(seed)
  coarse = rng.random((count, side // 4, side // 4, 3), np.float32)
  return jnp.asarray(np.kron(coarse, np.ones((1, 4, 4, 1), np.float32)))


def shapes(word, size=224, **fields):
  """(method, shapes of its parameters)."""
  method = local_mim(make_encoder(word), None, **fields)
  batch = dict(view1=jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
  return method, jax.eval_shape(method.init, jax.random.key(0), batch)[0]


def decoder_sizes(params):
  """Parameters of the decoders, less the norms of what they read."""
  return [
    sum(
      leaf.size
      for name, leaf in named_leaves(params[task]).items()
      if not name.startswith('norm_input')
    )
    for task in params
    if task != 'encoder'
  ]


VIT = dict(width=256, depth=1, num_heads=8)


def test_decoders_of_vit_b_have_the_published_size():
  _, params = shapes('vit_b16', decoder=VIT)
  assert sorted(decoder_sizes(params)) == sorted(
    [1_153_435, 1_122_075, 994_331, 994_331]
  )


def test_decoders_of_vit_l_have_the_published_size():
  _, params = shapes('vit_l16', decoder=VIT, hog_bins=18)
  assert sum(decoder_sizes(params)) == 4_545_432


@pytest.mark.parametrize(
  ('word', 'tasks'),
  [
    ('vit_b16', [(1, 4), (3, 8), (9, 16), (11, 32)]),
    ('vit_l16', [(1, 4), (3, 8), (21, 16), (23, 32)]),
    (
      'swin_b',
      [('merged_0', 8), ('merged_1', 16), ('merged_2', 32), (3, 32)],
    ),
    ('convvit_b', [(0, 4), (1, 8), (10, 16), (12, 32)]),
  ],
)
def test_where_tasks_read_and_what_they_predict(word, tasks):
  method = local_mim(make_encoder(word), None, decoder=VIT)
  found = [(b.levels[0], b.target.cell) for b in method.branches.values()]
  assert found == tasks
  assert {type(b.target) for b in method.branches.values()} == {Hog}
  assert method.cuts == ()
  isolated = local_mim(
    make_encoder(word), None, decoder=VIT, isolate_gradients=True
  )
  stages = [0, 1, 2] if word == 'swin_b' else [where for where, _ in tasks[:3]]
  assert list(isolated.cuts) == stages


def test_six_blocks_have_two_tasks_at_the_fourth():
  method = local_mim(make_encoder('vit_mini8'), None, decoder=VIT)
  levels = {name: b.levels for name, b in method.branches.items()}
  assert levels == dict(
    level_2=(1,), level_4=(3,), level_4_b=(3,), level_6=(5,)
  )


def test_how_much_every_task_counts():
  """Of 196 patches 147 are hidden; half the scale sees parts of them."""
  mask = random_masking(jax.random.key(0), (14, 14), batch=3, ratio=0.75)
  for scale in (4, 2, 1, 0.5):
    side = int(14 * scale)
    share = mask.share((side, side))
    np.testing.assert_allclose(share.sum((1, 2)), 147 * scale**2)
  assert set(np.unique(mask.share((7, 7)))) <= {0, 0.25, 0.5, 0.75, 1}


def tiny(kind='vit', **fields):
  shared = dict(mlp_ratio=2, mean=(0.5,), std=(0.5,))
  if kind == 'vit':
    encoder = ViT(
      patch_size=8,
      width=16,
      depth=6,
      num_heads=2,
      positions='mae_sincos',
      **shared,
    )
  else:
    encoder = ConvViT(
      patch_sizes=(4, 2, 1),
      widths=(4, 8, 16),
      depths=(1, 1, 3),
      num_heads=2,
      **shared,
    )
    fields = dict(levels=(1, 3, 5), scales=(1, 1, 0.5)) | fields
  return local_mim(
    encoder, None, **dict(decoder=SMALL, mask_ratio=0.5) | fields
  )


@functools.cache
def gradients(kind, isolate):
  """By task: {path: gradient of its loss alone}."""
  method = tiny(kind, isolate_gradients=isolate, target='pixels')
  batch = dict(view1=images())

  def one(params, chosen):
    _, aux = method.loss(params, {}, batch, jax.random.key(0), 0)
    losses = jnp.stack(
      [aux.metrics[f'loss_{name}'] for name in method.branches]
    )
    return (losses * chosen).sum()

  @jax.jit
  def run():
    params, _ = method.init(jax.random.key(1), batch)
    return jax.vmap(jax.grad(one), (None, 0))(
      params, jnp.eye(len(method.branches))
    )

  stacked = named_leaves(run())
  return {
    name: {path: np.asarray(leaf[i]) for path, leaf in stacked.items()}
    for i, name in enumerate(method.branches)
  }


def segment(path, cuts):
  """Which segment of a ViT's or a ConvViT's blocks a parameter belongs to."""
  part = path.split('/')[1]
  if part.startswith('block_'):
    block = int(part.removeprefix('block_'))
    return sum(block > cut for cut in cuts)
  # What begins a later convolution stage comes after the first cut.
  return int(
    part in ('embed_1', 'embed_norm_1', 'embed_2', 'embed_norm_2', 'project')
    and bool(cuts)
  )


class TestIsolation:
  def test_segments_of_a_vit_learn_from_their_own_task_alone(self):
    found = gradients('vit', True)
    segments = dict(level_2=0, level_4=1, level_4_b=1, level_6=2)
    for task, grads in found.items():
      for path, grad in grads.items():
        owner = path.split('/')[0]
        if owner == 'encoder':
          own = segment(path, (1, 3)) == segments[task]
        else:
          own = owner == task
        unread = path.startswith('encoder/norm/') or path.endswith('key/bias')
        if own and not unread:
          assert np.any(grad), (task, path)
        if not own:
          assert not np.any(grad), (task, path)

  def test_segments_of_a_convvit_too(self):
    found = gradients('convvit', True)
    deep, shallow = found['level_5'], found['level_1']
    for path in deep:
      if path.startswith(
        ('encoder/block_0', 'encoder/patch_', 'encoder/block_1')
      ):
        assert not np.any(deep[path]), path
      if path.startswith(
        ('encoder/block_1', 'encoder/block_2', 'encoder/embed')
      ):
        assert not np.any(shallow[path]), path
    assert np.any(deep['encoder/block_4/mlp/fc1/kernel'])
    assert np.any(shallow['encoder/block_0/fc1/kernel'])

  def test_without_it_the_deepest_task_reaches_the_pixels(self):
    *_, deepest = gradients('vit', False).values()
    assert np.any(deepest['encoder/patch_embed/kernel'])

  def test_it_changes_no_loss(self):
    """Nor the first task's gradient."""
    free, cut = gradients('vit', False), gradients('vit', True)
    for path, grad in free['level_2'].items():
      np.testing.assert_allclose(cut['level_2'][path], grad, atol=1e-6)


def test_pixels_at_every_scale_are_normalised_regions():
  method = tiny(target='pixels')
  x = images()
  for branch, side in zip(method.branches.values(), (2, 4, 8, 16), strict=True):
    assert isinstance(branch.target, NormalizedPixels)
    assert branch.decoder.out_features == side * side * 3
    n = 32 // side
    want = np.asarray(x * 2 - 1).reshape(2, n, side, n, side, 3)
    want = want.swapaxes(2, 3).reshape(2, n, n, -1)
    want = want - want.mean(-1, keepdims=True)
    variance = (want**2).sum(-1, keepdims=True) / (side * side * 3 - 1)
    np.testing.assert_allclose(
      branch.target(x), want / np.sqrt(variance + 1e-6), atol=2e-4
    )


def test_fused_levels_have_one_decoder():
  method = tiny(fuse=True)
  (branch,) = method.branches.values()
  assert branch.levels == (1, 3, 3, 5) and branch.target.cell == 8
  batch = dict(view1=jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32))
  params, _ = jax.eval_shape(method.init, jax.random.key(0), batch)
  assert {'embed_0', 'embed_3', 'norm_input_2'} <= params['fused'].keys()


def test_offsets_of_the_gradients():
  method = tiny(hog_offset='random')
  offsets = [b.target.offset for b in method.branches.values()]
  assert offsets == [random_offset(i) for i in range(4)]
  assert tiny(hog_offset=[0.1, 0]).branches['level_2'].target.offset == (0.1, 0)


# What comes after the last task, and what a single visible token does not need.
UNREAD = dict(
  vit=('encoder/norm/',),
  swin=(
    'encoder/norm/',
    'encoder/block_1/attention/key/',
    'encoder/block_1/attention/query/',
    'encoder/block_1/position_bias',
  ),
  convvit=(
    'encoder/norm/',
    'encoder/fuse_',
    'encoder/block_2/',
    'encoder/embed_2/',
    'encoder/embed_norm_2/',
    'encoder/project/',
  ),
)


class TestSteps:
  """Four devices are the reference; paths are dropped in all of them."""

  @pytest.mark.parametrize('encoder', ['vit', 'swin', 'convvit'])
  def test_everything_learns(self, encoder):
    kind = dict(method='local_mim', encoder=encoder)
    (state, report) = follow(2, **kind, devices=4)[1]
    before, after = named_leaves(start(**kind).params), state.params
    tasks = {'level_1', 'level_2'}
    assert {name.split('/')[0] for name in before} == {'encoder', *tasks}
    for name, leaf in named_leaves(after).items():
      if not name.startswith(UNREAD[encoder]):
        assert (leaf != before[name]).any(), name
    losses = [report[f'loss_{task}'] for task in tasks]
    assert report['loss'] == pytest.approx(sum(losses)) and min(losses) > 0
    assert report['bad_steps'] == 0 and not state.method_state

  @pytest.mark.parametrize('encoder', ['vit', 'swin'])
  def test_chunks_on_two_devices_take_the_same_step(self, encoder):
    kind = dict(method='local_mim', encoder=encoder)
    got = follow(2, **kind, devices=2, chunks=2)
    assert_same_steps(
      got, follow(2, **kind, devices=4), loss=1e-5, gradient=1e-4
    )

  def test_continued_from_a_checkpoint_it_takes_the_same_step(self, tmp_path):
    kind = dict(method='local_mim', encoder='swin', devices=4)
    run = cached_run(**kind)
    (first, _), (second, report) = follow(2, **kind)
    saved = Checkpoints(tmp_path)
    saved.save(jax.device_put(first, run.shardings), step=1, meta={})
    saved.close()
    state, _ = Checkpoints(tmp_path).restore(run.like)
    state, again = run.step(state, run.data.batch(1))
    assert_same_bits(jax.device_get(state), second)
    assert_same_bits(again, report)


def test_two_images_are_learned_by_heart():
  """Half of their patches, always the same ones, at every scale."""
  method = tiny(target='pixels', normalize_pixels=False)
  batch, adam = dict(view1=images()), optax.adam(1e-2)
  rng = jax.random.key(1)

  def update(carry, step):
    params, state = carry
    run = jax.value_and_grad(method.loss, has_aux=True)
    (_, aux), grads = run(params, {}, batch, rng, step)
    updates, state = adam.update(grads, state)
    return (optax.apply_updates(params, updates), state), aux.metrics

  @jax.jit
  def run():
    params, _ = method.init(jax.random.key(0), batch)
    begin = params, adam.init(params)
    return jax.lax.scan(update, begin, jnp.arange(250))[1]

  metrics = run()
  for name in method.branches:
    losses = np.asarray(metrics[f'loss_{name}'])
    assert losses[-1] < 0.05 * losses[0], name


def test_figures_show_glyphs_and_what_is_predicted():
  method, batch = tiny(), dict(view1=images())
  params, _ = jax.jit(method.init)(jax.random.key(0), batch)
  drawn = jax.jit(method.figures)(params, {}, batch)['reconstruction']
  first = ('input', 'visible', 'level_2: target', 'level_2')
  assert drawn.columns[:4] == first and len(drawn.columns) == 10
  cells = np.asarray(drawn.images)
  assert cells.shape == (2, 10, 32, 32, 3)
  hidden = np.all(cells[:, 1] == 0.5, axis=-1, keepdims=True)
  assert 0.5 <= hidden.mean() < 0.6
  for column in (2, 4, 6, 8):
    kept = np.where(hidden, 0, cells[:, column] - cells[:, column + 1])
    assert not np.any(kept) and np.ptp(cells[:, column]) > 0.5


@pytest.mark.parametrize(
  ('word', 'fields', 'message'),
  [
    ('vit_b16', dict(target='rgb'), "unknown method.target 'rgb'"),
    ('vit_b16', dict(levels=(2, 13, 14, 15)), 'levels 1 to 12'),
    ('vit_b16', dict(levels=(4, 2, 10, 12)), 'from shallow to deep'),
    ('vit_b16', dict(levels=(2, 4)), 'names 2 levels: give method.scales'),
    ('vit_b16', dict(scales=(1, 2)), 'must be 4 numbers'),
    ('vit_b14', {}, '14 px into parts of 3.5 px'),
    ('vit_b16', dict(hog_offset='yes'), "two numbers, 'random' or None"),
    ('vit_b16', dict(hog_offset=(1, 2, 3)), "two numbers, 'random' or None"),
    ('vit_b16', dict(legacy_swin_geometry=True), 'is for a Swin'),
    ('vit_mini4', {}, 'HOG cell must be at least 2 pixels'),
    (
      'vit_b16',
      dict(decoder=dict(VIT, width=(64, 64))),
      'must be one number, or 4',
    ),
  ],
)
def test_errors_name_the_way_out(word, fields, message):
  with pytest.raises(ValueError, match=message):
    local_mim(make_encoder(word), None, **dict(decoder=VIT) | fields)


@pytest.mark.parametrize(
  ('size', 'word', 'fields', 'message'),
  [
    (48, 'vit_b16', {}, 'a grid of 3x3 tokens has no half'),
    (224, 'vit_b16', dict(scales=(3, 2, 1, 1)), 'parts of 5.33'),
    (224, 'convvit_b', dict(fuse=True), 'one decoder for each'),
  ],
)
def test_grids_that_do_not_fit(size, word, fields, message):
  with pytest.raises(ValueError, match=message):
    shapes(word, size, decoder=VIT, **fields)
