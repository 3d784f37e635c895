import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from input_pipeline import decode as module
from input_pipeline.decode import UnreadableError, decode, read_header

GRADIENT = np.add.outer(np.arange(8) * 16, np.arange(12) * 8).astype(np.uint8)
COLOR = np.stack([GRADIENT, GRADIENT[::-1], GRADIENT[:, ::-1]], -1)


def encode(image, kind='PNG', **options):
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image)
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def npy(array, **options):
  file = io.BytesIO()
  np.save(file, array, **options)
  return file.getvalue()


@pytest.mark.parametrize('kind', ['PNG', 'BMP', 'TIFF', 'PPM', 'WEBP'])
def test_colours_are_kept(kind):
  options = dict(lossless=True) if kind == 'WEBP' else {}
  out = decode(encode(COLOR, kind, **options), 3)
  np.testing.assert_array_equal(out, COLOR)
  assert out.dtype == np.uint8 and out.flags['C_CONTIGUOUS']


def test_grey_is_repeated_and_colours_are_weighed():
  data = encode(GRADIENT)
  np.testing.assert_array_equal(decode(data, 1), GRADIENT[..., None])
  np.testing.assert_array_equal(decode(data, 3), decode(data, 1).repeat(3, -1))
  weighed = COLOR @ [0.299, 0.587, 0.114]  # ITU-R 601-2
  np.testing.assert_allclose(
    decode(encode(COLOR), 1)[..., 0], weighed, atol=0.51
  )
  assert decode(encode(COLOR), 4)[..., 3].min() == 255


def test_transparent_pixels_lie_on_white():
  alpha = np.zeros((8, 12), np.uint8)
  alpha[:, 4:] = 128
  alpha[:, 8:] = 255
  data = encode(np.dstack([COLOR, alpha]))
  share = alpha[..., None] / 255
  expected = COLOR * share + 255 * (1 - share)
  np.testing.assert_allclose(decode(data, 3), expected, atol=1)
  kept = decode(data, 4)
  np.testing.assert_array_equal(kept[..., 3], alpha)
  np.testing.assert_array_equal(kept[:, 4:, :3], COLOR[:, 4:])
  grey = encode(Image.fromarray(np.dstack([GRADIENT, alpha]), 'LA'))
  expected = GRADIENT * share[..., 0] + 255 * (1 - share[..., 0])
  np.testing.assert_allclose(decode(grey, 1)[..., 0], expected, atol=1)
  np.testing.assert_array_equal(decode(grey, 3), decode(grey, 1).repeat(3, -1))


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize(
  'image, clear',
  [
    (Image.new('RGB', (2, 1), (7, 7, 7)), (7, 7, 7)),
    (Image.new('L', (2, 1), 7), 7),
    (Image.new('1', (2, 1), 1), 1),
    (Image.fromarray(np.full((1, 2), 1000, np.uint16)), 1000),
  ],
  ids=lambda value: getattr(value, 'mode', ''),
)
def test_one_transparent_colour(image, clear, channels):
  image.putpixel((1, 0), 0)
  out = decode(encode(image, transparency=clear), channels)
  assert (out[0, 0] == 255).all() and (out[0, 1] == 0).all()
  kept = decode(encode(image, transparency=clear), 4)
  assert kept[0, :, 3].tolist() == [0, 255]


def chunked_png(bits, kind, clear, rows):
  """A PNG of one row of pixels, packed by hand."""
  out = b'\x89PNG\r\n\x1a\n'
  header = np.array([2, 1], '>u4').tobytes() + bytes([bits, kind, 0, 0, 0])
  body = zlib.compress(b'\0' + rows)
  for name, content in (
    (b'IHDR', header),
    (b'tRNS', clear),
    (b'IDAT', body),
    (b'IEND', b''),
  ):
    sizes = len(content), zlib.crc32(name + content)
    size, check = (np.array(number, '>u4').tobytes() for number in sizes)
    out += size + name + content + check
  return out


