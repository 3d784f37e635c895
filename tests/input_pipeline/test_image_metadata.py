"""Optional metadata, broken or huge, beside pixels that are whole."""

import io
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, features
from PIL.PngImagePlugin import PngInfo

from input_pipeline.decode import (
  UnreadableError,
  decode,
  jpeg_size,
  read_header,
)
from input_pipeline.image_containers import without_metadata

NOISE = np.random.default_rng(0)
SMALL = Image.fromarray(NOISE.integers(0, 256, (4, 6, 3), np.uint8))
IMAGE = SMALL.resize((48, 32), Image.Resampling.BICUBIC)
PIXELS = np.asarray(IMAGE)
PROFILE = b'\0\0\1\0' + bytes(200)


def exif(turn=6):
  tags = Image.Exif()
  tags[0x0112], tags[0x010F] = turn, 'maker'
  tags.get_ifd(0x8769)[0x9003] = '2026:11:30 00:00:00'
  return tags


def encode(kind, **options):
  file = io.BytesIO()
  IMAGE.save(file, kind, **options)
  return file.getvalue()


def chunk(kind, content, check=None):
  check = zlib.crc32(kind + content) if check is None else check
  return (
    struct.pack('>I', len(content)) + kind + content + struct.pack('>I', check)
  )


def before_pixels(*chunks):
  data = encode('PNG')
  return data[:33] + b''.join(chunks) + data[33:]


def after_pixels(end):
  return encode('PNG')[:-12] + end


HUGE = zlib.compress(bytes(3 * 2**20))
BROKEN = {
  'EXIF without a TIFF header': chunk(b'eXIf', b'\0\x08\0\2\x01\x12\0\3'),
  'EXIF that ends early': chunk(b'eXIf', b'II*\0\x08\0\0\0\x09\0'),
  'EXIF that points outside': chunk(b'eXIf', b'MM\0*\xff\xff\xff\xff'),
  'EXIF of no bytes': chunk(b'eXIf', b''),
  'EXIF in odd hex': chunk(
    b'tEXt', b'Raw profile type exif\0\nexif\n  5\n45786'
  ),
  'EXIF that is no hex': chunk(b'tEXt', b'Raw profile type exif\0\nexif'),
  'a huge profile': chunk(b'iCCP', b'scanner\0\0' + HUGE),
  'a profile without an end': chunk(b'iCCP', b'scanner'),
  'a huge text': chunk(b'zTXt', b'parameters\0\0' + HUGE),
  'a huge XMP': chunk(b'iTXt', b'XML:com.adobe.xmp\0\1\0\0\0' + HUGE),
  'a text of unknown packing': chunk(b'zTXt', b'parameters\0\7' + HUGE),
  'texts of 70 MiB': chunk(b'tEXt', b'a\0' + bytes(2**20)) * 70,
  'a text named as what Pillow keeps': chunk(b'tEXt', b'transparency\0red'),
  'a wrong checksum': chunk(b'tEXt', b'a\0b', check=1),
  'a short gamma': chunk(b'gAMA', b'\0'),
  'a short transparency': chunk(b'tRNS', b'\0'),
  'a short resolution': chunk(b'pHYs', b'\0'),
  'an animation of no frames': chunk(b'acTL', bytes(8)),
  'a short animation': chunk(b'acTL', b'\0'),
}


@pytest.mark.parametrize('data', BROKEN.values(), ids=BROKEN)
def test_broken_chunks_of_a_png(data):
  data = before_pixels(data)
  np.testing.assert_array_equal(decode(data, 3), PIXELS)
  header = read_header(data)
  assert (header.height, header.width) == PIXELS.shape[:2]
  assert (header.orientation, header.frames) == (1, 1)


@pytest.mark.parametrize(
  'end',
  [
    b'',
    b'\0\0\0',
    chunk(b'tEXt', b'a\0' + bytes(99))[:-50],
    b'\xff\xff\xff\xffzTXt',
    b'no chunk at all',
    chunk(b'eXIf', b'broken') + chunk(b'IEND', b''),
  ],
)
def test_a_broken_end_of_a_png(end):
  """Viewers show the pixels, which stand before it."""
  data = after_pixels(end)
  np.testing.assert_array_equal(decode(data, 3), PIXELS)
  assert read_header(data).width == 48


@pytest.mark.parametrize('lost', [20, 100, 1000])
def test_cut_off_pixels_stay_unreadable(lost):
  with pytest.raises(UnreadableError):
    decode(after_pixels(b'')[:-lost], 3)


def as_text(turn, packed):
  info = PngInfo()
  tags = exif(turn).tobytes()
  text = f'\nexif\n{len(tags):8}\n{tags.hex()}\n'
  info.add_text('Raw profile type exif', text, zip=packed)
  return encode('PNG', pnginfo=info)


def as_xmp(packed):
  info = PngInfo()
  info.add_itxt('XML:com.adobe.xmp', '<x tiff:Orientation="6"/>', zip=packed)
  return encode('PNG', pnginfo=info)


def test_wherever_the_orientation_of_a_png_is():
  late = chunk(b'eXIf', exif().tobytes()[6:])
  turned = np.rot90(PIXELS, -1)
  for data in (
    encode('PNG', exif=exif()),
    after_pixels(late + chunk(b'IEND', b'')),
    after_pixels(late),
    as_text(6, packed=False),
    as_text(6, packed=True),
    as_xmp(packed=False),
    as_xmp(packed=True),
  ):
    np.testing.assert_array_equal(decode(data, 3), turned)
    header = read_header(data)
    assert (header.height, header.width, header.orientation) == (48, 32, 6)


