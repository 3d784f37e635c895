"""Files below a folder, wherever they lie."""

import concurrent.futures
import errno
import functools
import os
import stat
from collections.abc import Callable
from typing import Protocol

import numpy as np
import tqdm
from etils import epath

from input_pipeline import listing
from input_pipeline.formats import is_image
from input_pipeline.names import Listing, shown
from input_pipeline.source import Stamps
from input_pipeline.system_names import is_hidden

TESTS = ('test', 'val', 'valid', 'validation')  # the first that is there
_THREADS = 8  # network drives answer slowly, but several at a time
_LOOKS = 4096  # files that a thread looks at before it is asked again
_DEEPEST = 32  # folders each alone in the one above; links may go in circles


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

  def stamps(self, images: Listing, rows: np.ndarray) -> Stamps:
    """Of some images; see `source.Stamps`."""


def splits(tree: Tree) -> dict[str, bytes]:
  """The folders of the first level that are splits.

  Args:
    tree: listed, if need be.

  Returns:
    {name in lower case: name}; empty without.
  """
  folders = tree.folders()
  names = {name.decode(errors='replace').lower(): name for name in folders}
  found = {key: names[key] for key in ('train', *TESTS) if key in names}
  if 'train' not in found:
    return {}
  if len(found) == 1 and len(folders) > 1:
    # `train` alone, among others with images, is a class of vehicles.
    return found if len(tree.listing().folders()[0]) == 1 else {}
  return found


def descend(
  look: Callable[[bytes], tuple[list[bytes], bool]],
) -> tuple[bytes, list[bytes]]:
  """Goes down while a folder holds one folder and no images beside it.

  Folders that hold images themselves, which are classes, are not entered, and
  neither is `train`.

  Args:
    look: finds the folders in a folder, and whether images are beside them.

  Returns:
    (path from the top, empty or ending in '/'; the folders there).
  """
  above, (folders, loose) = b'', look(b'')
  for _ in range(_DEEPEST):
    if loose or len(folders) != 1 or folders[0].lower() == b'train':
      break
    inner = above + folders[0] + b'/'
    found, loose = look(inner)
    if not loose:
      above, folders = inner, found
  return above, folders


def _has_train(folders: list[bytes]) -> bool:
  return b'train' in map(bytes.lower, folders)


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
  mode = os.fstat(number).st_mode
  if stat.S_ISDIR(mode):  # the error of `open` would name a descriptor
    os.close(number)
    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
  with open(number, 'rb', buffering=0) as file:
    if not stat.S_ISREG(mode):
      raise OSError('not a regular file')
    return file.readall()


def stamps_of(folder: bytes, images: Listing, rows: np.ndarray) -> Stamps:
  """Sizes and times of files on this machine.

  Args:
    folder: that the names are relative to.
    images: the names.
    rows: int64 [n] which of them.

  Returns:
    The stamps; -1 for a file that cannot be looked at.
  """
  wanted = np.zeros(len(images), bool)
  wanted[rows] = True
  whole = os.path.join(folder, b'')
  paths = [
    whole + name
    for name, yes in zip(images, wanted.tolist(), strict=True)
    if yes
  ]

  def look(start):
    found = np.empty((2, len(paths[start : start + _LOOKS])), np.int64)
    for i, path in enumerate(paths[start : start + _LOOKS]):
      try:
        status = os.stat(path)
        found[:, i] = status.st_size, status.st_mtime_ns
      except OSError:
        found[:, i] = -1
    return found

  with (
    concurrent.futures.ThreadPoolExecutor(_THREADS) as pool,
    tqdm.tqdm(
      desc=f'sizes of {shown(folder)}', total=len(paths), unit=' files', delay=2
    ) as progress,
  ):
    parts = [np.zeros((2, 0), np.int64)]
    for part in pool.map(look, range(0, len(paths), _LOOKS)):
      parts.append(part)
      progress.update(part.shape[1])
  sizes, times = np.concatenate(parts, axis=1)
  return Stamps(content=sizes, times=times, size=int(sizes.clip(0).sum()))


class LocalTree:
  """A folder on this machine; see `Tree`."""

  def __init__(self, root: str):
    """Takes an absolute path."""
    self.name, self.root = shown(os.fsencode(root)), root
    self._root = os.fsencode(root)

  def _look(self, above: bytes = b'') -> tuple[list[bytes], bool]:
    found, loose = [], False
    with os.scandir(os.path.join(self._root, above)) as entries:
      for entry in entries:
        if is_hidden(entry.name):
          continue
        if listing.entry_kind(entry) == 'folder':
          found.append(entry.name)
        else:
          loose |= is_image(entry.name)
    return sorted(found), loose

  @functools.cached_property
  def _above(self) -> bytes:
    """Path to the folder that holds the splits, if it is not the top."""
    try:
      above, folders = descend(self._look)
    except OSError:  # told when it is listed
      return b''
    return above if _has_train(folders) else b''

  def folders(self) -> list[bytes]:
    """See `Tree`."""
    return self._look(self._above)[0]

  def listing(self, folder: bytes = b'') -> Listing:
    """See `Tree`."""
    above = self._above + folder + b'/' * bool(folder)
    path = os.path.join(self.root, os.fsdecode(above)) if above else self.root
    return listing.list_folder(path, above=above)

  def table(self, path: str) -> bytes | None:
    """See `Tree`."""
    for above in dict.fromkeys((os.fsdecode(self._above), '')):
      file = os.path.join(self.root, above, path)
      if os.path.exists(file):
        return read_file(file)
    return None

  def read(self, images: Listing, index: int) -> bytes:
    """See `Tree`."""
    path = os.path.join(self._root, images.above + images[index])
    return read_file(path)

  def stamps(self, images: Listing, rows: np.ndarray) -> Stamps:
    """See `Tree`; one look at each file."""
    return stamps_of(os.path.join(self._root, images.above), images, rows)


class RemoteTree:
  """A folder such as `gs://bucket/folder`; see `Tree`."""

  def __init__(self, root: str):
    """Takes a URL."""
    self.name = self.root = root.rstrip('/')
    self._root = epath.Path(root)

  @functools.cached_property
  def _top(self) -> tuple[bytes, list[bytes]]:
    """As `descend`, or the top itself."""
    found = {}

    def look(above):
      found[above] = listing.RemoteWalk(self._path(above)).top_folders()
      return found[above]

    above, folders = descend(look)
    return (above, folders) if _has_train(folders) else (b'', found[b''][0])

  def _path(self, above: bytes) -> str:
    return f'{self.root}/{os.fsdecode(above)}'.rstrip('/')

  def folders(self) -> list[bytes]:
    """See `Tree`."""
    return self._top[1]

  def listing(self, folder: bytes = b'') -> Listing:
    """See `Tree`."""
    above = self._top[0] + folder + b'/' * bool(folder)
    return listing.list_folder(self._path(above), above=above)

  def table(self, path: str) -> bytes | None:
    """See `Tree`."""
    for above in dict.fromkeys((os.fsdecode(self._top[0]), '')):
      file = self._root / above / path
      if file.exists():
        return file.read_bytes()
    return None

  def read(self, images: Listing, index: int) -> bytes:
    """See `Tree`."""
    path = self._root / os.fsdecode(images.above + images[index])
    try:
      return path.read_bytes()
    except Exception as error:  # each kind of store has errors of its own
      raise OSError(f'{type(error).__name__}: {error}') from error

  def stamps(self, images: Listing, rows: np.ndarray) -> Stamps:
    """See `Tree`; a call for each file would take hours."""
    del images, rows
    return Stamps()
