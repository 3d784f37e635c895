"""What a listing leaves out, counted in bounded memory."""

import collections
import json
import os
from collections.abc import Mapping

from input_pipeline.formats import EXTENSIONS, MISSING, is_image, is_picture
from input_pipeline.names import shown

_MAX_KINDS = 100  # counted one by one in a folder
_MAX_FOLDERS = 10_000
_MAX_DEPTH = 4  # of folders that are counted apart
_SHOWN = 8  # kinds in a text
_MORE = '/more'  # counts what was not looked at
_REST = 'others'


class LeftOut:
  """Counts files that are not listed, by folder and kind.

  Two kinds of files are counted: those without the extension of an image, by
  extension, and images in hidden or system folders, by the name of the folder.
  """

  def __init__(self, folders: Mapping[str, Mapping[str, int]] | None = None):
    """Starts with the counts of `to_json`, or with none."""
    self._folders = {
      folder: collections.Counter(counts)
      for folder, counts in (folders or {}).items()
    }

  def _add(self, folder: bytes, key: str, count: int) -> None:
    if not count:
      return
    name = os.fsdecode(b'/'.join(folder.split(b'/', _MAX_DEPTH)[:_MAX_DEPTH]))
    if name not in self._folders and len(self._folders) >= _MAX_FOLDERS:
      name = ''
    counts = self._folders.setdefault(name, collections.Counter())
    if len(counts) >= _MAX_KINDS and key not in counts:
      key = f'/{_REST}' if key.startswith('/') else _REST
    counts[key] += count

  def see(self, name: bytes, folder: bytes = b'') -> None:
    """Counts a file that is no image.

    Args:
      name: of the file.
      folder: path of the folder that it is in, without a '/' at its end.
    """
    kind = shown(os.path.splitext(name)[1].lower()) or 'no extension'
    self._add(folder, kind, 1)

  def see_hidden(
    self, name: bytes, images: int, folder: bytes = b'', *, more: bool = False
  ) -> None:
    """Counts images that a hidden or system file or folder holds.

    Args:
      name: of the file or folder.
      images: in it.
      folder: path of the folder that it is in, without a '/' at its end.
      more: there may be more.
    """
    if is_image(name):  # one of many hidden files
      name = b'._*' if name.startswith(b'._') else b'.*'
    self._add(folder, f'/{shown(name)}', images)
    self._add(folder, _MORE, int(more))

  def within(self, folder: bytes) -> 'LeftOut':
    """What is left out in a folder, at any depth.

    Args:
      folder: its path, without a '/' at its end.

    Returns:
      Counts of their own.
    """
    name = os.fsdecode(folder)
    return LeftOut(
      {
        key: counts
        for key, counts in self._folders.items()
        if key == name or key.startswith(f'{name}/')
      }
    )

  def to_json(self) -> str:
    """The counts as text, for a file."""
    return json.dumps(self._folders)

  @classmethod
  def from_json(cls, text: str) -> 'LeftOut':
    """Undoes `to_json`."""
    return cls(json.loads(text))

  @property
  def kinds(self) -> dict[str, int]:
    """Files that are no images by extension, the most frequent first."""
    return self._sum(hidden=False)

  @property
  def hidden(self) -> dict[str, int]:
    """Images by the hidden or system folder that holds them."""
    return {
      name[1:]: count
      for name, count in self._sum(hidden=True).items()
      if name != _MORE
    }

  def _sum(self, *, hidden: bool) -> dict[str, int]:
    total = collections.Counter()
    for counts in self._folders.values():
      total.update(
        {k: n for k, n in counts.items() if k.startswith('/') == hidden}
      )
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))

  def pictures(self) -> str:
    """Pictures and films of formats that are not read, in words; or empty."""
    found = {k: n for k, n in self.kinds.items() if is_picture(k)}
    return _listed(found) + _advice(found) if found else ''

  def files(self) -> str:
    """All files that are no images, in words; or empty."""
    return _listed(self.kinds) + _advice(self.kinds)

  def hidden_images(self) -> str:
    """Images in hidden or system folders, in words; or empty."""
    found = self.hidden
    more = any(_MORE in counts for counts in self._folders.values())
    if not found:
      return ''
    least = 'at least ' * more
    names = ', '.join(f'{name} {n:,}' for name, n in [*found.items()][:_SHOWN])
    rest = ', ...' if len(found) > _SHOWN else ''
    return (
      f'{least}{sum(found.values()):,} images in hidden or system files and '
      f'folders ({names}{rest})'
    )


def _listed(kinds: Mapping[str, int]) -> str:
  text = ', '.join(f'{n:,} {kind}' for kind, n in [*kinds.items()][:_SHOWN])
  return text + (', ...' if len(kinds) > _SHOWN else '')


def _advice(kinds: Mapping[str, int]) -> str:
  """What reads these pictures, or to convert them."""
  parts = collections.defaultdict(list)
  for kind in kinds:
    if kind in MISSING:
      parts[MISSING[kind]].append(kind)
  out = [
    f'; for {" ".join(names)} Pillow needs {needs}'
    for needs, names in parts.items()
  ]
  if any(is_picture(kind) and kind not in MISSING for kind in kinds):
    out.append('; convert such pictures and films to JPEG or PNG')
  return ''.join(out)


def looked_for(left_out: LeftOut) -> str:
  """What a folder without images was searched for and holds, in words."""
  seen = left_out.files() or 'no files at all'
  hidden = left_out.hidden_images()
  return (
    f'looked for {" ".join(EXTENSIONS)} at any depth, seen: {seen}'
    + f'; left out: {hidden}' * bool(hidden)
  )
