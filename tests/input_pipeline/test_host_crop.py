"""Crops on the host against the device's, and against Pillow by hand."""

import io

import jax
import numpy as np
import pytest
from PIL import Image

from input_pipeline import crop, order
from input_pipeline.decode import UnreadableError
from input_pipeline.host_crop import DRAWS, Cropper
from input_pipeline.views import View

RNG = np.random.default_rng(0)
IMAGE = np.asarray(
  Image.fromarray(RNG.integers(0, 255, (9, 12, 3), np.uint8)).resize((120, 90))
)


def draws(count):
  return order.uniforms(np.arange(count), DRAWS, seed=0, step=0)


@pytest.mark.parametrize('resample', ['bilinear', 'bicubic'])
def test_crops_are_those_of_the_device(resample):
  view = View(size=(20, 30), scale=(0.05, 1.0), resample=resample)
  numbers = draws(16)
  size = IMAGE.shape[:2]
  boxes = crop.boxes_from(numbers, view.scale, view.ratio, size, np)
  flips = numbers[:, -1] < 0.5
  want = crop.resized_crop(
    np.stack([IMAGE] * 16), boxes, flips, view.size, resample=resample
  )
  found = np.stack(Cropper([view] * 16, 3)(IMAGE, numbers))
  # Pillow rounds to 8 bits after each of its two passes.
  assert np.abs(found / 255 - np.asarray(want)).max() < 1.6 / 255
  assert flips.any() and not flips.all()


def test_boxes_of_host_and_device_are_one_function():
  numbers = order.uniforms(np.arange(400), crop.BOX_DRAWS, seed=1, step=0)
  numbers = numbers.astype(np.float32)
  for size in ((90, 120), (1, 1), (300, 2), (7, 500)):
    ours = crop.boxes_from(numbers, (0.08, 1.0), (0.75, 4 / 3), size, np)
    theirs = crop.boxes_from(
      jax.numpy.asarray(numbers), (0.08, 1.0), (0.75, 4 / 3), size, jax.numpy
    )
    # float32 against float64 may round a side or a place the other way.
    off = np.abs(ours - np.asarray(theirs))
    assert off.max() <= 1 and (off > 0).mean() < 0.01
    assert (ours[:, 2:] >= 1).all() and (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= size).all()


def test_views_with_and_without_retries_side_by_side():
  """Each crops as if it were alone, on the host as on the device."""
  fields = dict(size=8, scale=(0.5, 1.0), ratio=(0.3, 3.0))
  views = [View(**fields, retry=retry) for retry in (True, False) * 20]
  numbers = draws(40)
  together = Cropper(views, 3)._boxes(numbers, (30, 60))
  differ = 0
  for i, view in enumerate(views):
    one = numbers[i : i + 1]
    (alone,) = Cropper([view], 3)._boxes(one, (30, 60))
    assert together[i] == alone
    (device,) = crop.boxes_from(
      one, view.scale, view.ratio, (30, 60), np, retry=view.retry
    )
    assert device.tolist() == alone
    (other,) = crop.boxes_from(
      one, view.scale, view.ratio, (30, 60), np, retry=not view.retry
    )
    differ += other.tolist() != alone
  assert differ > 5


def test_every_view_has_numbers_of_its_own():
  views = [View(size=8, scale=(0.5, 0.5), ratio=(1.0, 1.0), flip=0.0)]
  views += [View(size=6, scale=(0.1, 0.1), ratio=(2.0, 2.0), flip=1.0)]
  numbers = draws(2)
  found = Cropper(views, 3)(IMAGE, numbers)
  image = Image.fromarray(IMAGE)
  side = round(np.sqrt(0.5 * IMAGE.shape[0] * IMAGE.shape[1]))
  top = int(numbers[0, -3] * (IMAGE.shape[0] - side + 1))
  left = int(numbers[0, -2] * (IMAGE.shape[1] - side + 1))
  part = image.crop((left, top, left + side, top + side))
  part = part.resize((8, 8), Image.Resampling.BILINEAR)
  np.testing.assert_array_equal(found[0], np.asarray(part))
  assert found[1].shape == (6, 6, 3)


def test_gray_and_alpha_are_resized_as_they_are():
  planes = RNG.integers(0, 255, (30, 40, 4), np.uint8)
  view = View(size=10, scale=(0.2, 0.9))
  numbers = draws(1)
  (whole,) = Cropper([view], 4)(planes, numbers)
  for i in range(4):
    (one,) = Cropper([view], 1)(planes[..., i : i + 1], numbers)
    np.testing.assert_array_equal(whole[..., i], one[..., 0])


def test_broken_bytes_are_unreadable():
  out = io.BytesIO()
  Image.fromarray(IMAGE).save(out, 'JPEG')
  with pytest.raises(UnreadableError):
    Cropper([View(size=8)], 3)(out.getvalue()[:200], draws(1))


def test_uniforms():
  def draw(rows, count, seed=1, step=2):
    return order.uniforms(np.atleast_1d(rows), count, seed=seed, step=step)

  numbers = draw(3, 20000)[0]
  assert numbers.dtype == np.float64
  assert numbers.min() >= 0 and numbers.max() < 1
  counts = np.histogram(numbers, 20, (0, 1))[0]
  assert np.abs(counts - 1000).max() < 150  # about 5 standard deviations
  assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.03
  # Rows are independent, and the same in whatever company.
  many = draw(np.arange(2000), 2)
  assert len(np.unique(many)) == 4000
  assert np.abs(many.mean(0) - 0.5).max() < 0.04
  assert np.abs(np.corrcoef(many[1:, 0], many[:-1, 0])[0, 1]) < 0.1
  np.testing.assert_array_equal(many[3], numbers[:2])
  np.testing.assert_array_equal(draw([9, 3], 2), many[[9, 3]])
  for other in (draw(3, 5, seed=2), draw(3, 5, step=1), draw(4, 5)):
    assert (other[0] != numbers[:5]).all()
  assert (draw(3, 5, seed=-(2**63)) != draw(3, 5, seed=2**63 - 1)).all()
