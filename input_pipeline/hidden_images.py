"""Counts images in hidden and system folders, of large folders some."""

import itertools
import os

from absl import logging
from etils import epath

from input_pipeline.formats import is_image
from input_pipeline.left_out import LeftOut

ENTRIES = 10_000  # looked at in all hidden folders of a listing
PER_FOLDER = 2000  # in one of them
REMOTE_CALLS = 50  # to an object store, where each takes long


class HiddenImages:
  """Notes hidden entries of a listing while there is time for it.

  Args:
    left_out: gets the counts.
  """

  def __init__(self, left_out: LeftOut):
    self._left_out = left_out
    self._entries, self._calls = ENTRIES, REMOTE_CALLS

  def see(self, entry: os.DirEntry) -> None:
    """Counts images in a hidden file or folder; links are not followed."""
    images, stack, left = 0, [], min(self._entries, PER_FOLDER)
    self._entries -= left
    try:
      if entry.is_dir(follow_symlinks=False):
        stack.append(entry.path)
      elif is_image(entry.name) and entry.is_file():
        images = 1
      while stack and left > 0:
        with os.scandir(stack.pop()) as entries:
          for inner in itertools.islice(entries, left):
            left -= 1
            if inner.is_dir(follow_symlinks=False):
              stack.append(inner.path)
            else:
              images += is_image(inner.name)
    except OSError:  # closed to us, as many folders of systems are
      pass
    self._entries += left
    more = bool(stack) or left <= 0 and images > 0
    self._left_out.see_hidden(entry.name, images, more=more)

  def see_remote(self, path: epath.Path) -> None:
    """As `see`; what is named like an image is taken for one."""
    images, stack = 0, [path]
    try:
      while stack and self._calls > 0:
        inner = stack.pop()
        if is_image(os.fsencode(inner.name)):
          images += 1
          continue
        self._calls -= 1
        if inner.is_dir():
          stack += inner.iterdir()
    except Exception as error:  # each kind of store has errors of its own
      logging.info('%s cannot be listed: %s', path, error)
    name = os.fsencode(path.name)
    self._left_out.see_hidden(name, images, more=bool(stack))
