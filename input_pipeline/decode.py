"""Bytes of an image file -> uint8 array, as viewers show it."""

import contextlib
import dataclasses
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from input_pipeline import formats
from input_pipeline.array_files import ArrayFileError, read_npy
from input_pipeline.image_containers import open_image, without_metadata
from input_pipeline.image_limits import bytes_needed, may_hold
from input_pipeline.orientation import QUARTER_TURNS, TURNS, orientation

# More pixels than LARGE are decoded one image at a time, and JPEGs at a reduced
# scale: eight threads with a satellite picture each would fill the memory.
LARGE = 2**26
MAX_BYTES = 2**31  # of memory that decoding one image may take
Image.MAX_IMAGE_PIXELS = None  # Pillow counts pixels, whatever they take
_large = threading.Lock()
_STRIP = 2**20  # pixels scaled to 8 bits at a time

# Pillow warns of strange tags without a word about which file they are in.
warnings.filterwarnings('ignore', category=UserWarning, module=r'PIL\.')

_NPY = b'\x93NUMPY'
_MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}


class UnreadableError(ValueError):
  """An image that cannot be decoded, in one line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
  """Format, size and orientation from an image's header.

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
def _as_unreadable(data: bytes = b'') -> Iterator[None]:
  """Turns whatever the decoders raise into one kind of error."""
  try:
    yield
  except UnreadableError:
    raise
  except ArrayFileError as error:
    raise UnreadableError(str(error)) from error
  except UnidentifiedImageError as error:
    content = formats.content_name(data)
    raise UnreadableError(
      'not an image of a known format' + f': {content}' * bool(content)
    ) from error
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
    return _open_and(_header, data, header=True)
  array = _array(data)
  height, width, channels = array.shape
  kind = 'array' if isinstance(data, np.ndarray) else 'NPY'
  mode = f'uint8 x {channels}'
  return Header(format=kind, mode=mode, height=height, width=width)


def _open_and(
  use: Callable[[Image.Image, int], Any], data: bytes, *, header: bool = False
) -> Any:
  """`use(image, bytes of the file)`, whatever state the metadata are in.

  Where it fails, it is tried again with a file of the same pixels without
  optional metadata: these may be broken, the pixels may not.
  """
  with _as_unreadable(data):
    try:
      return use(open_image(data, formats.PILLOW, header=header), len(data))
    except (UnreadableError, MemoryError):
      raise
    except Exception as error:
      bare = without_metadata(data)
      if bare is None:
        raise
      try:
        image = open_image(bare[0], formats.PILLOW, header=header)
        image.info.update(bare[1])
        return use(image, len(data))
      except UnreadableError:
        raise
      except Exception:
        raise error from None


def _header(image: Image.Image, size: int) -> Header:
  del size
  width, height = image.size
  turn = orientation(image)
  if turn in QUARTER_TURNS and image.format != 'TIFF':
    width, height = height, width
  try:
    frames = getattr(image, 'n_frames', 1)
  except Exception:  # later frames are damaged: any
    frames = 1
  return Header(
    format=image.format or 'unknown',
    mode=image.mode,
    height=height,
    width=width,
    orientation=turn,
    frames=frames,
  )


def jpeg_size(data: bytes | np.ndarray) -> tuple[int, int] | None:
  """Size of a JPEG of which parts may be decoded alone.

  Args:
    data: bytes of a file, or an array.

  Returns:
    (height, width) in pixels; None for what must be decoded as a whole: other
    formats, CMYK, images to be turned, large ones, broken headers.
  """
  if isinstance(data, np.ndarray) or not data.startswith(b'\xff\xd8'):
    return None
  try:
    image = open_image(data, ('JPEG',), header=True)
  except Exception:  # of its metadata or pixels: found out when it is decoded
    return None
  width, height = image.size
  simple = image.mode in ('L', 'RGB') and orientation(image) == 1
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
      f'image files have 1, 3 or 4 channels, not {channels}: set '
      'config.data.channels to one of them, or use .npy files'
    )
  return _open_and(lambda image, size: _load(image, size, channels), data)