def test_reading_a_header_decodes_nothing(monkeypatch):
  data = {
    kind: encode(kind, exif=exif()) for kind in ('PNG', 'JPEG', 'WEBP', 'TIFF')
  }
  data['after the pixels'] = after_pixels(chunk(b'eXIf', exif().tobytes()[6:]))
  data |= {kind: encode(kind) for kind in ('GIF', 'BMP', 'JPEG2000')}
  data['no EXIF'] = encode('PNG')
  for owner in (Image.Image, ImageFile.ImageFile):
    monkeypatch.setattr(owner, 'load', lambda *_: pytest.fail('decoded'))
  for kind, content in data.items():
    turned = kind not in ('GIF', 'BMP', 'JPEG2000', 'no EXIF')
    header = read_header(content)
    size = (48, 32) if turned else (32, 48)
    assert (header.height, header.width) == size, kind
    assert header.orientation == (6 if turned else 1), kind


@pytest.mark.parametrize('interlaced', [0, 1])
def test_a_bomb_is_refused_before_memory_is_taken(interlaced):
  """60,000 x 60,000 pixels in a file large enough to hold them."""
  packer = zlib.compressobj(1)
  part = packer.compress(bytes(2**20))
  sizes = struct.pack('>2L5B', 60_000, 60_000, 8, 0, 0, 0, interlaced)
  data = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', sizes)
  data += chunk(b'IDAT', part + bytes(4 * 2**20)) + chunk(b'IEND', b'')
  tracemalloc.start()
  began = time.process_time()
  assert read_header(data).width == 60_000
  with pytest.raises(
    UnreadableError, match='60000 x 60000 pixels of L are too'
  ):
    decode(data, 3)
  seconds = time.process_time() - began
  assert tracemalloc.get_traced_memory()[1] < 4 * len(data)
  tracemalloc.stop()
  assert seconds < 1


def spoilt(kind):
  """A file whose EXIF, profile, XMP or the like is broken."""
  if kind in ('WEBP', 'JPEG'):
    return encode(kind, exif=b'Exif\0\0garbage!')
  if kind == 'a WebP that ends in EXIF':
    return encode('WEBP', exif=exif(1))[:-9]
  if kind == 'a JPEG with a short profile':
    data = encode('JPEG')
    return data[:2] + b'\xff\xe2\x00\x0eICC_PROFILE\0' + data[2:]
  if kind == 'a JPEG with a short JFIF':
    data = encode('JPEG')
    return data[:2] + b'\xff\xe0\x00\x06JFIF' + data[20:]
  if kind == 'a TIFF of two resolutions':
    data = encode('TIFF', dpi=(72, 72))
    at = data.index(struct.pack('<2HL', 282, 5, 1))
    return data[: at + 4] + struct.pack('<L', 2) + data[at + 8 :]
  file = io.BytesIO()
  IMAGE.save(file, 'MPO', save_all=True, append_images=[IMAGE])
  return file.getvalue().replace(b'MPF\0II*\0', b'MPF\0II*\xff')


@pytest.mark.filterwarnings('ignore::UserWarning')  # of Pillow, on tags
@pytest.mark.parametrize(
  'kind',
  [
    'WEBP',
    'JPEG',
    'a WebP that ends in EXIF',
    'a JPEG with a short profile',
    'a JPEG with a short JFIF',
    'a TIFF of two resolutions',
    'MPO',
  ],
)
def test_broken_metadata_of_other_formats(kind):
  data = spoilt(kind)
  out = decode(data, 3)
  assert np.abs(out.astype(int) - PIXELS).mean() < 8
  header = read_header(data)
  assert (header.height, header.width) == PIXELS.shape[:2]
  assert jpeg_size(data) in (None, (32, 48))


def test_broken_exif_of_an_avif():
  if not features.check('avif'):
    pytest.skip('this Pillow reads no AVIF')
  data = encode('AVIF', exif=exif(1))
  data = data.replace(exif(1).tobytes()[6:14], b'no EXIF!')
  with pytest.raises(Exception):  # noqa: B017  # it depends on the version
    Image.open(io.BytesIO(data))
  bare, _ = without_metadata(data)
  out = np.asarray(Image.open(io.BytesIO(bare)))
  assert np.abs(out.astype(int) - PIXELS).mean() < 8


def test_orientation_outlives_a_broken_profile():
  data = encode('JPEG', exif=exif(), quality=95)
  data = data[:2] + b'\xff\xe2\x00\x0eICC_PROFILE\0' + data[2:]
  assert decode(data, 3).shape == (48, 32, 3)
  assert read_header(data).orientation == 6


def test_the_start_of_a_cut_off_exif_is_read():
  data = encode('WEBP', exif=exif())[:-9]
  assert decode(data, 3).shape == (48, 32, 3)
  assert read_header(data).orientation == 6


def test_other_tags_than_the_orientation_may_be_broken():
  tags = bytearray(exif().tobytes())
  at = tags.index(struct.pack('>2H', 0x010F, 2))  # the maker: no such type
  struct.pack_into('>H', tags, at + 2, 99)
  for kind in ('PNG', 'WEBP', 'JPEG'):
    data = encode(kind, exif=bytes(tags))
    assert decode(data, 3).shape == (48, 32, 3), kind
