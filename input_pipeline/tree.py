"""Files below a folder, wherever they lie."""

import functools
import os
import stat
from typing import Protocol

from etils import epath

from input_pipeline import listing
from input_pipeline.names import Listing, shown


class Tree(Protocol):
  """Images in folders, of which those of the first level may be splits.

  Attributes:
    name: for messages.
    root: path that tables of labels may begin their paths with.
  """

  name: str
  root: str

  def folders(self) -> list[bytes]:
    """Names of the folders of the first level, sorted."""

  def listing(self, folder: bytes = b'') -> Listing:
    """All images in a folder of the first level, or all there are."""

  def table(self, path: str) -> bytes | None:
    """Content of a file that is no image; None if it is not there."""

  def read(self, images: Listing, index: int) -> bytes:
    """Content of an image; OSError if it cannot be read."""


def read_file(path: str | bytes) -> bytes:
  """Reads a local file.

  Args:
    path: of the file.

  Returns:
    Its content.

  Raises:
    OSError: it cannot be read, or is a pipe, a device or the like, which might
      have no end or never answer.
  """
  # Without O_NONBLOCK opening a pipe waits for someone to write into it.
  number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
  with open(number, 'rb', buffering=0) as file:
    if not stat.S_ISREG(os.fstat(number).st_mode):
      raise OSError('not a regular file')
    return file.readall()


class LocalTree:
  """A folder on this machine; see `Tree`."""

  def __init__(self, root: str):
    """Takes an absolute path."""
    self.name, self.root = shown(os.fsencode(root)), root
    self._root = os.fsencode(root)

  def folders(self) -> list[bytes]:
    """See `Tree`."""
    with os.scandir(self._root) as entries:
      found = [e.name for e in entries if listing.entry_kind(e) == 'folder']
    return sorted(name for name in found if not listing.is_hidden(name))

  def listing(self, folder: bytes = b'') -> Listing:
    """See `Tree`."""
    if not folder:
      return listing.list_folder(self.root)
    path = os.path.join(self.root, os.fsdecode(folder))
    return listing.list_folder(path, above=folder + b'/')

  def table(self, path: str) -> bytes | None:
    """See `Tree`."""
    path = os.path.join(self.root, path)
    return read_file(path) if os.path.exists(path) else None

  def read(self, images: Listing, index: int) -> bytes:
    """See `Tree`."""
    path = os.path.join(self._root, images.above + images[index])
    return read_file(path)


class RemoteTree:
  """A folder such as `gs://bucket/folder`; see `Tree`."""

  def __init__(self, root: str):
    """Takes a URL."""
    self.name = self.root = root.rstrip('/')
    self._root = epath.Path(root)

  @functools.cached_property
  def _folders(self) -> list[bytes]:
    return listing.RemoteWalk(self.root).top_folders()

  def folders(self) -> list[bytes]:
    """See `Tree`."""
    return self._folders

  def listing(self, folder: bytes = b'') -> Listing:
    """See `Tree`."""
    if not folder:
      return listing.list_folder(self.root)
    path = f'{self.root}/{os.fsdecode(folder)}'
    return listing.list_folder(path, above=folder + b'/')

  def table(self, path: str) -> bytes | None:
    """See `Tree`."""
    path = self._root / path
    return path.read_bytes() if path.exists() else None

  def read(self, images: Listing, index: int) -> bytes:
    """See `Tree`."""
    path = self._root / os.fsdecode(images.above + images[index])
    try:
      return path.read_bytes()
    except Exception as error:  # each kind of store has errors of its own
      raise OSError(f'{type(error).__name__}: {error}') from error
