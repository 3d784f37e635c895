import collections
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage, stats
from skimage import color

from input_pipeline import augment
from input_pipeline.views import View, moco_v3

OFF = View(size=32, jitter=0.0, gray=0.0, blur=0.0)
IDENTITY = (1.0, 1.0, 1.0, 0.0)


def pillow_op(image, op, value):
  """One jitter op as torchvision applies it to a Pillow image."""
  if op == 'hue':
    hue, saturation, brightness = image.convert('HSV').split()
    hue = (np.asarray(hue).astype(int) + int(value * 255)) % 256
    hue = Image.fromarray(hue.astype(np.uint8))
    bands = hue, saturation, brightness
    return Image.merge('HSV', bands).convert('RGB')
  enhance = {
    'brightness': ImageEnhance.Brightness,
    'contrast': ImageEnhance.Contrast,
    'saturation': ImageEnhance.Color,
  }
  return enhance[op](image).enhance(value)


jitter = jax.jit(augment.color_jitter, static_argnums=3)


def jitter_all(photos, factors, order, ops=augment.OPS):
  """One setting for all photographs, on 0..255."""
  count = len(photos)
  out = jitter(
    jnp.asarray(photos / np.float32(255)),
    jnp.array([factors] * count, jnp.float32),
    jnp.array([order] * count, jnp.float32),
    ops,
  )
  return 255 * np.asarray(out)


@pytest.mark.parametrize('value', [0.4, 0.9, 1.6])
@pytest.mark.parametrize('op', ['brightness', 'contrast', 'saturation'])
def test_linear_ops_are_pillows(photos, op, value):
  factors = list(IDENTITY)
  factors[augment.OPS.index(op)] = value
  ours = jitter_all(photos, factors, (0, 1, 2, 3))
  for i, photo in enumerate(photos):
    theirs = pillow_op(Image.fromarray(photo), op, value)
    # Pillow cuts off what is below 1 and rounds the grey that it blends with.
    assert np.abs(ours[i] - theirs).max() <= 1.01 + 0.5 * abs(1 - value)


@pytest.mark.parametrize('value', [-0.4, -0.1, 0.03, 0.5])
def test_hue_is_pillows_and_exactly_that_of_hsv(photos, value):
  ours = jitter_all(photos, (1, 1, 1, value), (0, 1, 2, 3))
  for i, photo in enumerate(photos):
    theirs = np.asarray(pillow_op(Image.fromarray(photo), 'hue', value))
    # Pillow keeps the hue in 8 bits: coarse for saturated colours.
    error = np.abs(ours[i] - theirs)
    assert error.mean() < 1 and np.percentile(error, 99) < 6
    hsv = color.rgb2hsv(photo)
    hsv[..., 0] = (hsv[..., 0] + value) % 1
    np.testing.assert_allclose(ours[i], 255 * color.hsv2rgb(hsv), atol=0.01)


def test_hue_of_grey_and_pure_colours():
  colors = np.array(
    [[0, 0, 0], [255, 255, 255], [90, 90, 90], [255, 0, 0], [0, 0, 255]],
    np.uint8,
  )
  out = jitter_all(colors[None, None], (1, 1, 1, 1 / 3), (0, 1, 2, 3))
  expected = colors.copy()
  expected[3:] = [[0, 255, 0], [255, 0, 0]]
  np.testing.assert_allclose(out[0, 0], expected, atol=1e-3)


def test_each_of_the_24_orders_is_that_order(photos):
  factors = (1.35, 0.6, 1.4, 0.1)
  expected, results = {}, {}
  for sequence in itertools.permutations(range(4)):
    order = np.argsort(sequence)  # op -> place
    results[sequence] = jitter_all(photos, factors, order)
    steps = photos.astype(np.float32)
    for i in sequence:
      single = [v if j == i else IDENTITY[j] for j, v in enumerate(factors)]
      steps = jitter_all(steps, single, (0, 1, 2, 3))
    np.testing.assert_allclose(results[sequence], steps, atol=2e-3)
    images = [Image.fromarray(photo) for photo in photos]
    for i in sequence:
      images = [pillow_op(x, augment.OPS[i], factors[i]) for x in images]
    expected[sequence] = np.stack([np.asarray(x) for x in images]).astype(float)
    error = np.abs(results[sequence] - expected[sequence])
    assert error.mean() < 1.5 and np.percentile(error, 99) < 8, sequence
  # The orders differ enough for the comparison above to mean something.
  for one, two in itertools.combinations(results, 2):
    if np.abs(results[one] - results[two]).mean() > 2:
      assert np.abs(results[one] - expected[two]).mean() > 1.5
  spread = np.ptp(np.stack(list(results.values())), axis=0)
  assert spread.mean() > 5


