"""ConvViT: sizes, initialisation, what a mask hides, what the call promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tiny_vit import (
  assert_close,
  count,
  encode,
  images,
  largest,
)

from models import ENCODERS, make_encoder, sizes
from models.convvit import ConvViT
from models.depthwise import depthwise
from models.masking import Mask, mask_from_noise

SIZES = {'mini': 545_536, 's': 23_047_680, 'b': 88_782_208}
# Maps of 16 x 12, 8 x 6 and 4 x 3.
SHAPE, GRID, DEPTH, LEVELS = (2, 16, 12, 3), (4, 3), 4, 4


def tiny(**fields):
  return ConvViT(
    **dict(
      patch_sizes=(1, 2, 2),
      widths=(4, 8, 16),
      depths=(1, 1, 2),
      num_heads=2,
      mlp_ratio=2,
    )
    | fields
  )


@functools.cache
def tiny_params():
  """Parameters of `tiny` that all matter, without compiling their start."""
  rng = np.random.default_rng(0)

  def some(path, leaf):
    around = float(path[-1].key == 'scale')
    return around + 0.3 * rng.standard_normal(leaf.shape, np.float32)

  return jax.tree.map_with_path(some, shapes(tiny(), 16)[1]['params'])


def random_mask(batch, keep, seed=0):
  noise = jax.random.uniform(jax.random.key(seed), (batch, 12))
  return mask_from_noise(noise, keep, (4, 3))


def shapes(encoder, size):
  return jax.eval_shape(
    encoder.init_with_output,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32),
  )


# Golden sizes.


@pytest.mark.parametrize('size', SIZES)
def test_parameter_counts(size):
  variables = shapes(make_encoder(f'convvit_{size}'), 32)[1]
  assert count(variables['params']) == SIZES[size]


def test_every_variant_has_a_golden_size():
  assert set(SIZES) == set(sizes.CONVVIT)
  assert {f'convvit_{size}' for size in SIZES} <= set(ENCODERS)
  # B by hand. A block of a convolution stage: two norms, two d x d, the 5 x 5,
  # an MLP of ratio 4. One that attends has four d x d instead.
  a, b, d = 256, 384, 768

  def conv_block(d):
    return 4 * d + 2 * (d * d + d) + 26 * d + 8 * d * d + 5 * d

  block = 4 * d + 4 * (d * d + d) + 8 * d * d + 5 * d
  embeds = 4 * 4 * 3 * a + 3 * a + 4 * a * b + 3 * b + 4 * b * d + 3 * d
  fuse = 16 * a * d + d + 4 * b * d + d
  stages = 2 * conv_block(a) + 2 * conv_block(b) + 11 * block
  assert SIZES['b'] == embeds + d * d + d + stages + fuse + 2 * d


def test_variants_are_pyramids():
  features, _ = shapes(make_encoder('convvit_b'), 224)
  grids = [level.grid for level in features.levels]
  assert grids == [(56, 56), (28, 28)] + [(14, 14)] * 11
  widths = [level.tokens.shape[-1] for level in features.levels]
  assert widths == [256, 384] + [768] * 11
  assert {level.prefix.shape[:2] for level in features.levels} == {(1, 0)}
  assert features.cls is None and features.pooled.shape == (1, 768)
  encoder = make_encoder('convvit_b')
  assert encoder.strides == (4, 8) + (16,) * 11
  assert (encoder.depth, encoder.conv_depth) == (15, 4)
  assert (encoder.patch_size, encoder.width) == (16, 768)
  mini = make_encoder('convvit_mini')
  assert mini.patch_size == 4
  features, _ = shapes(mini, 32)
  assert [level.grid[0] for level in features.levels] == [16] + [8] * 5
  larger = make_encoder('convvit_mini', patch_sizes=(2, 2, 2))
  assert larger.strides == (2, 4, 8, 8, 8, 8)


def test_initialisation_is_the_authors():
  encoder = tiny(widths=(32, 64, 96), depths=(1, 1, 1), in_channels=5)
  params = jax.jit(encoder.init)(jax.random.key(0), images(1, 8, 8, 5))
  params = params['params']
  fan_in = dict(patch_embed=5, embed_1=4 * 32, embed_2=4 * 64)
  fan_in |= dict(fuse_0=16 * 32, fuse_1=4 * 64)
  torch = {k: (params[k], n) for k, n in fan_in.items()}
  for i, d in enumerate((32, 64)):
    block = params[f'block_{i}']
    torch |= {
      f'{i}{k}': (block[k], n)
      for k, n in dict(point1=d, depthwise=25, fc1=d, fc2=2 * d).items()
    }
  for name, (leaves, n) in torch.items():
    for kind, leaf in leaves.items():
      bound = n**-0.5
      if (name, kind) == ('embed_2', 'kernel'):
        bound = (6 / (n + 96)) ** 0.5  # Xavier over the flattened patch
      assert 0.85 * bound < float(jnp.abs(leaf).max()) <= bound, (name, kind)
  np.testing.assert_allclose(
    params['embed_2']['kernel'].std(), (2 / (256 + 96)) ** 0.5, rtol=0.05
  )
  for name in ('project', 'block_2'):
    for path, leaf in jax.tree.leaves_with_path(params[name]):
      if path[-1].key == 'bias':
        assert not leaf.any(), path
      elif path[-1].key == 'kernel':
        # One d x 3d matrix of theirs is three of ours.
        fused = path[-2:][0].key in ('query', 'key', 'value')
        std = (2 / (sum(leaf.shape) * (2 if fused else 1))) ** 0.5
        np.testing.assert_allclose(leaf.std(), std, rtol=0.05)


# What a mask hides.


@pytest.fixture(scope='module')
def masked():
  """Images, masks and features of a batch, and the compiled encoder."""
  x = images(16, *SHAPE[1:])
  mask = jax.tree.map(
    lambda *rows: jnp.concatenate(rows),
    *(random_mask(4, 4, seed) for seed in range(4)),
  )
  params = tiny_params()
  encode = functools.partial(tiny().apply, attention=(2, -1))
  call = jax.jit(lambda x, mask: encode({'params': params}, x, mask))
  return x, mask, call(x, mask), call


def pixels_of(mask):
  """[b, n] over cells to [b, H, W, 1] over pixels."""
  cells = np.asarray(mask.hidden).reshape(-1, *GRID)
  return np.kron(cells, np.ones((4, 4), bool))[..., None]


@pytest.mark.parametrize('other', ['noise', 'huge', 'nan'])
def test_hidden_pixels_change_nothing(masked, other):
  x, mask, features, call = masked
  put = dict(noise=images(*x.shape, seed=7), huge=1e30, nan=np.nan)[other]
  changed = call(jnp.where(pixels_of(mask), put, x), mask)
  for got, want in zip(
    jax.tree.leaves(changed), jax.tree.leaves(features), strict=True
  ):
    np.testing.assert_array_equal(got, want)


def test_every_visible_cell_matters(masked):
  x, mask, features, call = masked
  hidden = pixels_of(mask)
  for cell in range(12):
    here = np.zeros((1, 12), bool)
    here[0, cell] = True
    here = pixels_of(Mask(here, None, (4, 3))) & ~hidden
    changed = call(jnp.where(here, 1 - x, x), mask)
    rows = here.any(axis=(1, 2, 3))
    for a, b in zip(changed.levels, features.levels, strict=True):
      differ = (a.tokens != b.tokens).any(axis=(1, 2))
      np.testing.assert_array_equal(differ, rows)


def test_masked_levels_say_where_their_tokens_stand(masked):
  x, mask, features, call = masked
  for level, side in zip(features.levels, (4, 2, 1, 1), strict=True):
    assert level.grid == (side * GRID[0], side * GRID[1])
    assert level.index.shape == level.tokens.shape[:2] == (16, 4 * side**2)
    assert (np.diff(level.index, axis=1) > 0).all()
    found = np.zeros((16, level.grid[0] * level.grid[1]), bool)
    np.put_along_axis(found, np.asarray(level.index), True, axis=1)
    hidden = np.asarray(mask.hidden).reshape(-1, *GRID)
    want = ~np.kron(hidden, np.ones((side, side), bool)).reshape(16, -1)
    np.testing.assert_array_equal(found, want)
    with pytest.raises(ValueError, match='no full map'):
      level.map()
  # What a token of the first stage says is about its own pixel: far from it
  # nothing of a 5 x 5 kernel can be seen.
  image, token = 3, 10
  row, column = divmod(int(features.levels[0].index[image, token]), 12)
  changed = call(x.at[image, row, column].add(1.0), mask).levels[0]
  moved = np.flatnonzero(
    (changed.tokens != features.levels[0].tokens).any(-1)[image]
  )
  assert token in moved
  rows, columns = np.divmod(np.asarray(changed.index[image, moved]), 12)
  assert (np.abs(rows - row) <= 2).all()
  assert (np.abs(columns - column) <= 2).all()


@pytest.fixture(scope='module')
def whole():
  """Images and their features without a mask."""
  x = images(*SHAPE)
  return x, encode(tiny(), tiny_params(), x, attention=(-1,))


def test_nothing_hidden_is_no_mask(whole):
  x, want = whole
  everything = random_mask(2, 12)
  got = encode(tiny(), tiny_params(), x, mask=everything, attention=(-1,))
  for a, b in zip(got.levels, want.levels, strict=True):
    n = a.grid[0] * a.grid[1]
    assert a.grid == b.grid == b.map().shape[1:3]
    np.testing.assert_array_equal(a.index, np.tile(np.arange(n), (2, 1)))
    assert_close(a.tokens, b.tokens)
  assert_close(got.pooled, want.pooled)
  assert_close(got.attention[-1], want.attention[-1])


# What the call promises.


def test_final_features_are_normed_with_the_maps_added(whole):
  x, fused = whole
  plain = encode(tiny(fuse=False), tiny_params(), x)
  last = np.asarray(plain.levels[-1].tokens)
  assert_close(fused.levels[-1].tokens, last)
  maps = 0
  for i, side in enumerate((4, 2)):
    cells = plain.levels[i].map().reshape(2, 4, side, 3, side, -1)
    cells = cells.transpose(0, 1, 3, 2, 4, 5).reshape(2, 12, -1)
    fuse = tiny_params()[f'fuse_{i}']
    maps += cells @ fuse['kernel'].reshape(-1, 16) + fuse['bias']
  norm = tiny_params()['norm']
  for features, stream in ((plain, last), (fused, last + maps)):
    centred = stream - stream.mean(-1, keepdims=True)
    y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    y = y * norm['scale'] + norm['bias']
    assert_close(features.tokens, y)
    assert_close(features.pooled, y.mean(axis=1))


# Where the parameters that a level needs live, shallow to deep; norm and fuse_i
# come after the last one.
SEGMENTS = (
  ('patch_embed', 'patch_norm', 'block_0'),
  ('embed_1', 'embed_norm_1', 'block_1'),
  ('embed_2', 'embed_norm_2', 'project', 'block_2'),
  ('block_3',),
  ('fuse_0', 'fuse_1', 'norm'),
)


def test_nothing_flows_back_over_a_cut():
  """After level 0 and level 2; what is added at the end is cut there too."""
  x, mask = images(*SHAPE), random_mask(2, 6)

  def scalar(params, which):
    features = tiny().apply({'params': params}, x, mask, cuts=(0, -2))
    outputs = [level.tokens for level in features.levels]
    outputs.append(features.tokens)
    return jnp.stack([(out**2).mean() for out in outputs])[which]

  gradient = jax.jit(jax.grad(scalar))
  for which, begin in enumerate((0, 1, 1, 3, 3)):
    got = gradient(tiny_params(), which)
    reached = {k for k, v in got.items() if largest(v) > 0}
    parts = SEGMENTS[begin : which + 1]
    assert reached == {name for part in parts for name in part}, which


def test_attention_of_the_blocks_that_attend(masked):
  _, _, features, _ = masked
  assert set(features.attention) == {2, -1}
  for weights in features.attention.values():
    assert weights.shape == (16, 2, 4, 4) and weights.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
    assert float(weights.std()) > 0.01


def test_stochastic_depth_drops_branches_of_examples():
  x, params, encoder = images(*SHAPE), tiny_params(), tiny(drop_path=0.9)
  call = jax.jit(
    lambda noise: encoder.apply({'params': params}, x, noise=noise)
  )
  ones = jnp.ones((2, 2 * DEPTH))
  kept = call(ones)
  for column in range(2 * DEPTH):
    got = call(ones.at[1, column].set(0))
    changed = [
      [bool((a.tokens[row] != b.tokens[row]).any()) for row in (0, 1)]
      for a, b in zip(got.levels, kept.levels, strict=True)
    ]
    block = column // 2  # the rate of block 0 is 0
    assert changed == [[False, 0 < block <= level] for level in range(LEVELS)]


def test_bfloat16_computes_and_float32_keeps(masked):
  x, mask, full, _ = masked
  encoder = tiny(dtype='bfloat16')
  made = shapes(encoder, 16)[1]['params']
  assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(made))
  half = encode(encoder, tiny_params(), x, mask=mask)
  assert all(level.tokens.dtype == jnp.bfloat16 for level in half.levels)
  assert half.pooled.dtype == half.tokens.dtype == jnp.float32
  assert_close(half.pooled, full.pooled, 0.05)
  assert (half.pooled != full.pooled).any()


def test_sharded_and_recomputed_step_is_the_same_and_needs_no_gather():
  mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Auto,))
  rows = NamedSharding(mesh, PartitionSpec('data'))
  everywhere = NamedSharding(mesh, PartitionSpec())
  given = images(8, *SHAPE[1:]), random_mask(8, 6), images(8, 2 * DEPTH, seed=2)

  def run(remat):
    encoder = tiny(drop_path=0.3, remat=remat)

    def loss(params, x, mask, noise):
      features = encoder.apply({'params': params}, x, mask, noise=noise)
      tapped = features.levels[0].tokens
      return (features.tokens**3).mean() + (tapped**2).mean()

    return jax.value_and_grad(loss)

  text = str(jax.make_jaxpr(run(True))(tiny_params(), *given))
  assert text.count('remat') >= DEPTH
  step = jax.jit(run(True), in_shardings=(everywhere, rows, rows, rows))
  compiled = step.lower(tiny_params(), *given).compile()
  text = compiled.as_text()
  assert 'all-reduce' in text  # it is a program for four devices
  assert 'all-gather' not in text
  got, gradients = compiled(
    jax.device_put(tiny_params(), everywhere), *jax.device_put(given, rows)
  )
  want, expected = jax.jit(run(False))(tiny_params(), *given)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  close = functools.partial(
    np.testing.assert_allclose, rtol=1e-4, atol=1e-5 * largest(expected)
  )
  jax.tree.map(close, gradients, expected)


@pytest.mark.parametrize('side', [3, 5])
def test_depthwise_is_a_convolution_of_each_channel(side):
  x, kernel = images(2, 7, 4, 6) - 0.5, images(side, side, 1, 6, seed=1) - 0.5
  weights = images(2, 7, 4, 6, seed=2)
  around = side // 2
  padded = np.pad(x, ((0, 0), (around, around), (around, around), (0, 0)))
  want = np.zeros(x.shape)
  for row in range(7):
    for column in range(4):
      seen = padded[:, row : row + side, column : column + side]
      want[:, row, column] = (seen * kernel[:, :, 0]).sum(axis=(1, 2))
  found = {}
  for impl in ('shifts', 'xla'):
    assert_close(depthwise(x, kernel, impl), want)

    def scalar(x, kernel, impl=impl):
      return (depthwise(x, kernel, impl) * weights).sum()

    found[impl] = jax.jit(jax.grad(scalar, (0, 1)))(x, kernel)
  for a, b in zip(found['shifts'], found['xla'], strict=True):
    assert_close(a, b)


# Errors.

UNFIT = Mask(jnp.ones((2, 16), bool), jnp.zeros((2, 1), jnp.int32), (4, 4))


@pytest.mark.parametrize(
  'fields, shape, kwargs, message',
  [
    ({}, (2, 18, 8, 3), {}, 'not divisible by patch size 4; nearest .* 16x8'),
    ({}, (2, 16, 12, 4), {}, '4 channels, the encoder takes 3'),
    ({}, (16, 12, 3), {}, r'must be \[b, H, W, c\], not \[16, 12, 3\]'),
    ({'num_heads': 3}, SHAPE, {}, 'width 16 is not divisible by num_heads 3'),
    ({'widths': (4, 8)}, SHAPE, {}, 'must have one number for every stage'),
    (
      dict(widths=(4,), depths=(1,), patch_sizes=(4,)),
      SHAPE,
      {},
      'of which there are at least 2',
    ),
    ({'depths': (1, 0, 1)}, SHAPE, {}, 'must be at least 1'),
    ({'dtype': 'float16'}, SHAPE, {}, "unknown dtype 'float16'; known: float"),
    ({'drop_path': 1.0}, SHAPE, {}, r'drop_path must be in \[0, 1\), not 1.0'),
    ({}, SHAPE, {'cuts': (4,)}, 'cuts names level 4, .* has levels 0 to 3'),
    ({}, SHAPE, {'attention': (4,)}, 'names block 4, .* blocks 0 to 3'),
    ({}, SHAPE, {'attention': (1,)}, 'block 1, a convolution: blocks 2 to 3'),
    ({}, SHAPE, {'noise': jnp.ones((2, 4))}, r'\[2, 4\], .* needs \[2, 8\]'),
    ({}, SHAPE, {'mask': UNFIT}, r'mask is \[2, 16\], .* have \[2, 12\] patch'),
  ],
)
def test_errors_name_the_way_out(fields, shape, kwargs, message):
  with pytest.raises(ValueError, match=message) as error:
    jax.eval_shape(
      lambda x: tiny(**fields).init(jax.random.key(0), x, **kwargs),
      jax.ShapeDtypeStruct(shape, jnp.float32),
    )
  assert '\n' not in str(error.value)


def test_integer_images_and_unknown_fields_are_refused():
  with pytest.raises(ValueError, match='not uint8: divide by 255'):
    tiny().init(jax.random.key(0), jnp.zeros(SHAPE, jnp.uint8))
  with pytest.raises(TypeError, match='patch_size'):
    make_encoder('convvit_s', patch_size=16)
