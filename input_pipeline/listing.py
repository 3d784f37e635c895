"""Which images a folder holds, at any depth, found out once.

Millions of files take a while to list, so the result is kept (see `cache`). It
counts as long as no folder on the way has changed, which takes one look at each
folder and none at the files. Remote folders tell no such thing: their list is
used as it is until someone deletes it.
"""

import array
import concurrent.futures
import os
import re
from collections.abc import Iterator

import numpy as np
from absl import logging
from etils import epath

from input_pipeline import cache
from input_pipeline.formats import EXTENSIONS, is_image
from input_pipeline.hidden_images import HiddenImages
from input_pipeline.left_out import LeftOut
from input_pipeline.names import Listing, Names, shown
from input_pipeline.progress import progress_bar
from input_pipeline.system_names import is_hidden

_FORMAT = f'3 {EXTENSIONS}'  # of the cached lists
_KEYS = ('images_blob', 'images_ends', 'folders_blob', 'folders_ends')
_KEYS += ('marks', 'left_out')
_REMOTE_CALLS = 32  # at a time


def is_remote(path: str | os.PathLike) -> bool:
  """Whether a path is a URL such as `gs://bucket/folder`."""
  return bool(re.match(r'[a-z][a-z0-9+.-]*://', os.fspath(path)))


def list_folder(folder: str, *, above: bytes = b'') -> Listing:
  """Lists the images in a folder, at any depth, in the order of their paths.

  Hidden files and folders and those of systems are left out; linked folders are
  followed, each folder once.

  Args:
    folder: absolute path or URL.
    above: path from the top of the data set to the folder, see `Listing`.

  Returns:
    The images; names are relative to the folder, sorted as bytes.

  Raises:
    OSError: it cannot be listed.
  """
  remote = is_remote(folder)
  name = shown(os.fsencode(os.path.basename(folder.rstrip('/'))))
  path = cache.cache_file('list', name, digest=f'{_FORMAT} {folder}')
  kept = cache.read_arrays(path, _KEYS)
  if kept is not None and (remote or _unchanged(folder, kept)):
    if remote:
      logging.warning(
        '%s: taking the list of images as of the last time; delete %s to have '
        'it listed again',
        folder,
        path,
      )
    left_out = LeftOut.from_json(str(kept['left_out']))
    return Listing(Names.from_arrays(kept, 'images'), left_out, above=above)
  walk = RemoteWalk(folder) if remote else _Walk(folder)
  images = Names.of(walk.images())
  if walk.complete and len(images):
    cache.write_arrays(
      path,
      **images.to_arrays('images'),
      **Names.of(walk.folders).to_arrays('folders'),
      marks=np.frombuffer(walk.marks, np.uint64),
      left_out=np.array(walk.left_out.to_json()),
    )
  return Listing(images, walk.left_out, above=above)


def _unchanged(root: str, kept: dict[str, np.ndarray]) -> bool:
  """Whether all folders of a kept list are those of then."""
  root = os.fsencode(root)
  folders = Names.from_arrays(kept, 'folders')
  try:
    marks = kept['marks'].reshape(len(folders), -1).tolist()
    return all(
      _marks(os.stat(os.path.join(root, folder))) == mark
      for folder, mark in zip(folders, marks, strict=True)
    )
  except (OSError, ValueError):
    return False


