"""Files of one checkpoint, each of which may be broken in any way.

Orbax notices broken metadata but not a flipped bit inside an array, so a record
of every leaf's checksum lies beside the arrays, and the record carries a
checksum of its own.
"""

import contextlib
import functools
import json
import logging
import os
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util

from training import distributed
from training.checksum import checksums


class DamagedError(Exception):
  """Why a checkpoint cannot be trusted."""


def describe(leaves: Mapping[str, jax.Array]) -> dict[str, dict[str, Any]]:
  """{leaf path: shape, dtype and checksum}, plain data for JSON."""
  sums = checksums(leaves)
  return {
    name: dict(shape=list(x.shape), dtype=str(x.dtype), checksum=sums[name])
    for name, x in leaves.items()
  }


def seal(record: Mapping[str, Any]) -> dict[str, Any]:
  """A record with its own checksum, as `read_meta` expects it."""
  return dict(record=dict(record), crc=_crc(record))


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """Plain nested dicts: files that any Orbax reader understands."""
  return traverse_util.unflatten_dict(dict(leaves), sep='/')


def _crc(record: Mapping[str, Any]) -> int:
  return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def read_meta(path: epath.Path) -> dict[str, Any]:
  """The record of one `checkpoints/STEP` folder.

  Raises:
    DamagedError: it cannot be read or was changed.
  """
  return distributed.on_lead(lambda: _read_meta(path))


def _read_meta(path: epath.Path) -> dict[str, Any]:
  try:
    if not path.is_dir():
      raise FileNotFoundError(_no_folder(path))
    # Orbax's reader would wait for the other processes.
    meta = json.loads((path / 'meta' / 'metadata').read_text())
    intact = meta['crc'] == _crc(meta['record'])
  except Exception as error:  # any byte of it may be broken, in any way
    raise DamagedError(f'unreadable metadata: {one_line(error)}') from error
  if not intact or meta['record']['step'] != int(path.name):
    raise DamagedError('its metadata was changed')
  return meta['record']


def _no_folder(path: epath.Path) -> str:
  if os.path.islink(path):
    return f'a link to {os.readlink(path)}, which is not there'
  return 'not a folder'


@functools.cache
def _drop_late_callbacks() -> None:
  """Of a damaged file's other arrays, whose loop is closed by then.

  Their threads call back long after reading has ended, a traceback each.
  """
  hook = sys.unraisablehook

  def filtered(unraisable):
    if 'Event loop is closed' not in str(unraisable.exc_value):
      hook(unraisable)

  sys.unraisablehook = filtered


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps asyncio from printing pages about each array of a damaged file."""
  _drop_late_callbacks()
  logger = logging.getLogger('asyncio')
  level = logger.level
  logger.setLevel(logging.CRITICAL + 1)
  try:
    yield
  finally:
    logger.setLevel(level)


def _reader() -> ocp.Checkpointer:
  """Reads without waiting for other processes: one of them may have failed."""
  options = ocp.options.MultiprocessingOptions()
  if jax.process_count() > 1:
    here = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
      primary_host=here,
      active_processes={here},
      barrier_sync_key_prefix=f'process_{here}',
    )
  return ocp.Checkpointer(
    ocp.StandardCheckpointHandler(multiprocessing_options=options),
    multiprocessing_options=options,
  )


def read_leaves(
  path: epath.Path,
  wanted: Mapping[str, jax.ShapeDtypeStruct],
  record: Mapping[str, Mapping[str, Any]],
) -> dict[str, jax.Array]:
  """The arrays of one `checkpoints/STEP` folder, compared with their record.

  Args:
    path: the folder.
    wanted: {leaf path: shape, dtype and, if it matters, sharding}.
    record: 'leaves' of its `read_meta`.

  Returns:
    {leaf path: array}.

  Raises:
    DamagedError: an array cannot be read or was changed.
  """
  error = tree = None
  try:
    with _quiet(), _reader() as reader:
      tree = reader.restore(
        path / 'state', args=ocp.args.StandardRestore(nest(wanted))
      )
  except Exception as raised:  # likewise; architecture was compared before
    error = raised
  if distributed.agree_any(error is not None):
    text = one_line(error) if error else 'on another process'
    raise DamagedError(f'unreadable arrays: {text}') from error
  leaves = traverse_util.flatten_dict(tree, sep='/')
  found = checksums(leaves)
  wrong = [n for n in leaves if found[n] != record[n]['checksum']]
  if wrong:
    raise DamagedError(f'checksums differ for {some(wrong)}')
  return leaves


def some(names: Sequence[str], most: int = 8) -> str:
  """The first few names of a list, for a message of one line."""
  more = f' and {len(names) - most} more' if len(names) > most else ''
  return ', '.join(names[:most]) + more if names else 'none'


def one_line(error: Exception) -> str:
  """Kind and first line of an error."""
  text = str(error).strip().split('\n')[0]
  return f'{type(error).__name__}: {text[:200]}'
