"""Image files without what is not needed for their pixels.

EXIF, colour profiles, texts and comments are optional, and often broken or
huge. Viewers show such an image, so they must not make it unreadable: Pillow
receives PNG files without them, other files where it fails with them.
"""

import dataclasses
import io
import re
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence

from PIL import Image

_PNG = b'\x89PNG\r\n\x1a\n'
_MAX_TEXT = 2**20  # unpacked bytes of a text that are searched
# Shortest transparent colour by the type of colour: of grey, RGB, palettes.
_TRANSPARENT = {0: 2, 2: 6, 3: 1}

# Of TIFF: the tags that pixels depend on, and the orientation.
_TIFF_PIXELS = {*range(254, 263), 266, *range(273, 282), 284, 292, 293, 301}
_TIFF_PIXELS |= {317, *range(320, 326), 330, 332, 334, *range(336, 342), 347}
_TIFF_PIXELS |= {*range(512, 522), *range(529, 533)}


def open_image(
  data: bytes, formats: Sequence[str], *, header: bool = False
) -> Image.Image:
  """Opens an image file; decodes nothing.

  Args:
    data: bytes of the file.
    formats: that Pillow may take it for.
    header: True if the pixels are not going to be read; PNG files, which are
      copied, are not copied then.

  Returns:
    The image; `info` holds 'exif' and 'xmp' as bytes if the file has them,
    wherever in the file they are.

  Raises:
    Exception: as `Image.open`.
  """
  png = _parse_png(data) if data.startswith(_PNG) else None
  if png is None:
    return Image.open(io.BytesIO(data), formats=formats)
  if header:  # Pillow reads as far as here
    pixels = data[png.start : png.start + 8]
  else:
    pixels = data[png.start : png.stop] + png.end
  image = Image.open(io.BytesIO(png.head + pixels), formats=formats)
  image.info.update(png.info)
  if header:
    image.n_frames = png.frames
  return image


def without_metadata(data: bytes) -> tuple[bytes, dict[str, bytes]] | None:
  """The same pixels without optional metadata.

  Args:
    data: bytes of an image file.

  Returns:
    (bytes of a file, its 'exif' and 'xmp' if it has them and they are left out
    of the file); None where nothing can be left out.
  """
  for is_kind, strip in _STRIP:
    if is_kind(data):
      try:
        bare, info = strip(data)
      except (struct.error, IndexError, ValueError):  # damaged
        return None
      return (bare, info) if bare != data else None
  return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Png:
  """The parts of a PNG file.

  Attributes:
    head: the signature and the chunks before the pixels that are needed.
    start: where the chunks of pixels begin.
    stop: where they end.
    end: what makes a whole file of them; empty if they are cut off.
    info: 'exif' and 'xmp'.
    frames: 1 unless animated.
  """

  head: bytes
  start: int
  stop: int
  end: bytes
  info: Mapping[str, bytes]
  frames: int


def _parse_png(data: bytes) -> _Png | None:
  """The parts of a PNG file; None without pixels."""
  head, info, start, stop = [_PNG], {}, 0, 0
  frames, moving, first_moves, cut = 1, False, False, False
  at, color = len(_PNG), None
  while at + 8 <= len(data):
    (size,) = struct.unpack_from('>L', data, at)
    kind, after = data[at + 4 : at + 8], at + 12 + size
    if kind == b'IDAT' and stop in (0, at):  # a later one is not joined
      start, stop = start or at, min(after, len(data))
      cut = after > len(data)
    elif not kind.isalpha() or after > len(data) or kind == b'IEND':
      break
    elif kind[:1].isupper():
      if not stop:
        head.append(data[at:after])
        color = data[at + 17] if kind == b'IHDR' and size > 9 else color
    elif _is_sound(data, at, size):
      content = data[at + 8 : at + 8 + size]
      if kind == b'tRNS' and not stop:
        if size >= _TRANSPARENT.get(color, 2**31):
          head.append(data[at:after])
      elif kind == b'acTL' and size >= 8 and not stop:
        moving, frames = True, struct.unpack_from('>L', content)[0]
      elif kind == b'fcTL':
        first_moves |= not stop
      else:
        info |= _png_metadata(kind, content, info)
    at = after
  if not stop:
    return None
  if not moving or not 0 < frames <= 2**31:
    frames = 1
  elif not first_moves:  # the pixels are not the first of the frames
    frames += 1
  end = b'' if cut else b'\0\0\0\0IEND\xaeB`\x82'
  return _Png(
    head=b''.join(head),
    start=start,
    stop=stop,
    end=end,
    info=info,
    frames=frames,
  )


_READ = (b'tRNS', b'acTL', b'fcTL', b'eXIf')
_NAMES = {
  b'tEXt': (b'Raw profile type exif\0',),
  b'zTXt': (b'Raw profile type exif\0',),
  b'iTXt': (b'XML:com.adobe.xmp\0',),
}


def _is_sound(data: bytes, at: int, size: int) -> bool:
  """Whether an optional chunk is one that is read, and its checksum right."""
  kind, start, stop = data[at + 4 : at + 8], at + 8, at + 8 + size
  if kind not in _READ and not data.startswith(_NAMES.get(kind, ()), start):
    return False
  return zlib.crc32(data[at + 4 : stop]) == int.from_bytes(
    data[stop : stop + 4]
  )


