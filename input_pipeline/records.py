"""Random access to the records of TFRecord files.

A TFRecord file is a chain: the length of a record (8 bytes) and its checksum
(4), the record, a checksum (4). Following the lengths once gives the places of
all records; the places are kept (see `cache`) as long as no file changes size.
"""

import bisect
import concurrent.futures
import itertools
import os
import struct
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from etils import epath

from input_pipeline import cache
from input_pipeline.listing import is_remote
from input_pipeline.progress import progress_bar

_THREADS = 16


class Part(Protocol):
  """Some records of a file; TFDS calls it a file instruction.

  Attributes:
    filename: of the file.
    skip: records before the first.
    take: number of records.
    examples_in_shard: records in the whole file.
  """

  filename: str
  skip: int
  take: int
  examples_in_shard: int


class TfRecords:
  """A sequence of records, as bytes; any thread may read."""

  def __init__(self, parts: Sequence[Part], *, name: str):
    """Finds the places of all records, or reads where they were found.

    Args:
      parts: files and which of their records, in order.
      name: of the data set, for messages and the cache.

    Raises:
      ValueError: a file is cut off or damaged.
      OSError: a file cannot be read.
    """
    self._parts = list(parts)
    self._stops = list(itertools.accumulate(part.take for part in parts))
    shards = {os.fspath(p.filename): p.examples_in_shard for p in parts}
    self._places = _load_places(dict(sorted(shards.items())), name)

  def __len__(self):
    return self._stops[-1]

  def __getitem__(self, index: int) -> bytes:
    if not 0 <= index < len(self):
      raise IndexError(index)
    number = bisect.bisect_right(self._stops, index)
    part = self._parts[number]
    row = index - self._stops[number] + part.take + part.skip
    path = os.fspath(part.filename)
    start, stop = map(int, self._places[path][row : row + 2])
    size = stop - start - 16
    content = _read(path, start + 12, size)
    if len(content) != size:
      raise OSError(f'{path} is cut off')
    return content


def _read(path: str, offset: int, size: int) -> bytes:
  # Opened each time: data sets have more files than a process may hold open.
  if is_remote(path):
    with epath.Path(path).open('rb') as file:
      file.seek(offset)
      return file.read(size)
  number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
  try:
    return os.pread(number, size, offset)
  finally:
    os.close(number)


def _load_places(shards: dict[str, int], name: str) -> dict[str, np.ndarray]:
  """int64 [records + 1] for each file: where records begin, and its end."""
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    sizes = [size for size, _ in pool.map(look_at, shards)]
    digest = repr(list(zip(shards, sizes, strict=True)))
    kept_at = cache.cache_file('records', name, digest=digest)
    kept = cache.read_arrays(kept_at, ('places',))
    if kept is None:
      found = pool.map(_follow, shards, sizes, shards.values())
      with progress_bar(
        f'indexing {name}', len(shards), unit='files', iterable=found
      ) as progress:
        places = np.concatenate(list(progress))
      cache.write_arrays(kept_at, places=places)
    else:
      places = kept['places']
  ends = np.cumsum([count + 1 for count in shards.values()])
  if len(places) != ends[-1]:
    raise ValueError(f'{name}: {kept_at} does not fit; delete it')
  return dict(zip(shards, np.split(places, ends[:-1]), strict=True))


def look_at(path: str) -> tuple[int, int]:
  """The size of a file in bytes and the time of its last change in ns.

  Args:
    path: or URL.

  Returns:
    (size, time).

  Raises:
    OSError: there is no such file.
  """
  if is_remote(path):
    status = epath.Path(path).stat()
    return status.length, int(status.mtime) * 10**9
  status = os.stat(path)
  return status.st_size, status.st_mtime_ns


def _follow(path: str, size: int, count: int) -> np.ndarray:
  """int64 [count + 1]: where the records of a file begin, and its end."""
  places = np.empty(count + 1, np.int64)
  places[0] = at = 0
  with epath.Path(path).open('rb') as file:
    for row in range(count):
      file.seek(at)
      header = file.read(8)
      if len(header) == 8:
        at += struct.unpack('<Q', header)[0] + 16
      if len(header) < 8 or at > size:
        raise ValueError(
          f'{path}: cut off or damaged at record {row} of {count}; prepare the '
          'data set again'
        )
      places[row + 1] = at
  if at != size:
    raise ValueError(
      f'{path}: more than {count} records, which its data set tells of; '
      'prepare it again'
    )
  return places
