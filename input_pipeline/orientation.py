"""Which way up an image is shown, from EXIF or XMP as far as they are sound."""

import re
import struct

from PIL import Image

TAG = 0x0112  # of EXIF and TIFF; 1 is upright
# Viewers undo the orientation by these.
TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
QUARTER_TURNS = (5, 6, 7, 8)  # height and width change places

_BYTE_ORDERS = {b'II': '<', b'MM': '>'}
_INTEGERS = {1: 'B', 3: 'H', 4: 'L', 6: 'b', 8: 'h', 9: 'l'}  # types of EXIF
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def orientation(image: Image.Image) -> int:
  """The orientation that optional metadata state.

  Args:
    image: of `image_containers.open_image`, need not be loaded. Pillow turns
      the size and the pixels of TIFF files by itself.

  Returns:
    1..8; 1 (upright) where nothing is stated, or nothing that can be read.
  """
  if image.format == 'TIFF':
    found = _of_tiff(image)
  else:
    exif, xmp = image.info.get('exif'), image.info.get('xmp')
    found = _of_exif(exif) if isinstance(exif, bytes) else None
    if found is None and isinstance(xmp, bytes):
      stated = _XMP.search(xmp)
      found = int(stated[1]) if stated else None
  return found if found in TURNS else 1


def _of_tiff(image: Image.Image) -> int | None:
  try:
    return image.tag_v2.get(TAG)
  except Exception:  # of a damaged tag: any
    return None


def _of_exif(exif: bytes) -> int | None:
  """The value of the tag; None without one or where EXIF is malformed."""
  while exif.startswith(b'Exif\0\0'):
    exif = exif[6:]
  order = _BYTE_ORDERS.get(exif[:2])
  if order is None or 42 not in exif[2:4]:
    return None
  found = None
  try:
    (at,) = struct.unpack_from(f'{order}L', exif, 4)
    (count,) = struct.unpack_from(f'{order}H', exif, at)
    entries = exif[at + 2 : at + 2 + 12 * count]
    entries = entries[: len(entries) // 12 * 12]
    for tag, kind, number, value in struct.iter_unpack(
      f'{order}2HL4s', entries
    ):
      if tag == TAG and kind in _INTEGERS and number == 1:
        (found,) = struct.unpack_from(order + _INTEGERS[kind], value)
  except struct.error:  # cut off
    return None
  return found
