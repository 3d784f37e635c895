"""Data sets by name, as images by number."""

import functools
import inspect
import os

from input_pipeline.arrays import from_npz
from input_pipeline.folder import from_folder
from input_pipeline.known import unknown
from input_pipeline.paths import expand
from input_pipeline.photos import from_photos
from input_pipeline.source import Source
from input_pipeline.tfds_source import from_tfds

SOURCES = {
  'photos': from_photos,
  'arrays': from_npz,
  'folder': from_folder,
  'tfds': from_tfds,
  'cifar10': functools.partial(from_tfds, tfds_name='cifar10'),
}


def load(
  name: str,
  *,
  split: str = 'train',
  data_dir: str | os.PathLike | None = None,
  **options,
) -> Source:
  """Opens a data set.

  Args:
    name: a key of `SOURCES`.
    split: 'train', 'test', or what the source knows.
    data_dir: folder or file of the data; 'photos' needs none.
    **options: of the source: `tile`, `gray` and `stride` of 'photos', `labels`
      of 'folder', `tfds_name` of 'tfds'.

  Returns:
    The data set; `Arrays` where it is in memory anyway.

  Raises:
    ValueError: unknown name, or bad contents.
    FileNotFoundError: the data are not there.
  """
  if name not in SOURCES:
    raise unknown('data set', name, SOURCES)
  try:
    inspect.signature(SOURCES[name]).bind(split=split, **options)
  except TypeError as error:
    raise ValueError(
      f'data set {name!r} does not take the options {sorted(options)} '
      f'({error}); use its own config word'
    ) from error
  data_dir = expand(data_dir) if data_dir else data_dir
  return SOURCES[name](split=split, data_dir=data_dir, **options)
