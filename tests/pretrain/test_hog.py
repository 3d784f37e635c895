"""HOG targets: recorded ones, two other implementations, what they ignore."""

import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
import skimage.feature
from PIL import Image

from models.patches import normalize
from pretrain.hog import Hog, histograms, hog, random_offset

GOLDEN = pathlib.Path(__file__).parents[1] / 'goldens' / 'localmim_hog.npz'
CELLS = (4, 8, 16, 32)
# Every so many cells are recorded.
RAW_STRIDE = {4: 41, 8: 10, 16: 4, 32: 1}
SMOOTH_STRIDE = {4: 5, 8: 2, 16: 1, 32: 1}
NORM_STRIDE = {4: 81, 8: 13, 16: 3}


@functools.cache
def record():
  return dict(np.load(GOLDEN))


@functools.cache
def photos():
  """The photographs of the record, [2, 224, 224, 3] of 0..255, float32."""
  images = []
  for photo in (skimage.data.astronaut(), skimage.data.chelsea()):
    side = min(photo.shape[:2])
    top, left = ((size - side) // 2 for size in photo.shape[:2])
    square = photo[top : top + side, left : left + side]
    square = Image.fromarray(square).resize((224, 224), Image.BICUBIC)
    images.append(np.asarray(square, np.float32))
  return np.stack(images)


@functools.cache
def program(cells=CELLS):
  """All cells in one compiled program, as [b, cells, c·n]."""

  def run(x):
    maps = [hog(x, cell=cell) for cell in cells]
    return [y.reshape(len(x), -1, y.shape[-1]) for y in maps]

  return jax.jit(run)


@functools.partial(jax.jit, static_argnames=('cell', 'bins', 'offset'))
def ours(x, cell, bins=9, offset=None):
  return hog(x, cell=cell, bins=bins, offset=offset)


def of_gradients(gx, gy, cell, bins):
  call = functools.partial(histograms, cell=cell, bins=bins)
  return np.asarray(jax.jit(call)(gx, gy))


def integers(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, shape).astype(np.float32)


# Recorded: LocalMIM's code on photographs and on a smooth image.


def test_exact_gradients_give_the_recorded_histograms():
  """Many of these lie on the edge of two bins: all must fall on one side."""
  for cell, got in zip(CELLS, program()(photos()), strict=True):
    want = record()[f'raw255/hog{cell}']
    got = got[:, :: RAW_STRIDE[cell]]
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_a_smooth_image():
  x = record()['smooth/x'][None, :, :, None]
  for cell, got in zip(CELLS, program()(x), strict=True):
    want = record()[f'smooth/hog{cell}']
    got = got[0, :: SMOOTH_STRIDE[cell]]
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_photographs_as_the_encoder_sees_them():
  """Where no gradient is on the edge of two bins but for rounding."""
  by_cell = dict(zip(CELLS, program()(normalized_photos()), strict=True))
  for cell, stride in NORM_STRIDE.items():
    want = record()[f'norm/hog{cell}']
    stable = np.repeat(record()[f'norm/stable{cell}'], 9, axis=-1)
    assert stable.sum() > 100
    # Of nearly flat cells rounding is a larger part.
    got = np.asarray(by_cell[cell][:, ::stride])
    np.testing.assert_allclose(got[stable], want[stable], atol=3e-4)


def normalized_photos():
  return normalize(jnp.asarray(photos() / 255), None, None)


def test_the_target_normalises_for_the_encoder():
  x = jnp.asarray(photos() / 255)[:, :64, :64]
  fields = dict(mean=(0.4, 0.5, 0.6), std=(0.5, 0.1, 0.3))
  target = Hog(cell=16, offset=(0.2, -0.1), **fields)
  got = jax.jit(target)(x)
  assert got.shape == (2, 4, 4, 27) and got.dtype == jnp.float32
  want = ours(normalize(x, **fields), 16, offset=(0.2, -0.1))
  np.testing.assert_allclose(got, want, atol=1e-3)
  assert np.abs(got - ours(x, 16, offset=(0.2, -0.1))).max() > 0.1
  half = jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.bfloat16)
  assert jax.eval_shape(Hog(cell=16), half).dtype == jnp.float32


# Other implementations.