@pytest.mark.parametrize(
  'data',
  [
    chunked_png(2, 0, b'\0\2', b'\x80'),
    chunked_png(4, 0, b'\0\5', b'\x50'),
    chunked_png(16, 2, b'\7\7\1\2\3\4', b'\7\7\1\2\3\4' + bytes(6)),
  ],
  ids=['2 bits', '4 bits', 'colours of 16 bits'],
)
def test_a_transparent_colour_of_other_bits(data):
  np.testing.assert_array_equal(decode(data, 3), [[[255] * 3, [0] * 3]])


def test_palettes():
  image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), 'P')
  image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
  red, green, blue = [255, 0, 0], [0, 255, 0], [0, 0, 255]
  opaque = decode(encode(image), 3)
  np.testing.assert_array_equal(opaque, [[red, green], [blue, green]])
  clear = decode(encode(image, transparency=1), 3)
  white = [255] * 3
  np.testing.assert_array_equal(clear, [[red, white], [blue, white]])
  np.testing.assert_array_equal(
    decode(encode(image, 'GIF', transparency=1), 3), clear
  )
  half = decode(encode(image, transparency=bytes([255, 0, 128])), 3)
  np.testing.assert_allclose(half, [[red, white], [[127, 127, 255], white]], 1)
  array = module.decode_image(encode(image.convert('PA'), 'TIFF'), 3)
  np.testing.assert_array_equal(np.asarray(array), opaque)


def test_cmyk():
  flat = np.full((16, 16, 4), [0, 255, 255, 0], np.uint8)  # red
  tiff = encode(Image.fromarray(flat, 'CMYK'), 'TIFF')
  np.testing.assert_array_equal(decode(tiff, 3)[0, 0], [255, 0, 0])
  jpeg = encode(Image.fromarray(flat, 'CMYK'), 'JPEG', quality=95)
  # Pillow writes Adobe's marker and inverts, as Photoshop does.
  assert b'Adobe' in jpeg
  np.testing.assert_allclose(decode(jpeg, 3)[0, 0], [255, 0, 0], atol=3)


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'PPM'])
def test_16_bits_are_scaled(kind):
  wide = np.array([[0, 128, 129, 257], [32896, 65535, 65400, 1000]], np.uint16)
  data = encode(Image.fromarray(wide), kind)
  assert read_header(data).mode.startswith('I')
  expected = np.round(wide / 257)
  np.testing.assert_array_equal(decode(data, 1)[..., 0], expected)
  np.testing.assert_array_equal(decode(data, 3)[..., 2], expected)


def test_1_bit():
  bits = Image.fromarray(GRADIENT > 60)
  assert bits.mode == '1'
  expected = np.where(GRADIENT > 60, 255, 0)[..., None].repeat(3, -1)
  np.testing.assert_array_equal(decode(encode(bits), 3), expected)


@pytest.mark.parametrize('turn', range(1, 9))
@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'WEBP'])
def test_exif_turns(turn, kind):
  exif = Image.Exif()
  exif[0x0112] = turn
  options = dict(lossless=True) if kind == 'WEBP' else {}
  data = encode(COLOR, kind, exif=exif, **options)
  shown = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
  np.testing.assert_array_equal(decode(data, 3), shown)
  assert (turn == 1) == np.array_equal(shown, COLOR)
  header = read_header(data)
  assert (header.height, header.width) == shown.shape[:2]
  assert header.orientation == turn and header.format == kind


def test_an_impossible_turn_is_none():
  exif = Image.Exif()
  exif[0x0112] = 77
  data = encode(COLOR, exif=exif)
  np.testing.assert_array_equal(decode(data, 3), COLOR)
  assert read_header(data).orientation == 1


@pytest.mark.parametrize('kind', ['GIF', 'WEBP', 'PNG', 'TIFF'])
def test_the_first_frame_is_taken(kind):
  frames = [Image.new('RGB', (6, 5), c) for c in ('red', 'lime', 'blue')]
  options = dict(lossless=True) if kind == 'WEBP' else {}
  data = encode(
    frames[0], kind, save_all=True, append_images=frames[1:], **options
  )
  assert read_header(data).frames == 3
  np.testing.assert_array_equal(
    decode(data, 3), np.full((5, 6, 3), [255, 0, 0])
  )


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'GIF', 'WEBP'])
def test_one_pixel(kind):
  data = encode(Image.new('RGB', (1, 1), 'white'), kind)
  np.testing.assert_array_equal(decode(data, 3), [[[255, 255, 255]]])


