"""Millions of file names in little memory, and showing one to a person."""

import array
import bisect
import itertools
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
  from input_pipeline.left_out import LeftOut


class Names:
  """Sorted byte strings in two arrays; a sequence of `bytes`.

  Attributes:
    blob: uint8, all names one after the other.
    ends: int64 [n + 1]; name i is blob[ends[i]:ends[i + 1]].
  """

  def __init__(self, blob: np.ndarray, ends: np.ndarray):
    self.blob, self.ends = blob, ends

  @classmethod
  def of(cls, names: Iterable[bytes]) -> 'Names':
    """Packs names.

    Args:
      names: in the order of their bytes, none twice.

    Returns:
      The same names.
    """
    blob, ends = bytearray(), array.array('q', [0])
    for name in names:
      blob += name
      ends.append(len(blob))
    return cls(
      np.frombuffer(bytes(blob), np.uint8), np.frombuffer(ends, np.int64)
    )

  def __len__(self):
    return len(self.ends) - 1

  def __getitem__(self, index: int) -> bytes:
    if not 0 <= index < len(self):
      raise IndexError(index)
    return self.blob[self.ends[index] : self.ends[index + 1]].tobytes()

  def to_arrays(self, prefix: str) -> dict[str, np.ndarray]:
    """For `cache.write_arrays`, with a prefix before the keys."""
    return {f'{prefix}_blob': self.blob, f'{prefix}_ends': self.ends}

  @classmethod
  def from_arrays(
    cls, arrays: Mapping[str, np.ndarray], prefix: str
  ) -> 'Names':
    """Undoes `to_arrays`."""
    return cls(arrays[f'{prefix}_blob'], arrays[f'{prefix}_ends'])


class Listing:
  """The images of a folder: a range of sorted names that share a prefix.

  Attributes:
    names: paths, their parts joined by '/'.
    start: where in `names` the listing begins.
    stop: where it ends.
    prefix: what all of these names begin with; empty or ending in '/'.
    above: path from the top of the data set to the listing, likewise.
    left_out: counts of files that are not listed, see `left_out.LeftOut`.
  """

  def __init__(
    self,
    names: Names,
    left_out: 'LeftOut',
    *,
    prefix: bytes = b'',
    above: bytes | None = None,
  ):
    self.names, self.left_out, self.prefix = names, left_out, prefix
    self.above = prefix if above is None else above
    self.start, self.stop = 0, len(names)
    if prefix:
      self.start = bisect.bisect_left(names, prefix)
      self.stop = bisect.bisect_left(names, _after(prefix))

  def __len__(self):
    return self.stop - self.start

  def __getitem__(self, index: int) -> bytes:
    """Path of one image without the prefix."""
    if not 0 <= index < len(self):
      raise IndexError(index)
    return self.names[self.start + index][len(self.prefix) :]

  def __iter__(self) -> Iterator[bytes]:
    """Paths of all images, at once: an index each would take seconds more."""
    ends = self.names.ends[self.start : self.stop + 1].tolist()
    base, skip = ends[0], len(self.prefix)
    blob = self.names.blob[base : ends[-1]].tobytes()
    for start, stop in itertools.pairwise(ends):
      yield blob[start - base + skip : stop - base]

  def within(self, folder: bytes) -> 'Listing':
    """The part of the listing in one of its folders, named without '/'."""
    left_out = self.left_out.within(self.prefix + folder)
    folder += b'/'
    return Listing(
      self.names,
      left_out,
      prefix=self.prefix + folder,
      above=self.above + folder,
    )

  def find(self, path: bytes) -> int | None:
    """Number of the image with a path (without the prefix), or None."""
    path = self.prefix + path
    index = bisect.bisect_left(self.names, path, self.start, self.stop)
    if index < self.stop and self.names[index] == path:
      return index - self.start
    return None

  def folders(self) -> tuple[dict[bytes, slice], bytes | None]:
    """The folders of the first level.

    Returns:
      (which images each folder holds at any depth, the first image that is in
      none of them or None).
    """
    found, loose, index = {}, None, 0
    while index < len(self):
      path = self[index]
      folder, slash, _ = path.partition(b'/')
      if not slash:
        loose, index = loose or path, index + 1
        continue
      begin, end = self.prefix + folder + b'/', self.stop
      stop = bisect.bisect_left(self.names, _after(begin), self.start, end)
      found[folder] = slice(index, stop - self.start)
      index = stop - self.start
    return found, loose


def _after(prefix: bytes) -> bytes:
  """The least string above all that begin with a prefix, which ends in '/'."""
  return prefix[:-1] + b'0'  # '0' follows '/'


def shown(name: bytes) -> str:
  """A name on one line that any terminal and log can print.

  Args:
    name: any bytes.

  Returns:
    The text; what is not printable UTF-8 is escaped.
  """
  text = name.decode('utf-8', 'backslashreplace')
  if text.isprintable():
    return text
  return ''.join(
    c if c.isprintable() else c.encode('unicode_escape').decode() for c in text
  )


def normal(name: bytes) -> bytes:
  """The form (Unicode's NFC) that names are compared in.

  Systems store one accented letter in different bytes: macOS often as a letter
  and a mark, others as one character. Upper and lower case, and blanks, do
  differ.

  Args:
    name: any bytes.

  Returns:
    The form; bytes that are not UTF-8 stay as they are.
  """
  if name.isascii():
    return name
  text = unicodedata.normalize('NFC', name.decode(errors='surrogateescape'))
  return text.encode(errors='surrogateescape')
