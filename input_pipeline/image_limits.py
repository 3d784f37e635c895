"""What decoding an image would take, estimated from its header alone."""

from PIL import Image

# Bytes that one byte of a file yields at most, by the way of packing.
_YIELDS = {'raw': 1, 'packbits': 64, 'zip': 1032, 'tiff_lzw': 4096}
_YIELDS |= {'tiff_deflate': 1032, 'tiff_adobe_deflate': 1032}


def may_hold(image: Image.Image, size: int) -> bool:
  """Whether a file is large enough for the pixels that it claims.

  Args:
    image: opened, not loaded.
    size: of the file, bytes.

  Returns:
    False if it must be cut off or damaged; True where no bound is known.
  """
  if image.format not in ('BMP', 'PPM', 'TIFF', 'PNG') or not image.tile:
    return True
  packing = image.tile[0][0]
  if image.format == 'TIFF':
    packing = image.info.get('compression')
  # The least there is: 12 bits for colours (4 : 2 : 0) and for more than 8.
  bits = 12 if len(image.getbands()) > 2 or image.mode[0] in 'IF' else 1
  claimed = image.width * image.height * bits
  return packing not in _YIELDS or claimed <= size * 8 * _YIELDS[packing]


def bytes_needed(image: Image.Image, channels: int, *, turned: bool) -> int:
  """Memory that decoding and the array made of it take at most.

  Args:
    image: opened, not loaded; JPEGs at the scale that they are loaded with.
    channels: of the result: 1, 3 or 4.
    turned: whether its orientation is to be undone.

  Returns:
    Bytes at the peak, without the coefficients of progressive JPEGs.
  """
  own, out = _padded(image.mode), 1 if channels == 1 else 4
  if image.mode.startswith('I'):  # two copies, then 8 bits
    converted = 2 * own + 2 + out
  elif image.has_transparency_data and channels != 4:
    converted = 4 * (image.mode != 'RGBA') + 4 + out % 4
  else:
    target = {1: 'L', 3: 'RGB', 4: 'RGBA'}[channels]
    converted = out * (image.mode != target)
  # The array is put together from parts: it is there twice.
  peak = max(own + own * turned + converted, out + 2 * channels)
  return image.width * image.height * peak


def _padded(mode: str) -> int:
  """Bytes of a pixel in memory: several bands take four."""
  if mode.startswith('I;16'):
    return 2
  return 1 if mode in ('1', 'L', 'P') else 4
