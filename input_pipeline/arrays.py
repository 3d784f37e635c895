"""Images as one uint8 array: the record, and reading it from a file."""

import dataclasses
import os
from collections.abc import Collection, Sequence

import numpy as np
from PIL import Image

from input_pipeline.array_files import read_npz


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
    if labels.ndim < 2 and not np.issubdtype(labels.dtype, np.integer):
      raise ValueError(
        f'{self.name}: labels must be integers, got {labels.dtype}; save them '
        'with .astype(int)'
      )
    if labels.shape != (len(images),):
      remedy = ''
      if labels.ndim == 2 and len(labels) == len(images):
        how = '.argmax(axis=1)' if labels.shape[1] > 1 else '.reshape(-1)'
        remedy = f'; save them with {how}'
      raise ValueError(
        f'{self.name}: {len(images)} images need labels of shape '
        f'({len(images)},), got {labels.shape}{remedy}'
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
  `{split}_labels` [n] and `classes` (names). Labels are numbers of `classes`
  or the names themselves; without `classes` the distinct values of all splits
  are the classes. `images` and `labels` stand for the split 'train'. Floats are
  refused: what they are scaled to cannot be seen from the file.

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
  content, found = read_npz(data_dir, lambda names: _wanted(names, split))
  prefix = f'{split}_'
  if split == 'train' and 'train_images' not in content:
    prefix = ''
  if f'{prefix}images' not in content:
    raise ValueError(
      f"{data_dir}: no '{split}_images' for the split {split!r}; found {found}"
    )
  images = content[f'{prefix}images']
  if images.ndim == 3:
    images = images[..., None]
  name = os.fspath(data_dir)
  # Splits number their classes alike: labels of all of them are looked at.
  every = [
    content[f'{part}labels']
    for part in (key[:-6] for key in found if key.endswith('images'))
    if f'{part}labels' in content
  ]
  labels, classes = _number_classes(
    name, content.get(f'{prefix}labels'), content.get('classes'), every
  )
  arrays = Arrays(name=name, images=images, labels=labels, classes=classes)
  return dataclasses.replace(
    arrays,
    images=fit(images, image_size) if image_size else images,
    labels=None if labels is None else labels.astype(np.int32),
  )


def _wanted(names: Collection[str], split: str) -> set[str]:
  """The arrays of a file that a split needs: labels of every split."""
  labels = {f'{key[:-6]}labels' for key in names if key.endswith('images')}
  images = {f'{split}_images'}
  if split == 'train' and 'train_images' not in names:
    images = {'images'}
  return images | labels | {'classes'}


def _number_classes(
  name: str,
  labels: np.ndarray | None,
  classes: np.ndarray | None,
  every: Sequence[np.ndarray],
) -> tuple[np.ndarray | None, tuple[str, ...]]:
  """Labels that count the classes, and the names of these.

  Args:
    name: of the file.
    labels: [n] of the split: numbers or names; None without.
    classes: names of the numbers; None for the distinct values of `every`.
    every: labels of all splits.

  Returns:
    (labels, names); what is no label is returned as it is, for `Arrays`.

  Raises:
    ValueError: names of classes that are none, or a label without a name.
  """
  if labels is None:
    return None, ()
  if classes is not None and classes.ndim != 1:
    raise ValueError(
      f'{name}: classes must be names [k], got shape {classes.shape}'
    )
  names = None if classes is None else tuple(map(_text, classes.tolist()))
  if labels.ndim != 1 or labels.dtype.kind not in 'iuUS' or not labels.size:
    return labels, names or ()
  if labels.dtype.kind in 'iu':
    if names is not None:
      return labels, names
    values = _distinct(every, 'iu')
    if values[0] < 0:
      raise ValueError(
        f'{name}: labels {labels.min()}..{labels.max()} are outside 0 and '
        'above; leave out images that have no label, or leave out the labels'
      )
    # The last classes may be missing in a split.
    values = [value for value in values if value <= int(labels.max())]
    dtype = np.int64 if values[-1] < 2**63 else np.uint64
    numbers = np.searchsorted(np.array(values, dtype), labels.astype(dtype))
    return numbers, tuple(map(str, values))
  if names is None:
    names = tuple(_distinct(every, 'US'))
  row = {text: number for number, text in enumerate(names)}
  unknown = {_text(text) for text in np.unique(labels).tolist()} - row.keys()
  if unknown:
    raise ValueError(
      f'{name}: the label {min(unknown)!r} is none of the {len(names)} classes'
    )
  return np.array([row[_text(text)] for text in labels.tolist()]), names


def _distinct(every: Sequence[np.ndarray], kinds: str) -> list:
  """Sorted values of all labels of one kind."""
  found = set()
  for labels in every:
    if labels.ndim == 1 and labels.dtype.kind in kinds:
      values = np.unique(labels).tolist()
      found.update(map(_text, values) if kinds == 'US' else values)
  return sorted(found)


def _text(name: str | bytes | int) -> str:
  return name.decode(errors='replace') if isinstance(name, bytes) else str(name)
