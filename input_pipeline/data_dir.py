"""What `data_dir` stands for: a folder, a remote folder or an archive."""

import os

from etils import epath

from input_pipeline.archives import open_archive
from input_pipeline.listing import is_remote
from input_pipeline.names import shown
from input_pipeline.paths import expand
from input_pipeline.tree import LocalTree, RemoteTree, Tree


def open_tree(data_dir: str | os.PathLike | None) -> Tree:
  """Opens a folder or an archive.

  Args:
    data_dir: path or URL.

  Returns:
    The tree.

  Raises:
    FileNotFoundError: there is none.
    ValueError: a file, but no archive that can be read in place.
  """
  if not data_dir:
    raise FileNotFoundError(
      "source 'folder' needs data_dir to be a folder of images, or a .zip or "
      '.tar of one'
    )
  text = os.fspath(data_dir)
  if is_remote(text):
    path = epath.Path(text)
    if path.is_dir():
      return RemoteTree(text)
    if path.exists():
      return open_archive(text)
    raise FileNotFoundError(f'data_dir {text} does not exist')
  text = os.path.abspath(expand(text))
  if os.path.isdir(text):
    return LocalTree(text)
  if os.path.isfile(text):
    return open_archive(text)
  state = 'is no folder' if os.path.lexists(text) else 'does not exist'
  raise FileNotFoundError(f'data_dir {shown(os.fsencode(text))} {state}')
