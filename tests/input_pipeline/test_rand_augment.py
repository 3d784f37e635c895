"""RandAugment: what is drawn, what magnitudes mean, and whole results."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image
from scipy import stats

from input_pipeline import rand_augment
from input_pipeline.pillow_ops import NO_OP, OPS
from tests.input_pipeline.test_pillow_ops import FILL, apply_ops, pillow

MEAN = (0.485, 0.456, 0.406)
augment = jax.jit(
  functools.partial(rand_augment.rand_augment, fill=MEAN),
  static_argnames=('num_ops', 'resample'),
)


def keys(count, seed=0):
  return jax.random.split(jax.random.key(seed), count)


# What timm 1.0.31 makes of these magnitudes, where it does not negate.
MAGNITUDES = (0.0, 2.5, 5.0, 7.3, 9.0, 10.0)
SIGNED = {
  'rotate': (0, 7.5, 15, 21.9, 27, 30),
  'shear_x': (0, 0.075, 0.15, 0.219, 0.27, 0.3),
  'shear_y': (0, 0.075, 0.15, 0.219, 0.27, 0.3),
  'translate_x': (0, 0.1125, 0.225, 0.3285, 0.405, 0.45),
  'translate_y': (0, 0.1125, 0.225, 0.3285, 0.405, 0.45),
}
BLENDS = ('color', 'contrast', 'brightness', 'sharpness')
ADD = (0, 27, 55, 80, 99, 110)
NONE = {name: (0,) * 6 for name in ('auto_contrast', 'equalize', 'invert')}
INCREASING = {
  **NONE,
  **SIGNED,
  'posterize': (4, 3, 2, 2, 1, 0),
  'solarize': (256, 192, 128, 70, 26, 0),
  'solarize_add': ADD,
  **{name: (1, 1.225, 1.45, 1.657, 1.81, 1.9) for name in BLENDS},
}
NEGATED = INCREASING | {
  **{name: tuple(-x for x in values) for name, values in SIGNED.items()},
  **{name: (1, 0.775, 0.55, 0.343, 0.19, 0.1) for name in BLENDS},
}
FIRST = INCREASING | {
  'posterize': (0, 1, 2, 2, 3, 4),
  'solarize': (0, 64, 128, 186, 230, 256),
  **{name: (0.1, 0.55, 1, 1.414, 1.72, 1.9) for name in BLENDS},
}


@pytest.mark.parametrize(
  'sign, increasing, table',
  [(1, True, INCREASING), (-1, True, NEGATED), (1, False, FIRST)],
)
def test_values_are_timms(sign, increasing, table):
  assert set(table) == set(OPS)
  op = jnp.repeat(jnp.arange(len(OPS) + 1), 6).reshape(-1, 6)
  magnitude = jnp.broadcast_to(jnp.array(MAGNITUDES), op.shape)
  got = rand_augment.op_values(
    op, magnitude, jnp.full(op.shape, float(sign)), increasing=increasing
  )
  expected = [table[name] for name in OPS] + [(0,) * 6]
  np.testing.assert_allclose(got, expected, atol=1e-5)
  whole = [OPS.index(x) for x in ('posterize', 'solarize', 'solarize_add')]
  np.testing.assert_array_equal(got[whole, :], np.array(expected)[whole])


def draws(**changes):
  numbers = dict(magnitude=9.0, num_ops=2, std=0.5, probability=0.5) | changes
  drawn = rand_augment.draw_ops(keys(20_000), **numbers)
  return [np.asarray(x) for x in drawn]


def test_draws():
  op, magnitude, sign = draws()
  done = op != NO_OP
  assert stats.binomtest(int(done.sum()), done.size, 0.5).pvalue > 1e-3
  assert stats.chisquare(np.bincount(op[done], minlength=15)).pvalue > 1e-3
  # With replacement: the second op does not know of the first.
  both = op[done.all(axis=1)]
  pairs = np.bincount(both[:, 0] * 15 + both[:, 1], minlength=225)
  assert stats.chisquare(pairs).pvalue > 1e-3
  assert stats.binomtest(int((sign > 0).sum()), sign.size, 0.5).pvalue > 1e-3
  assert set(np.unique(sign)) == {-1, 1}
  assert magnitude.max() == 10 and magnitude.min() > 6
  clipped = (magnitude == 10).sum()
  tail = stats.norm.sf(2)
  assert stats.binomtest(int(clipped), magnitude.size, tail).pvalue > 1e-3
  inner = magnitude[magnitude < 10]
  normal = stats.truncnorm(-np.inf, 2, 9, 0.5)
  assert stats.kstest(inner, normal.cdf).pvalue > 1e-3
  columns = np.concatenate([done, magnitude, sign], axis=1)
  assert np.abs(np.corrcoef(columns.T) - np.eye(6)).max() < 0.03


def test_draws_at_the_ends_of_the_ranges():
  op, magnitude, _ = draws(std=0.0, probability=1.0, num_ops=3)
  assert op.shape == (20_000, 3) and op.max() == NO_OP - 1
  np.testing.assert_array_equal(magnitude, 9)
  op, magnitude, _ = draws(std=30.0, probability=0.0)
  assert (op == NO_OP).all()
  assert magnitude.min() == 0 and magnitude.max() == 10


def test_images_are_what_pillow_makes_of_the_draws(photos):
  """Whole results: two ops in their order, on the 8-bit grid in between."""
  batch = np.repeat(photos, 16, axis=0)
  got = 255 * np.asarray(augment(batch / np.float32(255), keys(48)))
  np.testing.assert_allclose(got, np.round(got), atol=1e-4)
  ops, magnitude, sign = rand_augment.draw_ops(
    keys(48), magnitude=9.0, num_ops=2, std=0.5, probability=0.5
  )
  values = rand_augment.op_values(ops, magnitude, sign, increasing=True)
  changed = 0
  for i in range(48):
    image = Image.fromarray(batch[i])
    names = [OPS[op] for op in ops[i] if op != NO_OP]
    chosen = [float(v) for op, v in zip(ops[i], values[i], strict=True)]
    chosen = [v for op, v in zip(ops[i], chosen, strict=True) if op != NO_OP]
    if ('posterize', 0.0) in zip(names, chosen, strict=True):
      continue  # an error in Pillow
    for name, value in zip(names, chosen, strict=True):
      image = pillow(image, name, value)
    error = np.abs(got[i] - np.asarray(image))
    # One level of the first op can be stretched, or folded over, by the second.
    assert (error > 1.01).mean() < 0.02 and error.mean() < 0.2, names
    changed += bool(names)
  assert changed > 24


def test_magnitude_10_posterizes_to_black(photos):
  op = jnp.full(3, OPS.index('posterize'))
  bits = rand_augment.op_values(
    op, jnp.full(3, 10.0), jnp.ones(3), increasing=True
  )
  out = apply_ops(photos, op, bits, FILL)
  assert not np.asarray(out).any()


def test_a_row_depends_on_its_key_alone(photos):
  images = jnp.asarray(np.repeat(photos[:1], 8, axis=0) / np.float32(255))
  together = augment(images, keys(8))
  for i in (0, 5):
    np.testing.assert_array_equal(
      augment(images[:1], keys(8)[i : i + 1])[0], together[i]
    )
  assert len(np.unique(np.asarray(together).mean(axis=(1, 2, 3)))) > 4


def test_images_stay_on_their_devices(photos):
  """Four devices give the same, and exchange nothing."""
  images = jnp.asarray(np.repeat(photos[:1], 8, axis=0) / np.float32(255))
  mesh = Mesh(np.array(jax.devices()), ('data',))
  rows = NamedSharding(mesh, PartitionSpec('data'))
  spread = jax.device_put((images, keys(8)), rows)
  compiled = augment.lower(*spread).compile()
  text = compiled.as_text()
  for collective in ('all-gather', 'all-reduce', 'all-to-all', 'permute'):
    assert f'{collective}(' not in text and f'{collective}-start' not in text
  np.testing.assert_array_equal(compiled(*spread), augment(images, keys(8)))


def test_gray_images_and_an_image_of_floats_off_the_grid(photos):
  gray = jnp.asarray(photos[..., :1] / np.float32(255)) + 0.3 / 255
  out = rand_augment.rand_augment(gray, keys(3), fill=(0.5,), probability=0.0)
  np.testing.assert_allclose(255 * out, photos[..., :1], atol=1e-4)


def test_either_filter_for_each_op():
  drawn = rand_augment._draw_cubic(keys(4000), 2, 'random')
  assert drawn.shape == (4000, 2)
  both = np.bincount(2 * drawn[:, 0] + drawn[:, 1], minlength=4)
  assert stats.chisquare(both).pvalue > 1e-3
  assert rand_augment._draw_cubic(keys(4), 2, 'bicubic').all()


def test_a_random_filter_is_one_of_the_two(photos):
  """Every image of a single op is what one of the filters alone makes."""
  images = jnp.asarray(np.repeat(photos[:1], 48, axis=0) / np.float32(255))
  found = {
    resample: np.asarray(
      augment(images, keys(48), num_ops=1, resample=resample)
    )
    for resample in rand_augment.RESAMPLES
  }
  same = {
    name: (found[name] == found['random']).all(axis=(1, 2, 3))
    for name in ('bilinear', 'bicubic')
  }
  assert (same['bilinear'] | same['bicubic']).all()
  assert not same['bilinear'].all() and not same['bicubic'].all()


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'fill': (0.5,)}, 'fill must hold .* 3 channels'),
    ({'fill': (124, 116, 104)}, 'fill must hold a number in 0..1'),
    ({'magnitude': 11}, 'magnitude'),
    ({'num_ops': 0}, 'num_ops'),
    ({'std': -1}, 'std'),
    ({'resample': 'nearest'}, "'nearest'. Known: bilinear, bicubic"),
    ({'probability': 1.5}, 'probability'),
  ],
)
def test_errors(changes, message):
  with pytest.raises(ValueError, match=message):
    rand_augment.rand_augment(
      jnp.zeros((2, 4, 4, 3)), keys(2), **({'fill': MEAN} | changes)
    )
