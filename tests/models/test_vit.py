"""The vision transformer: sizes, initialisation, shapes, errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_vit import (
  assert_close,
  count,
  encode,
  images,
  initial,
  tiny,
  tiny_params,
)

from models import ENCODERS, make_encoder, sizes
from models.masking import Mask

# Patch 16 and RGB, mini with patch 4; positions are no parameters.
SIZES = {
  'h': 630_666_240,
  'mini': 676_032,
  'ti': 5_486_592,
  's': 21_590_016,
  'b': 85_647_360,
  'l': 303_099_904,
}


# Golden sizes.


def abstract_params(word):
  return jax.eval_shape(
    make_encoder(word).init,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32),
  )['params']


@pytest.mark.parametrize('size', SIZES)
def test_parameter_counts(size):
  word = 'vit_mini4' if size == 'mini' else f'vit_{size}16'
  assert count(abstract_params(word)) == SIZES[size]


def test_every_variant_has_a_golden_size():
  assert set(SIZES) == set(sizes.VIT)
  assert {f'vit_{size}' for size in SIZES} <= set(ENCODERS)


@pytest.mark.parametrize(
  'size, millions', [('ti', 5.52), ('s', 21.67), ('b', 85.80)]
)
def test_counts_are_the_published_ones_with_positions(size, millions):
  positions = (14 * 14 + 1) * sizes.VIT[size]['width']
  assert round((SIZES[size] + positions) / 1e6, 2) == millions


def test_initialisation_is_moco_v3s():
  encoder = make_encoder('vit_mini4', depth=1)
  params = initial(encoder, images(1, 32, 32, 3))
  d, block = 96, params['block_0']
  bounds = [
    (block['mlp']['fc1']['kernel'], math.sqrt(6 / (5 * d))),
    (block['mlp']['fc2']['kernel'], math.sqrt(6 / (5 * d))),
    (params['patch_embed']['kernel'], math.sqrt(6 / (3 * 4 * 4 + d))),
  ]
  for name in ('query', 'key', 'value', 'out'):
    bounds.append((block['attention'][name]['kernel'], math.sqrt(6 / (2 * d))))
  for kernel, bound in bounds:
    assert 0.98 * bound < float(jnp.abs(kernel).max()) <= bound
    np.testing.assert_allclose(kernel.std(), bound / math.sqrt(3), rtol=0.05)
  assert 0.5e-6 < float(params['cls'].std()) < 2e-6
  for path, leaf in jax.tree.leaves_with_path(params):
    if path[-1].key == 'bias':
      assert not leaf.any(), path


# Shapes and normalisation.


@pytest.mark.parametrize('size', [(12, 20), (24, 8), (4, 4)])
def test_any_grid(size):
  features = encode(tiny(), tiny_params(), images(2, *size, 3))
  grid = size[0] // 4, size[1] // 4
  for level in features.levels:
    assert level.grid == grid
    assert level.prefix.shape == (2, 1, 16)
    assert level.map().shape == (2, *grid, 16)
  assert features.tokens.shape == (2, grid[0] * grid[1], 16)
  assert features.pooled.shape == features.cls.shape == (2, 16)


def test_map_is_row_major():
  """A change in the last row, first column shows there before any mixing."""
  encoder, params = tiny(depth=1), tiny_params()
  quiet = jax.tree.map(jnp.zeros_like, params['block_0'])
  params = params | {'block_0': quiet}  # residuals only
  x = images(1, 8, 12, 3)
  before = encode(encoder, params, x).levels[0].map()
  after = encode(encoder, params, x.at[:, 4:, :4].add(0.1)).levels[0].map()
  changed = (before != after).any(axis=-1)[0]
  np.testing.assert_array_equal(changed, [[0, 0, 0], [1, 0, 0]])


@pytest.mark.parametrize('channels', [1, 5])
def test_other_channels_are_scaled_to_plus_minus_one(channels):
  encoder = tiny(in_channels=channels)
  x = images(2, 8, 8, channels)
  params = initial(encoder, x)
  assert params['patch_embed']['kernel'].shape == (4, 4, channels, 16)
  plain = encoder.copy(mean=(0.0,), std=(1.0,))
  got = encode(encoder, params, x).pooled
  assert_close(got, encode(plain, params, 2 * x - 1).pooled)


def test_rgb_is_normalised_by_imagenet_statistics():
  x = images(2, 8, 8, 3)
  mean = np.array([0.485, 0.456, 0.406], np.float32)
  std = np.array([0.229, 0.224, 0.225], np.float32)
  plain = tiny(mean=(0.0,), std=(1.0,))
  got = encode(tiny(), tiny_params(), x).pooled
  assert_close(got, encode(plain, tiny_params(), (x - mean) / std).pooled)


def test_mean_pool_is_of_patches_only():
  x = images(2, 8, 12, 3)
  features = encode(tiny(pool='mean'), tiny_params(), x)
  assert_close(features.pooled, features.tokens.mean(axis=1))
  cls = encode(tiny(), tiny_params(), x)
  np.testing.assert_array_equal(cls.pooled, cls.cls)
  assert np.abs(cls.pooled - features.pooled).max() > 0.01


def test_bfloat16_computes_and_float32_keeps():
  x = images(4, 8, 8, 3)
  encoder = tiny(dtype='bfloat16')
  params = initial(encoder, x)
  assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))
  for impl in ('einsum', 'xla'):
    encoder = tiny(dtype='bfloat16', attention_impl=impl)
    half = encode(encoder, tiny_params(), x, attention=(0,))
    full = encode(tiny(), tiny_params(), x)
    assert half.levels[-1].tokens.dtype == jnp.bfloat16
    assert half.pooled.dtype == half.tokens.dtype == jnp.float32
    assert half.attention[0].dtype == jnp.float32
    assert_close(half.pooled, full.pooled, 0.05)
    assert (half.pooled != full.pooled).any()


# Errors.

GOOD = (2, 8, 8, 3)


@pytest.mark.parametrize(
  'fields, shape, kwargs, message',
  [
    (
      {},
      (2, 10, 8, 3),
      {},
      '10x8 is not divisible by patch size 4; nearest '
      'sizes that work: 8x8, 12x8',
    ),
    ({}, (2, 3, 8, 3), {}, r'sizes that work: 4x8(?!,)'),
    ({}, (2, 8, 8, 4), {}, '4 channels, the encoder takes 3'),
    ({}, (8, 8, 3), {}, r'must be \[b, H, W, c\], not \[8, 8, 3\]'),
    ({'num_heads': 3}, GOOD, {}, 'width 16 is not divisible by num_heads 3'),
    ({'width': 6}, GOOD, {}, 'width divisible by 4, not 6: 4 or 8'),
    ({'pool': 'max'}, GOOD, {}, "unknown pool 'max'; known: 'cls', 'mean'"),
    ({'dtype': 'float16'}, GOOD, {}, "unknown dtype 'float16'; known: float32"),
    ({'attention_impl': 'flash'}, GOOD, {}, "attention_impl 'flash'; known"),
    ({'attention_impl': 'cudnn'}, GOOD, {}, "set dtype='bfloat16'"),
    ({'drop_path': 1.0}, GOOD, {}, r'drop_path must be in \[0, 1\), not 1.0'),
    ({'mean': (0.5, 0.5)}, GOOD, {}, 'mean has 2 values for 3 channels'),
    ({'std': (1.0,) * 4}, GOOD, {}, 'std has 4 values for 3 channels'),
    ({}, GOOD, {'cuts': (3,)}, 'cuts names block 3, .* has blocks 0 to 2'),
    ({}, GOOD, {'attention': (-4,)}, 'attention names block -4'),
    ({}, GOOD, {'noise': jnp.ones((2, 3))}, r'\[2, 3\], .* needs \[2, 6\]'),
    (
      {},
      GOOD,
      {
        'mask': Mask(
          jnp.ones((2, 9), bool), jnp.zeros((2, 1), jnp.int32), (3, 3)
        )
      },
      r'mask is \[2, 9\], the images have \[2, 4\] patches',
    ),
  ],
)
def test_errors_name_the_way_out(fields, shape, kwargs, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(
      lambda x: tiny(**fields).init(jax.random.key(0), x, **kwargs),
      jax.ShapeDtypeStruct(shape, jnp.float32),
    )


def test_integer_images_are_refused():
  with pytest.raises(ValueError, match='not uint8: divide by 255'):
    tiny().init(jax.random.key(0), jnp.zeros(GOOD, jnp.uint8))
