"""Labels of files: from the folders they lie in, or from a table."""

import functools
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from input_pipeline.label_table import some, tidy
from input_pipeline.names import Listing, normal, shown


def number_classes(names: set[str]) -> tuple[str, ...]:
  """Puts class names in order: as numbers if all are integers, else as text."""
  if all(re.fullmatch(r'-?\d{1,18}', name) for name in names):
    return tuple(sorted(names, key=lambda name: (int(name), name)))
  return tuple(sorted(names))


def unify_classes(
  names: Iterable[str],
) -> tuple[tuple[str, ...], dict[str, int]]:
  """Makes one class of all Unicode forms of a name.

  Args:
    names: of classes, as written; upper and lower case are different classes.

  Returns:
    (The classes in order, as written where all write a name alike, else as NFC;
    the number of the class of each of `names`).
  """
  forms = {}
  for name in names:
    forms.setdefault(unicodedata.normalize('NFC', name), set()).add(name)
  written = {
    min(same) if len(same) == 1 else form: same for form, same in forms.items()
  }
  classes = number_classes(set(written))
  numbers = {
    name: number
    for number, chosen in enumerate(classes)
    for name in written[chosen]
  }
  return classes, numbers


def by_folder(
  parts: Sequence[Listing], others: Sequence[Listing] = ()
) -> tuple[np.ndarray | None, tuple[str, ...], bytes | None]:
  """Labels images by the first folder of their paths.

  Args:
    parts: consecutive ranges that make up the listing to label.
    others: what else counts as classes, so that numbers agree between splits;
      those with images outside folders do not.

  Returns:
    (int32 [n] labels, the classes, None); (None, (), path) where an image is in
    no folder.
  """
  found = [part.folders() for part in parts]
  loose = [path for _, path in found if path is not None]
  if loose:
    return None, (), loose[0]
  pairs = [other.folders() for other in others]
  folders = [f for f, _ in found] + [f for f, p in pairs if p is None]
  names = {shown(name) for names in folders for name in names}
  classes, number = unify_classes(names)
  labels = np.empty(sum(map(len, parts)), np.int32)
  start = 0
  for part, (names, _) in zip(parts, found, strict=True):
    for name, images in names.items():
      labels[start + images.start : start + images.stop] = number[shown(name)]
    start += len(part)
  return labels, classes, None


def by_table(
  table: Mapping[bytes, str],
  numbers: Mapping[str, int],
  listing: Listing,
  *,
  siblings: Callable[[], Sequence[Listing]],
  root: str,
  name: str,
) -> tuple[np.ndarray, np.ndarray]:
  """Labels images by a table.

  Args:
    table: {path: label}; paths are relative to the listing, to a folder above
      it, or absolute.
    numbers: {label: number of its class}.
    listing: the images; those that the table does not name are left out.
    siblings: finds other splits, whose images the table may name too.
    root: absolute path of the top of the data set.
    name: of the table, for messages.

  Returns:
    int64 [n] images that have a label, in the order of the listing, and their
    int32 [n] labels.

  Raises:
    ValueError: the table names files that are not there, or one file twice.
  """
  here = _Finder(listing, root)
  others = functools.cache(lambda: [_Finder(o, root) for o in siblings()])
  found, missing = {}, []
  tops = list(listing.folders()[0])
  alone = tops[0] + b'/' if len(tops) == 1 else b''  # may be left out
  for path, label in table.items():
    row = here.find(path)
    if row is None and alone:
      row = here.find(alone + path)
    if row is None:
      if all(other.find(path) is None for other in others()):
        missing.append(shown(path))
    elif row in found:
      raise ValueError(f'{name}: {shown(listing[row])} occurs more than once')
    else:
      found[row] = numbers[label]
  if missing:
    raise ValueError(
      f'{name}: {len(missing)} of {len(table)} files are not there or no '
      f'images, such as {some(missing)}; paths are relative to data_dir'
    )
  rows = np.fromiter(found.keys(), np.int64, len(found))
  labels = np.fromiter(found.values(), np.int32, len(found))
  order = np.argsort(rows)
  return rows[order], labels[order]


class _Finder:
  """Finds the images that paths in tables mean, seen from any folder above."""

  def __init__(self, listing: Listing, root: str):
    """Takes the images and the absolute path of the top of the data set."""
    self._listing = listing
    self._root = os.fsencode(root).rstrip(b'/') + b'/' if root else b''

  def find(self, path: bytes) -> int | None:
    """The number of an image, whatever slashes and accents its path has."""
    for spelling in dict.fromkeys((path, tidy(path.replace(b'\\', b'/')))):
      row = self._find(spelling, self._listing.find, lambda name: name)
      if row is None:
        row = self._find(normal(spelling), self._find_normal, normal)
      if row is not None:
        return row
    return None

  def _find(self, path, lookup, form) -> int | None:
    root = form(self._root)
    if root and path.startswith(root):
      path = path[len(root) :]
    above = form(self._listing.above).split(b'/')[:-1]
    for depth in range(len(above), -1, -1):  # the nearest folder first
      prefix = b'/'.join((*above[depth:], b''))
      if path.startswith(prefix):
        row = lookup(path[len(prefix) :])
        if row is not None:
          return row
    return None

  def _find_normal(self, path: bytes) -> int | None:
    return self._listing.find(path) if path.isascii() else self._forms.get(path)

  @functools.cached_property
  def _forms(self) -> dict[bytes, int]:
    """Images whose names are not ASCII by the normal form of their names."""
    found = {}
    for row in range(len(self._listing)):
      name = self._listing[row]
      if not name.isascii():
        found.setdefault(normal(name), row)
    return found
