"""Where the members of a `.zip` or `.tar` are."""

import array
import collections
import os
import stat
import struct
import tarfile

import tqdm
from absl import logging

from input_pipeline.formats import is_image
from input_pipeline.left_out import LeftOut
from input_pipeline.progress import progress_bar
from input_pipeline.system_names import is_hidden

# How a member is stored: as in zip files, with two of our own.
STORED, DEFLATED, TAR, ENCRYPTED = 0, 8, -1, -2
READABLE = (STORED, DEFLATED, TAR)
_METHODS = {9: 'Deflate64', 12: 'bzip2', 14: 'LZMA', 93: 'zstd', 95: 'xz'}
_TABLES = (b'.csv', b'.tsv')
_ZIP_END, _ZIP64_END, _ZIP64_LOCATOR = b'PK\5\6', b'PK\6\6', b'PK\6\7'
_DAMAGED = (tarfile.TarError, struct.error, EOFError, ValueError)


class DamagedError(ValueError):
  """An archive that is no archive."""


def method_name(method: int) -> str:
  """What to call a way of storing in a message."""
  if method == ENCRYPTED:
    return 'an encrypted member'
  return f'a member compressed with {_METHODS.get(method, f"method {method}")}'


class Members:
  """Images and tables of an archive, and what else was seen.

  Attributes:
    names: paths as bytes, in the order of the archive.
    columns: int64 [n] each: offset, size in the archive, size, method, CRC-32.
    left_out: counts of other files.
    odd: what is no file or cannot be named, counted.
  """

  def __init__(self):
    self.names = []
    self.columns = tuple(array.array('q') for _ in range(5))
    self.left_out, self.odd = LeftOut(), collections.Counter()

  def add(self, name: bytes, *numbers: int) -> None:
    """Notes one file; `numbers` as the columns."""
    parts = [part for part in name.split(b'/') if part not in (b'', b'.')]
    if b'..' in parts:
      self.odd["names with '..'"] += 1
      return
    if not parts:
      return
    hidden = next((i for i, p in enumerate(parts) if is_hidden(p)), None)
    if hidden is not None:
      above = b'/'.join(parts[:hidden])
      images = int(is_image(parts[-1]))
      self.left_out.see_hidden(parts[hidden], images, above)
      return
    if is_image(parts[-1]) or parts[-1].lower().endswith(_TABLES):
      self.names.append(b'/'.join(parts))
      for column, number in zip(self.columns, numbers, strict=True):
        column.append(number)
    if not is_image(parts[-1]):
      self.left_out.see(parts[-1], b'/'.join(parts[:-1]))


def zip_members(file, found: Members) -> None:
  """Reads the central directory of a zip file, zip64 too.

  Args:
    file: `size` and `read(offset, size)`.
    found: what is added to.

  Raises:
    DamagedError: there is none, or it is damaged.
  """
  content, shift, count = _central_directory(file)
  at = 0
  try:
    for _ in tqdm.trange(
      count,
      desc='reading the index of the .zip',
      delay=2,
      leave=False,
      disable=None,
    ):
      if content[at : at + 4] != b'PK\1\2':
        raise DamagedError('the index of the .zip is damaged')
      fields = struct.unpack_from('<2B5HL2L5H2L', content, at + 4)
      system, flags, method, crc = fields[1], fields[3], fields[4], fields[7]
      stored, size, name_size, extra_size, note_size = fields[8:13]
      mode, offset = fields[15] >> 16, fields[16]
      start, at = at + 46, at + 46 + name_size + extra_size + note_size
      name = content[start : start + name_size]
      extra = content[start + name_size : start + name_size + extra_size]
      if 0xFFFFFFFF in (size, stored, offset):
        size, stored, offset = _wide(extra, size, stored, offset)
      name = _zip_name(name, unicode=bool(flags & 0x800))
      if name.endswith(b'/'):
        continue
      if system == 3 and stat.S_ISLNK(mode):
        found.odd['links'] += 1
        continue
      method = ENCRYPTED if flags & 1 else method
      found.add(name, offset + shift, stored, size, method, crc)
  except (struct.error, OverflowError) as error:
    raise DamagedError('the index of the .zip is damaged') from error


