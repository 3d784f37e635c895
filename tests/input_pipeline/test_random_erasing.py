"""Random erasing: boxes, noise, keys."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy import stats

from input_pipeline import random_erasing

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
erase = jax.jit(
  functools.partial(random_erasing.random_erasing, mean=MEAN, std=STD),
  static_argnames='probability',
)
LIMITS = dict(area=(0.02, 1 / 3), aspect=(0.3, 1 / 0.3))
GRAY = 7.0  # outside of what the noise can be


def keys(count, seed=0):
  return jax.random.split(jax.random.key(seed), count)


def boxes(count, size, **changes):
  drawn = random_erasing.draw_boxes(keys(count), size, **LIMITS | changes)
  return np.asarray(drawn)


def timm_box(random, size, area, aspect):
  """NumPy twin of timm's RandomErasing._erase."""
  for _ in range(10):
    pixels = random.uniform(*area) * size[0] * size[1]
    ratio = math.exp(random.uniform(math.log(aspect[0]), math.log(aspect[1])))
    height = int(round(math.sqrt(pixels * ratio)))
    width = int(round(math.sqrt(pixels / ratio)))
    if width < size[1] and height < size[0]:
      top = random.integers(0, size[0] - height + 1)
      return top, random.integers(0, size[1] - width + 1), height, width
  return 0, 0, 0, 0


@pytest.mark.parametrize(
  'size, area', [((64, 64), (0.02, 1 / 3)), ((24, 60), (0.3, 0.9))]
)
def test_boxes_are_distributed_as_timms(size, area):
  ours = boxes(3000, size, area=area)
  top, left, height, width = ours.T
  assert (ours >= 0).all()
  assert (top + height <= size[0]).all() and (left + width <= size[1]).all()
  assert (height < size[0]).all() and (width < size[1]).all()
  random = np.random.default_rng(0)
  twin = np.array(
    [timm_box(random, size, area, LIMITS['aspect']) for _ in range(3000)]
  )
  for a, b in zip(ours.T, twin.T, strict=True):
    assert stats.ks_2samp(a, b).pvalue > 1e-3
  a, b = (x[:, 2] * x[:, 3] for x in (ours, twin))
  assert stats.ks_2samp(a, b).pvalue > 1e-3


def test_no_box_where_none_fits():
  assert not boxes(50, (8, 200), area=(0.9, 1.0), aspect=(0.9, 1.1)).any()


def test_boxes_have_no_more_pixels_than_the_noise():
  for size in ((5, 5), (17, 40), (224, 224)):
    drawn = boxes(3000, size, area=(1 / 3, 1 / 3))
    most = (drawn[:, 2] * drawn[:, 3]).max()
    assert most <= random_erasing._largest(size, 1 / 3)


def test_erased_pixels_are_the_box_and_normal_noise():
  images = jnp.full((64, 32, 40, 3), GRAY)
  out = np.asarray(erase(images, keys(64), probability=1.0))
  noise = []
  for image, box in zip(out, boxes(64, (32, 40)), strict=True):
    top, left, height, width = box
    inside = np.zeros((32, 40), bool)
    inside[top : top + height, left : left + width] = True
    assert (image[~inside] == GRAY).all() and (image[inside] != GRAY).all()
    noise.append((image[inside] - MEAN) / STD)
    # Each pixel and channel by itself.
    assert len(np.unique(noise[-1])) > 0.99 * noise[-1].size
  values = np.concatenate(noise)
  assert stats.kstest(values.ravel(), stats.norm.cdf).pvalue > 1e-3
  assert values.min() < -2.5 and values.max() > 2.5  # not clipped to [0, 1]
  assert np.abs(np.corrcoef(values.T) - np.eye(3)).max() < 0.05
  neighbors = np.concatenate([x[:-1] * x[1:] for x in noise])
  assert abs(neighbors.mean()) < 5 / math.sqrt(neighbors.size)


def test_share_of_erased_images():
  images = jnp.full((2000, 8, 8, 3), GRAY)
  out = np.asarray(erase(images, keys(2000)))
  erased = int((out != GRAY).any(axis=(1, 2, 3)).sum())
  assert stats.binomtest(erased, 2000, 0.25).pvalue > 1e-3
  np.testing.assert_array_equal(
    erase(images[:64], keys(64), probability=0.0), images[:64]
  )


def test_a_row_depends_on_its_key_alone_and_stays_on_its_device():
  images = jnp.full((8, 16, 16, 3), GRAY)
  together = erase(images, keys(8), probability=1.0)
  alone = erase(images[:1], keys(8)[5:6], probability=1.0)
  np.testing.assert_array_equal(alone[0], together[5])
  assert (together[5] != together[4]).any()
  mesh = Mesh(np.array(jax.devices()), ('data',))
  rows = NamedSharding(mesh, PartitionSpec('data'))
  spread = jax.device_put((images, keys(8)), rows)
  compiled = erase.lower(*spread, probability=1.0).compile()
  assert 'all-gather' not in compiled.as_text()
  np.testing.assert_array_equal(compiled(*spread), together)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'mean': (0.5,)}, 'mean must hold .* 3 channels'),
    ({'std': (0.5,)}, 'std must hold .* 3 channels'),
    ({'probability': 2.0}, 'probability'),
    ({'area': (0.5, 0.1)}, 'area'),
    ({'area': (0.5, 1.5)}, 'area'),
    ({'aspect': (0.0, 1.0)}, 'aspect'),
  ],
)
def test_errors(changes, message):
  arguments = dict(mean=MEAN, std=STD) | changes
  with pytest.raises(ValueError, match=message):
    random_erasing.random_erasing(jnp.zeros((2, 8, 8, 3)), keys(2), **arguments)
