"""Images in a `.zip` or `.tar`, read in place.

The members' positions are found out once and kept (see `cache`) as long as the
archive has the same size and time stamp. Reading is one `pread` for each image,
from any number of threads.
"""

import json
import os
import struct
import threading
import weakref
import zlib

import numpy as np
from absl import logging
from etils import epath

from input_pipeline import cache, members
from input_pipeline.formats import EXTENSIONS, is_image
from input_pipeline.left_out import LeftOut
from input_pipeline.listing import is_remote
from input_pipeline.names import Listing, Names, shown
from input_pipeline.source import Stamps
from input_pipeline.tree import descend

_FORMAT = f'2 {EXTENSIONS}'  # of the cached indices
_COLUMNS = ('offset', 'stored', 'size', 'method', 'crc')
_PARTS = ('images', 'tables')
_COMPRESSED = {
  b'\x1f\x8b': 'gzip',
  b'BZh': 'bzip2',
  b'\xfd7zXZ': 'xz',
  b'\x28\xb5\x2f\xfd': 'zstd',
  b'7z\xbc\xaf': '7-Zip',
  b'Rar!': 'RAR',
}


def open_archive(path: str) -> 'Archive':
  """Opens a `.zip` or an uncompressed `.tar`.

  Args:
    path: absolute path or URL.

  Returns:
    Its images.

  Raises:
    ValueError: another kind of file, or damaged.
    OSError: it cannot be read.
  """
  file = _Remote(path) if is_remote(path) else _Local(path)
  start = file.read(0, 512)
  lower = path.lower()
  for magic, kind in _COMPRESSED.items():
    if start.startswith(magic):
      raise ValueError(
        f'{shown(os.fsencode(path))}: a {kind} archive cannot be read in '
        'place; unpack it, or pack the folder as .zip or uncompressed .tar'
      )
  if lower.endswith('.npz'):
    raise ValueError(f"{path}: for .npz files use the source 'arrays'")
  if start.startswith((b'PK\3\4', b'PK\5\6')) or lower.endswith('.zip'):
    return Archive(path, file, members.zip_members)
  if start[257:262] == b'ustar' or lower.endswith('.tar'):
    return Archive(path, file, members.tar_members)
  raise ValueError(
    f'data_dir {shown(os.fsencode(path))} is neither a folder of images nor a '
    '.zip or .tar of one'
  )


class Archive:
  """See `tree.Tree`; folders that hold all images alone are not counted."""

  def __init__(self, path: str, file, find_members):
    """Reads or makes the index.

    Args:
      path: absolute path or URL.
      file: `_Local` or `_Remote`.
      find_members: of `members`.
    """
    self.name, self._file = shown(os.fsencode(path)), file
    self.root = path  # tables lie beside the archive or in it
    self._index = _load_index(path, file, find_members)
    left_out = LeftOut.from_json(str(self._index['left_out']))
    names = Names.from_arrays(self._index, 'images')

    def look(above):
      folders, loose = Listing(names, left_out, prefix=above).folders()
      return list(folders), loose is not None

    images = Listing(names, left_out, prefix=descend(look)[0])
    self._all, self._tables = images, Names.from_arrays(self._index, 'tables')

  def folders(self) -> list[bytes]:
    """See `Tree`."""
    return sorted(self._all.folders()[0])

  def listing(self, folder: bytes = b'') -> Listing:
    """See `Tree`."""
    return self._all.within(folder) if folder else self._all

  def table(self, path: str) -> bytes | None:
    """See `Tree`; looked for in the archive, then beside it."""
    above = self._all.above.split(b'/')[:-1]
    tables = Listing(self._tables, LeftOut())
    for depth in range(len(above), -1, -1):
      name = b'/'.join((*above[:depth], os.fsencode(path)))
      index = tables.find(name)
      if index is not None:
        return self._content('tables', index)
    if is_remote(self.root):
      beside = epath.Path(self.root).parent / path
    else:
      beside = epath.Path(os.path.dirname(self.root)) / path
    return beside.read_bytes() if beside.exists() else None

  def read(self, images: Listing, index: int) -> bytes:
    """See `Tree`."""
    return self._content('images', images.start + index)

  def stamps(self, images: Listing, rows: np.ndarray) -> Stamps:
    """See `Tree`; a `.zip` has checksums, a `.tar` has none."""
    rows = images.start + np.asarray(rows)
    sizes = self._index['images_size'][rows]
    checksums = self._index['images_crc'][rows]
    methods = self._index['images_method'][rows]
    return Stamps(
      content=np.stack([sizes, checksums]),
      times=np.array([self._file.mtime_ns]),
      size=int(sizes.sum()),
      whole=bool((methods != members.TAR).all()),
    )

  def _content(self, part: str, index: int) -> bytes:
    offset, stored, size, method, crc = (
      int(self._index[f'{part}_{column}'][index]) for column in _COLUMNS
    )
    if method not in members.READABLE:
      raise OSError(f'{members.method_name(method)} cannot be read')
    if method == members.TAR:
      content = self._file.read(offset, size)
      if len(content) < size:
        raise OSError('the archive is cut off')
      return content
    # Its lengths of name and extra field may differ from the central ones.
    header = self._file.read(offset, 30)
    if len(header) < 30 or header[:4] != b'PK\3\4':
      raise OSError('no member of the archive where it should be')
    offset += 30 + sum(struct.unpack('<2H', header[26:]))
    content = self._file.read(offset, stored)
    if method == members.DEFLATED:
      try:  # bounded: a few bytes may claim to be gigabytes
        content = zlib.decompressobj(-15).decompress(content, size + 1)
      except (zlib.error, OverflowError, MemoryError) as error:
        raise OSError(f'damaged in the archive: {error}') from error
    if len(content) != size or zlib.crc32(content) != crc:
      raise OSError('damaged in the archive: length or checksum differs')
    return content


