"""Files kept between runs: what took long to find out and does not change.

They lie in `REPRE_JAX_CACHE` (default `~/.cache/repre_jax`). Deleting any of
them costs time, nothing else.
"""

import hashlib
import os
import pathlib
import tempfile
import time
import urllib.parse
import zipfile
import zlib

import numpy as np
from absl import logging

# A folder changed again so soon may bear the same time stamp as before.
_CLOCK_TICK = 2 * 10**9  # nanoseconds


def cache_file(*parts: str, digest: str = '') -> pathlib.Path:
  """Where something is kept.

  Args:
    *parts: words for people, the first of them the kind.
    digest: what tells apart things with the same words.

  Returns:
    Path of an `.npz` file; neither it nor its folder need exist.
  """
  root = os.environ.get('REPRE_JAX_CACHE') or '~/.cache/repre_jax'
  # Long names would not fit into a file name; the digest keeps them apart.
  words = [urllib.parse.quote(part, safe='')[:60] for part in parts]
  content = '\0'.join((*parts, digest)).encode(errors='surrogateescape')
  words.append(hashlib.sha256(content).hexdigest()[:12])
  return pathlib.Path(root).expanduser() / f'{"-".join(words)}.npz'


def read_arrays(
  path: pathlib.Path, keys: tuple[str, ...]
) -> dict[str, np.ndarray] | None:
  """Reads a file of arrays; checksums are verified.

  Args:
    path: from `cache_file`.
    keys: of all arrays wanted.

  Returns:
    The arrays; None if the file is missing or, with a warning, damaged.
  """
  if not path.exists():
    return None
  try:
    with np.load(path, allow_pickle=False) as file:
      return {key: file[key] for key in keys}
  except (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    AttributeError,  # a single array: not a file of several
    TypeError,
    NotImplementedError,  # of a flipped bit: 'encrypted', another compression
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
  ) as error:
    logging.warning('cache file %s is damaged, rebuilding: %s', path, error)
    return None


def write_arrays(path: pathlib.Path, **arrays: np.ndarray) -> None:
  """Writes beside the target and renames, so that no reader sees a half.

  A cache that cannot be written is a warning, not an error.

  Args:
    path: from `cache_file`.
    **arrays: what `read_arrays` shall find.
  """
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
      dir=path.parent, suffix='.tmp', delete=False
    ) as file:
      try:
        np.savez(file, **arrays)
        file.flush()
        os.replace(file.name, path)
      except BaseException:
        os.unlink(file.name)
        raise
  except OSError as error:
    logging.warning('could not write the cache file %s: %s', path, error)


def settled(mtime_ns: int) -> bool:
  """Whether a later change is sure to show in the time stamp.

  Args:
    mtime_ns: time of the last change, nanoseconds.

  Returns:
    False if that was just now.
  """
  return abs(time.time_ns() - mtime_ns) > _CLOCK_TICK
