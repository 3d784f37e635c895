"""Swin: sizes, initialisation, any image size, what the call promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tiny_swin import tiny, tiny_params
from tiny_vit import assert_close, count, encode, gradient, images, largest

from models import ENCODERS, make_encoder, sizes
from models.masking import Mask

SIZES = {
  'mini': 2_277_726,
  't': 27_519_354,
  's': 48_837_258,
  'b': 86_743_224,
  'l': 194_995_476,
}


def abstract(encoder, size):
  """Features, variables, and levels and merged levels as maps: shapes only."""

  def call(rng, x):
    features, variables = encoder.init_with_output(rng, x)
    maps = [level.map() for level in features.levels]
    merged = [level.map() for level in features.merged]
    return features, variables, maps, merged

  return jax.eval_shape(
    call,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, *size, 3), jnp.float32),
  )


# Golden sizes.


@pytest.mark.parametrize('size', SIZES)
def test_parameter_counts(size):
  variables = abstract(make_encoder(f'swin_{size}'), (64, 64))[1]
  assert count(variables['params']) == SIZES[size]


def test_every_variant_has_a_golden_size():
  assert set(SIZES) == set(sizes.SWIN)
  assert {f'swin_{size}' for size in SIZES} <= set(ENCODERS)
  # As published, without the head of 1,000 classes.
  millions = [round(SIZES[size] / 1e6, 1) for size in 'tsbl']
  assert millions == [27.5, 48.8, 86.7, 195.0]


def test_variants_are_pyramids():
  _, _, maps, merged = abstract(make_encoder('swin_t'), (224, 224))
  assert [m.shape for m in maps] == [
    (1, 56, 56, 96),
    (1, 28, 28, 192),
    (1, 14, 14, 384),
    (1, 7, 7, 768),
  ]
  assert [m.shape for m in merged] == [
    (1, 28, 28, 192),
    (1, 14, 14, 384),
    (1, 7, 7, 768),
  ]
  assert make_encoder('swin_t').strides == (4, 8, 16, 32)
  assert make_encoder('swin_s').depth == 24
  mini = abstract(make_encoder('swin_mini'), (32, 32))[0]
  assert [level.grid[0] for level in mini.levels] == [16, 8, 4, 2]
  assert mini.pooled.shape == (1, 256)


def test_initialisation_is_the_authors():
  encoder = tiny(width=64, depths=(1, 1), in_channels=5)
  params = jax.jit(encoder.init)(jax.random.key(0), images(1, 8, 8, 5))
  params, bound = params['params'], (2 * 2 * 5) ** -0.5
  for leaf in params['patch_embed'].values():
    assert 0.9 * bound < float(jnp.abs(leaf).max()) <= bound
  np.testing.assert_allclose(
    params['patch_embed']['kernel'].std(), bound / 3**0.5, rtol=0.05
  )
  kernels = 0
  for path, leaf in jax.tree.leaves_with_path(params):
    name = path[-1].key
    if path[0].key == 'patch_embed':
      continue
    if name == 'bias':
      assert not leaf.any(), path
    elif name == 'scale':
      assert (leaf == 1).all(), path
    else:
      kernels += 1
      few = leaf.size < 1000
      np.testing.assert_allclose(leaf.std(), 0.02, rtol=0.2 if few else 0.05)
  assert kernels == 2 * 7 + 1  # with the tables of position biases


# Any size.


@pytest.mark.parametrize('size', [(16, 16), (14, 22), (2, 6)])
@pytest.mark.parametrize('padding', ['masked', 'zeros', 'timm'])
def test_any_size(size, padding):
  features, _, maps, after = abstract(tiny(padding=padding), size)
  grid = size[0] // 2, size[1] // 2
  merged = -(-grid[0] // 2), -(-grid[1] // 2)
  assert [level.grid for level in features.levels] == [grid, merged]
  assert features.levels[0].prefix.shape == (1, 0, 8)
  assert maps[0].shape == (1, *grid, 8)
  assert after[0].shape == maps[1].shape == (1, *merged, 16)
  assert features.tokens.shape == (1, merged[0] * merged[1], 16)
  assert features.pooled.shape == (1, 16)
  assert features.cls is None


def test_map_is_row_major():
  """A change in the last row, first column shows there before any mixing."""
  quiet = {
    name: jax.tree.map(jnp.zeros_like, p) if 'block' in name else p
    for name, p in tiny_params().items()
  }
  x = images(1, 6, 10, 3)
  before = encode(tiny(), quiet, x)
  after = encode(tiny(), quiet, x.at[:, 4:, :2].add(0.1))
  changed = (before.levels[0].map() != after.levels[0].map()).any(axis=-1)
  np.testing.assert_array_equal(np.argwhere(changed[0]), [[2, 0]])
  changed = (before.merged[0].map() != after.merged[0].map()).any(axis=-1)
  np.testing.assert_array_equal(np.argwhere(changed[0]), [[1, 0]])
  assert_close(before.pooled, before.tokens.mean(axis=1))


def test_small_maps_shrink_the_window_which_is_masked_padding():
  x = images(2, 6, 10, 3)  # maps of 3 x 5 and 2 x 3
  encoder = tiny(native_size=(6, 16))  # decides about shifts alike
  shrunk = encode(encoder, tiny_params(), x, attention=(0,))
  full = encode(tiny(native_size=(8, 16)), tiny_params(), x, attention=(0,))
  assert shrunk.attention[0].shape == (2, 2, 2, 12, 12)
  assert full.attention[0].shape == (2, 2, 2, 16, 16)
  assert_close(shrunk.pooled, full.pooled)
  assert_close(shrunk.levels[0].tokens, full.levels[0].tokens)


def test_paddings_differ_only_where_there_is_padding():
  encoders = [tiny(padding=p) for p in ('masked', 'zeros', 'timm')]
  whole = [
    encode(e, tiny_params(), images(2, 16, 16, 3)).pooled for e in encoders
  ]
  np.testing.assert_array_equal(whole[0], whole[1])
  np.testing.assert_array_equal(whole[0], whole[2])
  padded = [
    encode(e, tiny_params(), images(2, 14, 16, 3), attention=(0,))
    for e in encoders[:2]
  ]
  assert np.abs(padded[0].pooled - padded[1].pooled).max() > 1e-3
  # Real queries (3 rows of 4 in the lower windows) see padding or do not.
  masked, seen = (f.attention[0][:, 2:, :, :12, 12:] for f in padded)
  assert (masked == 0).all()
  assert (seen > 0).all()


# Cuts, stochastic depth, memory, precision, attention maps.


def test_nothing_flows_back_across_a_cut():
  x = images(1, 16, 16, 3)

  def from_the_end(features):
    return (features.levels[-1].tokens ** 3).sum() + features.pooled.sum()

  got = gradient(tiny(), tiny_params(), x, from_the_end, cuts=(-2,))
  below = [got[k] for k in got if k not in ('block_2', 'norm')]
  assert largest(below) == 0
  assert largest(got['block_2']) > 0.01

  def at_the_cut(features):
    return (features.merged[0].tokens ** 3).sum()

  # What is reported there is not cut: its gradient is that without cuts.
  got = gradient(tiny(), tiny_params(), x, at_the_cut, cuts=(0,))
  want = gradient(tiny(), tiny_params(), x, at_the_cut)
  assert min(largest(got[k]) for k in ('block_0', 'merge_0')) > 0.01
  close = functools.partial(
    np.testing.assert_allclose, rtol=1e-4, atol=1e-5 * largest(want)
  )
  jax.tree.map(close, got, want)


def test_stochastic_depth_counts_blocks_of_all_stages():
  encoder, x = tiny(drop_path=0.5), images(2, 8, 8, 3)
  call = functools.partial(encode, encoder, tiny_params(), x)
  none, kept = call(), call(noise=jnp.ones((2, 6)))
  assert_close(encode(tiny(), tiny_params(), x).pooled, none.pooled, 1e-6)
  # Rates are 0, 0.25, 0.5: a noise of 0.3 drops the third block only, and the
  # second is scaled.
  some = call(noise=jnp.full((2, 6), 0.3))
  np.testing.assert_array_equal(some.levels[0].tokens, kept.levels[0].tokens)
  np.testing.assert_array_equal(some.levels[1].tokens, some.merged[0].tokens)
  assert (some.levels[0].tokens != none.levels[0].tokens).any()
  for column in range(6):
    got = call(noise=jnp.ones((2, 6)).at[1, column].set(0))
    changed = [
      [(a.tokens[row] != b.tokens[row]).any() for row in (0, 1)]
      for a, b in zip(got.levels, kept.levels, strict=True)
    ]
    assert changed == [[False, column in (2, 3)], [False, column >= 2]]


def test_remat_changes_no_gradient():
  x, noise = images(2, 10, 8, 3), images(2, 6, seed=2)

  def scalar(features):
    return (features.pooled**2).sum()

  plain, remat = (
    gradient(
      tiny(drop_path=0.3, remat=r),
      tiny_params(),
      x,
      scalar,
      attention=(1,),
      noise=noise,
    )
    for r in (False, True)
  )
  close = functools.partial(
    np.testing.assert_allclose, rtol=1e-4, atol=1e-5 * largest(plain)
  )
  jax.tree.map(close, remat, plain)
  text = str(
    jax.make_jaxpr(tiny(remat=True).apply)({'params': tiny_params()}, x)
  )
  assert text.count('remat') >= 3


@pytest.mark.parametrize('impl', ['einsum', 'xla'])
def test_bfloat16_computes_and_float32_keeps(impl):
  x = images(4, 14, 16, 3)
  encoder = tiny(dtype='bfloat16', attention_impl=impl)
  made = abstract(encoder, (14, 16))[1]['params']
  assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(made))
  half = encode(encoder, tiny_params(), x, attention=(0,))
  full = encode(tiny(), tiny_params(), x)
  assert half.levels[-1].tokens.dtype == jnp.bfloat16
  assert half.merged[0].tokens.dtype == jnp.bfloat16
  assert half.pooled.dtype == half.tokens.dtype == jnp.float32
  assert half.attention[0].dtype == jnp.float32
  assert_close(half.pooled, full.pooled, 0.05)
  assert (half.pooled != full.pooled).any()


def test_attention_maps_of_the_blocks_asked_for():
  x = images(2, 16, 14, 3)
  encoder = tiny(attention_impl='xla')
  plain = encode(encoder, tiny_params(), x)
  asked = encode(encoder, tiny_params(), x, attention=(1, -1))
  assert plain.attention == {}
  assert asked.attention[1].shape == (2, 4, 2, 16, 16)
  assert asked.attention[-1].shape == (2, 1, 2, 16, 16)
  for weights in asked.attention.values():
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
    assert float(weights.std()) > 0.01
  assert_close(asked.pooled, plain.pooled)


def test_sharded_batch_needs_no_gather():
  mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Auto,))
  rows = NamedSharding(mesh, PartitionSpec('data'))
  whole = NamedSharding(mesh, PartitionSpec())
  x = jax.device_put(images(8, 14, 8, 3), rows)

  def loss(params, x):
    return (tiny().apply({'params': params}, x).tokens ** 3).mean()

  step = jax.jit(jax.value_and_grad(loss), in_shardings=(whole, rows))
  text = step.lower(tiny_params(), x).compile().as_text()
  assert 'all-reduce' in text  # it is a program for four devices
  assert 'all-gather' not in text
  got, gradients = step(tiny_params(), x)
  want, expected = jax.jit(jax.value_and_grad(loss))(
    tiny_params(), images(8, 14, 8, 3)
  )
  np.testing.assert_allclose(got, want, rtol=1e-5)
  close = functools.partial(
    np.testing.assert_allclose, rtol=1e-4, atol=1e-5 * largest(expected)
  )
  jax.tree.map(close, gradients, expected)


# Errors.

GOOD = (2, 8, 8, 3)


@pytest.mark.parametrize(
  'fields, shape, kwargs, message',
  [
    ({}, (2, 9, 8, 3), {}, 'not divisible by patch size 2; nearest .* 8x8'),
    ({}, (2, 8, 8, 4), {}, '4 channels, the encoder takes 3'),
    ({}, (8, 8, 3), {}, r'must be \[b, H, W, c\], not \[8, 8, 3\]'),
    ({'num_heads': (3, 2)}, GOOD, {}, 'width 8 is not divisible by num_heads'),
    ({'num_heads': (2,)}, GOOD, {}, 'must have one number of at least 1 for'),
    ({'depths': (2, 0)}, GOOD, {}, 'must have one number of at least 1 for'),
    ({'window': 0}, GOOD, {}, 'window must be at least 1, not 0'),
    ({'padding': 'mirror'}, GOOD, {}, "padding 'mirror'; known: 'masked'"),
    ({'dtype': 'float16'}, GOOD, {}, "unknown dtype 'float16'; known: float32"),
    ({'attention_impl': 'flash'}, GOOD, {}, "attention_impl 'flash'; known"),
    ({'attention_impl': 'cudnn'}, GOOD, {}, "position bias: use 'auto' or 'xl"),
    ({'drop_path': 1.0}, GOOD, {}, r'drop_path must be in \[0, 1\), not 1.0'),
    ({}, GOOD, {'cuts': (2,)}, 'cuts names stage 2, .* has stages 0 to 1'),
    (
      {},
      GOOD,
      {'attention': (3,)},
      'attention names block 3, .* blocks 0 to 2',
    ),
    ({}, GOOD, {'noise': jnp.ones((2, 4))}, r'\[2, 4\], .* needs \[2, 6\]'),
    (
      {},
      GOOD,
      {
        'mask': Mask(
          jnp.ones((2, 16), bool), jnp.zeros((2, 1), jnp.int32), (4, 4)
        )
      },
      r'mask is \[2, 16\], .* have \[2, 4\] patches',
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
