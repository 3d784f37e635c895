"""safetensors files: 8 bytes of length, a JSON header, the numbers.

The `safetensors` package checks the header (sizes, gaps, overlaps). Values are
read by our own view of the file, since the package gives NumPy copies, and no
8-bit floats. We write ourselves too: the package orders the metadata at
random, so that equal weights give unequal files, and writes arrays with strides
wrongly (0.8.0; huggingface.co/docs/safetensors has the format).
"""

import json
import os
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from interop.mapped import DTYPES, Mapped, Tensor, WeightsError

_LENGTH = struct.Struct('<Q')
_NAMES = {
  'BOOL': 'bool',
  'U8': 'uint8',
  'I8': 'int8',
  'U16': 'uint16',
  'I16': 'int16',
  'F16': 'float16',
  'BF16': 'bfloat16',
  'U32': 'uint32',
  'I32': 'int32',
  'F32': 'float32',
  'U64': 'uint64',
  'I64': 'int64',
  'F64': 'float64',
  'C64': 'complex64',
  'F8_E4M3': 'float8_e4m3fn',
  'F8_E5M2': 'float8_e5m2',
  'F8_E8M0': 'float8_e8m0fnu',
}
_WRITTEN = {DTYPES[name]: short for short, name in _NAMES.items()}
METADATA = '__metadata__'


def read(
  path: os.PathLike | str, file: Mapped
) -> tuple[dict[str, Tensor], dict[str, str]]:
  """({name: Tensor}, metadata) of a safetensors file.

  Args:
    path: where the file is.
    file: the same, mapped.

  Raises:
    WeightsError: damaged, or numbers of a type that NumPy has not.
  """
  import safetensors

  try:
    with safetensors.safe_open(os.fspath(path), 'numpy'):
      pass  # every size and offset was checked
  except Exception as error:  # SafetensorError, or Unicode and OS errors
    raise WeightsError(
      f'not a whole safetensors file ({error})'[:200]
      + ': copy or download it again'
    ) from error
  (length,) = _LENGTH.unpack_from(file.data)
  start = _LENGTH.size + length
  header = json.loads(file.data[_LENGTH.size : start], object_pairs_hook=_once)
  metadata = header.pop(METADATA, None) or {}
  tensors = {}
  for name, about in header.items():
    if about['dtype'] not in _NAMES:
      raise WeightsError(f'{name[:80]!r}: numbers of type {about["dtype"]}')
    dtype = DTYPES[_NAMES[about['dtype']]]
    place = start + about['data_offsets'][0]
    tensors[name] = file.tensor(dtype, tuple(about['shape']), place)
  if not tensors:
    raise WeightsError('no tensors in it, only a header')
  return tensors, metadata


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    raise WeightsError('damaged: its header has a name twice')
  return found


def write(
  path: os.PathLike | str,
  tensors: Mapping[str, np.ndarray],
  metadata: Mapping[str, str],
) -> None:
  """Writes a file; equal contents give equal bytes.

  Args:
    path: a local file, written in place.
    tensors: arrays by name; any strides.
    metadata: strings by name.

  Raises:
    WeightsError: a type or a name that the format has not.
  """
  arrays = {name: np.asarray(tensors[name]) for name in sorted(tensors)}
  header, at = {}, 0
  if metadata:
    header[METADATA] = {key: metadata[key] for key in sorted(metadata)}
    if not all(type(v) is str for v in (*metadata, *metadata.values())):
      raise WeightsError('safetensors metadata are strings')
  # Wide numbers first keep every array aligned.
  order = sorted(arrays, key=lambda name: -arrays[name].dtype.itemsize)
  for name in order:
    x = arrays[name]
    if x.dtype.newbyteorder('=') not in _WRITTEN or name == METADATA:
      raise WeightsError(f'safetensors has no place for {name!r}, {x.dtype}')
    header[name] = dict(
      dtype=_WRITTEN[x.dtype.newbyteorder('=')],
      shape=list(x.shape),
      data_offsets=[at, at + x.nbytes],
    )
    at += x.nbytes
  text = json.dumps(header, separators=(',', ':'), ensure_ascii=False).encode()
  text += b' ' * (-len(text) % 8)
  with open(path, 'wb') as file:
    file.write(_LENGTH.pack(len(text)) + text)
    for name in order:
      x = arrays[name].astype(arrays[name].dtype.newbyteorder('<'), copy=False)
      # As bytes: Python's buffers know no bfloat16.
      file.write(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)
