"""Images in a folder, or in a `.zip` or `.tar` of one: splits and labels.

Splits are the sub-folders `train` and one of `TESTS`; classes are sub-folders
too, or come from a table.
"""

import functools
import os
from collections.abc import Mapping

import numpy as np
from absl import logging
from etils import epath

from input_pipeline import label_table, paths
from input_pipeline import labels as labelling
from input_pipeline.data_dir import open_tree
from input_pipeline.left_out import LeftOut, looked_for
from input_pipeline.listing import is_remote
from input_pipeline.names import Listing, normal, shown
from input_pipeline.source import Stamps
from input_pipeline.tree import TESTS, Tree, read_file, splits

_SHOWN = 8  # names in an error
_LABELS = "'auto', 'folders', 'none' or the path of a table"


class Files:
  """Image files by number; see `source.Source`."""

  channels = None
  cache_key = None  # files change unnoticed

  def __init__(
    self,
    tree: Tree,
    images: Listing,
    *,
    rows: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    classes: tuple[str, ...] = (),
  ):
    """Puts together what was found.

    Args:
      tree: where the files are.
      images: the listing that they are from.
      rows: int64 [n] which of them are meant; None for all.
      labels: int32 [n] or None.
      classes: names of the labels.
    """
    self.name = f'{tree.name}/{shown(images.above)}'.rstrip('/')
    self.labels, self.classes = labels, classes
    self._tree, self._images, self._rows = tree, images, rows

  @property
  def left_out(self) -> LeftOut:
    """Counts of files beside the images that are not read."""
    return self._images.left_out

  def __len__(self):
    return len(self._images) if self._rows is None else len(self._rows)

  def _row(self, index: int) -> int:
    if not 0 <= index < len(self):
      raise IndexError(index)
    return int(index if self._rows is None else self._rows[index])

  def read(self, index: int) -> bytes:
    """Content of one file; OSError if it cannot be read."""
    return self._tree.read(self._images, self._row(index))

  def stamps(self) -> Stamps:
    """Sizes and times of the files, looked at once; see `source.Stamps`."""
    return self._stamps

  @functools.cached_property
  def _stamps(self) -> Stamps:
    rows = np.arange(len(self._images)) if self._rows is None else self._rows
    return self._tree.stamps(self._images, rows)

  def where(self, index: int) -> str:
    """Path of one file, printable."""
    return f'{self.name}/{shown(self._images[self._row(index)])}'


def from_folder(
  *,
  split: str = 'train',
  data_dir: str | os.PathLike | None = None,
  labels: str = 'auto',
) -> Files:
  """Finds the images in a folder or archive.

  The order is that of the paths as bytes. If there are the sub-folders `train`
  and one of `TESTS` (case does not matter), they are the splits. Classes are
  counted over all splits, so that their numbers agree.

  Args:
    split: 'train', 'test' (the first of `TESTS` that is there), the name of a
      sub-folder, or 'all'; without sub-folders for splits 'train' is all.
    data_dir: folder, local or as `gs://bucket/folder`; or a `.zip` or `.tar`.
    labels: 'folders' for the first level of sub-folders; 'none'; 'auto' for
      'folders' if every image is in one of at least two of them, else 'none';
      or the path of a table of paths and labels (see `label_table.read_table`),
      absolute or relative to data_dir or to each split. Files that a table does
      not name are left out.

  Returns:
    The images.

  Raises:
    FileNotFoundError: no such folder or archive.
    ValueError: no such split, no images, no such table, labels that do not fit.
  """
  tree = open_tree(data_dir)
  folder = _split_folder(tree, split)
  images = tree.listing(folder)
  if not len(images):
    raise ValueError(_nothing(tree, folder, images))
  if pictures := images.left_out.pictures():
    logging.warning(
      '%s: left out: %s',
      f'{tree.name}/{shown(images.above)}'.rstrip('/'),
      pictures,
    )
  if labels == 'none':
    return Files(tree, images)
  if not labels:
    raise ValueError(f'{tree.name}: labels are empty; they may be {_LABELS}')
  siblings = functools.cache(functools.partial(_siblings, tree, folder))
  if labels not in ('auto', 'folders'):
    return _from_table(tree, folder, labels, images, siblings)
  numbers, classes, loose = _by_folder(tree, folder, images, siblings)
  if labels == 'folders' and loose:
    raise ValueError(
      f"{tree.name}: labels='folders', but {shown(loose)} is in no sub-folder "
      'for a class'
    )
  if labels == 'auto' and loose and len(images.folders()[0]) > 1:
    logging.warning(
      '%s: no labels, for %s is in no sub-folder for a class',
      tree.name,
      shown(images.above + loose),
    )
  if labels == 'auto' and len(classes) < 2:
    return Files(tree, images)
  _warn_of_new_classes(tree, folder, images)
  return Files(tree, images, labels=numbers, classes=classes)


def _warn_of_new_classes(tree: Tree, folder: bytes, images: Listing) -> None:
  """Classes of a split for testing that `train` lacks cannot be learned."""
  train = splits(tree).get('train', folder) if folder else folder
  if train == folder:
    return
  known, loose = tree.listing(train).folders()
  known = {normal(name): shown(name) for name in known}
  new = [name for name in images.folders()[0] if normal(name) not in known]
  if new and not loose:
    logging.warning(
      '%s: %d classes of %s are not in %s, such as %s',
      tree.name,
      len(new),
      shown(folder),
      shown(train),
      ', '.join(_nearly(name, known) for name in new[:3]),
    )