def _load_index(path: str, file, find_members) -> dict[str, np.ndarray]:
  """The kept index, or a new one."""
  about = json.dumps([_FORMAT, file.size, file.mtime_ns])
  name = shown(os.fsencode(os.path.basename(path)))
  kept_at = cache.cache_file('index', name, digest=path)
  columns = (*_COLUMNS, 'blob', 'ends')
  keys = tuple(f'{part}_{column}' for part in _PARTS for column in columns)
  kept = cache.read_arrays(kept_at, (*keys, 'left_out', 'about'))
  if kept is not None and str(kept['about']) == about:
    return kept
  index = _make_index(path, file, find_members)
  index['about'] = np.array(about)
  if cache.settled(file.mtime_ns):
    cache.write_arrays(kept_at, **index)
  return index


def _make_index(path: str, file, find_members) -> dict[str, np.ndarray]:
  found = members.Members()
  try:
    find_members(file, found)
  except members.DamagedError as error:
    raise ValueError(
      f'{shown(os.fsencode(path))}: {error}; copy or pack it again'
    ) from error
  names = found.names
  if found.odd:
    text = ', '.join(f'{n} {kind}' for kind, n in found.odd.items())
    logging.warning('%s: left out: %s', shown(os.fsencode(path)), text)
  # Of members with one name the last counts, as when unpacking.
  order = sorted(range(len(names)), key=names.__getitem__)
  order = [
    i
    for i, after in zip(order, (*order[1:], None), strict=False)
    if after is None or names[i] != names[after]
  ]
  if len(order) < len(names):
    logging.warning(
      '%s: %d members bear the name of a later one',
      shown(os.fsencode(path)),
      len(names) - len(order),
    )
  index = {'left_out': np.array(found.left_out.to_json())}
  for part in _PARTS:
    rows = [i for i in order if is_image(names[i]) == (part == 'images')]
    index |= Names.of(names[i] for i in rows).to_arrays(part)
    for column, values in zip(_COLUMNS, found.columns, strict=True):
      values = np.frombuffer(values, np.int64) if values else np.zeros(0, int)
      index[f'{part}_{column}'] = values[np.array(rows, np.int64)]
  methods = index['images_method']
  if len(methods) and not np.isin(methods, members.READABLE).any():
    raise ValueError(
      f'{shown(os.fsencode(path))}: no image can be read: '
      f'{members.method_name(int(methods[0]))}; pack it again'
    )
  return index


class _Local:
  """A file that any thread may read at any place."""

  def __init__(self, path: str):
    self._number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    weakref.finalize(self, os.close, self._number)
    status = os.fstat(self._number)
    self.size, self.mtime_ns = status.st_size, status.st_mtime_ns
    self.path = path

  def read(self, offset: int, size: int) -> bytes:
    """At most `size` bytes; fewer at the end of the file."""
    parts = []
    size = min(size, self.size - offset)  # damaged numbers may be huge
    while size > 0:  # a call returns 2 GiB at most
      part = os.pread(self._number, size, offset)
      if not part:
        break
      parts.append(part)
      offset, size = offset + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b''.join(parts)

  def open(self):
    """A file object of its own."""
    return open(self.path, 'rb')


class _Remote:
  """As `_Local`, with a handle for each thread."""

  def __init__(self, path: str):
    self._path, self._threads = epath.Path(path), threading.local()
    status = self._path.stat()
    self.size, self.mtime_ns = status.length, int(status.mtime) * 10**9

  def read(self, offset: int, size: int) -> bytes:
    """At most `size` bytes; fewer at the end of the file."""
    try:
      if not hasattr(self._threads, 'handle'):
        self._threads.handle = _Handle(self.open())
      file = self._threads.handle.file
      size = min(size, self.size - offset)
      file.seek(offset)
      return file.read(size) if size > 0 else b''
    except Exception as error:  # each kind of store has errors of its own
      raise OSError(f'{type(error).__name__}: {error}') from error

  def open(self):
    """A file object of its own, to be used in a `with` statement."""
    return self._path.open('rb')


class _Handle:
  """A file that is open as long as its thread lives."""

  def __init__(self, opener):
    self.file = opener.__enter__()
    weakref.finalize(self, opener.__exit__, None, None, None)
