"""Prepared TFDS data sets, read by number and without TensorFlow."""

import concurrent.futures
import functools
import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from input_pipeline import cache
from input_pipeline.progress import progress_bar
from input_pipeline.records import TfRecords, look_at
from input_pipeline.source import Stamps
from input_pipeline.tfds_folder import check_description, prepared_folder

_THREADS = 16
_CHUNK = 256  # examples that a thread reads at a time


class TfdsImages:
  """The images of a split; see `source.Source`.

  Labels are read when they are asked for, which takes one pass over the data;
  they are kept (see `cache`).
  """

  def __init__(
    self, tfds_name: str, folder: epath.Path, split: str, builder: Any
  ):
    """Finds the features and the files.

    Args:
      tfds_name: for messages.
      folder: of the prepared data set.
      split: such as 'train[:90%]'.
      builder: of TFDS.

    Raises:
      FileNotFoundError: a file of the split is missing.
      ValueError: no such split, no image, another file format.
    """
    self.name, self._tfds_name = f'{tfds_name} {split}', tfds_name
    self._records, self._opening = None, threading.Lock()
    info = builder.info
    known = sorted(info.splits)
    try:
      parts = info.splits[split].file_instructions
    except (KeyError, ValueError, AssertionError) as error:
      raise ValueError(
        f'{tfds_name}: no split {split!r}; found {known}'
      ) from error
    if not sum(part.take for part in parts):
      raise ValueError(f'{tfds_name}: the split {split!r} is empty')
    self._image, self._label = _find_features(tfds_name, info.features)
    shape = info.features[self._image].shape
    self.channels = shape[-1]
    self.classes = ()
    if self._label is not None:
      self.classes = tuple(map(str, info.features[self._label].names))
    self._parts = parts
    self._format = info.file_format.value
    if self._format not in ('tfrecord', 'array_record'):
      raise ValueError(
        f'{tfds_name}: files in the format {self._format}; prepare it with '
        '--file_format=array_record'
      )
    described = (folder / 'dataset_info.json').read_bytes()
    described += (folder / 'features.json').read_bytes()
    self._described = hashlib.sha256(described)
    self._key = f'{os.fspath(folder)} {self._described.hexdigest()} {split}'
    self._stamps = self._look_at_files()

  def __len__(self):
    return sum(part.take for part in self._parts)

  def _open(self) -> Sequence[bytes]:
    """The records of the split, opened once."""
    with self._opening:
      if self._records is None and self._format == 'tfrecord':
        self._records = TfRecords(self._parts, name=self._tfds_name)
      elif self._records is None:
        from array_record.python import array_record_data_source

        _allow_open_files(len(self._parts))
        self._records = array_record_data_source.ArrayRecordDataSource(
          self._parts
        )
      return self._records

  def _features(self, index: int) -> Mapping[str, Any]:
    """The features of an example, not decoded."""
    # A package of its own, so that TensorFlow is not needed.
    from tensorflow_datasets.proto import tf_example_pb2

    if not 0 <= index < len(self):
      raise IndexError(index)
    records = self._open()
    try:
      record = records[index]
      return tf_example_pb2.Example.FromString(record).features.feature
    except OSError:
      raise
    except Exception as error:  # each format has errors of its own
      raise OSError(f'{type(error).__name__}: {error}') from error

  def read(self, index: int) -> bytes:
    """The bytes of one image file.

    Args:
      index: of the example.

    Returns:
      The bytes as they are stored.

    Raises:
      OSError: they cannot be read.
      ValueError: a file is damaged as a whole.
    """
    values = self._features(index)[self._image].bytes_list.value
    if len(values) != 1:
      raise OSError(f'the example has {len(values)} images')
    return values[0]

  def stamps(self) -> Stamps:
    """Its description, sizes and times of its files; see `source.Stamps`."""
    return self._stamps

  def _look_at_files(self) -> Stamps:
    """Raises `FileNotFoundError` for files that are missing."""
    paths = [*dict.fromkeys(os.fspath(part.filename) for part in self._parts)]

    def look(path):
      try:
        return look_at(path)
      except FileNotFoundError:
        return None

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
      found = dict(zip(paths, pool.map(look, paths), strict=True))
    missing = [path for path, stamp in found.items() if stamp is None]
    if missing:
      raise FileNotFoundError(
        f'{self.name}: {len(missing)} of {len(paths)} files are missing, such '
        f'as {missing[0]}; copy or prepare the data set again'
      )
    sizes, times = np.array([*found.values()], np.int64).T
    described = np.frombuffer(self._described.digest(), np.int64)
    return Stamps(
      content=np.concatenate([described, sizes]),
      times=times,
      size=int(sizes.sum()),
    )

  @property
  def cache_key(self) -> str:
    """See `source.Source`; a file that changes makes it another."""
    stamps = self._stamps
    digest = hashlib.sha256(stamps.content.tobytes() + stamps.times.tobytes())
    return f'{self._key} {digest.hexdigest()[:16]}'

  def where(self, index: int) -> str:
    """What to call one image."""
    return f'{self.name}[{index}]'

  @functools.cached_property
  def labels(self) -> np.ndarray | None:
    """int32 [n], or None."""
    if self._label is None:
      return None
    name = f'{self.name} {self._label}'
    kept_at = cache.cache_file('labels', name, digest=self.cache_key)
    kept = cache.read_arrays(kept_at, ('labels',))
    labels = self._read_labels() if kept is None else kept['labels']
    if kept is None:
      cache.write_arrays(kept_at, labels=labels)
    if labels.min() < 0:  # as test sets whose labels are kept secret have
      logging.warning('%s: without labels, some are unknown', self.name)
      return None
    return labels

  def _read_labels(self) -> np.ndarray:
    labels = np.empty(len(self), np.int32)

    def read(start):
      stop = min(start + _CHUNK, len(self))
      for index in range(start, stop):
        values = self._features(index)[self._label].int64_list.value
        labels[index] = values[0] if values else -1
      return stop - start

    with (
      concurrent.futures.ThreadPoolExecutor(_THREADS) as pool,
      progress_bar(f'labels of {self.name}', len(self)) as progress,
    ):
      for count in pool.map(read, range(0, len(self), _CHUNK)):
        progress.update(count)
    return labels