def _central_directory(file) -> tuple[bytes, int, int]:
  """Its bytes, what to add to offsets, number of members."""
  tail_size = min(file.size, 22 + 65535 + 20 + 56)
  tail = file.read(file.size - tail_size, tail_size)
  at = tail.rfind(_ZIP_END)
  if at < 0 or len(tail) < at + 22:
    raise DamagedError('no index at the end of the .zip: cut off or damaged')
  count, size, offset = struct.unpack_from('<H2L', tail, at + 10)
  end = file.size - tail_size + at
  if tail[max(at - 20, 0) : at].startswith(_ZIP64_LOCATOR):
    # The record stands right before its locator, whatever precedes the zip.
    record = tail[max(at - 76, 0) : at - 20]
    if not record.startswith(_ZIP64_END):
      raise DamagedError('the index of the .zip is damaged')
    count, size, offset = struct.unpack_from('<3Q', record, 32)
    end -= 76
  shift = end - size - offset  # of something put before the zip
  content = file.read(offset + shift, size) if shift >= 0 else b''
  if shift < 0 or len(content) != size or count * 46 > size:
    raise DamagedError('the index of the .zip is damaged')
  return content, shift, count


def _wide(extra: bytes, *narrow: int) -> list[int]:
  """64-bit numbers for those that did not fit into 32 bits."""
  at = 0
  while at + 4 <= len(extra):
    kind, size = struct.unpack_from('<2H', extra, at)
    if kind == 1:
      values = iter(struct.unpack_from(f'<{size // 8}Q', extra, at + 4))
      return [next(values, n) if n == 0xFFFFFFFF else n for n in narrow]
    at += 4 + size
  return list(narrow)


def _zip_name(name: bytes, *, unicode: bool) -> bytes:
  """As UTF-8, with forward slashes, which programs on Windows may forget."""
  try:
    name.decode('utf-8')  # many tools forget to set the flag
  except UnicodeDecodeError:
    name = name if unicode else name.decode('cp437').encode()
  return name.replace(b'\\', b'/')


def tar_members(file, found: Members) -> None:
  """Reads all headers of an uncompressed tar file.

  Args:
    file: `size`, `read(offset, size)` and `open()`.
    found: what is added to.

  Raises:
    DamagedError: cut off, or headers that cannot be read.
  """
  links, targets = [], {}
  try:
    with (
      file.open() as handle,
      tarfile.open(fileobj=handle, mode='r:') as tar,
      progress_bar('reading the .tar', unit='files', delay=2) as progress,
    ):
      while (info := tar.next()) is not None:
        tar.members.clear()  # it would keep them all
        progress.update()
        name = info.name.encode(errors='surrogateescape')
        if b'/' not in name.removeprefix(b'./'):
          # Of Windows; beside slashes it is part of a name.
          name = name.replace(b'\\', b'/')
        if info.islnk():
          links.append((name, info.linkname.encode(errors='surrogateescape')))
        elif info.issparse():
          found.odd['sparse files'] += 1
        elif info.isreg():
          found.add(name, info.offset_data, info.size, info.size, TAR, 0)
        elif not info.isdir():
          found.odd['links or devices'] += 1
      end = tar.offset
  except _DAMAGED as error:
    raise DamagedError(f'the .tar is cut off or damaged: {error}') from error
  # The reader takes a header that it cannot read for the end.
  mark = file.read(end, 512)
  if mark.strip(b'\0'):
    raise DamagedError(f'the .tar is damaged at byte {end}')
  if len(mark) < 512:
    logging.warning('the .tar has no end mark; members may be cut off')
  if links:
    targets = {name: i for i, name in enumerate(found.names)}
  for name, target in links:
    row = targets.get(os.path.normpath(target).lstrip(b'/'))
    if row is None:
      found.odd['links'] += 1
    else:
      found.add(name, *(column[row] for column in found.columns))
