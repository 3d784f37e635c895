import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps
from scipy import ndimage, stats

from input_pipeline import augment
from input_pipeline.views import View, moco_v3

OFF = View(size=32, jitter=0.0, gray=0.0, blur=0.0)


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
def test_other_than_three_channels(photos, channels):
  images = np.concatenate([photos, photos], axis=-1)[..., :channels]
  view = dataclasses.replace(FULL, jitter=1.0, gray=1.0)
  out = render(images, view, keys_of(3))
  assert out.shape == (3, 32, 32, channels) and 0 <= out.min() <= out.max() <= 1
  grey_input = np.repeat(images[..., :1], channels, axis=-1)
  if channels == 4:
    # Without colours in, none come out: all channels are treated alike.
    out = render(grey_input, view, keys_of(3))
    np.testing.assert_allclose(out, out[..., :1].repeat(4, -1), atol=1e-6)
