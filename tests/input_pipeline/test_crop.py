import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from input_pipeline import crop
from input_pipeline.views import View

FILTERS = {
  'bilinear': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
}


def torchvision_box(random, height, width, scale, ratio):
  """NumPy twin of RandomResizedCrop.get_params."""
  for _ in range(10):
    area = height * width * random.uniform(*scale)
    aspect = math.exp(random.uniform(math.log(ratio[0]), math.log(ratio[1])))
    w = int(round(math.sqrt(area * aspect)))
    h = int(round(math.sqrt(area / aspect)))
    if 0 < w <= width and 0 < h <= height:
      top = random.integers(0, height - h + 1)
      return top, random.integers(0, width - w + 1), h, w
  if width / height < ratio[0]:
    w, h = width, int(round(width / ratio[0]))
  elif width / height > ratio[1]:
    h, w = height, int(round(height * ratio[1]))
  else:
    w, h = width, height
  return (height - h) // 2, (width - w) // 2, h, w


def draw(view, image_size, count, seed=0):
  keys = jax.random.split(jax.random.key(seed), count)
  return np.asarray(crop.crop_boxes(keys, view, image_size))


@pytest.mark.parametrize(
  'image_size, scale, ratio',
  [
    ((96, 64), (0.08, 1.0), (3 / 4, 4 / 3)),
    ((40, 90), (0.3, 1.0), (0.5, 2.0)),
    ((224, 224), (0.2, 0.4), (1.0, 1.0)),
  ],
)
def test_boxes_are_distributed_as_torchvisions(image_size, scale, ratio):
  view = View(size=8, scale=scale, ratio=ratio)
  ours = draw(view, image_size, 4000)
  random = np.random.default_rng(1)
  theirs = np.array(
    [torchvision_box(random, *image_size, scale, ratio) for _ in range(4000)]
  )

  def figures(boxes):
    top, left, height, width = boxes.T
    return {
      'area': height * width,
      'ratio': width / height,
      'top': top / np.maximum(image_size[0] - height, 1),
      'left': left / np.maximum(image_size[1] - width, 1),
      'right': left + width,
    }

  for name, values in figures(ours).items():
    test = stats.ks_2samp(values, figures(theirs)[name])
    assert test.pvalue > 1e-3, (name, test)


def mae_box(random, height, width, scale, ratio):
  """NumPy twin of MAE's `util/crop.py`: no loop."""
  area = height * width * random.uniform(*scale)
  aspect = math.exp(random.uniform(math.log(ratio[0]), math.log(ratio[1])))
  w = min(int(round(math.sqrt(area * aspect))), width)
  h = min(int(round(math.sqrt(area / aspect))), height)
  top = random.integers(0, height - h + 1)
  return top, random.integers(0, width - w + 1), h, w


@pytest.mark.parametrize('image_size', [(96, 64), (40, 90)])
def test_boxes_without_retries_are_distributed_as_maes(image_size):
  view = View(size=8, retry=False)
  ours = draw(view, image_size, 4000)
  random = np.random.default_rng(1)
  theirs = np.array(
    [mae_box(random, *image_size, view.scale, view.ratio) for _ in range(4000)]
  )
  for name, mine, other in zip(
    ('top', 'left', 'height', 'width'), ours.T, theirs.T, strict=True
  ):
    test = stats.ks_2samp(mine, other)
    assert test.pvalue > 1e-3, (name, test)
  clipped = (ours[:, 2:] == image_size).any(axis=1)
  assert clipped.mean() > 0.05
  # What fits is the first draw of the loop.
  plain = draw(View(size=8), image_size, 4000)
  assert (ours == plain).all(axis=1)[~clipped].all()


def test_boxes_lie_inside_and_reach_both_ends():
  top, left, height, width = draw(View(size=8), (12, 9), 4000).T
  assert min(top.min(), left.min()) == 0 and min(height.min(), width.min()) >= 1
  assert (top + height).max() == 12 and (left + width).max() == 9


@pytest.mark.parametrize(
  'image_size, ratio, expected',
  [
    ((20, 100), (3 / 4, 4 / 3), (0, 36, 20, 27)),
    ((100, 20), (3 / 4, 4 / 3), (36, 0, 27, 20)),
    ((20, 30), (1.0, 1.0), (0, 5, 20, 20)),
  ],
)
def test_central_crop_when_nothing_fits(image_size, ratio, expected):
  view = View(size=8, scale=(1.0, 1.0), ratio=ratio)
  boxes = draw(view, image_size, 20)
  twin = torchvision_box(
    np.random.default_rng(0), *image_size, view.scale, ratio
  )
  assert twin == expected
  np.testing.assert_array_equal(boxes, [expected] * 20)


def pillow_crop(image, box, size, flip, resample):
  top, left, height, width = (int(x) for x in box)
  out = Image.fromarray(image).crop((left, top, left + width, top + height))
  out = out.resize(size[::-1], FILTERS[resample])
  return np.asarray(out)[:, ::-1] if flip else np.asarray(out)


@pytest.mark.parametrize(
  'resample, levels', [('bilinear', 1.01), ('bicubic', 3)]
)
def test_resized_crop_is_pillows(photos, resample, levels):
  boxes = np.array([[5, 7, 80, 110], [30, 60, 20, 25], [0, 0, 96, 128]])
  flips = np.array([False, True, True])
  for size in ((32, 32), (48, 20)):
    ours = crop.resized_crop(
      jnp.asarray(photos), jnp.asarray(boxes), flips, size, resample=resample
    )
    for i, box in enumerate(boxes):
      theirs = pillow_crop(photos[i], box, size, flips[i], resample)
      error = np.abs(255 * np.asarray(ours[i]) - theirs)
      # Pillow rounds (and clips, which the cubic feels) after both passes.
      assert error.max() <= levels and error.mean() < 0.4


def test_pixels_outside_the_box_do_not_leak_in():
  image = np.full((1, 16, 16, 1), 255, np.uint8)
  image[:, 4:12, 4:12] = 0
  out = crop.resized_crop(
    jnp.asarray(image), jnp.array([[4, 4, 8, 8]]), jnp.array([False]), (3, 3)
  )
  np.testing.assert_array_equal(out, 0)


def test_whole_image_at_its_size_is_unchanged(photos):
  boxes = jnp.array([[0, 0, 96, 128]] * 3)
  out = crop.resized_crop(
    jnp.asarray(photos), boxes, jnp.zeros(3, bool), (96, 128)
  )
  np.testing.assert_allclose(out, photos / 255, atol=1e-6)
  again = crop.resized_crop(out, boxes, jnp.zeros(3, bool), (96, 128))
  np.testing.assert_allclose(again, out, atol=1e-6)


def test_flips_happen_as_often_as_asked():
  ramp = np.tile(np.arange(8, dtype=np.uint8) * 30, (2000, 8, 1))[..., None]
  keys = jax.random.split(jax.random.key(0), 2000)
  view = View(size=8, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.3)
  render = jax.jit(functools.partial(crop.random_resized_crop, view=view))
  out = render(jnp.asarray(ramp), keys=keys)
  flipped = np.asarray(out[:, 0, 0, 0] > out[:, 0, -1, 0])
  assert stats.binomtest(int(flipped.sum()), 2000, 0.3).pvalue > 1e-3
  expected = np.where(flipped[:, None, None, None], ramp[:, :, ::-1], ramp)
  np.testing.assert_allclose(out, expected / 255, atol=1e-6)