def _marks(status: os.stat_result) -> list[int]:
  """What changes with the content of a folder, or if another takes its place.

  The number of the device is left out: that of a network drive differs from one
  machine to the next.
  """
  marks = (status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
  return [mark % 2**64 for mark in marks]


def entry_kind(entry: os.DirEntry) -> str:
  """What an entry of a folder is, links followed.

  Args:
    entry: of `os.scandir`.

  Returns:
    'file', 'folder', 'other' (pipes, devices), or 'broken' for a link that
    leads nowhere or may not be followed.
  """
  try:
    # The kind comes with the name: only links are looked at.
    if entry.is_file():
      return 'file'
    if entry.is_dir():
      return 'folder'
    if entry.is_symlink():
      entry.stat()
  except OSError:  # a link to itself, or into a folder that is closed to us
    return 'broken'
  return 'other'


class _Walk:
  """One pass over a local folder.

  Attributes:
    folders: all that were listed, relative, with a trailing '/'.
    marks: of these folders before they were listed, see `_marks`.
    left_out: what is not listed.
    complete: nothing failed or changed meanwhile: worth keeping.
  """

  def __init__(self, root: str):
    self._root, self._seen = os.fsencode(root), set()
    self._real = os.path.join(os.path.realpath(self._root), b'')
    self.folders, self.marks = [], array.array('Q')
    self.left_out, self.complete = LeftOut(), True
    self._hidden = HiddenImages(self.left_out)

  def images(self) -> Iterator[bytes]:
    """Relative paths in the order of their bytes."""
    # Sorting each folder with '/' behind the names of its folders sorts the
    # paths as a whole, and only one folder has to be held as a list.
    stack = [iter(self._list(b''))]
    with progress_bar(
      f'listing {shown(self._root)}', unit='files', delay=2
    ) as progress:
      while stack:
        count = 0
        for path in stack[-1]:
          if path.endswith(b'/'):
            stack.append(iter(self._list(path)))
            break
          count += 1
          yield path
        else:
          stack.pop()
        progress.update(count)

  def _list(self, folder: bytes) -> list[bytes]:
    """Images and, with a trailing '/', folders directly in a folder."""
    path = os.path.join(self._root, folder)
    out = []
    try:
      status = os.stat(path)
      if (status.st_dev, status.st_ino) in self._seen:
        logging.warning(
          'left out, a link to a folder seen already: %s', shown(path)
        )
        return []
      self._seen.add((status.st_dev, status.st_ino))
      with os.scandir(path) as entries:
        for entry in entries:
          name = entry.name
          if is_hidden(name):
            self._hidden.see(entry)
            continue
          kind = entry_kind(entry)
          self.complete &= kind != 'broken'  # it may lead somewhere next time
          if kind == 'folder':
            if not self._leads_back(entry):
              out.append(folder + name + b'/')
          elif kind == 'file' and is_image(name):
            out.append(folder + name)
          else:
            self.left_out.see(name)
    except OSError as error:
      if not folder:
        raise
      logging.warning('left out, cannot be listed: %s', error)
      self.complete = False
      return []
    self.folders.append(folder)
    self.marks.extend(_marks(status))
    self.complete &= cache.settled(status.st_mtime_ns)
    out.sort()
    return out

  def _leads_back(self, entry: os.DirEntry) -> bool:
    """Whether it is a link to a folder that is found without any link."""
    if not entry.is_symlink():
      return False
    real = os.path.join(os.path.realpath(entry.path), b'')
    if not real.startswith(self._real):
      return False
    inside = real[len(self._real) :].split(b'/')[:-1]
    if any(map(is_hidden, inside)):
      return False
    logging.info('%s is a link to another folder in it', shown(entry.path))
    return True


class RemoteWalk:
  """One pass over a remote folder; attributes as of `_Walk`, without marks.

  Object stores are asked for the content of many folders at a time. Whether an
  entry is a folder costs a call of its own, so what is named like an image is
  taken for one.
  """

  def __init__(self, root: str):
    self._root = epath.Path(root)
    self.folders, self.marks = [], array.array('Q')
    self.left_out, self.complete = LeftOut(), True
    self._hidden = HiddenImages(self.left_out)

  def images(self) -> list[bytes]:
    """Relative paths in the order of their bytes."""
    found = []
    with (
      concurrent.futures.ThreadPoolExecutor(_REMOTE_CALLS) as pool,
      progress_bar(f'listing {self._root}', unit='files', delay=2) as bar,
    ):
      level = ['']
      while level:
        entries = []
        for folder, names in zip(
          level, pool.map(self._names, level), strict=True
        ):
          for name in names:
            if is_hidden(os.fsencode(name)):
              self._hidden.see_remote(self._root / folder / name)
            else:
              entries.append(folder + name)
        others = []
        for path in entries:
          if is_image(os.fsencode(path)):
            found.append(os.fsencode(path))
          else:
            others.append(path)
        bar.update(len(entries) - len(others))
        level = []
        for path, folder in zip(
          others, pool.map(self._is_folder, others), strict=True
        ):
          if folder:
            level.append(f'{path}/')
          else:
            self.left_out.see(os.fsencode(path))
    return sorted(set(found))

  def _names(self, folder: str) -> list[str]:
    return [path.name for path in (self._root / folder).iterdir()]

  def top_folders(self) -> tuple[list[bytes], bool]:
    """Names of the folders of the first level; whether images are beside."""
    names = [n for n in map(os.fsencode, self._names('')) if not is_hidden(n)]
    others = sorted(name for name in names if not is_image(name))
    with concurrent.futures.ThreadPoolExecutor(_REMOTE_CALLS) as pool:
      found = list(pool.map(self._is_folder, map(os.fsdecode, others)))
    folders = [n for n, yes in zip(others, found, strict=True) if yes]
    return folders, len(others) < len(names)

  def _is_folder(self, path: str) -> bool:
    return (self._root / path).is_dir()
