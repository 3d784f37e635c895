"""Swin under a mask: what it hides, what it costs, what the call promises.

Maps of 16 x 12, 8 x 6 and 4 x 3 in windows of 4: tiled with a shift, not tiled
with a shift, shrunk without one.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tiny_swin import tiny as two_stages
from tiny_vit import assert_close, encode, images, largest

from models.masking import Mask, mask_from_noise
from models.visible_windows import VisibleWindows
from models.windows import Windows

SHAPE, GRID = (2, 32, 24, 3), (4, 3)
SIDES = 4, 2, 1  # of a cell in tokens, by stage


def tiny(**fields):
  fields = dict(depths=(2, 2, 1), num_heads=(2, 2, 2)) | fields
  return two_stages(**fields)


# Where one block says it all: less to compile.
SMALL = dict(patch_size=4, depths=(1, 1), num_heads=(2, 2))


@functools.cache
def tiny_params(**fields):
  """Parameters of `tiny` that all matter, without compiling their start."""
  rng = np.random.default_rng(0)
  x = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
  shapes = jax.eval_shape(tiny(**fields).init, jax.random.key(0), x)

  def some(path, leaf):
    around = float(path[-1].key == 'scale')
    wide = 1.0 if path[-1].key == 'position_bias' else 0.2
    return around + wide * rng.standard_normal(leaf.shape, np.float32)

  return jax.tree.map_with_path(some, shapes['params'])


def random_mask(rows, keep, grid=GRID, seed=0):
  noise = jax.random.uniform(jax.random.key(seed), (rows, grid[0] * grid[1]))
  return mask_from_noise(noise, keep, grid)


def assert_same(got, want, tolerance=1e-5):
  """The same tokens at the same places, of every level."""
  for a, b in zip(
    (*got.levels, *got.merged), (*want.levels, *want.merged), strict=True
  ):
    assert a.grid == b.grid
    assert_close(a.tokens, b.tokens, tolerance)
    if a.index is not None and b.index is not None:
      np.testing.assert_array_equal(a.index, b.index)
  assert_close(got.tokens, want.tokens, tolerance)
  assert_close(got.pooled, want.pooled, tolerance)


# Nothing hidden.


@pytest.mark.parametrize(
  'size, rows, fields',
  [
    ((32, 24), 2, {}),
    ((8, 24), 1, {'native_size': (64, 32)}),  # shifts on maps below a window
    ((32, 64), 2, {'padding': 'zeros'}),
    ((64, 16), 1, {'padding': 'timm'}),
  ],
)
def test_nothing_hidden_is_no_mask(size, rows, fields):
  x, grid = images(2, *size, 3), (size[0] // 8, size[1] // 8)
  everything = random_mask(rows, grid[0] * grid[1], grid)
  encoder = tiny(**fields)
  want = encode(encoder, tiny_params(), x)
  got = encode(encoder, tiny_params(), x, mask=everything)
  assert_same(got, want)
  for level in (*got.levels, *got.merged):
    n = level.grid[0] * level.grid[1]
    np.testing.assert_array_equal(level.index, np.tile(np.arange(n), (2, 1)))


# What a mask hides.


def pixels_of(hidden):
  """[b, n] over cells to [b, H, W, 1] over pixels."""
  cells = np.asarray(hidden).reshape(-1, *GRID)
  return np.kron(cells, np.ones((8, 8), bool))[..., None]


@functools.cache
def compiled():
  apply = functools.partial(tiny().apply, attention=(0, 1, 3))
  return jax.jit(lambda x, mask: apply({'params': tiny_params()}, x, mask))


@pytest.fixture(scope='module', params=['own', 'shared'])
def masked(request):
  """Images, masks and features of a batch, and the compiled encoder."""
  x = images(4, *SHAPE[1:])
  mask = random_mask(4 if request.param == 'own' else 1, 5)
  return x, mask, compiled()(x, mask), compiled()


@pytest.mark.parametrize('other', ['noise', 'huge', 'nan'])
def test_hidden_pixels_change_nothing(masked, other):
  x, mask, features, call = masked
  put = dict(noise=images(*x.shape, seed=7), huge=1e30, nan=np.nan)[other]
  changed = call(jnp.where(pixels_of(mask.hidden), put, x), mask)
  for got, want in zip(
    jax.tree.leaves(changed), jax.tree.leaves(features), strict=True
  ):
    np.testing.assert_array_equal(got, want)


def test_every_visible_cell_matters(masked):
  x, mask, features, call = masked
  hidden = pixels_of(mask.hidden)
  for cell in range(12):
    here = np.zeros((1, 12), bool)
    here[0, cell] = True
    here = pixels_of(here) & ~hidden
    changed = call(jnp.where(here, 1 - x, x), mask)
    rows = np.broadcast_to(here.any(axis=(1, 2, 3)), 4)
    for a, b in zip(changed.levels, features.levels, strict=True):
      differ = (a.tokens != b.tokens).any(axis=(1, 2))
      np.testing.assert_array_equal(differ, rows)


def test_masked_levels_say_where_their_tokens_stand(masked):
  _, mask, features, _ = masked
  found = zip(
    (*features.levels, *features.merged), (*SIDES, *SIDES[1:]), strict=True
  )
  for level, side in found:
    assert level.grid == (side * GRID[0], side * GRID[1])
    assert level.index.shape == level.tokens.shape[:2] == (4, 5 * side**2)
    hidden = np.asarray(mask.rows(4).hidden).reshape(-1, *GRID)
    visible = ~np.kron(hidden, np.ones((side, side), bool)).reshape(4, -1)
    want = [np.flatnonzero(row) for row in visible]
    np.testing.assert_array_equal(level.index, want)
  assert features.tokens.shape == (4, 5, 32)
  assert_close(features.pooled, features.tokens.mean(axis=1))


def test_a_token_stands_where_its_index_says(masked):
  """A change of a patch shows in its window, and there alone, in a block."""
  x, mask, features, call = masked
  level, image, token = features.levels[0], 2, 17
  row, column = divmod(int(level.index[image, token]), level.grid[1])
  patch = np.s_[image, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
  changed = call(x.at[patch].add(0.5), mask).levels[0].tokens
  moved = np.flatnonzero((changed != level.tokens).any(-1)[image])
  rows, columns = np.divmod(np.asarray(level.index[image]), level.grid[1])

  def near(a, b):  # a window, then a shifted one over its edge
    return np.abs(a - b) < 8

  assert token in moved
  assert (near(rows, row) & near(columns, column))[moved].all()
  assert len(moved) < len(rows)


def windows_of(place, side, shift):
  """Which window: the first one of a shifted axis is a partial one."""
  edges = np.arange(shift or side, 20, side)
  return np.digitize(place, edges)


@pytest.mark.parametrize(
  'block, stage, shifts', [(0, 0, (0, 0)), (1, 0, (2, 2)), (3, 1, (2, 2))]
)
def test_attention_stays_inside_windows(masked, block, stage, shifts):
  """Its rows and columns are in the order of the level."""
  _, _, features, _ = masked
  level, weights = features.levels[stage], features.attention[block]
  n = level.tokens.shape[1]
  assert weights.shape == (4, 1, 2, n, n) and weights.dtype == jnp.float32
  np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
  row, column = np.divmod(np.asarray(level.index), level.grid[1])
  together = np.ones((4, n, n), bool)
  for place, shift in zip((row, column), shifts, strict=True):
    window = windows_of(place, 4, shift)
    together &= window[:, :, None] == window[:, None, :]
  together = np.broadcast_to(together[:, None, None], weights.shape)
  np.testing.assert_array_equal(np.asarray(weights) > 0, together)


def test_first_block_attends_as_if_hidden_tokens_were_no_keys(masked):
  """Its inputs are those of the whole image, which has every window full."""
  x, _, features, _ = masked
  whole = encode(tiny(), tiny_params(), x, attention=(0,))
  full = np.zeros((4, 2, 16, 12, 16, 12), np.float32)
  for i, window in enumerate(np.moveaxis(whole.attention[0], 1, 0)):
    row, column = (4 * k for k in divmod(i, 3))
    here = np.s_[row : row + 4], np.s_[column : column + 4]
    full[:, :, *here, *here] = window.reshape(4, 2, 4, 4, 4, 4)
  full = full.reshape(4, 2, 192, 192)
  for image, index in enumerate(np.asarray(features.levels[0].index)):
    want = full[image][:, index[:, None], index]
    want = want / want.sum(axis=-1, keepdims=True)
    assert_close(features.attention[0][image, 0], want)


def test_masks_of_a_batch_are_masks_of_its_images():
  x, mask, call = images(4, *SHAPE[1:]), random_mask(4, 5), compiled()
  together = call(x, mask)
  for i in range(4):
    row = Mask(mask.hidden[i : i + 1], mask.visible[i : i + 1], GRID)
    alone = call(x[i : i + 1], row)
    assert_same(
      alone, jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], together)
    )
  shared = random_mask(1, 5, seed=3)
  assert_same(call(x, shared), call(x, shared.rows(4)))


# The bias and its gradient.


@pytest.mark.parametrize('rows, shift', [(1, (0, 0)), (3, (1, 2))])
def test_bias_by_relative_position(rows, shift):
  rng = np.random.default_rng(rows)
  grid, size, reach, n = (7, 9), (3, 5), 5, 20
  places = [rng.permutation(63)[:n] for _ in range(rows)]
  row, column = np.divmod(np.array(places, np.int32), 9)
  windows = Windows(grid=grid, size=size, shift=shift)
  order = np.tile(np.arange(n), (rows, 1))
  table = rng.standard_normal((81, 2), np.float32)
  weights = rng.standard_normal((rows, 2, n, n), np.float32)

  @jax.jit
  def bias(table, row, column):
    return VisibleWindows.at(windows, row, column, order).bias(table, reach)

  got, back = jax.vjp(lambda t: bias(t, row, column), table)
  want, gradient = np.full((rows, 2, n, n), -1e9), np.zeros((81, 2))
  for b, i, j in np.ndindex(rows, n, n):
    places = [(row[b, i], row[b, j]), (column[b, i], column[b, j])]
    if any(
      len(set(windows_of(np.array(two), side, s).tolist())) > 1
      for two, side, s in zip(places, size, shift, strict=True)
    ):
      continue
    dy, dx = (int(a) - int(b) for a, b in places)
    entry = (dy + reach - 1) * 9 + dx + reach - 1
    want[b, :, i, j] = table[entry]
    gradient[entry] += weights[b, :, i, j]
  np.testing.assert_array_equal(got, want.astype(np.float32))
  assert (gradient != 0).sum() > 40
  assert_close(back(weights)[0], gradient)


# What it costs.


def test_work_is_that_of_the_visible_tokens():
  """A quarter of the cells costs a quarter, and attention a bit more.

  It is one group: n^2 pairs instead of 16 n. Here n is 16 * 16 / 4.
  """
  encoder = two_stages(width=32)
  x = jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.float32)
  params = jax.eval_shape(encoder.init, jax.random.key(0), x)

  def flops(keep):
    mask = keep and random_mask(1, keep, (8, 8))

    def loss(params, x, mask):
      return (encoder.apply(params, x, mask).tokens ** 3).sum()

    step = jax.jit(jax.grad(loss)).lower(params, x, mask)
    return step.cost_analysis()['flops']

  whole, half, quarter = flops(None), flops(32), flops(16)
  assert 0.25 * whole < quarter < 0.35 * whole
  assert half < 0.8 * whole


# What the call promises.


def test_nothing_flows_back_over_a_cut():
  x, mask, params = images(*SHAPE), random_mask(2, 5), tiny_params(**SMALL)

  def scalar(params, which):
    features = tiny(**SMALL).apply({'params': params}, x, mask, cuts=(0,))
    outputs = [features.levels[0], features.merged[0], features.levels[1]]
    return jnp.stack([(out.tokens**2).mean() for out in outputs])[which]

  gradient = jax.jit(jax.grad(scalar))
  first = {'patch_embed', 'patch_norm', 'block_0'}
  wanted = first, first | {'merge_0'}, {'block_1'}
  for which, names in enumerate(wanted):
    got = gradient(params, which)
    assert {k for k, v in got.items() if largest(v) > 0} == names


@pytest.mark.parametrize('rows', [1, 8])
def test_sharded_and_recomputed_step_is_the_same_and_needs_no_gather(rows):
  mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Auto,))
  sharded = NamedSharding(mesh, PartitionSpec('data'))
  everywhere = NamedSharding(mesh, PartitionSpec())
  of_mask = everywhere if rows == 1 else sharded
  given = images(8, *SHAPE[1:]), random_mask(rows, 5), images(8, 4, seed=2)
  params = tiny_params(**SMALL)

  def run(remat):
    encoder = tiny(drop_path=0.3, remat=remat, **SMALL)

    def loss(params, x, mask, noise):
      features = encoder.apply({'params': params}, x, mask, noise=noise)
      tapped = features.merged[0].tokens
      return (features.tokens**3).mean() + (tapped**2).mean()

    return jax.value_and_grad(loss)

  text = str(jax.make_jaxpr(run(True))(params, *given))
  assert text.count('remat') >= 2
  places = everywhere, sharded, of_mask, sharded
  step = jax.jit(run(True), in_shardings=places)
  compiled = step.lower(params, *given).compile()
  text = compiled.as_text()
  assert 'all-reduce' in text  # it is a program for four devices
  assert 'all-gather' not in text
  put = [
    jax.device_put(leaf, where)
    for leaf, where in zip((params, *given), places, strict=True)
  ]
  got, gradients = compiled(*put)
  want, expected = jax.jit(run(False))(params, *given)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  close = functools.partial(
    np.testing.assert_allclose, rtol=1e-4, atol=1e-5 * largest(expected)
  )
  jax.tree.map(close, gradients, expected)


def test_bfloat16_and_other_attention():
  x, mask, params = (
    images(4, *SHAPE[1:]),
    random_mask(1, 5),
    tiny_params(**SMALL),
  )
  full, other, half = (
    encode(tiny(**SMALL, **fields), params, x, mask=mask)
    for fields in ({}, {'attention_impl': 'xla'}, {'dtype': 'bfloat16'})
  )
  assert_same(other, full)
  assert half.merged[0].tokens.dtype == jnp.bfloat16
  assert half.pooled.dtype == jnp.float32
  assert_close(half.pooled, full.pooled, 0.05)


# A token in the place of what is hidden.


def test_mask_token_keeps_maps_whole():
  fields = SMALL | {'mask_token': True}
  x, params = images(4, *SHAPE[1:]), tiny_params(**fields)
  assert params['mask_token']['token'].shape == (1, 1, 8)
  assert 'mask_token' not in tiny_params()
  encoder = tiny(**fields)
  without = {k: v for k, v in params.items() if k != 'mask_token'}
  assert_same(encode(encoder, params, x), encode(tiny(**SMALL), without, x))
  mask = random_mask(4, 5)
  call = jax.jit(lambda p, x: encoder.apply({'params': p}, x, mask))
  features = call(params, x)
  assert {level.index for level in features.levels} == {None}
  assert features.merged[0].map().shape == (4, 4, 3, 16)
  noise = jnp.where(pixels_of(mask.hidden), images(*x.shape, seed=7), x)
  np.testing.assert_array_equal(call(params, noise).tokens, features.tokens)
  other = params | {'mask_token': {'token': params['mask_token']['token'] + 1}}
  assert (call(other, x).pooled != features.pooled).any()
  # Cells of any size: the same ones in quarters.
  finer = np.asarray(mask.hidden).reshape(4, *GRID)
  finer = np.kron(finer, np.ones((2, 2), bool)).reshape(4, -1)
  finer = Mask(finer, jnp.zeros((4, 20), jnp.int32), (8, 6))
  assert_same(encode(encoder, params, x, mask=finer), features)


# LocalMIM's geometry; `test_swin_masked_official` has its numbers.


def test_legacy_geometry_is_for_masks_alone():
  x, mask = images(4, *SHAPE[1:]), random_mask(1, 5)
  legacy = tiny(legacy_geometry=True)

  def program(encoder):
    return str(jax.make_jaxpr(encoder.apply)({'params': tiny_params()}, x))

  assert program(legacy) == program(tiny())
  got, want = encode(legacy, tiny_params(), x, mask=mask), compiled()(x, mask)
  assert_close(got.levels[0].tokens, want.levels[0].tokens, 1e-6)
  pairs = zip(
    (got.merged[0], got.levels[1]),
    (want.merged[0], want.levels[1]),
    strict=True,
  )
  for a, b in pairs:
    np.testing.assert_array_equal(a.index, b.index)
    assert np.abs(a.tokens - b.tokens).max() > 0.01


# Errors.

FITS = Mask(jnp.zeros((1, 12), bool), jnp.zeros((1, 12), jnp.int32), GRID)


@pytest.mark.parametrize(
  'fields, shape, message',
  [
    (
      {},
      (2, 36, 24, 3),
      "36x24 is not divisible by a mask's cell 8; nearest .*: 32x24, 40x24",
    ),
    ({}, (2, 32, 32, 3), r'mask is \[1, 12\], the images have \[2, 16\]'),
    (
      {'mask_token': True},
      (2, 32, 32, 3),
      r'mask is \[1, 12\], the images have \[2, 16\]',
    ),
    ({'padding': 'timm'}, SHAPE, "'timm' shows .* of 8x6 .*: set padding='mas"),
    ({'padding': 'zeros'}, SHAPE, "'zeros' shows .* of 8x6 .*: set padding='m"),
    (
      {'mask_token': True, 'legacy_geometry': True},
      SHAPE,
      'mask_token keeps them all: set one of the two',
    ),
  ],
)
def test_errors_name_the_way_out(fields, shape, message):
  with pytest.raises(ValueError, match=message) as error:
    jax.eval_shape(
      lambda x: tiny(**fields).init(jax.random.key(0), x, FITS),
      jax.ShapeDtypeStruct(shape, jnp.float32),
    )
  assert '\n' not in str(error.value)


def test_mask_token_takes_any_padding():
  x, encoder = images(*SHAPE), tiny(mask_token=True, padding='timm')
  shapes = jax.eval_shape(encoder.init, jax.random.key(0), x, FITS)
  assert 'mask_token' in shapes['params']
