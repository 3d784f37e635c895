"""Little image files for the tests of sources."""

import io
import os
import threading

import numpy as np
from PIL import Image


def png(value, size=(4, 3), mode='RGB'):
  """Bytes of a PNG of one colour; `size` is (width, height)."""
  file = io.BytesIO()
  color = value if mode == 'L' else (value,) * len(mode)
  Image.new(mode, size, color).save(file, 'PNG')
  return file.getvalue()


def write(root, *paths):
  """Writes images below a folder; their first pixel is their number."""
  for number, path in enumerate(paths):
    path = os.path.join(os.fsencode(root), os.fsencode(path))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'wb') as file:
      file.write(png(number))


def settle(root, seconds=100):
  """Dates everything back, so that lists of it are kept."""
  for folder, _, files in os.walk(os.fsencode(root), topdown=False):
    for name in (*files, b''):
      path = os.path.join(folder, name)
      if os.path.exists(path):
        then = os.stat(path).st_mtime - seconds
        os.utime(path, (then, then))


def names(source):
  """Where the images are, without the name of the source."""
  start = len(source.name) + 1
  return [source.where(i)[start:] for i in range(len(source))]


def first_pixels(source):
  """The first byte of each decoded image."""
  opened = (Image.open(io.BytesIO(source.read(i))) for i in range(len(source)))
  return [int(np.asarray(image).flat[0]) for image in opened]


def read_by_threads(source, expected, threads=8):
  """Indices that some of many threads read something else at.

  Each thread reads every image a few times, in an order of its own.
  """
  wrong = []

  def read():
    for index in np.random.permutation(np.repeat(np.arange(len(source)), 5)):
      if source.read(int(index)) != expected[index]:
        wrong.append(index)

  pool = [threading.Thread(target=read) for _ in range(threads)]
  for thread in pool:
    thread.start()
  for thread in pool:
    thread.join()
  return wrong
