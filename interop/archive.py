"""Zip archives of weights (PyTorch, NumPy): where each entry's bytes lie.

The directory comes from the standard library; every claim it makes about
places and sizes is checked against the file before anything is looked at.
Nothing is ever unpacked to the disk.
"""

import dataclasses
import struct
import zipfile
import zlib

from interop.mapped import Mapped, WeightsError

AGAIN = 'damaged or not complete: copy or download it again'
MAX_RATIO = 1100  # deflate saves at most a factor of 1032
_HEADER = struct.Struct('<4s5H3L2H')  # local file header (APPNOTE 4.3.7)
_END = struct.Struct('<4s4H2LH')  # end of central directory (4.3.16)
_MANY = 2**16 - 1  # entries, or more: another record would say how many
_ENCRYPTED, _UTF8 = 0x1, 0x800


@dataclasses.dataclass(frozen=True)
class Entry:
  """One file of an archive.

  Attributes:
    name: its name there.
    start: byte of the archive at which its bytes begin.
    stored: how many bytes it takes in the archive.
    size: how many it has when unpacked.
    packed: whether it is compressed.
    crc: checksum of the unpacked bytes; 0 where the writer made none.
  """

  name: str
  start: int
  stored: int
  size: int
  packed: bool
  crc: int


def entries(file: Mapped) -> dict[str, Entry]:
  """{name: entry} in the order of the archive's directory.

  Raises:
    WeightsError: damaged, encrypted, or an unknown kind of compression.
  """
  try:
    with zipfile.ZipFile(file.data) as archive:
      listed = archive.infolist()
    end = _END.unpack(file.data[-_END.size :])
  except Exception as error:  # any byte of it may be broken, in any way
    raise WeightsError(f'the zip archive is {AGAIN}') from error
  # A broken length may hide entries in the comment of the one before.
  if end[0] != b'PK\5\6' or end[4] not in (len(listed), _MANY):
    raise WeightsError(f'the zip archive is {AGAIN}')
  found = {}
  for info in listed:
    if info.filename in found:
      raise WeightsError(f'damaged: two entries {info.filename[:80]!r}')
    found[info.filename] = _locate(file, info)
  return found


def _locate(file: Mapped, info: zipfile.ZipInfo) -> Entry:
  name = info.filename
  at = info.header_offset
  if not 0 <= at <= len(file) - _HEADER.size:
    raise WeightsError(f'entry {name[:80]!r} is {AGAIN}')
  header = _HEADER.unpack_from(file.data, at)
  start = at + _HEADER.size
  raw = file.data[start : start + header[9]]
  encoding = 'utf-8' if info.flag_bits & _UTF8 else 'cp437'
  start += header[9] + header[10]
  fits = start + info.compress_size <= len(file)
  same = raw == info.orig_filename.encode(encoding, 'replace')
  if header[0] != b'PK\3\4' or not (fits and same):
    raise WeightsError(f'entry {name[:80]!r} is {AGAIN}')
  if info.flag_bits & _ENCRYPTED:
    raise WeightsError(f'entry {name[:80]!r} is encrypted')
  packed = info.compress_type == zipfile.ZIP_DEFLATED
  if not packed and info.compress_type != zipfile.ZIP_STORED:
    raise WeightsError(f'entry {name[:80]!r}: unknown compression')
  if not packed and info.compress_size != info.file_size:
    raise WeightsError(f'entry {name[:80]!r} is {AGAIN}')
  if packed and info.file_size > MAX_RATIO * info.compress_size:
    raise WeightsError(f'damaged: entry {name[:80]!r} cannot be so large')
  return Entry(
    name, start, info.compress_size, info.file_size, packed, info.CRC
  )


def check(file: Mapped, entry: Entry, data: bytes | None = None) -> None:
  """Compares unpacked bytes (those in the file if None) with their checksum.

  Raises:
    WeightsError: they were changed; the message names file and entry.
  """
  if data is None:
    data = memoryview(file.data)[entry.start : entry.start + entry.stored]
  if entry.crc and zlib.crc32(data) != entry.crc:
    raise WeightsError(f'{file.name}: entry {entry.name[:80]!r} is {AGAIN}')


def contents(file: Mapped, entry: Entry) -> bytes:
  """An entry's bytes, unpacked and checked.

  Raises:
    WeightsError: they are not what the directory says.
  """
  data = file.data[entry.start : entry.start + entry.stored]
  if entry.packed:
    try:
      # One byte more than promised would show that there are more.
      data = zlib.decompressobj(-15).decompress(data, entry.size + 1)
    except zlib.error as error:
      raise WeightsError(
        f'{file.name}: entry {entry.name[:80]!r} is {AGAIN}'
      ) from error
  if len(data) != entry.size:
    raise WeightsError(f'{file.name}: entry {entry.name[:80]!r} is {AGAIN}')
  check(file, entry, data)
  return data
