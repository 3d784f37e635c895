"""Images as one uint8 array: the record, and reading it from a file."""

import dataclasses
import os
import zipfile
import zlib

import numpy as np
from PIL import Image


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arrays:
  """A data set that fits into memory; see `source.Source`.

  Attributes:
    name: for messages.
    images: uint8 [n, h, w, c], n at least 1.
    labels: int32 [n] within 0..len(classes)-1, or None.
    classes: names of the labels; empty without labels.
    replaced: bool [n], where another image has taken the place of one that
      cannot be read; None where there is no such place.
  """

  name: str
  images: np.ndarray
  labels: np.ndarray | None = None
  classes: tuple[str, ...] = ()
  replaced: np.ndarray | None = None

  cache_key = None

  def __post_init__(self):
    images, labels = self.images, self.labels
    if images.dtype != np.uint8:
      raise ValueError(
        f'{self.name}: images must be uint8, got {images.dtype}; convert '
        'floats in [0, 1] with (255 * images).round().astype(np.uint8)'
      )
    if images.ndim != 4 or 0 in images.shape:
      raise ValueError(
        f'{self.name}: images must be [n, h, w, c] and not empty, got shape '
        f'{images.shape}'
      )
    if labels is None:
      return
    if not np.issubdtype(labels.dtype, np.integer):
      raise ValueError(
        f'{self.name}: labels must be integers, got {labels.dtype}'
      )
    if labels.shape != (len(images),):
      raise ValueError(
        f'{self.name}: {len(images)} images need labels of shape '
        f'({len(images)},), got {labels.shape}'
      )
    if labels.min() < 0 or labels.max() >= len(self.classes):
      raise ValueError(
        f'{self.name}: labels {labels.min()}..{labels.max()} are outside the '
        f'{len(self.classes)} classes'
      )

  def __len__(self):
    return len(self.images)

  @property
  def channels(self) -> int:
    """Channels of every image."""
    return self.images.shape[-1]

  def read(self, index: int) -> np.ndarray:
    """One image, uint8 [h, w, c]."""
    return self.images[index]

  def where(self, index: int) -> str:
    """What to call one image."""
    return f'{self.name}[{index}]'


def fit(
  images: np.ndarray,
  size: int,
  *,
  crop: float = 1.0,
  resample: str = 'bilinear',
) -> np.ndarray:
  """Cuts out the central squares and resizes them, antialiased.

  Args:
    images: uint8 [n, h, w, c].
    size: side of the result in pixels.
    crop: side of the square over the shorter side of the image. Below 1 as
      torchvision does it: the shorter side is brought to size / crop (256 for
      224 and 0.875), then the centre is cut out.
    resample: 'bilinear' or 'bicubic'.

  Returns:
    uint8 [n, size, size, c]; the input itself if it has that size and `crop` is
    1.
  """
  count, height, width, channels = images.shape
  if not count:  # of the last batch a process may have no row
    return np.zeros((0, size, size, channels), np.uint8)
  box = (size, size)
  if crop == 1:
    if height == width == size:
      return images
    # Cut before resizing: Pillow's `box` would let the filter look outside.
    images = _central(images, min(height, width))
  else:
    short = round(size / crop)
    box = (short, short * width // height)
    if width < height:
      box = (short * height // width, short)
  filters = dict(
    bilinear=Image.Resampling.BILINEAR, bicubic=Image.Resampling.BICUBIC
  )

  def resize(image):
    image = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(image.resize(box[::-1], filters[resample]))

  if channels == 3:
    images = np.stack([resize(image) for image in images])
  else:
    # One by one: Pillow would take a fourth channel for transparency.
    planes = [
      [resize(image[..., i]) for i in range(channels)] for image in images
    ]
    images = np.stack([np.stack(one, axis=-1) for one in planes])
  return _central(images, size)


def _central(images: np.ndarray, side: int) -> np.ndarray:
  """The central squares [n, side, side, c]; halves are rounded to even."""
  top, left = (round((length - side) / 2) for length in images.shape[1:3])
  return images[:, top : top + side, left : left + side]


def from_npz(
  *,
  split: str = 'train',
  data_dir: str | os.PathLike | None = None,
  image_size: int | None = None,
) -> Arrays:
  """Reads an `.npz` file.

  The file holds `{split}_images`, uint8 [n, h, w] or [n, h, w, c], and may hold
  `{split}_labels` (integers [n]) and `classes` (names). `images` and `labels`
  stand for the split 'train'. Floats are refused: what they are scaled to
  cannot be seen from the file.

  Args:
    split: prefix of the keys.
    data_dir: path of the file.
    image_size: side in pixels to fit the images to; None leaves them.

  Returns:
    The data set.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: not an `.npz` file, a key is missing, or the contents are not
      what `Arrays` takes.
  """
  if not data_dir or not os.path.isfile(data_dir):
    raise FileNotFoundError(
      f"source 'arrays' needs data_dir to be an .npz file, got {data_dir!r}"
    )
  content, found = _read(data_dir, split)
  prefix = f'{split}_'
  if split == 'train' and 'train_images' not in content:
    prefix = ''
  if f'{prefix}images' not in content:
    raise ValueError(
      f"{data_dir}: no '{split}_images' for the split {split!r}; found {found}"
    )
  images = content[f'{prefix}images']
  labels = content.get(f'{prefix}labels')
  classes = content.get('classes')
  if images.ndim == 3:
    images = images[..., None]
  if labels is None:
    classes = ()
  elif classes is None:
    count = int(labels.max()) + 1 if labels.size else 0
    classes = tuple(str(i) for i in range(count))
  arrays = Arrays(
    name=os.fspath(data_dir),
    images=images,
    labels=labels,
    classes=tuple(str(name) for name in classes),
  )
  return dataclasses.replace(
    arrays,
    images=fit(images, image_size) if image_size else images,
    labels=None if labels is None else labels.astype(np.int32),
  )


def _read(
  path: str | os.PathLike, split: str
) -> tuple[dict[str, np.ndarray], list[str]]:
  """The arrays of a split, and the names of all arrays in the file."""
  wanted = {f'{split}_images', f'{split}_labels', 'classes'}
  if split == 'train':
    wanted |= {'images', 'labels'}
  try:
    with np.load(path, allow_pickle=False) as file:
      return {key: file[key] for key in wanted & set(file.files)}, file.files
  except (
    OSError,
    ValueError,
    EOFError,
    AttributeError,  # a single array: not a file of several
    TypeError,
    zipfile.BadZipFile,
    zlib.error,
  ) as error:
    raise ValueError(f'{path}: not a readable .npz file: {error}') from error