def _png_metadata(
  kind: bytes, content: bytes, known: Mapping[str, bytes]
) -> dict[str, bytes]:
  """EXIF or XMP in a chunk, as far as it can be read."""
  if kind == b'eXIf':
    return {'exif': content}
  text = content.split(b'\0', 1)[1]
  if kind == b'iTXt':
    packed, text = text[:1] == b'\1', text[2:].split(b'\0', 2)[-1]
    return {'xmp': _unpack(text) if packed else text[:_MAX_TEXT]}
  if 'exif' in known:
    return {}
  text = _unpack(text[1:]) if kind == b'zTXt' else text
  digits = b''.join(text.split(b'\n')[3:])  # after its name and its length
  digits = re.match(rb'(?:[0-9a-fA-F]{2})*', digits)[0]
  return {'exif': bytes.fromhex(digits.decode())}


def _unpack(packed: bytes) -> bytes:
  try:
    return zlib.decompressobj().decompress(packed, _MAX_TEXT)
  except zlib.error:
    return b''


def _bare_jpeg(data: bytes) -> tuple[bytes, dict[str, bytes]]:
  """Drops application segments and comments, but for Adobe's colours."""
  kept, info, at = [data[:2]], {}, 2
  while True:
    at = data.index(b'\xff', at)
    while data[at + 1] == 0xFF:
      at += 1
    marker = data[at + 1]
    if marker == 0xDA:  # pixels
      return b''.join((*kept, data[at:])), info
    if marker in (0x00, 0x01, *range(0xD0, 0xD8)):  # alone
      at += 2
      continue
    stop = at + 2 + struct.unpack_from('>H', data, at + 2)[0]
    if not at + 4 <= stop <= len(data):
      raise ValueError('cut off')
    content = data[at + 4 : stop]
    if marker == 0xE1 and content.startswith(b'Exif\0\0'):
      info.setdefault('exif', content)
    elif marker == 0xE1 and content.startswith(b'http://ns.adobe.com/xap'):
      info.setdefault('xmp', content)
    adobe = (
      marker == 0xEE and content.startswith(b'Adobe') and len(content) > 11
    )
    if adobe or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
      kept.append(data[at:stop])
    at = stop


def _bare_webp(data: bytes) -> tuple[bytes, dict[str, bytes]]:
  """Drops profiles, EXIF, XMP and whatever follows a broken chunk."""
  kept, info, at = [], {}, 12
  while at + 8 <= len(data):
    kind, size = struct.unpack_from('<4sL', data, at)
    content = data[at + 8 : at + 8 + size]
    if kind in (b'EXIF', b'XMP '):  # of one cut off the start may do
      info[kind.decode().strip().lower()] = content
    if len(content) < size:
      break
    if kind == b'VP8X':  # without the flags of profile, EXIF and XMP
      content = bytes([content[0] & 0x12]) + content[1:]
    if kind in (b'VP8X', b'VP8 ', b'VP8L', b'ALPH', b'ANIM', b'ANMF'):
      kept.append(
        struct.pack('<4sL', kind, size) + content + b'\0' * (size & 1)
      )
    at += 8 + size + (size & 1)
  body = b'WEBP' + b''.join(kept)
  return struct.pack('<4sL', b'RIFF', len(body)) + body, info


def _bare_tiff(data: bytes) -> tuple[bytes, dict[str, bytes]]:
  """Gives the tags of the first image that its pixels do not need no type."""
  order = '<' if data[:2] == b'II' else '>'
  (at,) = struct.unpack_from(f'{order}L', data, 4)
  (count,) = struct.unpack_from(f'{order}H', data, at)
  bare = bytearray(data)
  for entry in range(at + 2, at + 2 + 12 * count, 12):
    if struct.unpack_from(f'{order}H', data, entry)[0] not in _TIFF_PIXELS:
      struct.pack_into(f'{order}H', bare, entry + 2, 0)
  return bytes(bare), {}


def _bare_jp2(data: bytes) -> tuple[bytes, dict[str, bytes]]:
  """Renames the box of the resolution."""
  start = data.index(b'jp2h')
  stop = start + struct.unpack_from('>L', data, start - 4)[0]
  return data[:start] + data[start:stop].replace(b'res ', b'free') + data[
    stop:
  ], {}


def _bare_avif(data: bytes) -> tuple[bytes, dict[str, bytes]]:
  """Renames the type of the item that holds EXIF."""
  named = re.compile(rb'(infe[\2\3].{3}(?:.{4}|.{6}))Exif', re.DOTALL)
  return named.sub(rb'\1skip', data), {}


_STRIP: Sequence[tuple[Callable[[bytes], bool], Callable]] = (
  (lambda data: data.startswith(b'\xff\xd8'), _bare_jpeg),
  (lambda data: data[:4] == b'RIFF' and data[8:12] == b'WEBP', _bare_webp),
  (lambda data: data[:4] in (b'II*\0', b'MM\0*'), _bare_tiff),
  (lambda data: data[4:8] == b'jP  ', _bare_jp2),
  (lambda data: data[4:8] == b'ftyp', _bare_avif),
)
