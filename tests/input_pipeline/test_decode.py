import io
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
  monkeypatch.setattr(module, 'TOO_LARGE', 40 * 50 - 1)
  with pytest.raises(UnreadableError, match='50 x 40 pixels are too many'):
    decode(data, 3)


def test_a_huge_png_is_refused(monkeypatch):
  data = encode(COLOR)
  monkeypatch.setattr(module, 'LARGE', 8 * 12 - 1)
  np.testing.assert_array_equal(decode(data, 3), COLOR)  # one at a time
  monkeypatch.setattr(module, 'TOO_LARGE', 8 * 12 - 1)
  with pytest.raises(UnreadableError, match='12 x 8 pixels are too many'):
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
    (npy(np.array([{}])), 'allow_pickle=False'),
    (npy(np.zeros((9, 9), np.uint8))[:-1], 'ValueError'),
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
