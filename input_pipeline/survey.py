"""What a data set holds, found out in seconds by looking at some of it."""

import collections
import dataclasses
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from input_pipeline import order
from input_pipeline.arrays import fit
from input_pipeline.augment import photometric, row_keys
from input_pipeline.decode import (
  Header,
  UnreadableError,
  decode,
  read_header,
)
from input_pipeline.host_crop import DRAWS, Cropper
from input_pipeline.source import Source
from input_pipeline.views import View

IMAGES = 2000  # looked at, in an order of chance
SECONDS = 20.0  # after which no more are begun
NAMED = 20  # unreadable images, and classes, that are listed


@dataclasses.dataclass(frozen=True)
class _Look:
  """One image: its header and sums, or why there are none."""

  index: int
  header: Header | None = None
  sums: np.ndarray | None = None  # of pixels, squares [2, c]; in [0, 1]
  pixels: int = 0
  error: str = ''


def survey(
  source: Source,
  channels: int,
  *,
  images: int = IMAGES,
  seconds: float = SECONDS,
) -> dict[str, Any]:
  """Counts, formats, sizes, classes, unreadable images, mean and deviation.

  Args:
    source: the data set.
    channels: that images are decoded to.
    images: how many to look at, chosen by chance and always the same; 0 for
      all of them.
    seconds: after which no more are begun; does not count with images=0.

  Returns:
    Plain data for JSON; 'mean' and 'std' are per channel of pixels in [0, 1],
    every image counting the same.
  """
  count = len(source) if images < 1 else min(images, len(source))
  chosen = order.permutation(
    np.arange(count), size=len(source), seed=0, epoch=0
  )
  end = time.monotonic() + (seconds if images > 0 else float('inf'))

  def look(index):
    return _look(source, int(index), channels, end)

  with ThreadPoolExecutor(os.cpu_count()) as pool:
    looks = [look for look in pool.map(look, chosen) if look is not None]
  good = [look for look in looks if look.header is not None]
  bad = [look for look in looks if look.header is None]
  out = dict(
    name=source.name,
    images=len(source),
    examined=len(looks),
    unreadable=len(bad),
    unreadable_examples={source.where(b.index): b.error for b in bad[:NAMED]},
    classes=_classes(source),
  )
  left_out = getattr(source, 'left_out', None)
  if left_out is not None:
    out['not_read'], out['hidden_images'] = left_out.kinds, left_out.hidden
    texts = (left_out.files(), left_out.hidden_images())
    out['left_out'] = [text for text in texts if text]
  if good:
    out |= _headers([look.header for look in good])
    out |= _moments(good)
  return out


def _look(source, index, channels, end) -> _Look | None:
  if time.monotonic() > end:
    return None
  try:
    data = source.read(index)
    header = read_header(data)
    pixels = decode(data, channels).reshape(-1, channels)
  except (OSError, UnreadableError) as error:
    return _Look(index, error=' '.join(str(error).split()))
  mean = pixels.mean(axis=0) / 255
  square = np.einsum('pc,pc->c', pixels, pixels, dtype=np.float64)
  square = square / len(pixels) / 255**2
  return _Look(index, header, np.stack([mean, square]), len(pixels))


def _headers(headers: list[Header]) -> dict[str, Any]:
  """Formats, modes and sizes."""
  heights = np.array([h.height for h in headers])
  widths = np.array([h.width for h in headers])

  def count(values):
    return dict(collections.Counter(values).most_common())

  return dict(
    formats=count(h.format for h in headers),
    modes=count(h.mode for h in headers),
    height=[int(f(heights)) for f in (np.min, np.median, np.max)],
    width=[int(f(widths)) for f in (np.min, np.median, np.max)],
    sizes=len({(h.height, h.width) for h in headers}),
    turned_by_exif=sum(h.orientation != 1 for h in headers),
    animated=sum(h.frames > 1 for h in headers),
  )


def _moments(looks: list[_Look]) -> dict[str, list[float]]:
  mean, square = np.mean([look.sums for look in looks], axis=0)
  std = np.sqrt(np.maximum(square - mean**2, 0))
  return dict(mean=mean.round(4).tolist(), std=std.round(4).tolist())


