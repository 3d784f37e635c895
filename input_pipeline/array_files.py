"""Arrays in `.npy` and `.npz` files, which may state more than they hold.

A header of a few bytes can state a shape of terabytes, and a few packed
kilobytes can unpack to gigabytes, so sizes are compared before memory is taken.
"""

import io
import math
import os
import zipfile
import zlib
from collections.abc import Callable
from typing import BinaryIO

import numpy as np

_DEFLATE = 1032  # bytes that one packed byte yields at most
_HEADER = 2**16  # bytes that a header may take
_HEADERS = {
  (1, 0): np.lib.format.read_array_header_1_0,
  (2, 0): np.lib.format.read_array_header_2_0,
}
_BROKEN = (
  OSError,
  ValueError,
  EOFError,
  KeyError,
  TypeError,
  NotImplementedError,  # of a flipped bit: another compression
  RuntimeError,  # encrypted
  OverflowError,
  zipfile.BadZipFile,
  zlib.error,
)


class ArrayFileError(ValueError):
  """An array that is not what its header states, or that cannot be held."""


def read_npy(data: bytes) -> np.ndarray:
  """The array in the bytes of an `.npy` file, not copied.

  Args:
    data: bytes of the file.

  Returns:
    The array, which cannot be written to.

  Raises:
    ArrayFileError: an array of objects, or fewer bytes than the header states.
    ValueError: no `.npy` file.
  """
  file = io.BytesIO(data)
  shape, by_columns, dtype = _header(file)
  start, size = file.tell(), math.prod(shape) * dtype.itemsize
  _check_size(shape, dtype, size, len(data) - start)
  order = 'F' if by_columns else 'C'
  return np.ndarray(shape, dtype, data, start, order=order)


def read_npz(
  path: str | os.PathLike, wanted: Callable[[list[str]], set[str]]
) -> tuple[dict[str, np.ndarray], list[str]]:
  """Some of the arrays in an `.npz` file.

  Args:
    path: of the file.
    wanted: names of arrays in the file -> names of those to read.

  Returns:
    (the arrays by name, the names of all arrays in the file).

  Raises:
    ValueError: in one line with the path: no `.npz` file, damaged, an array of
      objects, an array that does not fit into this machine's memory.
  """
  try:
    with zipfile.ZipFile(path) as file:
      members = {
        info.filename.removesuffix('.npy'): info for info in file.infolist()
      }
      packed = os.stat(path).st_size
      found = {}
      for name in sorted(wanted(list(members)) & members.keys()):
        found[name] = _read_member(file, members[name], name, packed)
      return found, list(members)
  except ArrayFileError as error:
    raise ValueError(f'{path}: {error}') from error
  except MemoryError as error:
    raise ValueError(f'{path}: {_too_large("an array")}') from error
  except _BROKEN as error:
    text = ' '.join(str(error).split())[:200] or type(error).__name__
    raise ValueError(f'{path}: not a readable .npz file: {text}') from error


def _read_member(
  file: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, packed: int
) -> np.ndarray:
  """One array; `packed` is the size of the whole file in bytes."""
  if info.compress_size > packed:
    raise ArrayFileError(f'{name!r} is cut off')
  with file.open(info) as member:
    shape, by_columns, dtype = _header(member, name)
    size = math.prod(shape) * dtype.itemsize
    held = min(info.file_size, _DEFLATE * info.compress_size) - member.tell()
    _check_size(shape, dtype, size, held, name)
    if size > _memory():
      raise ArrayFileError(_too_large(f'{name!r}', size))
    flat = np.empty(size, np.uint8)
    view, at = memoryview(flat), 0
    while at < size:
      count = member.readinto(view[at : at + 2**24])
      if not count:
        raise ArrayFileError(f'{name!r} is cut off or damaged')
      at += count
    if member.read(1):
      raise ArrayFileError(f'{name!r} holds more than its header states')
  order = 'F' if by_columns else 'C'
  return np.ndarray(shape, dtype, flat, order=order)


def _header(
  file: BinaryIO, name: str = ''
) -> tuple[tuple[int, ...], bool, np.dtype]:
  """(shape, whether it is stored column by column, dtype)."""
  version = np.lib.format.read_magic(file)
  if version not in _HEADERS:
    raise ValueError(f'version {version} of the .npy format')
  try:
    shape, by_columns, dtype = _HEADERS[version](file, max_header_size=_HEADER)
  except (OSError, ValueError):
    raise
  except Exception as error:  # of the parser of Python's literals: several
    raise ValueError(f'no header: {error}') from error
  if dtype.hasobject:
    raise ArrayFileError(
      f'{_named(name)}Object arrays cannot be loaded: they may run code; save '
      'numbers or texts of one type, such as with .astype(int) or .astype(str)'
    )
  if any(side < 0 for side in shape):
    raise ArrayFileError(f'{_named(name)}the header states {list(shape)}')
  return shape, by_columns, dtype


def _check_size(
  shape: tuple[int, ...],
  dtype: np.dtype,
  stated: int,
  held: int,
  name: str = '',
) -> None:
  """Raises `ArrayFileError` if a header states more than there is."""
  if stated > held:
    raise ArrayFileError(
      f'{_named(name)}the header states {dtype} {list(shape)}, {stated:,} '
      f'bytes, but at most {max(held, 0):,} follow: cut off or damaged'
    )


def _named(name: str) -> str:
  return f'{name!r}: ' if name else ''


def _too_large(what: str, size: int | None = None) -> str:
  takes = f'takes {size / 2**30:,.1f} GiB, which' if size else ''
  return ' '.join(
    f'{what} {takes} does not fit into the memory of this machine '
    f'({_memory() / 2**30:,.1f} GiB); save smaller images, or save them as '
    "files in a folder and use the word 'folder'".split()
  )


def _memory() -> int:
  """Bytes of this machine's memory."""
  return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