def _nearly(name: bytes, known: Mapping[bytes, str]) -> str:
  """A class, with the one that it may be apart from its letters' case."""
  alike = next((known[k] for k in known if _loose(k) == _loose(name)), None)
  return shown(name) + f' ({alike} is)' * (alike is not None)


def _loose(name: bytes) -> str:
  text = normal(name).decode(errors='surrogateescape')
  return ''.join(c for c in text.casefold() if c.isalnum())


def has_split(data_dir: str | os.PathLike | None, split: str) -> bool:
  """Whether `from_folder` knows a split; it may hold no images.

  Args:
    data_dir: as of `from_folder`.
    split: as of `from_folder`.

  Returns:
    True if there is such a sub-folder, or the split is all there is.

  Raises:
    FileNotFoundError: no such folder or archive.
    ValueError: a file that is no such archive.
  """
  tree = open_tree(data_dir)
  try:
    _split_folder(tree, split)
  except ValueError:
    return False
  return True


def _split_folder(tree: Tree, split: str) -> bytes:
  """The sub-folder of a split; empty for the whole."""
  if split == 'all':
    return b''
  folders, found = tree.folders(), splits(tree)
  known = [key for key in TESTS if key in found]
  if split == 'test' and known:
    return found[known[0]]
  if split in found:
    return found[split]
  if split == 'train':
    return b''
  named = [f for f in folders if normal(f) == normal(os.fsencode(split))]
  if split != 'test' and len(named) > 1:
    raise ValueError(
      f'{tree.name}: {len(named)} sub-folders are named {split!r} in different '
      'Unicode forms; move their images into one of them'
    )
  if split != 'test' and named:
    return named[0]
  looked = split if split != 'test' else f'train with {" or ".join(TESTS)}'
  names = ', '.join(shown(name) for name in folders[:_SHOWN]) or 'none'
  raise ValueError(
    f'{tree.name}: nothing for the split {split!r}: looked for the sub-folders '
    f"{looked}, found {names}{', ...' if len(folders) > _SHOWN else ''}; 'all' "
    'is the whole folder'
  )


def _siblings(tree: Tree, folder: bytes) -> tuple[Listing, ...]:
  """The other splits."""
  if not folder:
    return ()
  names = splits(tree).values()
  return tuple(tree.listing(name) for name in names if name != folder)


def _by_folder(tree, folder, images, siblings):
  """As `labels.by_folder`; the whole of several splits has their classes."""
  whole = {} if folder else splits(tree)
  if not whole:
    return labelling.by_folder([images], siblings())
  parts = [images.within(name) for name in sorted(whole.values())]
  if sum(map(len, parts)) == len(images):
    return labelling.by_folder(parts)
  tops = tuple(name + b'/' for name in whole.values())
  loose = (images[i] for i in range(len(images)))
  return None, (), next(p for p in loose if not p.startswith(tops))


def _from_table(tree, folder, path, images, siblings) -> Files:
  """Images that a table names, and their labels."""
  try:
    tables = _tables(tree, path)
  except OSError as error:
    raise ValueError(
      f'{tree.name}: no table of labels {path!r}: {error.strerror or error}; '
      f'labels may be {_LABELS}'
    ) from error
  own = tables.get(folder, tables.get(b''))
  if own is None:
    raise ValueError(
      f'{tree.name}: no table of labels {path!r} in data_dir; labels may be '
      + _LABELS
    )
  classes, numbers = labelling.unify_classes(
    {label for table in tables.values() for label in table.values()}
  )
  rows, labels = labelling.by_table(
    own, numbers, images, siblings=siblings, root=tree.root, name=path
  )
  if not len(rows):
    raise ValueError(f'{path}: names none of the {len(images)} images')
  logging.warning(
    '%s names %d images; %d others are left out',
    path,
    len(rows),
    len(images) - len(rows),
  )
  return Files(tree, images, rows=rows, labels=labels, classes=classes)


def _tables(tree: Tree, path: str) -> dict[bytes, dict[bytes, str]]:
  """Tables by the folder they are for: one for all, or one for each split."""
  if is_remote(path):
    content = epath.Path(path).read_bytes()
    return {b'': label_table.read_table(content, path)}
  expanded = paths.expand(path)
  if os.path.isabs(expanded):
    return {b'': label_table.read_table(read_file(expanded), path)}
  content = tree.table(path)
  if content is not None:
    return {b'': label_table.read_table(content, path)}
  found = {}
  for folder in splits(tree).values():
    name = os.path.join(os.fsdecode(folder), path)
    content = tree.table(name)
    if content is not None:
      found[folder] = label_table.read_table(content, name)
  return found


def _nothing(tree: Tree, folder: bytes, images: Listing) -> str:
  out = ''
  if folder and folder in [splits(tree).get(name) for name in TESTS]:
    out = '; name another split, or none: --config.data.test_split='
  return (
    f'{tree.name}/{shown(images.above)}'.rstrip('/')
    + f': no images; {looked_for(images.left_out)}{out}'
  )