def test_a_huge_jpeg_is_reduced(monkeypatch):
  monkeypatch.setattr(module, 'LARGE', 64 * 64)
  image = Image.fromarray(COLOR).resize((400, 320))
  data = encode(image, 'JPEG')
  out = decode(data, 3)
  assert out.shape == (40, 50, 3)  # below 64 x 64
  small = np.asarray(image.reduce(8), int)
  assert np.abs(out - small).mean() < 2
  monkeypatch.setattr(module, 'MAX_BYTES', 40 * 50 * 10 - 1)
  with pytest.raises(UnreadableError, match='50 x 40 pixels of RGB are too'):
    decode(data, 3)


def test_a_huge_png_is_refused(monkeypatch):
  data = encode(COLOR)
  monkeypatch.setattr(module, 'LARGE', 8 * 12 - 1)
  np.testing.assert_array_equal(decode(data, 3), COLOR)  # one at a time
  monkeypatch.setattr(module, 'MAX_BYTES', 8 * 12 * 10 - 1)
  with pytest.raises(UnreadableError, match='12 x 8 pixels of RGB are too'):
    decode(data, 3)
  assert not module._large.locked()


def test_a_bomb_is_refused_unopened():
  """A few bytes that claim to be 60,000 x 60,000 pixels."""
  data = bytearray(encode(COLOR))
  at = data.find(b'IHDR') + 4
  data[at : at + 8] = np.array([60_000] * 2, '>u4').tobytes()
  data[at + 13 : at + 17] = np.array(
    [zlib.crc32(data[at - 4 : at + 13])], '>u4'
  ).tobytes()
  with pytest.raises(UnreadableError, match='60000 x 60000 pixels'):
    decode(bytes(data), 3)


@pytest.mark.parametrize(
  'kind, width, wrong',
  [
    ('BMP', struct.pack('<2L', 12, 8), struct.pack('<2L', 9999, 8)),
    ('PPM', b'12 8', b'9999 8'),
    (
      'TIFF',
      struct.pack('<2H2L', 256, 4, 1, 12),
      struct.pack('<2H2L', 256, 4, 1, 9999),
    ),
  ],
  ids=['BMP', 'PPM', 'TIFF'],
)
def test_a_header_that_claims_more_than_the_file_holds(
  kind, width, wrong, monkeypatch
):
  data = encode(COLOR, kind)
  assert data.count(width) == 1
  monkeypatch.setattr(Image.Image, 'load', lambda *_: pytest.fail('memory'))
  with pytest.raises(UnreadableError, match='9999 x 8 pixels do not fit into'):
    decode(data.replace(width, wrong), 3)


def test_memory_is_counted_in_bytes(monkeypatch):
  """Not only in pixels: turning, converting and copying take more."""
  monkeypatch.setattr(module, 'LARGE', 0)
  monkeypatch.setattr(module, 'MAX_BYTES', 8 * 12 * 9)
  decode(encode(GRADIENT), 1)
  decode(encode(Image.fromarray(GRADIENT.astype(np.uint16))), 1)
  cmyk = encode(Image.fromarray(COLOR).convert('CMYK'), 'TIFF')
  for data in (cmyk, encode(GRADIENT, exif=turned()), encode(COLOR)):
    with pytest.raises(UnreadableError, match='too many'):
      decode(data, 3)


def turned():
  exif = Image.Exif()
  exif[0x0112] = 3
  return exif


def test_wide_images_are_scaled_in_strips(monkeypatch):
  monkeypatch.setattr(module, '_STRIP', 25)
  wide = np.arange(96, dtype=np.uint16).reshape(8, 12) * 682
  out = decode(encode(Image.fromarray(wide)), 1)
  np.testing.assert_array_equal(out[..., 0], np.round(wide / 257))


