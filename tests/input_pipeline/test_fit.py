"""The standard resize and crop of evaluation against Pillow's own steps."""

import numpy as np
import pytest
from PIL import Image
from skimage import data

from input_pipeline.arrays import fit


def photo(height, width):
  return data.astronaut()[:height, :width]


def resize_and_crop(image, short, size, resample):
  """Torchvision's Resize and CenterCrop, spelled out."""
  image = Image.fromarray(image)
  w, h = image.size
  w, h = (short, int(short * h / w)) if w <= h else (int(short * w / h), short)
  image = image.resize((w, h), resample)
  top, left = round((h - size) / 2.0), round((w - size) / 2.0)
  return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize(
  'shape', [(375, 500), (500, 333), (256, 256), (99, 98)]
)
@pytest.mark.parametrize('resample', ['bilinear', 'bicubic'])
def test_as_torchvision(shape, resample):
  image = photo(*shape)
  ours = fit(image[None], 224, crop=0.875, resample=resample)
  how = Image.Resampling[resample.upper()]
  np.testing.assert_array_equal(ours[0], resize_and_crop(image, 256, 224, how))


def test_other_channels_as_planes():
  image = photo(120, 160)
  four = np.concatenate([image, image[..., :1]], axis=-1)
  ours = fit(four[None], 64, crop=0.9, resample='bicubic')[0]
  three = fit(image[None], 64, crop=0.9, resample='bicubic')[0]
  np.testing.assert_array_equal(ours[..., :3], three)
  np.testing.assert_array_equal(ours[..., 3], three[..., 0])


def test_the_whole_square_is_left_as_it_is():
  images = photo(64, 64)[None]
  assert fit(images, 64) is images
  assert fit(images, 64, crop=0.875).shape == images.shape


def test_no_images_stay_none():
  """Of the last batch a process may have no row."""
  empty = np.zeros((0, 9, 7, 3), np.uint8)
  for crop in (1.0, 0.875):
    assert fit(empty, 4, crop=crop).shape == (0, 4, 4, 3)
