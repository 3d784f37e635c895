"""Whether a data set lives on the device or is streamed from the host."""

import numpy as np

from input_pipeline.decode import UnreadableError, read_header
from input_pipeline.machine import device_memory
from input_pipeline.source import Source

MODES = ('auto', 'stream', 'resident')
# The share of a device's memory that data may take: the rest is for training.
SHARE = 0.2
SAMPLES = 32  # images whose size is looked at


def choose(mode: str, source: Source, channels: int) -> tuple[str, str]:
  """Picks 'resident' or 'stream'.

  Resident where every device has room for all images (a fifth of its memory;
  of the host's, shared by its devices, where those have none of their own) and
  the images looked at have one size; else stream.

  Args:
    mode: 'auto', or the choice itself.
    source: the data set.
    channels: of the decoded images.

  Returns:
    (the choice, the reason in words).
  """
  if mode != 'auto':
    return mode, f'config.data.mode={mode!r}'
  sizes = {size for size in map(_size(source), _spread(source)) if size}
  if len(sizes) != 1:
    return 'stream', (
      f'images have several sizes, such as {sorted(sizes)[:2]}'
      if sizes
      else f'the first {SAMPLES} images looked at cannot be read'
    )
  (height, width), room = *sizes, device_room()
  need = len(source) * height * width * channels
  words = (
    f'{len(source):,} images of {height} x {width} x {channels} take '
    f'{need / 2**30:.2f} GiB, a device has {room / 2**30:.2f} GiB for data'
  )
  return ('resident' if need <= room else 'stream'), words


def device_room() -> int:
  """Bytes that data may take on each device."""
  return int(SHARE * device_memory())


def _spread(source: Source) -> list[int]:
  """A few indices from all over a data set."""
  count = min(SAMPLES, len(source))
  return np.linspace(0, len(source) - 1, count).astype(int).tolist()


def _size(source: Source):
  def size(index):
    try:
      header = read_header(source.read(index))
    except (OSError, UnreadableError):
      return None
    return header.height, header.width

  return size
