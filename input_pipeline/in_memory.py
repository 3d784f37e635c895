"""Decodes a whole source into one array, and keeps it where that is safe."""

import concurrent.futures
import dataclasses
import os

import numpy as np
from absl import logging

from input_pipeline import cache
from input_pipeline.arrays import Arrays, fit
from input_pipeline.decode import UnreadableError, decode
from input_pipeline.progress import progress_bar
from input_pipeline.source import Source

_CHUNK = 32  # images that a thread decodes at a time
_NAMED = 10  # unreadable images named one by one


class SizesDiffer(ValueError):  # noqa: N818
  """Images of several sizes where one is needed."""


def to_arrays(
  source: Source,
  *,
  channels: int,
  size: int | None = None,
  workers: int | None = None,
) -> Arrays:
  """Decodes all images.

  An unreadable image is replaced by the next one that can be read (the first
  follows the last), with that one's label. What `source.cache_key` identifies
  is decoded once and kept (see `cache`).

  Args:
    source: the images.
    channels: of the result: 1, 3, 4, or what arrays have.
    size: side in pixels to fit the images to (see `arrays.fit`); None if they
      have one size.
    workers: threads; None for one on each processor.

  Returns:
    The data set.

  Raises:
    SizesDiffer: images of several sizes, and no `size`.
    ValueError: no image can be read.
  """
  if isinstance(source, Arrays) and source.channels == channels:
    return _fitted(source, size)
  kept_at = None
  if source.cache_key is not None:
    digest = f'{source.cache_key} {channels} {size}'
    kept_at = cache.cache_file('images', source.name, digest=digest)
    kept = cache.read_arrays(kept_at, ('images', 'labels', 'classes'))
    if kept is not None:
      return Arrays(
        name=source.name,
        images=kept['images'],
        labels=kept['labels'] if len(kept['labels']) else None,
        classes=tuple(map(str, kept['classes'])),
      )
  images, unreadable = _decode_all(source, channels, size, workers)
  labels, replaced = source.labels, None
  if unreadable:
    rows = _replacements(len(source), unreadable)
    images[unreadable] = images[rows[unreadable]]
    labels = None if labels is None else labels[rows]
    replaced = rows != np.arange(len(source))
  arrays = Arrays(
    name=source.name,
    images=images,
    labels=labels,
    classes=source.classes,
    replaced=replaced,
  )
  # What could not be read may be readable another time.
  if kept_at is not None and not unreadable:
    cache.write_arrays(
      kept_at,
      images=images,
      labels=np.zeros(0, np.int32) if labels is None else labels,
      classes=np.array(source.classes, str),
    )
  return arrays


def _fitted(arrays: Arrays, size: int | None) -> Arrays:
  images = fit(arrays.images, size) if size else arrays.images
  return dataclasses.replace(arrays, images=images)


def _decode_all(
  source: Source, channels: int, size: int | None, workers: int | None
) -> tuple[np.ndarray, list[int]]:
  """uint8 [n, h, w, c], and which of them are not filled in."""
  unreadable = {}

  def read(index):
    try:
      image = decode(source.read(index), channels)
    except (OSError, UnreadableError) as error:
      unreadable[index] = error
      return None
    return fit(image[None], size)[0] if size else image

  for first in range(len(source)):
    if (image := read(first)) is not None:
      break
  else:
    reason = (
      f'{source.where(0)}: {unreadable[0]}' if unreadable else 'no images'
    )
    raise ValueError(
      f'{source.name}: none of the {len(source)} images can be read: {reason}'
    )
  images = np.empty((len(source), *image.shape), np.uint8)

  def fill(start):
    stop = min(start + _CHUNK, len(source))
    for index in range(start, stop):
      if (image := read(index)) is None:
        continue
      if image.shape != images.shape[1:]:
        one, two = (
          f'{source.where(i)} ({h} x {w})'
          for i, (h, w) in (
            (first, images.shape[1:3]),
            (index, image.shape[:2]),
          )
        )
        raise SizesDiffer(
          f'{source.name}: images of several sizes, such as {one} and {two}; '
          "set data.resident_size or data.mode='stream'"
        )
      images[index] = image
    return stop - start

  pool = concurrent.futures.ThreadPoolExecutor(workers or os.cpu_count() or 1)
  with progress_bar(f'decoding {source.name}', len(source)) as progress:
    try:
      for count in pool.map(fill, range(0, len(source), _CHUNK)):
        progress.update(count)
    finally:
      pool.shutdown(cancel_futures=True)
  for index in sorted(unreadable)[:_NAMED]:
    logging.warning(
      '%s cannot be read and is replaced: %s',
      source.where(index),
      unreadable[index],
    )
  if unreadable:
    logging.warning(
      '%s: %d of %d images cannot be read and are replaced',
      source.name,
      len(unreadable),
      len(source),
    )
  return images, sorted(unreadable)


def _replacements(count: int, unreadable: list[int]) -> np.ndarray:
  """int64 [count]: each image, or the next that can be read."""
  readable = np.setdiff1d(np.arange(count), unreadable)
  place = np.searchsorted(readable, np.arange(count))
  return readable[place % len(readable)]
