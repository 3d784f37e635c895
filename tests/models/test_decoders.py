"""RePre's decoder: sizes, a twin written with lax, CLS, errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.decoders import FusionDecoder, level_indices
from models.patches import unpatchify
from models.vit import ViT


def maps(k=3, h=3, w=4, d=8):
  keys = jax.random.split(jax.random.key(0), k)
  return tuple(jax.random.normal(key, (2, h, w, d)) for key in keys)


def initial(decoder, maps):
  return jax.jit(decoder.init)(jax.random.key(0), maps)


@pytest.mark.parametrize(
  'encoder_width, width, levels, fields, want',
  [
    (192, 64, 4, {}, 431_488),
    (384, 96, 4, {}, 969_408),
    (384, 128, 4, {}, 1_624_064),
    (768, 256, 4, {}, 6_294_784),
    (384, 96, 4, {'lateral': False}, 1_816_896),
    (384, 128, 4, {'lateral': False}, 2_606_592),
    (384, 128, 1, {}, 443_520),
    (384, 128, 4, {'fusion_layers': 1}, 1_181_312),
  ],
)
def test_parameter_counts(encoder_width, width, levels, fields, want):
  decoder = FusionDecoder(width=width, patch_size=16, **fields)
  level = jax.ShapeDtypeStruct((1, 14, 14, encoder_width), jnp.float32)
  params = jax.eval_shape(decoder.init, jax.random.key(0), (level,) * levels)
  leaves = jax.tree.leaves(params)
  assert sum(math.prod(leaf.shape) for leaf in leaves) == want


@pytest.mark.parametrize(
  'depth, k, want',
  [
    (12, 4, (2, 5, 8, 11)),
    (24, 4, (5, 11, 17, 23)),
    (6, 4, (0, 1, 2, 5)),
    (7, 3, (1, 3, 6)),
    (12, 1, (11,)),
  ],
)
def test_level_indices_follow_the_paper(depth, k, want):
  assert level_indices(depth, k) == want


@pytest.mark.parametrize('k', [0, 5])
def test_level_indices_refuse_the_impossible(k):
  with pytest.raises(ValueError, match=f'{k} levels of 4 blocks: choose 1'):
    level_indices(4, k)


# Swin-T at 224 px. Of (128, 64, 32): .79 M.
SWIN_T = tuple((56 >> i, 56 >> i, 96 << i) for i in range(4))


@pytest.mark.parametrize(
  'width, patch_size, grids, want',
  [
    (64, 4, SWIN_T, 427_696),
    ((128, 64, 32), 4, SWIN_T, 791_888),
    (128, 32, SWIN_T[-1:], 789_888),
  ],
)
def test_a_pyramid_ends_on_its_shallowest_grid(width, patch_size, grids, want):
  decoder = FusionDecoder(width=width, patch_size=patch_size)
  levels = [jax.ShapeDtypeStruct((1, *g), jnp.float32) for g in grids]
  prediction, params = jax.eval_shape(
    decoder.init_with_output, jax.random.key(0), tuple(levels)
  )
  # Every pixel is predicted once.
  assert prediction.shape == (1, *grids[0][:2], patch_size**2 * 3)
  assert prediction.size == 224 * 224 * 3
  leaves = jax.tree.leaves(params)
  assert sum(math.prod(leaf.shape) for leaf in leaves) == want


def conv(params, x):
  return params['bias'] + jax.lax.conv_general_dilated(
    x,
    params['kernel'],
    (1, 1),
    'SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


@pytest.mark.parametrize('lateral', [True, False])
def test_decoder_fuses_from_deep_to_shallow(lateral):
  decoder = FusionDecoder(width=5, patch_size=2, lateral=lateral)
  shallow, middle, deep = maps()
  params = initial(decoder, maps())['params']
  params = jax.tree.map(
    lambda p: p + 0.1 * jax.random.normal(jax.random.key(1), p.shape), params
  )
  got = jax.jit(decoder.apply)({'params': params}, (shallow, middle, deep))
  if lateral:
    shallow = conv(params['lateral_0'], shallow)
    middle = conv(params['lateral_1'], middle)
    deep = conv(params['lateral_2'], deep)
  x = jnp.concatenate([deep, middle], axis=-1)
  x = jax.nn.relu(conv(params['fusion_0_0'], x))
  x = jax.nn.relu(conv(params['fusion_0_1'], x))
  x = jnp.concatenate([x, shallow], axis=-1)
  x = jax.nn.relu(conv(params['fusion_1_0'], x))
  x = jax.nn.relu(conv(params['fusion_1_1'], x))
  assert got.shape == (2, 3, 4, 12)
  np.testing.assert_allclose(got, conv(params['out'], x), rtol=1e-4, atol=1e-5)


def doubled(x):
  """Bilinear with half-pixel centres, edges repeated, by hand."""
  for axis in (1, 2):
    first, last = (
      jnp.take(x, jnp.array([i]), axis=axis) for i in (0, x.shape[axis] - 1)
    )
    size = x.shape[axis]
    wide = jnp.concatenate([first, x, last], axis=axis)
    before, after = (
      jax.lax.slice_in_dim(wide, i, i + size, axis=axis) for i in (0, 2)
    )
    both = [0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after]
    x = jnp.stack(both, axis=axis + 1)
    x = x.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 2 :])
  return x


def test_decoder_upsamples_to_the_shallower_grid():
  decoder = FusionDecoder(width=(6, 5), patch_size=2)
  shallow, middle = maps(1, h=6, w=8) + maps(1, h=6, w=8, d=4)
  deep = maps(1)[0]
  pyramid = shallow, middle, deep
  params = initial(decoder, pyramid)['params']
  params = jax.tree.map(
    lambda p: p + 0.1 * jax.random.normal(jax.random.key(1), p.shape), params
  )
  got = jax.jit(decoder.apply)({'params': params}, pyramid)
  x = doubled(conv(params['lateral_2'], deep))
  x = jnp.concatenate([x, conv(params['lateral_1'], middle)], axis=-1)
  x = jax.nn.relu(conv(params['fusion_0_0'], x))
  x = jax.nn.relu(conv(params['fusion_0_1'], x))
  assert x.shape == (2, 6, 8, 6)
  x = jnp.concatenate([x, conv(params['lateral_0'], shallow)], axis=-1)
  x = jax.nn.relu(conv(params['fusion_1_0'], x))
  x = jax.nn.relu(conv(params['fusion_1_1'], x))
  assert got.shape == (2, 6, 8, 12)
  np.testing.assert_allclose(got, conv(params['out'], x), rtol=1e-4, atol=1e-5)


def test_odd_maps_meet_on_the_exact_grid():
  decoder = FusionDecoder(width=4, patch_size=2)
  pyramid = maps(1, h=5, w=7) + maps(1)
  got, _ = jax.eval_shape(decoder.init_with_output, jax.random.key(0), pyramid)
  assert got.shape == (2, 5, 7, 12)


@pytest.mark.parametrize('layers, want', [(1, 0.222), (2, 0.367), (4, 0.658)])
def test_transformers_cost_what_counting_says(layers, want):
  """ViT-S at 224 px, width 128: 10^9 multiply-adds of all products."""
  decoder = FusionDecoder(
    width=128, patch_size=16, fusion='transformer', fusion_layers=layers
  )
  levels = (jax.ShapeDtypeStruct((1, 14, 14, 384), jnp.float32),) * 4
  params = jax.eval_shape(decoder.init, jax.random.key(0), levels)
  lowered = jax.jit(decoder.apply).lower(params, levels)
  got = lowered.cost_analysis()['flops'] / 2e9
  # Norms, softmax and GELU are not counted by hand.
  assert want < got < 1.04 * want


@pytest.mark.parametrize('side', [4, 18])
def test_transformers_fuse_deep_into_shallow(side):
  """Over all tokens, and over windows where the shallow map is large."""
  shallow = maps(1, side, side, 8)
  levels = (*shallow, *maps(1, side // 2, side // 2, 16))
  decoder = FusionDecoder(width=8, patch_size=2, fusion='transformer')
  params = initial(decoder, levels)
  windowed = 'position_bias' in params['params']['fusion_0_0']
  assert windowed == (side == 18)

  @jax.jit
  @jax.grad
  def gradient(levels):
    out = decoder.apply(params, levels)
    assert out.shape == (2, side, side, 12)
    return jnp.sum(out[:, 0, 0])  # one corner

  for level in gradient(levels):
    reached = np.any(np.asarray(level) != 0, axis=-1)
    # A map of windows that shift once: the corner sees its window's.
    assert reached[:, 0, 0].all()
    assert reached.all() == (not windowed)


@pytest.mark.parametrize(
  'fields, color',
  [
    ({}, (0.485, 0.456, 0.406)),
    ({'mean': (0.1, 0.2, 0.3)}, (0.1, 0.2, 0.3)),
    ({'mean': (0.7,), 'out_channels': 2}, (0.7, 0.7)),
    ({'out_channels': 1}, (0.5,)),
  ],
)
def test_decoder_starts_at_the_mean_color(fields, color):
  decoder = FusionDecoder(width=8, patch_size=4, **fields)
  params = initial(decoder, maps())
  apply = jax.jit(decoder.apply)
  silent = jax.tree.map(jnp.zeros_like, maps())
  image = unpatchify(apply(params, silent), 4)
  assert image.shape == (2, 12, 16, len(color))
  np.testing.assert_allclose(
    image, jnp.broadcast_to(jnp.array(color), image.shape), rtol=1e-6
  )
  prediction = unpatchify(apply(params, maps()), 4)
  assert 0 < np.abs(prediction - jnp.array(color)).max() < 0.3


def test_decoder_never_sees_cls():
  encoder = ViT(patch_size=4, width=16, depth=4, num_heads=2)
  decoder = FusionDecoder(width=8, patch_size=4)
  x = jax.random.uniform(jax.random.key(0), (2, 8, 12, 3))
  levels = jax.jit(encoder.init_with_output)(jax.random.key(1), x)[0].levels
  chosen = level_indices(4, 2)

  def pick(levels):
    return tuple(levels[i].map() for i in chosen)

  params = initial(decoder, pick(levels))

  def loss(levels):
    return (decoder.apply(params, pick(levels)) ** 2).sum()

  gradients = jax.jit(jax.grad(loss))(levels)
  for i, level in enumerate(gradients):
    assert not level.prefix.any()
    assert level.tokens.any() == (i in chosen)


def test_bfloat16_decoder_predicts_float32():
  decoder = FusionDecoder(width=8, patch_size=4)
  params = initial(decoder, maps())
  half = decoder.copy(dtype='bfloat16')
  created = initial(half, maps())
  assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(created))
  got = jax.jit(half.apply)(params, maps())
  want = jax.jit(decoder.apply)(params, maps())
  assert got.dtype == jnp.float32
  assert 0 < np.abs(got - want).max() < 0.02


@pytest.mark.parametrize(
  'fields, levels, message',
  [
    ({}, (), 'at least one level'),
    ({}, maps() + maps(1, h=6, w=8), r'not get finer .*\(3, 4\), \(6, 8\)'),
    ({'width': (8,)}, maps(), '1 numbers for 2 fusion blocks of 3 levels'),
    ({'mean': (0.1, 0.2)}, maps(), 'mean has 2 values for 3 channels'),
  ],
)
def test_errors(fields, levels, message):
  decoder = FusionDecoder(**dict(width=8, patch_size=4) | fields)
  with pytest.raises(ValueError, match=message):
    decoder.init(jax.random.key(0), levels)
