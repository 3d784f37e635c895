"""Images for evaluation: each once, in order, whole rather than cropped."""

import collections
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from absl import logging

from input_pipeline.arrays import Arrays, fit
from input_pipeline.decode import UnreadableError, decode
from input_pipeline.source import Source

AHEAD = 2  # batches that are decoded while one is used


def eval_batches(
  source: Source,
  batch_size: int,
  *,
  size: int,
  channels: int = 3,
  indices: Sequence[int] | None = None,
  rows: Sequence[int] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
  """Every image once, in order, in batches of equal size.

  Images of another size are cut to the central square and resized (see `fit`).
  One that cannot be read is black, and named in the log.

  Args:
    source: the data set.
    batch_size: global; the last batch is padded with zeros.
    size: side of the images in pixels.
    channels: of the images, where the source leaves it open.
    indices: which images; None for all.
    rows: which rows of every batch to read, for one of several processes; None
      for all.

  Yields:
    'images' uint8 [len(rows), size, size, c]; of the whole batch 'index' int32
    [b], 'valid' bool [b] (False marks padding) and, if there are labels,
    'label' int32 [b].

  Raises:
    ValueError: `batch_size` or `size` is below 1.
  """
  if batch_size < 1 or size < 1:
    raise ValueError(
      f'batch_size and size must be at least 1, got {batch_size} and {size}'
    )
  indices = np.arange(len(source)) if indices is None else np.asarray(indices)
  channels = source.channels or channels
  rows = np.arange(batch_size) if rows is None else np.asarray(rows)

  def prepare(start, pool):
    part = indices[start : start + batch_size]
    index = np.pad(part, (0, batch_size - len(part)))
    valid = np.arange(batch_size) < len(part)
    batch = dict(index=index.astype(np.int32), valid=valid)
    if source.labels is not None:
      batch['label'] = np.where(valid, source.labels[index], 0).astype(np.int32)
    mine = rows[valid[rows]]
    if isinstance(source, Arrays):
      images = [fit(source.images[index[mine]], size)]
    else:
      images = pool.map(
        lambda i: _read(source, int(i), size, channels), index[mine]
      )
    return batch, images, len(rows) - len(mine)

  def finish(batch, images, missing):
    images = [*images, np.zeros((missing, size, size, channels), np.uint8)]
    return dict(batch, images=np.concatenate(images))

  waiting = collections.deque()
  with ThreadPoolExecutor(os.cpu_count()) as pool:
    for start in range(0, len(indices), batch_size):
      waiting.append(prepare(start, pool))
      if len(waiting) > AHEAD:
        yield finish(*waiting.popleft())
    while waiting:
      yield finish(*waiting.popleft())


def _read(source: Source, index: int, size: int, channels: int) -> np.ndarray:
  """uint8 [1, size, size, c]."""
  try:
    return fit(decode(source.read(index), channels)[None], size)
  except (OSError, UnreadableError) as error:
    logging.warning(
      '%r cannot be read (%s); black in this evaluation',
      source.where(index),
      error,
    )
    return np.zeros((1, size, size, channels), np.uint8)
