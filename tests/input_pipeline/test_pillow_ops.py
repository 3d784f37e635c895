"""Each op of RandAugment against Pillow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from input_pipeline import pillow_ops
from input_pipeline.pillow_ops import OPS

FILL = (124, 116, 104)
BILINEAR = Image.Resampling.BILINEAR
apply_ops = jax.jit(pillow_ops.apply_ops, static_argnums=3)


def affine(image, matrix, fill, resample):
  method = Image.Transform.AFFINE
  return image.transform(
    image.size, method, matrix, resample=resample, fillcolor=fill
  )


def pillow(image, name, value, fill=FILL, resample=BILINEAR):
  """The op as timm does it (timm/data/auto_augment.py)."""
  add = int(value)
  enhance = {
    'color': ImageEnhance.Color,
    'contrast': ImageEnhance.Contrast,
    'brightness': ImageEnhance.Brightness,
    'sharpness': ImageEnhance.Sharpness,
  }
  if name in enhance:
    return enhance[name](image).enhance(value)
  width, height = image.size
  matrices = {
    'shear_x': (1, value, 0, 0, 1, 0),
    'shear_y': (1, 0, 0, value, 1, 0),
    'translate_x': (1, 0, value * width, 0, 1, 0),
    'translate_y': (1, 0, 0, 0, 1, value * height),
  }
  if name in matrices:
    return affine(image, matrices[name], fill, resample)
  added = [min(255, i + add) if i < 128 else i for i in range(256)]
  others = {
    'auto_contrast': lambda: ImageOps.autocontrast(image),
    'equalize': lambda: ImageOps.equalize(image),
    'invert': lambda: ImageOps.invert(image),
    'rotate': lambda: image.rotate(value, resample=resample, fillcolor=fill),
    'posterize': lambda: ImageOps.posterize(image, int(value)),
    'solarize': lambda: ImageOps.solarize(image, value),
    'solarize_add': lambda: image.point(added * len(image.getbands())),
  }
  return others[name]()


VALUES = {
  'auto_contrast': (0,),
  'equalize': (0,),
  'invert': (0,),
  'rotate': (-27.3, 0, 13, 30),
  'posterize': (1, 2, 4, 8),
  'solarize': (0, 26, 200, 256),
  'solarize_add': (0, 99, 128),
  'color': (0.1, 0.73, 1, 1.81),
  'contrast': (0.1, 0.73, 1, 1.81),
  'brightness': (0.1, 0.73, 1, 1.81),
  'sharpness': (0.1, 0.73, 1, 1.81),
  'shear_x': (-0.27, 0.12, 0.3),
  'shear_y': (-0.27, 0.12, 0.3),
  'translate_x': (-0.405, 0.25, 0.31),
  'translate_y': (-0.405, 0.25, 0.31),
}
TABLES = ('equalize', 'invert', 'posterize', 'solarize', 'solarize_add')


def ours(images, name, value, fill=FILL):
  count = len(images)
  op = jnp.full(count, OPS.index(name), jnp.int32)
  values = jnp.full(count, value, jnp.float32)
  return np.asarray(apply_ops(images, op, values, fill))


def assert_pillows(images, name, value):
  theirs = [np.asarray(pillow(Image.fromarray(x), name, value)) for x in images]
  error = np.abs(ours(images, name, value).astype(int) - np.stack(theirs))
  if name in (*TABLES, 'brightness'):
    assert error.max() == 0
  else:
    # Pillow cuts off where its numbers have an error in the last bit.
    assert error.max() <= 1 and (error > 0).mean() < 0.01


def test_every_op_has_values():
  assert tuple(VALUES) == OPS


@pytest.mark.parametrize('name', OPS)
def test_ops_are_pillows(photos, name):
  for value in VALUES[name]:
    assert_pillows(photos, name, value)


@pytest.mark.parametrize('name', OPS)
def test_ops_on_constant_and_two_valued_channels(photos, name):
  images = photos.copy()
  images[0, ..., 1] = 77  # one channel is constant
  images[1] = (9, 0, 255)  # all are
  images[2, ..., 0] = np.where(images[2, ..., 0] > 99, 180, 20)
  assert_pillows(images, name, VALUES[name][-1])


def test_equalize_of_few_pixels_is_clipped_as_pillows():
  """Steps of 1, where sums can exceed 255."""
  random = np.random.default_rng(0)
  for size in (16, 20, 22):
    image = random.integers(0, 256, (1, size, 24, 3), np.uint8)
    assert_pillows(image, 'equalize', 0)


def test_auto_contrast_is_exact_where_pillow_is_one_short():
  """Where the two differ the exact value is whole, and ours."""
  level = np.arange(256)
  differ = total = 0
  for low, high in [(3, 201), (10, 95), (17, 68), (0, 254), (40, 41), (9, 200)]:
    image = np.clip(level, low, high).astype(np.uint8).reshape(1, 16, 16, 1)
    image = np.repeat(image, 3, axis=-1)
    theirs = np.asarray(ImageOps.autocontrast(Image.fromarray(image[0])))
    got = ours(image, 'auto_contrast', 0)[0].astype(int)
    exact = (image[0].astype(int) - low) * 255
    np.testing.assert_array_equal(got, exact // (high - low))
    short = got != theirs
    assert (got - theirs)[short].max(initial=1) == 1
    assert (exact[short] % (high - low) == 0).all()
    differ, total = differ + short.sum(), total + short.size
  assert 0 < differ < 0.5 * total


def test_rows_of_a_batch_have_ops_of_their_own(photos):
  names = [name for name in OPS for _ in VALUES[name]]
  values = [value for name in OPS for value in VALUES[name]]
  images = np.stack([photos[i % 3] for i in range(len(names))])
  op = jnp.array([OPS.index(name) for name in names])
  together = apply_ops(images, op, jnp.array(values, jnp.float32), FILL)
  for i, (name, value) in enumerate(zip(names, values, strict=True)):
    alone = ours(photos, name, value)[i % 3]
    np.testing.assert_array_equal(together[i], alone, err_msg=name)


def test_no_op_changes_nothing(photos):
  op = jnp.full(3, pillow_ops.NO_OP, jnp.int32)
  values = jnp.array([0.0, 0.5, 200.0])
  np.testing.assert_array_equal(apply_ops(photos, op, values, FILL), photos)


@pytest.mark.parametrize('name', OPS)
def test_gray_images_are_pillows(photos, name):
  images, value = photos[..., :1], VALUES[name][-1]
  got = ours(images, name, value, (130,))
  for image, result in zip(images[..., 0], got[..., 0], strict=True):
    theirs = np.asarray(pillow(Image.fromarray(image), name, value, 130))
    assert np.abs(result.astype(int) - theirs).max() <= 1
  if name == 'color':
    np.testing.assert_array_equal(got, images)


def test_many_channels_are_treated_one_by_one(photos):
  images = np.concatenate([photos, photos[..., :2]], axis=-1)
  for name in set(OPS) - {'color', 'contrast'}:
    value = VALUES[name][-1]
    got = ours(images, name, value, (*FILL, *FILL[:2]))
    expected = ours(photos, name, value)
    np.testing.assert_array_equal(got[..., :3], expected, err_msg=name)
    np.testing.assert_array_equal(got[..., 3:], expected[..., :2])
  np.testing.assert_array_equal(
    ours(images, 'color', 0.1, (*FILL, *FILL[:2])), images
  )


@pytest.mark.parametrize('size', [(1, 1), (2, 5), (3, 3)])
def test_tiny_images(size):
  image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
  for name in ('sharpness', 'rotate', 'equalize'):
    assert_pillows(image, name, VALUES[name][-1])


@pytest.mark.parametrize('size', [None, (1, 1), (2, 5), (3, 3)])
def test_bicubic_geometry_is_pillows(photos, size):
  """Row by row beside bilinear ones, which are what they are by themselves."""
  cases = [(n, v) for n in pillow_ops.WARPS for v in VALUES[n]]
  # Noise overshoots, where photographs seldom do.
  noise = np.random.default_rng(0).integers(0, 256, photos.shape[1:], np.uint8)
  images = np.stack([photos[0], noise] * len(cases))
  if size:
    images = images[:, : size[0], : size[1]]
  op = jnp.array([OPS.index(name) for name, _ in cases for _ in range(2)])
  values = jnp.array([value for _, value in cases for _ in range(2)], float)
  got = [
    np.asarray(apply_ops(images, op, values, FILL, jnp.full(len(op), cubic)))
    for cubic in (False, True)
  ]
  plain = apply_ops(images, op, values, FILL)
  np.testing.assert_array_equal(got[0], plain)
  theirs = [
    pillow(
      Image.fromarray(image),
      *cases[i // 2],
      resample=Image.Resampling.BICUBIC,
    )
    for i, image in enumerate(images)
  ]
  error = np.abs(got[1].astype(int) - np.stack(theirs))
  assert error.max() <= 1 and (error > 0).mean() < 0.01
  assert size or (got[1] != got[0]).mean() > 0.2


def test_floats_are_refused(photos):
  with pytest.raises(TypeError, match='uint8'):
    pillow_ops.apply_ops(
      photos / np.float32(255), jnp.zeros(3, jnp.int32), jnp.zeros(3), FILL
    )
