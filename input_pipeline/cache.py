"""Files kept between runs: what took long to find out and does not change.

They lie in `REPRE_JAX_CACHE` (default, also where it is empty:
`~/.cache/repre_jax`). Deleting any of them costs time, nothing else, and so
does a folder that cannot be found, read or written: one notice, and no cache.
"""

import functools
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

from input_pipeline.paths import expand

# A folder changed again so soon may bear the same time stamp as before.
_CLOCK_TICK = 2 * 10**9  # nanoseconds


def folder() -> pathlib.Path | None:
  """The folder of everything that is kept; None where there is no home."""
  try:
    path = expand(os.environ.get('REPRE_JAX_CACHE') or '~/.cache/repre_jax')
  except ValueError as error:
    give_up('no folder', error)
    return None
  return pathlib.Path(path).absolute()


@functools.cache
def _once(text: str) -> None:
  logging.warning('%s', text)


def give_up(where: os.PathLike | str, error: Exception) -> None:
  """Says once per folder that nothing is kept there, and why."""
  reason = getattr(error, 'strerror', None) or error
  _once(
    f'nothing is kept between runs in {where} ({reason}): starting takes '
    'longer; set REPRE_JAX_CACHE to a folder that can be written'
  )


def cache_file(*parts: str, digest: str = '') -> pathlib.Path | None:
  """Where something is kept.

  Args:
    *parts: words for people, the first of them the kind.
    digest: what tells apart things with the same words.

  Returns:
    Path of an `.npz` file; neither it nor its folder need exist. None where
    nothing can be kept.
  """
  # Long names would not fit into a file name; the digest keeps them apart.
  words = [urllib.parse.quote(part, safe='')[:60] for part in parts]
  content = '\0'.join((*parts, digest)).encode(errors='surrogateescape')
  words.append(hashlib.sha256(content).hexdigest()[:12])
  root = folder()
  return root and root / f'{"-".join(words)}.npz'


def read_arrays(
  path: pathlib.Path | None, keys: tuple[str, ...]
) -> dict[str, np.ndarray] | None:
  """Reads a file of arrays; checksums are verified.

  Args:
    path: from `cache_file`.
    keys: of all arrays wanted.

  Returns:
    The arrays; None if the file is missing or, with a warning, damaged.
  """
  try:
    if path is None or not path.exists():
      return None
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


def write_arrays(path: pathlib.Path | None, **arrays: np.ndarray) -> None:
  """Writes beside the target and renames, so that no reader sees a half.

  A cache that cannot be written is a notice, not an error.

  Args:
    path: from `cache_file`.
    **arrays: what `read_arrays` shall find.
  """
  if path is None:
    return
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
    give_up(path.parent, error)


def settled(mtime_ns: int) -> bool:
  """Whether a later change is sure to show in the time stamp.

  Args:
    mtime_ns: time of the last change, nanoseconds.

  Returns:
    False if that was just now.
  """
  return abs(time.time_ns() - mtime_ns) > _CLOCK_TICK