def from_tfds(
  *,
  split: str = 'train',
  data_dir: str | os.PathLike | None = None,
  tfds_name: str | None,
) -> TfdsImages:
  """Opens a prepared TFDS data set; downloads nothing.

  The image is the feature of that type, 'image' where there are several; the
  label the `ClassLabel`, 'label' where there are several. Nothing is decoded.

  Args:
    split: TFDS split, such as 'train', 'train[:90%]' or 'train+test'.
    data_dir: TFDS folder; default `TFDS_DATA_DIR` or `~/tensorflow_datasets`.
    tfds_name: 'name', 'name/config' or with ':version'; see `prepared_folder`.

  Returns:
    The images.

  Raises:
    FileNotFoundError: it is not prepared in `data_dir`, or a file is missing.
    ValueError: no such split, no image, another file format, a damaged
      description.
  """
  if not tfds_name:
    raise ValueError(
      "source 'tfds' needs tfds_name, such as 'imagenette/160px'"
    )
  folder = prepared_folder(tfds_name, data_dir)
  return TfdsImages(tfds_name, folder, split, _open_builder(folder))


def _open_builder(folder: epath.Path) -> Any:
  """TFDS's builder; `ValueError` for a description that is damaged."""
  check_description(folder)
  import tensorflow_datasets as tfds  # it takes half a second

  try:
    return tfds.builder_from_directory(folder)
  except Exception as error:  # of contents that make no sense: any
    text = ' '.join(str(error).split())[:200]
    raise ValueError(
      f'{folder}: dataset_info.json or features.json cannot be used: {text}; '
      'prepare or copy the data set again'
    ) from error


def _find_features(
  tfds_name: str, features: Mapping[str, Any]
) -> tuple[str, str | None]:
  """Names of the image and of the label."""
  from tensorflow_datasets import features as kinds

  def pick(kind, preferred, *, but=()):
    found = [
      key
      for key, feature in sorted(features.items())
      if isinstance(feature, kind) and not isinstance(feature, but)
    ]
    if preferred in found or len(found) == 1:
      return (preferred if preferred in found else found[0]), found
    return None, found

  image, images = pick(kinds.Image, 'image', but=(kinds.LabeledImage,))
  if image is None:
    raise ValueError(
      f"{tfds_name}: needs one image among the features, or one named 'image'; "
      f'found {images or sorted(features)}'
    )
  if features[image].np_dtype not in (np.uint8, np.uint16):
    raise ValueError(
      f'{tfds_name}: {image!r} is {features[image].np_dtype}, not uint8'
    )
  label, labels = pick(kinds.ClassLabel, 'label')
  if label is None and labels:
    logging.warning(
      "%s: without labels: none of %s is named 'label'", tfds_name, labels
    )
  return image, label


def _allow_open_files(count: int) -> None:
  """Every ArrayRecord file stays open; often 1024 are allowed at first."""
  import resource  # not on Windows, where there is no such limit

  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  wanted = count + 512
  if hard != resource.RLIM_INFINITY:
    wanted = min(wanted, hard)
  if soft != resource.RLIM_INFINITY and soft < wanted:
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
