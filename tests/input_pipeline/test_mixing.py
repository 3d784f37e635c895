"""Mixup and CutMix: ratios, boxes, partners, targets."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy import stats

from input_pipeline import mixing

CLASSES = 5
LABELS = np.array([0, 3, 1, 1, 4, 2])
NAMES = ('classes', 'mixup', 'cutmix', 'switch', 'probability', 'smoothing')
mix = jax.jit(mixing.mix, static_argnames=(*NAMES, 'groups'))


def mixed(seed=0, images=None, labels=LABELS, **changes):
  if images is None:
    images = np.random.default_rng(1).uniform(size=(6, 9, 12, 3))
  images = np.asarray(images, np.float32)
  out = mix(images, labels, jax.random.key(seed), classes=CLASSES, **changes)
  return images, *map(np.asarray, out)


def smoothed(labels=LABELS, smoothing=0.1):
  """As timm: on-value 1 - s + s / K, off-value s / K."""
  off = smoothing / CLASSES
  targets = np.full((len(labels), CLASSES), off, np.float32)
  targets[np.arange(len(labels)), labels] = 1 - smoothing + off
  return targets


def timm_box(ratio, size, cy, cx):
  """The box of timm's rand_bbox for a centre."""
  height, width = (int(n * np.sqrt(1 - ratio)) for n in size)
  top, bottom = cy - height // 2, cy + (height + 1) // 2
  left, right = cx - width // 2, cx + (width + 1) // 2
  mask = np.ones(size)
  mask[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = 0
  return mask


def test_mixup_is_a_weighted_mean_with_the_reversed_batch():
  ratios = []
  for seed in range(4):
    images, out, targets = mixed(seed, cutmix=0.0)
    # From one pixel the ratio, by which all must be mixed.
    (x, y), z = images[[0, -1], 0, 0, 0], out[0, 0, 0, 0]
    ratio = (z - y) / (x - y)
    expected = ratio * images + (1 - ratio) * images[::-1]
    np.testing.assert_allclose(out, expected, atol=1e-5)
    expected = ratio * smoothed() + (1 - ratio) * smoothed()[::-1]
    np.testing.assert_allclose(targets, expected, atol=1e-5)
    ratios.append(ratio)
  assert len(set(ratios)) == 4 and 0 < min(ratios) and max(ratios) < 1


def test_cutmix_pastes_a_box_and_weighs_targets_by_its_pixels():
  shares = []
  for seed in range(8):
    images, out, targets = mixed(seed, mixup=0.0)
    own = (out == images).all(axis=-1)
    np.testing.assert_array_equal(own, np.broadcast_to(own[0], own.shape))
    np.testing.assert_array_equal(out[~own], images[::-1][~own])
    rows, columns = np.nonzero(~own[0])
    if len(rows):  # a rectangle, full
      box = own[0, rows.min() : rows.max() + 1, columns.min() :]
      assert not box[:, : columns.max() + 1 - columns.min()].any()
    share = own[0].mean()
    expected = share * smoothed() + (1 - share) * smoothed()[::-1]
    np.testing.assert_allclose(targets, expected, atol=1e-6)
    shares.append(share)
  assert len(set(shares)) > 4


@pytest.mark.parametrize('size', [(9, 12), (8, 7)])
def test_boxes_are_timms(size):
  box = jax.jit(mixing._inside, static_argnums=2)
  for ratio in (0.02, 0.3, 0.61, 0.97):
    for cy in (0, 3, size[0] - 1):
      for cx in (0, 4, size[1] - 1):
        center = (np.array([cy, cx]) + 0.5) / size
        inside = box(jnp.float32(ratio), jnp.float32(center), size)
        expected = timm_box(ratio, size, cy, cx)
        np.testing.assert_array_equal(1 - np.asarray(inside), expected)


def test_distribution_of_what_is_kept():
  size, count = (16, 24), 4000
  draw = functools.partial(
    mixing.draw_mask,
    size=size,
    mixup=0.8,
    cutmix=1.0,
    switch=0.3,
    probability=0.6,
  )
  mask, own = jax.jit(jax.vmap(draw))(
    jax.random.split(jax.random.key(3), count)
  )
  mask, own = np.asarray(mask), np.asarray(own)
  np.testing.assert_allclose(mask.mean(axis=(1, 2)), own, atol=1e-5)
  low, high = mask.min(axis=(1, 2)), mask.max(axis=(1, 2))
  kept, boxed = low == 1, low == 0
  even = ~kept & ~boxed
  np.testing.assert_array_equal(low[even], high[even])
  np.testing.assert_array_equal(high[boxed], 1)
  # A box of CutMix can have no pixel, but in fewer than 1 of 100 cases.
  for found, share in ((kept, 0.4), (boxed, 0.6 * 0.3), (even, 0.6 * 0.7)):
    assert stats.binomtest(int(found.sum()), count, share).pvalue > 1e-3
  assert stats.kstest(own[even], stats.beta(0.8, 0.8).cdf).pvalue > 1e-3
  random = np.random.default_rng(0)
  twin = [
    timm_box(random.beta(1, 1), size, *random.integers(size))
    for _ in range(count)
  ]
  twin = np.stack([box for box in twin if not box.all()])
  areas = twin.mean(axis=(1, 2))
  assert stats.ks_2samp(own[boxed], areas).pvalue > 1e-3
  # Each pixel is as often in a box as in the twin's, 5 sigma.
  often = mask[boxed].mean(axis=0) - twin.mean(axis=0)
  assert np.abs(often).max() < 2.5 * (1 / boxed.sum() + 1 / len(twin)) ** 0.5


def test_a_batch_that_is_not_mixed():
  images, out, targets = mixed(probability=0.0)
  np.testing.assert_array_equal(out, images)
  np.testing.assert_allclose(targets, smoothed(), atol=1e-6)


def test_targets_sum_to_one_and_without_mixing_are_smoothed_labels():
  for seed in range(4):
    _, _, targets = mixed(seed)
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
  images = np.ones((3, 2, 2, 1))  # an odd batch: there are no partners
  images, out, targets = mixed(
    images=images, labels=LABELS[:3], mixup=0.0, cutmix=0.0, smoothing=0.2
  )
  np.testing.assert_array_equal(out, images)
  np.testing.assert_allclose(targets, smoothed(LABELS[:3], 0.2), atol=1e-6)


def test_groups_have_ratios_and_partners_of_their_own():
  images = np.random.default_rng(1).uniform(size=(8, 4, 4, 1))
  labels = np.arange(8) % CLASSES
  images, out, targets = mixed(
    images=images, labels=labels, cutmix=0.0, groups=2
  )
  ratios = []
  for rows in (slice(0, 4), slice(4, 8)):
    own, other = images[rows], images[rows][::-1]
    ratio = (out[rows] - other) / (own - other)
    np.testing.assert_allclose(ratio, ratio[0, 0, 0, 0], atol=1e-3)
    ratio = ratio.mean()
    target = smoothed(labels[rows])
    np.testing.assert_allclose(
      targets[rows], ratio * target + (1 - ratio) * target[::-1], atol=1e-4
    )
    ratios.append(ratio)
  assert abs(ratios[0] - ratios[1]) > 0.01


@pytest.mark.parametrize('changes', [{'cutmix': 0.0}, {'mixup': 0.0}])
def test_four_devices_mix_as_one(changes):
  images = np.random.default_rng(1).uniform(size=(8, 6, 6, 1))
  labels = np.arange(8) % CLASSES
  images, *one = mixed(images=images, labels=labels, **changes)
  mesh = Mesh(np.array(jax.devices()), ('data',))
  rows = NamedSharding(mesh, PartitionSpec('data'))
  spread = jax.device_put((images, labels), rows)
  key = jax.device_put(jax.random.key(0), NamedSharding(mesh, PartitionSpec()))
  four = mix(*spread, key, classes=CLASSES, **changes)
  for a, b in zip(one, four, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'images': np.zeros((5, 2, 2, 1))}, 'multiple of 2 .*got 5'),
    ({'groups': 4}, 'multiple of 8 .*got 6'),
    ({'groups': 0}, 'groups'),
    ({'mixup': -1.0}, 'mixup'),
    ({'cutmix': -1.0}, 'cutmix'),
    ({'switch': 2.0}, 'switch'),
    ({'probability': -0.1}, 'probability'),
    ({'smoothing': 1.1}, 'smoothing'),
  ],
)
def test_errors(changes, message):
  with pytest.raises(ValueError, match=message):
    mixed(**changes)