def brute(x, cell, bins, offset=(0.0, 0.0)):
  """One histogram after the other, pixel by pixel, float64."""
  b, height, width, channels = x.shape
  out = np.zeros((b, height // cell, width // cell, channels, bins))
  x = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)), 'reflect')
  kernel = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]])
  for i, row, column, channel in np.ndindex(b, height, width, channels):
    window = x[i, row : row + 3, column : column + 3, channel]
    gx = (window * kernel).sum() + offset[0]
    gy = (window * kernel.T).sum() + offset[1]
    k = math.floor(math.atan2(gx, gy) / math.pi * bins) % bins
    out[i, row // cell, column // cell, channel, k] += math.hypot(gx, gy)
  length = np.linalg.norm(out, axis=-1, keepdims=True)
  out = out / np.maximum(length, 1e-12)
  return out.reshape(*out.shape[:3], -1)


@pytest.mark.parametrize(
  'cell, bins, offset',
  [(4, 9, None), (2, 4, None), (6, 18, (0.25, -0.125)), (3, 1, None)],
)
def test_against_loops(cell, bins, offset):
  # Few levels, so that gradients are often at 0, 45 and 90 degrees, or none.
  x = integers(2, 12, 24, 2) // 64
  got = ours(x, cell, bins, offset)
  want = brute(x, cell, bins, offset or (0, 0))
  assert got.shape == want.shape == (2, 12 // cell, 24 // cell, 2 * bins)
  np.testing.assert_allclose(got, want, atol=1e-6)


def central(image):
  """Central differences of [H, W], left - right and up - down."""
  x = np.pad(image, 1, 'reflect')
  gx, gy = x[1:-1, :-2] - x[1:-1, 2:], x[:-2, 1:-1] - x[2:, 1:-1]
  return gx[None, :, :, None], gy[None, :, :, None]


def theirs(image, cell, bins):
  """scikit-image's histograms, [h, w, n]."""
  found = skimage.feature.hog(
    image,
    orientations=bins,
    pixels_per_cell=(cell, cell),
    cells_per_block=(1, 1),
    block_norm='L2',
    feature_vector=False,
  )
  return found[:, :, 0, 0]


@pytest.mark.parametrize('cell, bins', [(8, 6), (8, 9), (16, 12), (16, 18)])
def test_against_scikit_image(cell, bins):
  image = photos()[0, 16:112, 64:128, 0]
  got = of_gradients(*central(image), cell, bins)[0]
  # Its angle is 90 degrees minus ours; it takes the first axis for ours.
  want = theirs(image.T, cell, bins).transpose(1, 0, 2)
  np.testing.assert_allclose(got, want, atol=2e-6)


def test_against_scikit_image_as_it_is():
  """Upright, an even number of bins is another order, but at the border."""
  image = np.random.default_rng(0).uniform(size=(48, 64)).astype(np.float32)
  got = of_gradients(*central(image), 8, 6)[0]
  want = theirs(image, 8, 6)[:, :, (6 // 2 - 1 - np.arange(6)) % 6]
  inside = np.s_[1:-1, 1:-1]
  np.testing.assert_allclose(got[inside], want[inside], atol=2e-6)


# What histograms ignore, and what they do not.


def test_an_edge_between_bins_belongs_to_the_later_one():
  gradients = [(0, 1), (0, -1), (-0.0, -1), (1, 1), (-1, -1), (1, 0), (-1, 0)]
  gradients += [(1, -1), (-1, 1), (1e-3, -1), (-1e-3, 1)]
  bins = [0, 0, 0, 1, 1, 2, 2, 3, 3, 3, 3]
  # One gradient for each cell, of any length.
  g = np.repeat(np.array(gradients, np.float32), 2, axis=0)[:, None] * 3
  gx, gy = (np.repeat(g[None, :, :, i, None], 2, axis=2) for i in (0, 1))
  found = of_gradients(gx, gy, 2, 4)
  np.testing.assert_array_equal(found[0, :, 0].argmax(-1), bins)
  np.testing.assert_allclose(found.sum(-1), 1, atol=1e-6)


def test_brightness_contrast_and_sign_do_not_matter():
  x = integers(1, 16, 24, 3)
  want = ours(x, 8)
  scale, shift = np.float32([1, 3, 0.5]), np.float32([40, -8, 7])
  for other in (x + shift, x * scale, -x):
    np.testing.assert_allclose(ours(other, 8), want, atol=1e-6)


def test_every_histogram_has_length_one_unless_flat():
  x = integers(1, 16, 24, 3)
  x[:, :, 7:] = 7
  found = np.asarray(ours(x, 8))
  length = np.linalg.norm(found.reshape(2, 3, 3, 9), axis=-1)
  np.testing.assert_allclose(length[:, 0], 1, atol=1e-6)
  np.testing.assert_array_equal(found[:, :, 1:], 0)


@pytest.mark.parametrize('bins', [4, 18])
def test_a_quarter_turn_moves_half_the_bins(bins):
  x = integers(1, 16, 16, 1) // 64
  turned = ours(np.rot90(x, axes=(1, 2)), 8, bins)
  want = np.roll(np.rot90(ours(x, 8, bins), axes=(1, 2)), bins // 2, 3)
  np.testing.assert_allclose(turned, want, atol=1e-6)


def test_an_offset_gives_flat_cells_a_direction():
  x = np.zeros((1, 8, 8, 2), np.float32)
  for offset, k in (((0.1, 0.3), 1), ((0.3, -0.1), 6), ((-0.3, -0.1), 3)):
    want = np.zeros((1, 1, 1, 2, 10))
    want[..., k] = 1
    got = ours(x, 8, 10, offset)
    np.testing.assert_allclose(got, want.reshape(1, 1, 1, 20), atol=1e-6)


def test_random_offsets_are_the_same_in_every_run():
  found = np.array([random_offset(i) for i in range(500)])
  assert random_offset(3) == tuple(found[3]) != random_offset(4)
  assert 0.32 < np.abs(found).max() < 1 / 3
  assert np.abs(found.mean(axis=0)).max() < 0.03
  first = (-0.2654275247017063, -0.0049393499126687)
  assert random_offset(0) == pytest.approx(first, abs=1e-12)


# Cost.


def test_scales_share_their_work():
  """Four scales in one program cost hardly more than the finest."""
  x = jax.ShapeDtypeStruct((2, 96, 96, 3), jnp.float32)
  one, four = (
    program(cells).lower(x).compile().cost_analysis()['flops']
    for cells in (CELLS[:1], CELLS)
  )
  assert four < 1.03 * one


# Drawings.


def drawings(slopes, cell, bins):
  """Drawings of one cell inside ramps that rise towards (x, y), [b, p, p]."""
  y, x = np.mgrid[: 3 * cell, : 3 * cell]
  ramps = [sx * x + sy * y for sx, sy in slopes]
  target = Hog(cell=cell, bins=bins)
  images = jnp.asarray(np.stack(ramps), jnp.float32)[..., None]
  drawn = jax.jit(lambda x: target.restore(target(x), x))(images)
  return np.asarray(drawn)[:, cell : 2 * cell, cell : 2 * cell, 0]


def test_a_drawing_lies_along_the_edge():
  angles = np.arange(24) * np.pi / 12 + 0.05
  slopes = np.stack([np.cos(angles), np.sin(angles)], axis=1)
  y, x = np.mgrid[:16, :16] - 7.5
  for angle, drawn in zip(angles, drawings(slopes, 16, 9), strict=True):
    xx, yy, xy = ((drawn * m).sum() for m in (x * x, y * y, x * y))
    assert xx + yy > 400  # a line from side to side
    axis = np.arctan2(2 * xy, xx - yy) / 2  # of the line
    across = (axis - angle) % np.pi - np.pi / 2
    assert abs(across) < np.pi / 18 + 0.02, angle


@pytest.mark.parametrize('cell', [2, 3, 4])
def test_small_drawings_tell_directions_apart(cell):
  """Of edges that run down, across, falling and rising."""
  names = ((1, 0), (0, 1), (1, -1), (1, 1))
  down, across, falling, rising = drawings(names, cell, 8)
  assert np.trace(falling) > 1.2 * np.trace(falling[:, ::-1])
  assert np.trace(rising[:, ::-1]) > 1.2 * np.trace(rising)
  if cell > 2:  # a cell of two pixels has no middle
    middle = np.s_[1:-1]
    assert down[:, middle].mean() > 1.2 * down[middle].mean()
    assert across[middle].mean() > 1.2 * across[:, middle].mean()


def test_a_drawing_has_the_shape_of_the_image():
  target = Hog(cell=4, bins=6)
  rng = np.random.default_rng(0)
  prediction = rng.uniform(-1, 1, (2, 3, 5, 18)).astype(np.float32)
  images = np.zeros((2, 12, 20, 3), np.float32)
  restore = jax.jit(target.restore)
  got = restore(prediction, images)
  assert got.shape == images.shape and got.dtype == jnp.float32
  assert 0 == got.min() and 0.3 < got.max() <= 1
  np.testing.assert_array_equal(got, got[..., :1].repeat(3, -1))
  # Of channels the mean, of what is below 0 nothing.
  prediction[..., 6:] = 0
  third = restore(prediction, images)
  whole = restore(np.tile(prediction[..., :6], 3), images)
  np.testing.assert_allclose(third, whole / 3, atol=1e-6)
  assert restore(-np.abs(prediction), images).max() == 0


# Errors.


def test_what_cannot_work_is_said():
  x = np.zeros((1, 50, 7, 3), np.float32)
  with pytest.raises(ValueError, match='of 8 pixels do not .* 48x8, 56x8$'):
    hog(x, cell=8)
  with pytest.raises(ValueError, match='at least 1 bin, not 0'):
    Hog(cell=8, bins=0)
  with pytest.raises(ValueError, match='at least 2 pixels wide, not 1: take'):
    Hog(cell=1)
