"""Identifies a data set across restarts and processes, and to other processes.

A fingerprint covers the number of images, all labels and classes, and

* of arrays in memory every pixel;
* of a `.zip` the name, size and checksum of every image;
* of a folder or a `.tar` the names, the size of every image and the contents of
  some (of all of them up to `READ` bytes), of remote folders of `FEW`;
* of TFDS its description, the size of every file and the contents of images as
  of a folder.

Time stamps are kept beside it, since a copy of the same data has others.
"""

import concurrent.futures
import hashlib
import os

import numpy as np

from input_pipeline.arrays import Arrays
from input_pipeline.source import Source, Stamps

NAMES = 1024  # of images, looked at
READ = 2**27  # bytes of files that are read, a tenth of a second's hashing
FEW = 64  # files that are read at least
MANY = 4096  # and at most
_PART = 2**24  # bytes that a thread hashes at a time
_TIMES = ', times '


def fingerprint(source: Source) -> str:
  """Digest of a data set, independent of its location.

  Args:
    source: the data set.

  Returns:
    '1,234 images, 0123456789abcdef 0123456789abcdef': of the names, labels and
    classes, and of the contents.
  """
  return f'{_of_names(source)} {_of_contents(source, _stamps(source))}'


def with_times(known_by: str, source: Source) -> str:
  """A fingerprint and when files were changed, as checkpoints keep it."""
  stamps = _stamps(source)
  if not stamps.times.size:
    return known_by
  return f'{known_by}{_TIMES}{_digest(stamps.times.tobytes())}'


def same(then: str, now: str) -> bool:
  """Whether two fingerprints are of the same data.

  Args:
    then: of `with_times`, or as checkpoints kept it before contents counted.
    now: of `with_times`.

  Returns:
    True if they are, whatever the time stamps.
  """
  then, now = (text.split(_TIMES)[0] for text in (then, now))
  return now == then or now.rpartition(' ')[0] == then


def changed_times(then: str, now: str) -> bool:
  """Whether the same data have other time stamps, where both are known."""
  times = {text.partition(_TIMES)[2] for text in (then, now)} - {''}
  return len(times) > 1


def difference(then: str, now: str) -> str:
  """What differs between two fingerprints that are not the `same`, in words."""
  names = [text.split(_TIMES)[0].split(' ')[:3] for text in (then, now)]
  if names[0] == names[1]:
    return 'the contents of the images'
  return 'the number, names, labels or classes of the images'


def _stamps(source: Source) -> Stamps:
  found = getattr(source, 'stamps', None)
  return Stamps() if found is None else found()


def _of_names(source: Source) -> str:
  """The number of images, some names or pixels, labels and classes."""
  rows = np.linspace(0, len(source) - 1, min(len(source), NAMES)).astype(int)
  content = hashlib.sha256()
  if isinstance(source, Arrays):
    content.update(source.images[rows[:: NAMES // 16]].tobytes())
  else:
    names = [os.path.basename(source.where(i)) for i in rows.tolist()]
    content.update(repr(names).encode())
  content.update(repr(source.classes).encode())
  if source.labels is not None:
    content.update(source.labels.astype('<i4').tobytes())
  return f'{len(source):,} images, {content.hexdigest()[:16]}'


def _of_contents(source: Source, stamps: Stamps) -> str:
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    if isinstance(source, Arrays):
      images = source.images
      rows = max(1, _PART // max(1, images[0].nbytes))
      parts = pool.map(
        lambda at: _sha256(np.ascontiguousarray(images[at : at + rows])),
        range(0, len(images), rows),
      )
      described = repr(images.shape).encode()
    else:
      parts = pool.map(
        lambda index: _sha256_of(source, index), _chosen(len(source), stamps)
      )
      described = stamps.content.astype('<i8').tobytes()
    return _digest(described + b''.join(parts))


def _chosen(count: int, stamps: Stamps) -> list[int]:
  """The images whose contents are read."""
  if stamps.whole:
    return []
  few = FEW
  if stamps.size is not None:
    affordable = count * READ // max(1, stamps.size)
    few = count if stamps.size <= READ else min(max(FEW, affordable), MANY)
  return np.linspace(0, count - 1, min(count, few)).astype(int).tolist()


def _sha256_of(source: Source, index: int) -> bytes:
  try:
    content = source.read(index)
  except OSError:  # of an image that cannot be read
    return b'\0'
  if isinstance(content, np.ndarray):
    content = np.ascontiguousarray(content)
  return _sha256(content)


def _sha256(content: bytes | np.ndarray) -> bytes:
  return hashlib.sha256(content).digest()


def _digest(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()[:16]
