"""Files of `torch.save` and `torch.jit.save`, read without torch.

Since torch 1.6 such a file is a zip archive: one pickle, `NAME/data.pkl`, and
the bytes of each storage, `NAME/data/KEY`, uncompressed. Before, it was a row
of pickles with the storages behind (torch/serialization.py, `_legacy_save`).
"""

import functools
import io
import struct
from collections.abc import Callable, Collection, Iterable
from typing import Any

from interop import archive
from interop.mapped import Mapped, Tensor, WeightsError
from interop.pickled import Inert
from interop.torch_views import TORCHSCRIPT, Storage, View, describe, machine

MAX_PICKLE = 2**26  # bytes; a large checkpoint with its optimiser: 2**22
MAX_DEPTH, MAX_NAME = 32, 512
MAX_VISITS, MAX_TENSORS = 10_000_000, 100_000
# The first pickle of the old format: protocol 2, one number.
OLD_MAGIC = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'
_OLD_VERSION = 1001
_COUNT = struct.Struct('<q')

# Gives the byte where a storage begins and a check of its bytes.
_Place = Callable[[Storage], tuple[int, Callable[[], None]]]


def is_torch(names: Collection[str]) -> bool:
  """Whether a zip archive with these entries is a file of torch."""
  return any(name.endswith('/data.pkl') for name in names)


def read_zip(file: Mapped, found: dict[str, archive.Entry]) -> dict:
  """{name: Tensor} of a zip archive with these entries.

  Raises:
    WeightsError: damaged, without tensors, or more than tensors is needed.
  """
  roots = [n for n in found if n.endswith('/data.pkl') and n.count('/') == 1]
  if len(roots) != 1:
    raise WeightsError(f'damaged: {len(roots)} pickles in the archive')
  folder = roots[0].removesuffix('data.pkl')
  pickle = found[roots[0]]
  if pickle.size > MAX_PICKLE or pickle.packed:
    raise WeightsError('refused: torch.save writes no such data.pkl')
  order = found.get(f'{folder}byteorder')
  if order and archive.contents(file, order) != b'little':
    raise WeightsError('refused: a big-endian file; save it on another machine')
  value = machine({}).run(io.BytesIO(archive.contents(file, pickle)))
  checks = {}

  def place(storage):
    entry = found.get(f'{folder}data/{storage.key}')
    if entry is None or entry.packed or entry.size < storage.nbytes:
      raise WeightsError(f'storage {storage.key[:40]!r} is {archive.AGAIN}')
    if storage.key not in checks:  # once per storage, not per view
      checks[storage.key] = functools.cache(
        functools.partial(archive.check, file, entry)
      )
    return entry.start, checks[storage.key]

  return _tensors(file, value, place)


def read_old(file: Mapped) -> dict[str, Tensor]:
  """{name: Tensor} of a file from before torch 1.6.

  Raises:
    WeightsError: damaged, without tensors, or more than tensors is needed.
  """
  storages = {}
  stream, reader = file.data, machine(storages)
  stream.seek(len(OLD_MAGIC))
  version, system = reader.run(stream), reader.run(stream)
  if version != _OLD_VERSION or type(system) is not dict:
    raise WeightsError(f'the file is {archive.AGAIN}')
  if system.get('little_endian') is not True:
    raise WeightsError('refused: a big-endian file; save it on another machine')
  value, keys = reader.run(stream), reader.run(stream)
  starts = _old_starts(file, keys, storages)

  def place(storage):
    if storage.key not in starts:
      raise WeightsError(f'storage {storage.key[:40]!r} is {archive.AGAIN}')
    return starts[storage.key], lambda: None

  return _tensors(file, value, place)


def _old_starts(
  file: Mapped, keys: Any, storages: dict[str, Storage]
) -> dict[str, int]:
  """Where each storage begins: one after the other, each after its count."""
  starts, at = {}, file.data.tell()
  if type(keys) is not list or not all(type(key) is str for key in keys):
    raise WeightsError(f'the file is {archive.AGAIN}')
  for key in keys:
    storage, head = storages.get(key), file.data[at : at + _COUNT.size]
    known = storage and len(head) == _COUNT.size
    if not known or _COUNT.unpack(head) != (storage.count,):
      raise WeightsError(f'the file is {archive.AGAIN}')
    starts[key] = at + _COUNT.size
    at = starts[key] + storage.nbytes
  if at > len(file):
    raise WeightsError(f'the file is {archive.AGAIN}')
  return starts


def _tensors(file: Mapped, value: Any, place: _Place) -> dict[str, Tensor]:
  tensors = {}
  for name, view in _views(value).items():
    start, check = place(view.storage)
    start += view.offset * view.dtype.itemsize
    tensors[name] = file.tensor(
      view.dtype, view.shape, start, steps=view.steps, check=check
    )
  if not tensors:
    raise WeightsError(f'no named tensors in it; it is {describe(value)}')
  return tensors


def _views(value: Any) -> dict[str, View]:
  """Tensors in the order of the file; keys are joined by '.'.

  A pickle may hold one dict at many places or inside itself, so depth, visits
  and tensors are all bounded.
  """
  found, visits = {}, 0

  def walk(value, path):
    nonlocal visits
    visits += len(value)
    many = visits > MAX_VISITS or len(found) > MAX_TENSORS
    if len(path) > MAX_DEPTH or many:
      raise WeightsError('refused: it is nested too deeply or too often')
    for key, child in _children(value):
      if type(child) is Inert and child.kind.startswith(TORCHSCRIPT):
        child = child.fields
      if type(child) is View:
        keys = (*path, str(key))
        if sum(map(len, keys)) > MAX_NAME:
          raise WeightsError('damaged: the name of a tensor is too long')
        name = '.'.join(keys)
        if name in found:
          raise WeightsError(f'two tensors are called {name!r}')
        found[name] = child
      elif type(child) in (dict, list, tuple):
        walk(child, (*path, str(key)))

  if type(value) is Inert and value.kind.startswith(TORCHSCRIPT):
    value = value.fields
  if type(value) in (dict, list, tuple):
    walk(value, ())
  return found


def _children(value: dict | list | tuple) -> Iterable[tuple[Any, Any]]:
  if type(value) is dict:
    return ((k, v) for k, v in value.items() if type(k) in (str, int))
  return enumerate(value)
