"""Features on the disk, in parts: a stopped job goes on after the last one."""

import contextlib
import hashlib
import io
import json
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from input_pipeline import feed, fingerprint
from input_pipeline.arrays import Arrays
from input_pipeline.source import Source
from models.features import Features
from training import distributed, storage
from training.metrics import write_json
from transfer.backbone import Backbone
from transfer.frozen import features, pooled
from transfer.job import Job

LOOKED_AT = 16  # files whose content tells one data set from another


class Parts:
  """Files of features in the order of the images.

  Process 0 alone writes; what reads is for every process that sees the folder.

  Args:
    folder: of the files, `0000000.npz` and on, and of `about.json`.

  Attributes:
    folder: that of the files.
    count: how many parts there are.
    per_part: how many images each but the last was made of.
  """

  def __init__(self, folder: epath.Path):
    self.folder, self.count, self.per_part = folder, 0, 0

  def open(self, about: Mapping[str, Any], *, per_part: int = 1) -> None:
    """Finds the parts that a job can go on after.

    Args:
      about: what the features are of, plain data. Parts of anything else, and
        those from the first damaged one on, are no longer counted.
      per_part: images per part, where none is there yet; those that are there
        keep their own.
    """
    path = self.folder / 'about.json'
    self.folder.mkdir(parents=True, exist_ok=True)
    try:
      old = dict(json.loads(path.read_bytes())) if path.exists() else None
    except (ValueError, TypeError, RecursionError):
      old = {}
    self.per_part = per_part
    before = _compared(old)
    if before and fingerprint.same(str(before.get('images')), about['images']):
      before['images'] = about['images']  # kept before all contents counted
    if old is not None and before == about:
      self.per_part = old['per_part']
      if old != (now := dict(about, per_part=self.per_part)):
        write_json(path, now)
    else:
      if old is not None:
        changed = [k for k in about if before.get(k) != about[k]]
        logging.warning(
          '%s: kept features are of other %s: starting over',
          self.folder,
          ', '.join(changed) or 'contents',
        )
      path.unlink(missing_ok=True)  # first: from now on nothing counts
      for part in self.folder.glob('*.npz'):
        part.unlink()
      write_json(path, dict(about, per_part=per_part))
    while self._whole(self._path(self.count)):
      self.count += 1

  def _path(self, number: int) -> epath.Path:
    return self.folder / f'{number:07}.npz'

  def _whole(self, path: epath.Path) -> bool:
    """Whether a part is there and can be read."""
    if not path.exists():
      return False
    try:
      _read(path)
    except Exception as e:  # any byte of it may be broken, in any way
      logging.warning('%s is damaged (%s): it is made again', path, e)
      return False
    return True

  def add(self, index: np.ndarray, values: np.ndarray) -> None:
    """Writes the next part whole or not at all.

    Args:
      index: int32 [n] numbers of the images.
      values: [n, d] their features.
    """
    file = io.BytesIO()
    np.savez(file, index=index, features=values)
    storage.write_whole(self._path(self.count), file.getvalue())
    self.count += 1

  def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(index, features) of each part."""
    for number in range(self.count):
      yield _read(self._path(number))

  def whole(self) -> tuple[np.ndarray, np.ndarray]:
    """(index, features) of all parts."""
    index, values = zip(*self, strict=True)
    return np.concatenate(index), np.concatenate(values)

  def mapped(self) -> tuple[np.ndarray, list[np.ndarray]]:
    """(index of all, features of each part read as they are asked for).

    Of a folder on a disk: nothing but the indices is in memory.
    """
    paths = [self._path(number) for number in range(self.count)]
    index = []
    for path in paths:
      with np.load(path) as file:
        index.append(file['index'])
    return np.concatenate(index), [_mapped(path) for path in paths]

  def copy(self, folder: epath.Path) -> 'Parts':
    """The same parts in another folder, of a disk, to be mapped there."""
    out = Parts(folder)
    for number in range(self.count):
      out._path(number).write_bytes(self._path(number).read_bytes())
      out.count += 1
    return out

  def remove(self) -> None:
    """Deletes the folder, if it is there."""
    if self.folder.exists():
      self.folder.rmtree()


def _compared(about: Mapping[str, Any] | None) -> dict[str, Any]:
  """What features are of, without how many are made at a time."""
  about = dict(about or {})
  about.pop('per_part', None)
  if isinstance(about.get('options'), dict):  # older ones have the batch too
    about['options'] = dict(about['options'])
    about['options'].pop('batch_size', None)
  return about


def _read(path: epath.Path) -> tuple[np.ndarray, np.ndarray]:
  # From memory: zip files are read back to front, slow in object stores.
  with np.load(io.BytesIO(path.read_bytes())) as file:
    return file['index'], file['features']


def _mapped(path: epath.Path) -> np.ndarray:
  """The features of a part, not read yet: `np.savez` does not compress."""
  with zipfile.ZipFile(path) as file:
    start = file.getinfo('features.npy').header_offset
  with open(path, 'rb') as file:
    file.seek(start + 26)  # lengths of the name and of what else is before
    start += 30 + sum(struct.unpack('<HH', file.read(4)))
    file.seek(start)
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    start = file.tell()
  if not shape[0]:  # nothing is no file to the system
    return np.zeros(shape, dtype)
  return np.memmap(path, dtype, mode='r', offset=start, shape=shape)


def keep_features(
  job: Job,
  source: Source,
  folder: epath.Path,
  *,
  what: str,
  per_part: int,
  indices: Sequence[int] | None = None,
  dtype: str = 'float32',
  pick: Callable[[Any, Features], jax.Array] | None = None,
  options: Mapping[str, Any] | None = None,
) -> Parts:
  """Encodes images, or goes on doing so, and keeps the features in parts.

  Args:
    job: read here: the encoder and how images are brought to size.
    source: the images.
    folder: of the parts.
    what: names it on the progress bar.
    per_part: images per part, rounded up to whole batches; parts that are
      there already keep their own.
    indices: which images, increasing; None for all.
    dtype: of the kept features.
    pick: (variables, Features) -> [b, d], what is kept; None for what
      `config.features` asks for.
    options: plain data that tell one `pick` from another.

  Returns:
    The parts, all of them; images that could not be read are left out.

  Raises:
    ValueError: features that are not finite, or too large for `dtype`.
  """
  indices = np.arange(len(source)) if indices is None else np.asarray(indices)
  parts, extractor = Parts(folder), job.extractor(pick or pooled(job))
  per_part = -(-per_part // extractor.batch_size) * extractor.batch_size

  def begin():
    chosen = job.config.features.to_dict() if pick is None else dict(options)
    about = _about(job, source, indices, chosen)
    parts.open(about | dict(dtype=dtype), per_part=per_part)
    return parts.count, parts.per_part

  parts.count, parts.per_part = distributed.on_lead(begin)
  seen = min(parts.count * parts.per_part, len(indices))
  if parts.count and jax.process_index() == 0:
    print(f'{what}: {seen:,} images are done already', file=sys.stderr)
  if seen == len(indices):
    return parts
  ends = [*range(seen + parts.per_part, len(indices), parts.per_part)]
  ends.append(len(indices))
  waiting = []
  with contextlib.closing(
    features(job, extractor, source, what=what, indices=indices[seen:])
  ) as found:
    for values, rows in found:
      seen = min(seen + extractor.batch_size, len(indices))
      begun, index, values = 0, rows['index'], _cast(values, dtype)
      while ends and seen >= ends[0]:  # parts end where batches may not
        last = indices[ends[0] - 1]
        end = int(np.searchsorted(index, last, side='right'))
        ends.pop(0)
        waiting.append((index[begun:end], values[begun:end]))
        part = [np.concatenate(x) for x in zip(*waiting, strict=True)]
        distributed.on_lead(lambda part=part: parts.add(*part))
        waiting, begun = [], end
      waiting.append((index[begun:], values[begun:]))
  parts.count = distributed.on_lead(lambda: parts.count)
  return parts


def _cast(values: np.ndarray, dtype: str) -> np.ndarray:
  with np.errstate(over='ignore'):
    out = values.astype(dtype)
  if not np.isfinite(out).all():
    raise ValueError(
      f'features of up to {np.abs(values).max():.3g} do not fit into {dtype}; '
      'keep them as float32'
    )
  return out


def _about(
  job: Job, source: Source, indices: np.ndarray, chosen: Mapping[str, Any]
) -> dict[str, Any]:
  """What features are of: other weights, images or options are others."""
  data = job.config.data
  chosen = hashlib.sha256(indices.astype('<i8').tobytes()).hexdigest()[:16]
  return dict(
    weights=_weights(job.backbone),
    images=_images(source),
    chosen=f'{len(indices):,} of {len(source):,}, {chosen}',
    options=dict(
      features=chosen,
      dtype=job.config.dtype,
      image_size=data.image_size,
      eval_crop=data.eval_crop,
      eval_resample=data.eval_resample,
    ),
  )


def _weights(backbone: Backbone) -> str:
  """What an encoder and its weights are known by, wherever they lie."""
  content = hashlib.sha256(repr(backbone.encoder).encode())
  for name, leaf in sorted(backbone.params.items()):
    content.update(name.encode())
    content.update(np.ascontiguousarray(leaf).tobytes())
  return content.hexdigest()[:32]


def _images(source: Source) -> str:
  """What images are known by: all names or pixels, and a few files."""
  content = hashlib.sha256()
  if isinstance(source, Arrays):
    content.update(np.ascontiguousarray(source.images))
  else:
    start = len(source.name)
    for i in range(len(source)):
      content.update(source.where(i)[start:].encode() + b'\0')
    few = np.linspace(0, len(source) - 1, min(len(source), LOOKED_AT))
    for i in few.astype(int).tolist():
      try:
        content.update(np.asarray(source.read(i)).tobytes())
      except OSError:
        content.update(b'\0')
  names, _, contents = feed.fingerprint(source).rpartition(' ')
  return f'{names}, {content.hexdigest()[:16]} {contents}'