def test_rows_of_a_batch_have_orders_of_their_own(photos):
  image = jnp.asarray(photos[:1] / np.float32(255))
  factors = jnp.array([[1.35, 0.6, 1.4, 0.1]])
  orders = np.array(list(itertools.permutations(range(4))), np.float32)
  together = jitter(
    jnp.repeat(image, 24, axis=0), jnp.repeat(factors, 24, axis=0), orders
  )
  for i in (0, 9, 23):
    alone = jitter(image, factors, orders[i : i + 1])
    np.testing.assert_allclose(together[i], alone[0], atol=1e-6)


def test_grey_and_solarise_are_pillows(photos):
  images = jnp.asarray(photos / np.float32(255))
  gray = 255 * np.asarray(augment.grayscale(images))
  inverted = 255 * np.asarray(augment.invert_above(images, 128 / 255))
  for i, photo in enumerate(photos):
    photo = Image.fromarray(photo)
    theirs = np.asarray(photo.convert('L'))[..., None]
    assert np.abs(gray[i] - theirs).max() <= 1.01
    theirs = ImageOps.solarize(photo, 128)
    np.testing.assert_allclose(inverted[i], theirs, atol=1e-3)


def test_solarise_at_every_level():
  ramp = np.arange(256, dtype=np.uint8)[None, :, None, None]
  out = 255 * augment.invert_above(jnp.asarray(ramp / 255.0), 128 / 255)
  expected = np.where(ramp < 128, ramp, 255 - ramp)
  np.testing.assert_allclose(out, expected, atol=1e-3)


def test_blur_is_scipys(photos):
  sigma = np.array([0.1, 0.8, 2.0], np.float32)
  images = photos / np.float32(255)
  blur = jax.jit(augment.gaussian_blur, static_argnames='radius')
  for crop in (images, images[:, :5, :7]):  # also smaller than the kernel
    ours = blur(jnp.asarray(crop), jnp.asarray(sigma), radius=8)
    for i, image in enumerate(crop):
      theirs = ndimage.gaussian_filter(
        image, (sigma[i], sigma[i], 0), mode='nearest', radius=(8, 8, 0)
      )
      np.testing.assert_allclose(ours[i], theirs, atol=2e-6)


def test_blur_of_width_zero_changes_nothing(photos):
  images = jnp.asarray(photos / np.float32(255))
  np.testing.assert_array_equal(
    augment.gaussian_blur(images, jnp.zeros(3), radius=8), images
  )


def keys_of(count, seed=0):
  return jax.random.split(jax.random.key(seed), count)


def render(images, view, keys):
  out = jax.jit(augment.augment, static_argnums=1)(
    jnp.asarray(images), view, keys
  )
  return np.asarray(out)


FULL = dataclasses.replace(moco_v3(32)['view2'], blur=0.5, solarize=0.5)


def test_a_row_alone_equals_the_row_in_the_batch(photos):
  images = np.concatenate([photos] * 3)
  keys = keys_of(9)
  together = render(images, FULL, keys)
  for i in (0, 4, 8):
    alone = render(images[i : i + 1], FULL, keys[i : i + 1])
    np.testing.assert_allclose(together[i], alone[0], atol=1e-5)


def test_views_depend_on_the_key_and_on_nothing_else(photos):
  one = render(photos, FULL, keys_of(3))
  np.testing.assert_array_equal(one, render(photos, FULL, keys_of(3)))
  other = render(photos, FULL, keys_of(3, seed=1))
  assert (np.abs(one - other).mean(axis=(1, 2, 3)) > 0.01).all()
  assert one.dtype == np.float32 and one.shape == (3, 32, 32, 3)
  assert 0 <= one.min() and one.max() <= 1


def test_same_image_with_different_keys_differs(photos):
  out = render(np.stack([photos[0]] * 4), FULL, keys_of(4))
  for one, two in itertools.combinations(out, 2):
    assert np.abs(one - two).mean() > 0.01


def test_one_compilation_per_view(photos):
  step = jax.jit(functools.partial(augment.augment), static_argnums=1)
  for seed in range(4):
    step(jnp.asarray(photos), FULL, keys_of(3, seed))
  assert step._cache_size() == 1