def _classes(source: Source) -> dict[str, Any] | None:
  if source.labels is None:
    return None
  counts = np.bincount(source.labels, minlength=len(source.classes))
  return dict(
    count=len(source.classes),
    smallest=int(counts.min()),
    largest=int(counts.max()),
    images={
      name: int(n)
      for name, n in list(zip(source.classes, counts, strict=True))[:NAMED]
    },
  )


def as_text(found: Mapping[str, Any], *, training: bool = True) -> str:
  """A survey of `survey` for a person to read, a line per fact.

  Args:
    found: the survey.
    training: whether options for a training on these images are shown.
  """
  lines = [f'{found["name"]}: {found["images"]:,} images']
  classes = found['classes']
  if classes is None:
    lines.append('classes: no labels')
  else:
    few = ', '.join(f'{k} {v}' for k, v in list(classes['images'].items())[:6])
    more = ', ...' if classes['count'] > 6 else ''
    lines.append(
      f'classes: {classes["count"]} of {classes["smallest"]:,} to '
      f'{classes["largest"]:,} images ({few}{more})'
    )
  lines.append(f'examined: {found["examined"]:,}')
  if 'formats' in found:
    for name in ('formats', 'modes'):
      words = (f'{kind} {n:,}' for kind, n in found[name].items())
      lines.append(f'{name}: {", ".join(words)}')
    low, middle, high = (
      f'{h} x {w}' for h, w in zip(found['height'], found['width'], strict=True)
    )
    lines.append(
      f'height x width: median {middle}, from {low} to {high}, '
      f'{found["sizes"]:,} distinct size{"" if found["sizes"] == 1 else "s"}'
    )
    for name in ('turned_by_exif', 'animated'):
      if found[name]:
        lines.append(f'{name.replace("_", " ")}: {found[name]:,}')
    if training:
      lines.append(
        'mean and std for the config: '
        f'--config.encoder.mean={_tuple(found["mean"])} '
        f'--config.encoder.std={_tuple(found["std"])}'
      )
  lines += [f'left out: {text}' for text in found.get('left_out', ())]
  lines.append(f'unreadable: {found["unreadable"]:,}')
  lines += [f'  {k!r}: {v}' for k, v in found['unreadable_examples'].items()]
  return '\n  '.join(lines)


def _tuple(numbers) -> str:
  return "'" + repr(tuple(numbers)).replace(' ', '') + "'"


def view_sheet(
  source: Source,
  views: Mapping[str, View],
  *,
  channels: int,
  seed: int,
  rows: int = 6,
  draws: int = 2,
) -> tuple[np.ndarray, tuple[str, ...]]:
  """A few images beside their augmented views.

  Args:
    source: the data set.
    views: by name.
    channels: of the images.
    seed: of the choice and the augmentation.
    rows: how many images.
    draws: how many times each view is drawn.

  Returns:
    (float32 [rows, 1 + draws x views, s, s, c] in [0, 1], a title per column);
    s is the largest side of the views, others are resized to it.

  Raises:
    UnreadableError: too few images can be read.
  """
  side = max(max(view.size) for view in views.values())
  cropper = Cropper(tuple(views.values()) * draws, channels)
  images, crops = [], []
  for index in order.permutation(
    np.arange(min(len(source), 50 * rows)), size=len(source), seed=seed, epoch=0
  ):
    try:
      data = source.read(int(index))
      numbers = order.uniforms(
        np.arange(len(cropper.views)), DRAWS, seed=seed, step=int(index)
      )
      crops.append(cropper(data, numbers))
      images.append(fit(decode(data, channels)[None], side))
    except (OSError, UnreadableError) as error:
      last = error
    if len(images) == rows:
      break
  if not images:
    raise UnreadableError(f'{source.name}: no image can be read: {last}')
  columns = [np.concatenate(images) / np.float32(255)]
  for number, view in enumerate(cropper.views):
    keys = row_keys(jax.random.key(seed), number, np.arange(len(crops)))
    cut = np.stack([crop[number] for crop in crops]) / np.float32(255)
    shown = jax.jit(photometric, static_argnums=1)(cut, view, keys)
    shown = (np.asarray(shown) * 255).round().astype(np.uint8)
    columns.append(fit(shown, side) / np.float32(255))
  return np.stack(columns, axis=1), ('image', *views) + tuple(views) * (
    draws - 1
  )