def _load(image: Image.Image, size: int, channels: int) -> Image.Image:
  """Decodes what is not too large; `size` is that of the file in bytes."""
  pixels = image.width * image.height
  if not may_hold(image, size):
    raise UnreadableError(
      f'{image.width} x {image.height} pixels do not fit into {size} bytes: '
      'cut off or damaged'
    )
  if pixels <= LARGE:
    return _convert(image, channels)
  with _large:
    if image.format in ('JPEG', 'MPO'):
      # Halved until it is below, at most to 1/8; Pillow rounds the other way.
      part = next((n for n in (2, 4) if pixels <= LARGE * n**2), 8)
      image.draft(None, tuple(max(1, side // part) for side in image.size))
    # The coefficients of a progressive JPEG are held at full size.
    held = 2 * pixels * len(image.getbands()) * ('progressive' in image.info)
    turned = orientation(image) != 1
    if held + bytes_needed(image, channels, turned=turned) > MAX_BYTES:
      raise UnreadableError(
        f'{image.width} x {image.height} pixels of {image.mode} are too many'
      )
    return _convert(image, channels)


def _convert(image: Image.Image, channels: int) -> Image.Image:
  if image.mode == 'F' or image.mode == 'I' and image.format == 'TIFF':
    kind = 'floating-point' if image.mode == 'F' else '32-bit or signed'
    raise UnreadableError(
      f'{kind} pixels, whose range is not known; use 8 or 16 bits'
    )
  clear = _clear_colour(image)
  turn = 1 if image.format == 'TIFF' else orientation(image)
  image.load()
  if turn != 1:
    image = image.transpose(TURNS[turn])
  if clear is not None:
    image.info['transparency'] = clear
  if image.mode.startswith('I'):  # 16 bits, which Pillow would clip at 255
    image = _to_8_bits(image)
  mode = _MODES[channels]
  if channels != 4 and image.has_transparency_data:
    if image.mode != 'RGBA':
      image = image.convert('RGBA')
    white = Image.new('RGB', image.size, 'white')
    white.paste(image, mask=image)
    image = white
  return image if image.mode == mode else image.convert(mode)


def _clear_colour(image: Image.Image) -> int | tuple[int, ...] | None:
  """The transparent colour of a PNG, if its bits are not those of the pixels.

  Pillow scales pixels of 2, 4 and, with colours, 16 bits to 8, but not this.
  """
  clear = image.info.get('transparency')
  if image.format != 'PNG' or clear is None or not image.tile:
    return None
  packed = image.tile[0][3]
  if packed in ('L;2', 'L;4') and isinstance(clear, int):
    return clear * (85 if packed == 'L;2' else 17)
  if packed == 'RGB;16B':
    return tuple(value >> 8 for value in clear)
  return None


def _to_8_bits(image: Image.Image) -> Image.Image:
  """Scales 16 bits of grey to 8; a transparent one gets an alpha channel."""
  wide = np.asarray(image)
  small = np.empty(wide.shape, np.uint8)
  rows = max(1, _STRIP // wide.shape[1])
  for y in range(0, len(wide), rows):
    strip = np.clip(wide[y : y + rows], 0, 65535).astype(np.uint32)
    small[y : y + rows] = (strip + 128) // 257
  out = Image.fromarray(small)
  clear = image.info.get('transparency')
  if clear is not None:
    alpha = np.where(wide == clear, np.uint8(0), np.uint8(255))
    out.putalpha(Image.fromarray(alpha))
  return out


def _array(data: bytes | np.ndarray) -> np.ndarray:
  """uint8 [h, w, c] from an array or the bytes of an .npy."""
  if isinstance(data, bytes):
    with _as_unreadable(data):
      data = read_npy(data)
  if data.dtype != np.uint8 or data.ndim not in (2, 3) or 0 in data.shape:
    raise UnreadableError(
      f'arrays must be uint8 [h, w] or [h, w, c] and not empty, got '
      f'{data.dtype} {list(data.shape)}'
    )
  return data[..., None] if data.ndim == 2 else data


def _fit_channels(array: np.ndarray, channels: int) -> np.ndarray:
  found = array.shape[-1]
  if found not in (1, channels):
    raise UnreadableError(
      f'{found} channels, not {channels}; set config.data.channels={found} if '
      'all images have as many'
    )
  if found != channels:
    array = np.repeat(array, channels, axis=-1)
  return np.ascontiguousarray(array)