def test_32_bits_have_no_known_range():
  data = encode(Image.fromarray(GRADIENT.astype(np.int32)), 'TIFF')
  with pytest.raises(UnreadableError, match='32-bit or signed pixels'):
    decode(data, 3)


def test_strange_tags_are_no_news():
  """Pillow's warnings do not say in which file."""
  code = (
    'import input_pipeline.decode, io\n'
    'from PIL import Image\n'
    'exif = Image.Exif()\n'
    "exif.load(b'Exif\\0\\0II*\\0\\x08\\0\\0\\0\\x09\\0')\n"
    'dict(exif)'
  )
  done = subprocess.run(
    [sys.executable, '-W', 'always', '-c', code],
    capture_output=True,
    text=True,
    check=True,
  )
  assert 'Corrupt EXIF' not in done.stderr


def test_floats_have_no_known_range():
  data = encode(Image.fromarray(GRADIENT / np.float32(255)), 'TIFF')
  with pytest.raises(UnreadableError, match='floating-point pixels'):
    decode(data, 3)


def test_arrays():
  array = np.random.default_rng(0).integers(0, 256, (4, 5, 7), np.uint8)
  np.testing.assert_array_equal(decode(npy(array), 7), array)
  np.testing.assert_array_equal(decode(array[:, ::-1], 7), array[:, ::-1])
  header = read_header(npy(array))
  assert (header.height, header.width) == (4, 5) and header.format == 'NPY'
  grey = decode(npy(array[..., 0]), 3)
  np.testing.assert_array_equal(grey, array[..., :1].repeat(3, -1))
  fortran = decode(npy(np.asfortranarray(array)), 7)
  assert fortran.flags['C_CONTIGUOUS']
  np.testing.assert_array_equal(fortran, array)


@pytest.mark.parametrize(
  'data, message',
  [
    (npy(np.zeros((2, 2, 7), np.uint8)), '7 channels, not 3'),
    (npy(np.zeros((2, 2, 3), np.float32)), r'must be uint8 .* float32 \[2'),
    (npy(np.zeros((0, 2, 3), np.uint8)), 'not empty'),
    (npy(np.zeros(4, np.uint8)), r'got uint8 \[4\]'),
    (npy(np.array([{}])), 'Object arrays cannot be loaded'),
    (
      npy(np.zeros((9, 9), np.uint8))[:-1],
      '81 bytes, but at most 80 follow: cut',
    ),
    (b'\x93NUMPY', 'Error'),
    (b'\x93NUMPY\x01\x00\xff\xff', 'Error'),
    (b'', 'not an image of a known format'),
    (b'\0' * 1000, 'not an image'),
    (b'<html>', 'not an image'),
    (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'not an image'),
  ],
)
def test_what_is_no_image(data, message):
  with pytest.raises(UnreadableError, match=message) as caught:
    decode(data, 3)
  assert '\n' not in str(caught.value)


def test_channels_that_files_cannot_have():
  with pytest.raises(UnreadableError, match='1, 3 or 4 channels, not 7'):
    decode(encode(COLOR), 7)


@pytest.mark.filterwarnings('ignore::UserWarning')  # of Pillow, on tags
@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'GIF', 'WEBP', 'TIFF', 'BMP'])
def test_broken_bytes_raise_one_kind_of_error(kind):
  """Cut anywhere or damaged at random: an image or `UnreadableError`."""
  noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
  data = encode(noise, kind)
  failed = 0
  for size in np.linspace(0, len(data) - 1, 25).astype(int):
    failed += not readable(data[:size])
  assert failed >= 23  # a few bytes less may be only padding
  random = np.random.default_rng(1)
  for _ in range(60):
    broken = bytearray(data)
    for place in random.integers(0, min(len(data), 400), 4):
      broken[place] = random.integers(256)
    readable(bytes(broken))


def readable(data):
  try:
    read_header(data)
    out = decode(data, 3)
  except UnreadableError:
    return False
  assert out.dtype == np.uint8 and out.shape[-1] == 3
  return True
