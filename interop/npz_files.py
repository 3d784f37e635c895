"""NumPy's .npz: a zip archive of one .npy per array; nothing is unpickled."""

import functools
import io
import math
import os
import zipfile
import zlib
from collections.abc import Collection, Mapping

import numpy as np
from numpy.lib import format as npy

from interop import archive
from interop.mapped import MAX_RANK, Mapped, Tensor, WeightsError, is_count

_HEADER = 2**16  # bytes in which a .npy's header must lie
_SUFFIX = '.npy'
_HEADERS = {
  (1, 0): npy.read_array_header_1_0,
  (2, 0): npy.read_array_header_2_0,
}


def is_npz(names: Collection[str]) -> bool:
  """Whether a zip archive with these entries is NumPy's."""
  return bool(names) and all(name.endswith(_SUFFIX) for name in names)


def read(file: Mapped, found: dict[str, archive.Entry]) -> dict[str, Tensor]:
  """{name: Tensor} of a zip archive with these entries.

  Arrays of text are left out.

  Raises:
    WeightsError: damaged, or Python objects in it.
  """
  tensors, others = {}, []
  for name, entry in found.items():
    tensor = _tensor(file, entry)
    if tensor is None:
      others.append(name.removesuffix(_SUFFIX))
    else:
      tensors[name.removesuffix(_SUFFIX)] = tensor
  if not tensors:
    raise WeightsError(f'no numbers in it, only {", ".join(others[:8])[:200]}')
  return tensors


def _tensor(file: Mapped, entry: archive.Entry) -> Tensor | None:
  try:
    head = _head(file, entry)
    shape, by_column, dtype = _HEADERS[npy.read_magic(head)](head)
  except Exception as error:  # any byte of it may be broken, in any way
    raise WeightsError(f'{entry.name[:80]!r} is {archive.AGAIN}') from error
  if dtype.hasobject:
    raise WeightsError(
      f'refused: {entry.name[:80]!r} holds Python objects; save plain arrays'
    )
  if dtype.kind not in 'biufc':
    archive.contents(file, entry)  # or is it only a damaged header?
    return None
  begin = head.tell()
  counts = len(shape) <= MAX_RANK and all(map(is_count, shape))
  if not counts or begin + math.prod(shape) * dtype.itemsize != entry.size:
    raise WeightsError(f'{entry.name[:80]!r} is {archive.AGAIN}')
  if entry.packed:
    order = 'F' if by_column else 'C'

    def unpack():
      data = archive.contents(file, entry)
      return np.ndarray(shape, dtype, data, begin, order=order)

    return Tensor(shape, dtype, unpack)
  steps, step = [], 1
  for n in shape if by_column else reversed(shape):
    steps.append(step)
    step *= n
  return file.tensor(
    dtype,
    shape,
    entry.start + begin,
    steps=tuple(steps if by_column else reversed(steps)),
    check=functools.cache(functools.partial(archive.check, file, entry)),
  )


def _head(file: Mapped, entry: archive.Entry) -> io.BytesIO:
  end = entry.start + min(entry.stored, _HEADER)
  data = file.data[entry.start : end]
  if entry.packed:
    data = zlib.decompressobj(-15).decompress(data, _HEADER)
  return io.BytesIO(data)


def write(path: os.PathLike | str, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes a file; equal contents give equal bytes.

  Args:
    path: a local file, written in place.
    tensors: arrays by name.

  Raises:
    WeightsError: a type that NumPy's own files have not (bfloat16).
  """
  arrays = {name: np.asarray(tensors[name]) for name in sorted(tensors)}
  for name, x in arrays.items():
    if x.dtype.kind not in 'biufc':
      raise WeightsError(
        f'{name!r}: npz has no {x.dtype}; write safetensors, or cast to float32'
      )
  with zipfile.ZipFile(path, 'w') as target:  # np.savez takes the clock's time
    for name, x in arrays.items():
      entry = zipfile.ZipInfo(name + _SUFFIX)
      with target.open(entry, 'w', force_zip64=True) as file:
        npy.write_array(file, x, allow_pickle=False)
