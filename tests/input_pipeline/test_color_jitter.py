"""Colour jitter: each op, every order, and what is drawn."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy import stats
from skimage import color

from input_pipeline import augment
from input_pipeline.views import View

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
    # Rounding, and a hue in 8 bits, go through up to three more ops.
    assert error.mean() < 2.5 and np.percentile(error, 99) < 10, sequence
  # Pillow's result in the same order is nearer than in nearly all others; a
  # few orders (brightness beside contrast) hardly differ.
  ranks = [
    sorted(expected, key=lambda other: np.abs(ours - expected[other]).mean())
    for ours in results.values()
  ]
  places = [rank.index(own) for rank, own in zip(ranks, results, strict=True)]
  assert max(places) <= 2 and np.mean(places) < 0.5, places


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


def test_draws_of_the_jitter(photos, monkeypatch):
  """Orders and factors as handed to the core, for 4800 images."""
  seen = {}

  def spy(images, factors, order, ops):
    seen.update(factors=np.asarray(factors), order=np.asarray(order), ops=ops)
    return images

  monkeypatch.setattr(augment, 'color_jitter', spy)
  view = View(
    size=1, jitter=0.8, strength=(0.4, 1.5, 0.2, 0.1), gray=0.0, blur=0.0
  )
  augment.photometric(
    jnp.zeros((4800, 1, 1, 3)), view, jax.random.split(jax.random.key(0), 4800)
  )
  orders = collections.Counter(map(tuple, np.argsort(seen['order'], axis=1)))
  assert len(orders) == 24
  assert stats.chisquare(list(orders.values())).pvalue > 1e-3
  applied = (seen['factors'] != IDENTITY).any(axis=1)
  assert stats.binomtest(int(applied.sum()), 4800, 0.8).pvalue > 1e-3
  np.testing.assert_array_equal(
    seen['factors'][~applied], np.tile(np.float32(IDENTITY), (sum(~applied), 1))
  )
  drawn = np.concatenate([seen['factors'], seen['order']], axis=1)[applied]
  correlation = np.corrcoef(drawn.T) - np.eye(8)
  assert np.abs(correlation).max() < 0.06  # 4 sigma for 3800 draws
  ranges = ((0.6, 1.4), (0.0, 2.5), (0.8, 1.2), (-0.1, 0.1))
  for column, (low, high) in zip(
    seen['factors'][applied].T, ranges, strict=True
  ):
    uniform = stats.uniform(low, high - low)
    assert stats.kstest(column, uniform.cdf).pvalue > 1e-3


@pytest.mark.parametrize('channels', [1, 4])
def test_other_than_three_channels_keep_brightness_and_contrast(
  photos, channels
):
  images = np.concatenate([photos, photos], axis=-1)[..., :channels]
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
