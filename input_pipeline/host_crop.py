"""Random resized crops on the host: bytes of a file -> uint8 views.

Pillow cuts and resizes: its antialiased filter is the one that the papers'
recipes were tuned with, and the fastest at hand (docs/performance.md).
"""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from input_pipeline.crop import BOX_DRAWS, boxes_from
from input_pipeline.decode import decode, decode_image, jpeg_size
from input_pipeline.views import View

DRAWS = BOX_DRAWS + 1  # and the flip
FILTERS = {
  'bilinear': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
}
# (bytes of a JPEG, (top, left, height, width), channels) -> uint8 [h, w, c]
DecodePart = Callable[[bytes, Sequence[int], int], np.ndarray]


class Cropper:
  """Crops all views out of an image.

  Args:
    views: in order; `size`, `scale`, `ratio`, `retry`, `flip` and `resample`
      are read.
    channels: of the result.
    decode_part: where given, upright JPEGs are decoded anew for every view, and
      only where it is cut; else once, wholly.
    part_pixels: images of fewer pixels are decoded wholly all the same.
  """

  def __init__(
    self,
    views: Sequence[View],
    channels: int,
    decode_part: DecodePart | None = None,
    part_pixels: int = 0,
  ):
    self.views, self.channels = tuple(views), channels
    self._decode_part, self._part_pixels = decode_part, part_pixels
    # Smallest and largest of every view, [2, views, 1].
    self._scale = np.array([view.scale for view in views]).T[..., None]
    self._ratio = np.array([view.ratio for view in views]).T[..., None]
    retry = np.array([[view.retry] for view in views])
    self._retry = True if retry.all() else retry
    self._flip = np.array([view.flip for view in views])

  def __call__(
    self, data: bytes | np.ndarray, draws: np.ndarray
  ) -> list[np.ndarray]:
    """Cuts, resizes and flips.

    Args:
      data: bytes of a file, or uint8 [h, w, c].
      draws: floats [views, DRAWS] in [0, 1).

    Returns:
      uint8 [*size, channels] per view.

    Raises:
      UnreadableError: it cannot be decoded.
    """
    size = jpeg_size(data) if self._decode_part else None
    if size and size[0] * size[1] >= self._part_pixels:
      boxes = self._boxes(draws, size)
      parts = [
        [Image.fromarray(plane) for plane in _planes(part)]
        for part in (self._decode_part(data, b, self.channels) for b in boxes)
      ]
    else:
      planes = _decode(data, self.channels)
      boxes = self._boxes(draws, planes[0].size[::-1])
      parts = [
        [p.crop((x, y, x + width, y + height)) for p in planes]
        for y, x, height, width in boxes
      ]
    flips = draws[:, -1] < self._flip
    return [
      _finish(part, view, flip)
      for part, view, flip in zip(parts, self.views, flips, strict=True)
    ]

  def _boxes(self, draws, size) -> list[list[int]]:
    boxes = boxes_from(
      draws, self._scale, self._ratio, size, np, retry=self._retry
    )
    return boxes.tolist()


def _decode(data: bytes | np.ndarray, channels: int) -> list[Image.Image]:
  """One image, or an image per channel where Pillow has no such mode."""
  if isinstance(data, bytes) and channels in (1, 3):
    image = decode_image(data, channels)
    if image is not None:
      return [image]
  return [Image.fromarray(p) for p in _planes(decode(data, channels))]


def _planes(image: np.ndarray) -> list[np.ndarray]:
  """[h, w, c] -> what Pillow resizes as it is: of 4 channels none is alpha."""
  if image.shape[-1] == 3:
    return [image]
  return [np.ascontiguousarray(plane) for plane in np.moveaxis(image, -1, 0)]


def _finish(planes: list[Image.Image], view: View, flip: bool) -> np.ndarray:
  """Resizes and flips: uint8 [*view.size, c]."""
  size, resample = view.size[::-1], FILTERS[view.resample]
  planes = [plane.resize(size, resample) for plane in planes]
  if flip:
    turn = Image.Transpose.FLIP_LEFT_RIGHT
    planes = [plane.transpose(turn) for plane in planes]
  arrays = [np.asarray(plane) for plane in planes]
  return arrays[0] if arrays[0].ndim == 3 else np.stack(arrays, axis=-1)
