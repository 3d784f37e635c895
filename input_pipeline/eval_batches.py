"""Images for evaluation: each once, in order, whole rather than cropped."""

import collections
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from input_pipeline.arrays import Arrays, fit
from input_pipeline.decode import UnreadableError, decode
from input_pipeline.source import Source
from input_pipeline.unreadable import tell

AHEAD = 2  # batches that are decoded while one is used


def eval_batches(
  source: Source,
  batch_size: int,
  *,
  size: int,
  channels: int = 3,
  indices: Sequence[int] | None = None,
  rows: Sequence[int] | None = None,
  crop: float = 1.0,
  resample: str = 'bilinear',
) -> Iterator[dict[str, np.ndarray]]:
  """Every image once, in order, in batches of equal size.

  Images of another size are cut to the central square and resized (see `fit`).
  One that cannot be read is black and named in the log.

  Args:
    source: the data set.
    batch_size: global; the last batch is padded with zeros.
    size: side of the images in pixels.
    channels: of the images, where the source leaves it open.
    indices: which images; None for all.
    rows: which rows of every batch to read, for one of several processes; None
      for all.
    crop: see `fit`.
    resample: see `fit`.

  Yields:
    'images' uint8 [len(rows), size, size, c] and 'readable' bool [len(rows)]
    (False for another image than the one meant, or none); of the whole batch
    'index' int32 [b], 'valid' bool [b] (False marks padding) and, if there are
    labels, 'label' int32 [b].

  Raises:
    ValueError: `batch_size` or `size` is below 1.
  """
  if batch_size < 1 or size < 1:
    raise ValueError(
      f'batch_size and size must be at least 1, got {batch_size} and {size}'
    )
  indices = np.arange(len(source)) if indices is None else np.asarray(indices)
  channels = source.channels or channels
  cut = functools.partial(fit, size=size, crop=crop, resample=resample)
  rows = np.arange(batch_size) if rows is None else np.asarray(rows)

  def prepare(start, pool):
    part = indices[start : start + batch_size]
    index = np.pad(part, (0, batch_size - len(part)))
    valid = np.arange(batch_size) < len(part)
    batch = dict(index=index.astype(np.int32), valid=valid)
    if source.labels is not None:
      batch['label'] = np.where(valid, source.labels[index], 0).astype(np.int32)
    mine = index[rows[valid[rows]]]
    if isinstance(source, Arrays):
      images = [cut(source.images[mine])]
      replaced = source.replaced
      readable = np.ones(len(mine), bool)
      readable = readable if replaced is None else ~replaced[mine]
      found = zip(images, [readable], strict=True)
    else:
      found = pool.map(lambda i: _read(source, int(i), cut, channels), mine)
    return batch, found, len(rows) - len(mine)

  def finish(batch, found, missing):
    blank = np.zeros((missing, size, size, channels), np.uint8)
    found = [*found, (blank, np.ones(missing, bool))]
    images, readable = map(np.concatenate, zip(*found, strict=True))
    return dict(batch, images=images, readable=readable)

  waiting = collections.deque()
  with ThreadPoolExecutor(os.cpu_count()) as pool:
    for start in range(0, len(indices), batch_size):
      waiting.append(prepare(start, pool))
      if len(waiting) > AHEAD:
        yield finish(*waiting.popleft())
    while waiting:
      yield finish(*waiting.popleft())


def _read(
  source: Source,
  index: int,
  cut: Callable[[np.ndarray], np.ndarray],
  channels: int,
) -> tuple[np.ndarray, np.ndarray]:
  """uint8 [1, size, size, c], and whether it is the image."""
  try:
    return cut(decode(source.read(index), channels)[None]), np.ones(1, bool)
  except (OSError, UnreadableError) as error:
    tell(source, index, error)
    blank = np.zeros((1, 8, 8, channels), np.uint8)
    return cut(blank), np.zeros(1, bool)
