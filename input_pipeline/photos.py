"""Tiles of the photographs that come with scikit-image and scikit-learn.

Real images without a download: which photograph is a tile from? Neighbouring
tiles look alike and share nothing pixel by pixel, so k-NN on raw pixels does
badly where an encoder can do well. Made for trying things, not for comparing
with the literature.
"""

import importlib.util
import pathlib

import numpy as np
from PIL import Image, ImageOps

from input_pipeline.arrays import Arrays
from input_pipeline.order import permutation

# Only files inside the wheels; `skimage.data` would download others.
COLOR = (
  'skimage/data/astronaut.png',
  'skimage/data/chelsea.png',
  'skimage/data/coffee.png',
  'skimage/data/hubble_deep_field.jpg',
  'skimage/data/ihc.png',
  'skimage/data/motorcycle_left.png',
  'skimage/data/retina.jpg',
  'skimage/data/rocket.jpg',
  'sklearn/datasets/images/china.jpg',
  'sklearn/datasets/images/flower.jpg',
)
GRAY = (
  'skimage/data/brick.png',
  'skimage/data/camera.png',
  'skimage/data/cell.png',
  'skimage/data/coins.png',
  'skimage/data/grass.png',
  'skimage/data/gravel.png',
  'skimage/data/moon.png',
)
SHOWN = (
  'skimage/data/astronaut.png',
  'skimage/data/chelsea.png',
  'skimage/data/coffee.png',
)
PER_CLASS = {'train': 256, 'test': 64}
GAP = 8  # pixels left out between the part for training and that for testing


def from_photos(
  *,
  split: str = 'train',
  data_dir: str | None = None,
  image_size: int | None = None,
  tile: int = 64,
  gray: bool = False,
  stride: int = 8,
  standardize: bool = False,
) -> Arrays:
  """Cuts photographs into tiles; the label is the photograph.

  The right quarter of each photograph (a tile's width at least) is for testing,
  the rest but a gap for training. Every class has the same number of tiles, at
  most `PER_CLASS`, spread at random over a grid; the result is always the same.

  Args:
    split: 'train' or 'test'.
    data_dir: ignored, the photographs come with the packages.
    image_size: side in pixels that tiles are resized to; None leaves them.
    tile: side of a tile in the photograph, pixels.
    gray: True for one channel and all 17 photographs, False for three channels
      and the 10 that have colours.
    stride: pixels between tiles, both ways.
    standardize: bring every tile to the same mean and contrast, so that what
      is in it must tell photographs apart, not how bright it is.

  Returns:
    The data set: with the default numbers 2560 tiles for training, 640 for
    testing.

  Raises:
    ValueError: another split, or a tile that does not fit.
    ImportError: scikit-image or scikit-learn is missing.
  """
  del data_dir
  if split not in PER_CLASS:
    raise ValueError(f"photos: split must be 'train' or 'test', got {split!r}")
  if stride < 1 or tile < 1:
    raise ValueError(
      f'photos: tile and stride must be at least 1, got {tile} and {stride}'
    )
  files = COLOR + GRAY if gray else COLOR
  photos = [open_photo(file, 'L' if gray else 'RGB') for file in files]
  # Two tiles side by side and the gap, one above the other.
  largest = min(min((p.width - GAP) // 2, p.height) for p in photos)
  if tile > largest:
    raise ValueError(
      f'photos: tile {tile} does not fit into every photograph; use at most '
      f'{largest}'
    )
  corners = [tile_corners(p.size, split, tile, stride) for p in photos]
  count = min(PER_CLASS[split], *(len(c) for c in corners))
  images = []
  for label, (photo, places) in enumerate(zip(photos, corners, strict=True)):
    chosen = permutation(
      np.arange(count), size=len(places), seed=0, epoch=label
    )
    for x, y in places[np.sort(chosen)]:
      image = photo.crop((x, y, x + tile, y + tile))
      if image_size and image_size != tile:
        image = image.resize((image_size,) * 2, Image.Resampling.BILINEAR)
      images.append(np.asarray(image))
  images = np.stack(images)
  images = images[..., None] if gray else images
  return Arrays(
    name='photos',
    images=_standardize(images) if standardize else images,
    labels=np.repeat(np.arange(len(files), dtype=np.int32), count),
    classes=tuple(pathlib.PurePath(file).stem for file in files),
  )


def whole_photos(*, size: int, tile: int, gray: bool) -> np.ndarray:
  """Three photographs that a person recognises, to look at.

  Args:
    size: side in pixels that a tile is shown at.
    tile: side of a tile in the photograph, pixels.
    gray: one channel instead of three.

  Returns:
    uint8 [3, n·size, n·size, c]: their central squares; n tiles fit along the
    smallest of them.

  Raises:
    ValueError: the tile is larger than a photograph.
  """
  photos = [open_photo(file, 'L' if gray else 'RGB') for file in SHOWN]
  n = min(min(photo.size) for photo in photos) // tile
  if n < 1:
    raise ValueError(f'photos: tile {tile} is larger than a photograph')
  squares = [
    ImageOps.fit(photo, (n * size,) * 2, Image.Resampling.BILINEAR)
    for photo in photos
  ]
  images = np.stack([np.asarray(square) for square in squares])
  return images[..., None] if gray else images


def tile_corners(
  photo_size: tuple[int, int], split: str, tile: int, stride: int
) -> np.ndarray:
  """Where the tiles of one split may lie.

  Args:
    photo_size: (width, height) of the photograph, pixels.
    split: 'train' or 'test'.
    tile: side of a tile, pixels.
    stride: pixels between tiles.

  Returns:
    int [n, 2]: left and top of each tile.
  """
  width, height = photo_size
  cut = width - max(width // 4, tile)
  left, right = (0, cut - GAP) if split == 'train' else (cut, width)
  xs = np.arange(left, right - tile + 1, stride)
  ys = np.arange(0, height - tile + 1, stride)
  return np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)


def _standardize(images: np.ndarray) -> np.ndarray:
  """Mean 128 and standard deviation 48 of 255 for each image, clipped."""
  x = images.astype(np.float32)
  x -= x.mean(axis=(1, 2, 3), keepdims=True)
  # The night sky stays dark noise, not noise at full contrast.
  x *= 48 / np.maximum(x.std(axis=(1, 2, 3), keepdims=True), 4)
  return np.clip(np.round(x + 128), 0, 255).astype(np.uint8)


def open_photo(file: str, mode: str) -> Image.Image:
  """Opens a photograph of a package without importing the package.

  Args:
    file: path that begins with the package, as in `COLOR`.
    mode: Pillow's, 'RGB' or 'L'.

  Returns:
    The photograph.

  Raises:
    ImportError: the package is missing.
  """
  package, _, path = file.partition('/')
  spec = importlib.util.find_spec(package)
  if spec is None:
    project = {'skimage': 'scikit-image', 'sklearn': 'scikit-learn'}[package]
    raise ImportError(f"source 'photos' needs {project}: pip install {project}")
  (folder,) = spec.submodule_search_locations
  with Image.open(pathlib.Path(folder) / path) as image:
    return image.convert(mode)
