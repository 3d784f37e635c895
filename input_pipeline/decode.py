"""Bytes of an image file -> uint8 array, as viewers show it."""

import contextlib
import dataclasses
import io
import threading
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Files that a folder is searched for; `.npy` holds uint8 [h, w] or [h, w, c].
EXTENSIONS = tuple(
  '.jpg .jpeg .jpe .jfif .png .bmp .gif .webp .tif .tiff .ppm .pgm .pbm '
  '.npy'.split()
)

# What Pillow may take a file for, whatever its name: among the others is
# PostScript, which runs another program.
_FORMATS = ('JPEG', 'PNG', 'BMP', 'GIF', 'WEBP', 'TIFF', 'PPM', 'JPEG2000')

# More pixels than LARGE are decoded one image at a time, and JPEGs at a reduced
# scale: eight threads with a satellite picture each would fill the memory.
LARGE = 2**26
TOO_LARGE = 2**30
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is a quarter of TOO_LARGE
_large = threading.Lock()

_NPY = b'\x93NUMPY'
_ORIENTATION = 0x0112  # EXIF tag; 1 is upright
_MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}


class UnreadableError(ValueError):
  """An image that cannot be decoded, told in one line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
  """What an image says of itself before its pixels are decoded.

  Attributes:
    format: such as 'JPEG'.
    mode: Pillow's name of the pixel format, such as 'RGB' or 'I;16'.
    height: pixels, as shown (turned by EXIF).
    width: pixels, as shown.
    orientation: of EXIF, 1..8; 1 is upright.
    frames: 1 unless animated.
  """

  format: str
  mode: str
  height: int
  width: int
  orientation: int = 1
  frames: int = 1


@contextlib.contextmanager
def _told() -> Iterator[None]:
  """Turns whatever the decoders raise into one kind of error."""
  try:
    yield
  except UnreadableError:
    raise
  except UnidentifiedImageError as error:
    raise UnreadableError('not an image of a known format') from error
  except (Exception, MemoryError) as error:  # of broken bytes: any
    text = ' '.join(str(error).split())[:200]
    raise UnreadableError(f'{type(error).__name__}: {text}') from error


def read_header(data: bytes | np.ndarray) -> Header:
  """Format and size of an image without decoding it.

  Args:
    data: bytes of a file, or an array.

  Returns:
    The header.

  Raises:
    UnreadableError: not an image.
  """
  if isinstance(data, bytes) and not data.startswith(_NPY):
    with _told():
      image = Image.open(io.BytesIO(data), formats=_FORMATS)
      return _header(image)
  array = _array(data)
  height, width, channels = array.shape
  kind = 'array' if isinstance(data, np.ndarray) else 'NPY'
  mode = f'uint8 x {channels}'
  return Header(format=kind, mode=mode, height=height, width=width)


def _header(image: Image.Image) -> Header:
  width, height = image.size
  turn = image.getexif().get(_ORIENTATION, 1)
  turn = turn if turn in range(1, 9) else 1
  if turn > 4 and image.format != 'TIFF':  # a quarter turn; TIFF tells it so
    width, height = height, width
  return Header(
    format=image.format or 'unknown',
    mode=image.mode,
    height=height,
    width=width,
    orientation=turn,
    frames=getattr(image, 'n_frames', 1),
  )


def jpeg_size(data: bytes | np.ndarray) -> tuple[int, int] | None:
  """Size of a JPEG of which parts may be decoded alone.

  Args:
    data: bytes of a file, or an array.

  Returns:
    (height, width) in pixels; None for what must be decoded as a whole: other
    formats, CMYK, images to be turned, large ones.

  Raises:
    UnreadableError: the header is broken.
  """
  if isinstance(data, np.ndarray) or not data.startswith(b'\xff\xd8'):
    return None
  with _told():
    image = Image.open(io.BytesIO(data), formats=('JPEG',))
    upright = image.getexif().get(_ORIENTATION, 1) == 1
  width, height = image.size
  simple = image.mode in ('L', 'RGB') and upright
  return (height, width) if simple and width * height <= LARGE else None


def decode(data: bytes | np.ndarray, channels: int) -> np.ndarray:
  """Decodes an image as viewers show it.

  EXIF rotation is applied; of an animation the first frame is taken; 16 bits
  are scaled to 8; transparent pixels are laid on white (kept if `channels` is
  4); palettes and CMYK become RGB. Colour profiles are not read.

  Args:
    data: bytes of a file that Pillow knows or of an `.npy`, or an array: uint8
      [h, w] or [h, w, c].
    channels: 1 (grey), 3 (RGB), 4 (RGBA); arrays must have that many, or one,
      which is repeated.

  Returns:
    uint8 [h, w, channels], C-contiguous.

  Raises:
    UnreadableError: broken, too large, of another number of channels.
  """
  image = decode_image(data, channels)
  if image is None:
    return _fit_channels(_array(data), channels)
  array = np.asarray(image)
  return array[..., None] if array.ndim == 2 else array


def decode_image(data: bytes | np.ndarray, channels: int) -> Image.Image | None:
  """As `decode`, but an image of Pillow; None for arrays and `.npy` files."""
  if isinstance(data, np.ndarray) or data.startswith(_NPY):
    return None
  if channels not in _MODES:
    raise UnreadableError(
      f'image files have 1, 3 or 4 channels, not {channels}; use .npy files'
    )
  with _told():
    image = Image.open(io.BytesIO(data), formats=_FORMATS)
    pixels = image.width * image.height
    if pixels <= LARGE:
      return _convert(image, channels)
    with _large:
      if image.format in ('JPEG', 'MPO'):
        # Halved until it is below, at most to 1/8; Pillow rounds the other way.
        part = next((n for n in (2, 4) if pixels <= LARGE * n**2), 8)
        image.draft(None, tuple(max(1, side // part) for side in image.size))
      if image.width * image.height > TOO_LARGE:
        raise UnreadableError(
          f'{image.width} x {image.height} pixels are too many'
        )
      return _convert(image, channels)


def _convert(image: Image.Image, channels: int) -> Image.Image:
  image.load()
  if image.getexif().get(_ORIENTATION, 1) != 1:
    image = ImageOps.exif_transpose(image)
  if image.mode == 'F':
    raise UnreadableError(
      'floating-point pixels, whose range is not known; use 8 or 16 bits'
    )
  if image.mode.startswith('I'):  # 16 bits, which Pillow would clip at 255
    wide = np.clip(np.asarray(image, np.int64), 0, 65535)
    image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
  mode = _MODES[channels]
  if image.mode != mode and channels != 4 and image.has_transparency_data:
    image = image.convert('RGBA')
    white = Image.new('RGBA', image.size, 'white')
    image = Image.alpha_composite(white, image)
  return image if image.mode == mode else image.convert(mode)


def _array(data: bytes | np.ndarray) -> np.ndarray:
  """uint8 [h, w, c] from an array or the bytes of an .npy."""
  if isinstance(data, bytes):
    with _told():
      data = np.load(io.BytesIO(data), allow_pickle=False)
  if data.dtype != np.uint8 or data.ndim not in (2, 3) or 0 in data.shape:
    raise UnreadableError(
      f'arrays must be uint8 [h, w] or [h, w, c] and not empty, got '
      f'{data.dtype} {list(data.shape)}'
    )
  return data[..., None] if data.ndim == 2 else data


def _fit_channels(array: np.ndarray, channels: int) -> np.ndarray:
  found = array.shape[-1]
  if found not in (1, channels):
    raise UnreadableError(f'{found} channels, not {channels}')
  if found != channels:
    array = np.repeat(array, channels, axis=-1)
  return np.ascontiguousarray(array)