def test_draws_of_the_jitter(photos, monkeypatch):
  """Orders and factors as handed to the core, for 4800 images."""
  seen = {}

  def spy(images, factors, order, ops):
    seen.update(factors=np.asarray(factors), order=np.asarray(order), ops=ops)
    return images

  monkeypatch.setattr(augment, 'color_jitter', spy)
  view = dataclasses.replace(OFF, jitter=0.8, strength=(0.4, 1.5, 0.2, 0.1))
  augment.photometric(jnp.zeros((4800, 1, 1, 3)), view, keys_of(4800))
  orders = collections.Counter(map(tuple, np.argsort(seen['order'], axis=1)))
  assert len(orders) == 24
  assert stats.chisquare(list(orders.values())).pvalue > 1e-3
  applied = (seen['factors'] != IDENTITY).any(axis=1)
  assert stats.binomtest(int(applied.sum()), 4800, 0.8).pvalue > 1e-3
  np.testing.assert_array_equal(
    seen['factors'][~applied], np.tile(np.float32(IDENTITY), (sum(~applied), 1))
  )
  ranges = ((0.6, 1.4), (0.0, 2.5), (0.8, 1.2), (-0.1, 0.1))
  for column, (low, high) in zip(
    seen['factors'][applied].T, ranges, strict=True
  ):
    uniform = stats.uniform(low, high - low)
    assert stats.kstest(column, uniform.cdf).pvalue > 1e-3


@pytest.mark.parametrize('field', ['gray', 'solarize', 'blur'])
def test_ops_happen_as_often_as_asked(field):
  images = np.random.default_rng(0).random((1, 4, 4, 3), np.float32)
  images = jnp.repeat(jnp.asarray(images), 2000, axis=0)
  view = dataclasses.replace(
    OFF, **{field: 0.3}, sigma=(0.5, 2.0), threshold=0.5
  )
  out = augment.photometric(images, view, keys_of(2000))
  changed = np.abs(out - images).max(axis=(1, 2, 3)) > 1e-3
  assert stats.binomtest(int(changed.sum()), 2000, 0.3).pvalue > 1e-3


def test_what_is_off_is_not_in_the_program():
  def primitives(view, channels=3):
    images = jnp.zeros((2, 8, 8, channels))
    return str(
      jax.make_jaxpr(augment.photometric, static_argnums=1)(
        images, view, keys_of(2)
      )
    )

  # scan: linear ops; floor (and ge): hue; exp: blur; ge: solarisation.
  marks = {
    'scan[': dict(jitter=0.5, strength=(0.4, 0, 0, 0)),
    'floor ': dict(jitter=0.5, strength=(0, 0, 0, 0.1)),
    'exp ': dict(blur=0.5),
    ' ge ': dict(solarize=0.5),
  }
  nothing = primitives(OFF)
  for mark, change in marks.items():
    assert mark not in nothing
    program = primitives(dataclasses.replace(OFF, **change))
    found = {m for m in marks if m in program}
    assert found == ({mark, ' ge '} if mark == 'floor ' else {mark})
  no_strength = dataclasses.replace(OFF, jitter=1.0, strength=(0, 0, 0, 0))
  assert primitives(no_strength) == nothing
  hue_only = dataclasses.replace(
    OFF, jitter=1.0, gray=1.0, strength=(0, 0, 1, 0.5)
  )
  assert primitives(hue_only, channels=1) == primitives(OFF, channels=1)


@pytest.mark.parametrize('channels', [1, 4])
def test_other_than_three_channels_keep_brightness_and_contrast(
  photos, channels
):
  images = np.concatenate([photos, photos], axis=-1)[..., :channels]
  view = dataclasses.replace(FULL, jitter=1.0, gray=1.0)
  out = render(images, view, keys_of(3))
  assert out.shape == (3, 32, 32, channels) and 0 <= out.min() <= out.max() <= 1
  ours = jitter_all(
    images, (1.2, 1.5, 1, 0), (0, 1, 2, 3), ('brightness', 'contrast')
  )
  for i in range(3):
    bright = np.clip(1.2 * images[i].astype(float), 0, 255)
    expected = np.clip(1.5 * bright - 0.5 * bright.mean(), 0, 255)
    np.testing.assert_allclose(ours[i], expected, atol=0.01)
    if channels == 1:
      gray = Image.fromarray(images[i, ..., 0])
      gray = pillow_op(pillow_op(gray, 'brightness', 1.2), 'contrast', 1.5)
      # Pillow rounds between the ops, and the second stretches that.
      assert np.abs(ours[i, ..., 0] - gray).max() <= 2.01
  grey_input = np.repeat(images[..., :1], channels, axis=-1)
  if channels == 4:
    # Without colours in, none come out: all channels are treated alike.
    out = render(grey_input, view, keys_of(3))
    np.testing.assert_allclose(out, out[..., :1].repeat(4, -1), atol=1e-6)
