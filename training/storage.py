"""Files on disks and in object stores (gs://, s3://).

An object is written whole or not at all, cannot be appended to, and takes about
one write per second.
"""

import os
import time

from etils import epath

from input_pipeline.paths import expand
from training import process

# What reads and writes each kind, for etils and for Orbax.
# Orbax knows no others.
PACKAGES = {'gs': 'gcsfs', 's3': 's3fs'}
SECONDS_BETWEEN_WRITES = 15.0


class StorageError(ValueError):
  """A place that this installation cannot reach, told in one line."""


def is_remote(path: epath.PathLike) -> bool:
  """Whether it is in an object store."""
  return '://' in os.fspath(path)


def prefer_fsspec() -> None:
  """Object stores are not read through TensorFlow where there is a choice.

  Or else etils imports TensorFlow wherever it is installed: seconds of start
  and hundreds of megabytes, and Orbax asks for the packages all the same. To be
  called before the first look at an object store: etils asks once.
  """
  if any(map(process.installed, PACKAGES.values())):
    os.environ.setdefault('EPATH_USE_TF', 'false')


def resolve(path: epath.PathLike) -> epath.Path:
  """The path as all of `training` uses it, absolute.

  Raises:
    StorageError: unknown kind of storage, or the package for it is missing.
    ValueError: a home folder that is not known, see `paths.expand`.
  """
  if not is_remote(path):
    return epath.Path(os.path.abspath(expand(path)))  # Orbax takes no others
  kind = os.fspath(path).partition('://')[0]
  if kind not in PACKAGES:
    raise StorageError(
      f'{path}: unknown storage {kind}://; known: '
      f'{", ".join(f"{name}://" for name in PACKAGES)}, and plain folders'
    )
  package = PACKAGES[kind]
  if not process.installed(package):
    raise StorageError(f'{path} needs a package: pip install {package}')
  prefer_fsspec()
  return epath.Path(path)


def write_whole(path: epath.Path, data: bytes) -> None:
  """Writes a file whole or not at all."""
  if is_remote(path):
    path.write_bytes(data)
    return
  part = path.with_name(path.name + '.part')
  with part.open('wb') as file:
    file.write(data)
    file.flush()
    # Or else a machine that crashes may keep the new name and lose the content.
    os.fsync(file.fileno())
  part.replace(path)


class Growing:
  """A file that is appended to.

  On a disk every piece is there at once. In an object store the whole is kept
  in memory and written again every few seconds and on `flush`.

  Args:
    path: the file.
    data: what it holds already.
  """

  def __init__(self, path: epath.Path, data: bytes = b''):
    self._path, self._remote = path, is_remote(path)
    self._data = bytearray(data)
    self._written, self._at = len(data), float('-inf')

  def write(self, piece: bytes) -> None:
    """Adds to the end."""
    if not self._remote:
      with self._path.open('ab') as file:
        file.write(piece)
      return
    self._data += piece
    if time.monotonic() - self._at >= SECONDS_BETWEEN_WRITES:
      self.flush()

  def flush(self) -> None:
    """What was written is safe when this returns."""
    if self._remote and len(self._data) > self._written:
      write_whole(self._path, bytes(self._data))
      self._written, self._at = len(self._data), time.monotonic()
