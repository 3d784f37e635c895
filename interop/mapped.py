"""A file of weights whose bytes are looked at only when they are needed.

The file is mapped, not read: a tensor is a view of its place in it, and the
system brings the pages when somebody computes with them. A file that another
program cuts short while it is mapped ends this one (a bus error): replace
files by renaming.
"""

import dataclasses
import math
import mmap
import os
from collections.abc import Callable

import ml_dtypes
import numpy as np

MAX_RANK = 32
MAX_NUMBER = 2**62  # of anything in a file; what is beyond was never saved
# The names that torch gives its types, which safetensors shortens.
DTYPES = {
  'bool': np.dtype(bool),
  'uint8': np.dtype(np.uint8),
  'uint16': np.dtype(np.uint16),
  'uint32': np.dtype(np.uint32),
  'uint64': np.dtype(np.uint64),
  'int8': np.dtype(np.int8),
  'int16': np.dtype(np.int16),
  'int32': np.dtype(np.int32),
  'int64': np.dtype(np.int64),
  'float16': np.dtype(np.float16),
  'float32': np.dtype(np.float32),
  'float64': np.dtype(np.float64),
  'bfloat16': np.dtype(ml_dtypes.bfloat16),
  'float8_e4m3fn': np.dtype(ml_dtypes.float8_e4m3fn),
  'float8_e5m2': np.dtype(ml_dtypes.float8_e5m2),
  'float8_e8m0fnu': np.dtype(ml_dtypes.float8_e8m0fnu),
  'complex64': np.dtype(np.complex64),
  'complex128': np.dtype(np.complex128),
}


class WeightsError(ValueError):
  """Weights that cannot be read: one line with the way out."""


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A named array that was not read yet.

  Attributes:
    shape: its sizes.
    dtype: bfloat16 and 8-bit floats are those of `ml_dtypes`.
    read: gives the values, [*shape] of dtype, read-only; where possible a view
      of the file that takes no memory. Raises WeightsError where the file
      knows that these bytes were changed.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]


class Mapped:
  """A local file, mapped into memory.

  Args:
    path: where it is.
    name: what messages call it.

  Attributes:
    name: as given.
    data: its bytes; also a file to read and seek in.

  Raises:
    WeightsError: it is empty.
  """

  def __init__(self, path: os.PathLike | str, name: str):
    self.name = name
    with open(path, 'rb') as file:
      if not os.fstat(file.fileno()).st_size:
        raise WeightsError('the file is empty: copy or download it again')
      self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

  def __len__(self) -> int:
    return len(self.data)

  def tensor(
    self,
    dtype: np.dtype,
    shape: tuple[int, ...],
    start: int,
    *,
    steps: tuple[int, ...] | None = None,
    check: Callable[[], None] = lambda: None,
  ) -> Tensor:
    """The array at a place of the file.

    Args:
      dtype: of its elements.
      shape: sizes.
      start: byte at which its first element stands.
      steps: elements to go for the next one, per axis; row by row if None.
      check: called before values are given; raises if they cannot be trusted.

    Raises:
      WeightsError: sizes that no array has, or it does not lie in the file.
    """
    numbers = (start, *shape, *(steps or ()))
    if len(shape) > MAX_RANK or not all(map(is_count, numbers)):
      raise WeightsError('damaged: a tensor has impossible sizes')
    if steps is None:
      steps = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    count = math.prod(shape)
    extent = sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
    end = start + (extent + 1) * dtype.itemsize if count else start
    # A step of 0 repeats elements: a few bytes could stand for any size.
    if end > len(self) or count * dtype.itemsize > len(self):
      raise WeightsError('damaged: a tensor is larger than its file')
    if math.prod(n or 1 for n in shape) * dtype.itemsize > MAX_NUMBER:
      raise WeightsError('damaged: a tensor has impossible sizes')
    steps = tuple(step * dtype.itemsize for step in steps)

    def read():
      check()
      if count:
        return np.ndarray(shape, dtype, self.data, start, steps)
      nothing = np.zeros(shape, dtype)
      nothing.setflags(write=False)
      return nothing

    return Tensor(shape, dtype, read)


def is_count(number: object) -> bool:
  """Whether it is an integer that a size or an offset can be."""
  return type(number) is int and 0 <= number <= MAX_NUMBER
