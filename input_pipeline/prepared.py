"""Prepared TFDS image classification sets, decoded once and kept as a file.

The only place here that imports TensorFlow, and only when the cache is cold.
"""

import hashlib
import os
import pathlib
import re
import tempfile
import urllib.parse
import zipfile
import zlib

import numpy as np
import tqdm
from absl import logging
from etils import epath

from input_pipeline.arrays import Arrays, fit


def from_tfds(
  *,
  split: str = 'train',
  data_dir: str | os.PathLike | None = None,
  image_size: int | None = None,
  tfds_name: str | None,
) -> Arrays:
  """Loads a prepared TFDS data set with images of one size; downloads nothing.

  Decoded images are cached in `REPRE_JAX_CACHE` (default `~/.cache/repre_jax`),
  so that a second start does not import TensorFlow. A damaged cache file is
  reported and made anew.

  Args:
    split: TFDS split, such as 'train' or 'train[:90%]'.
    data_dir: TFDS folder; default `TFDS_DATA_DIR` or `~/tensorflow_datasets`.
    image_size: side in pixels to fit the images to; None leaves them.
    tfds_name: 'name', 'name/config' or with ':version'; the features 'image'
      and 'label' are read.

  Returns:
    The data set.

  Raises:
    FileNotFoundError: it is not prepared in `data_dir`.
    ValueError: no such split or features, or images of several sizes.
  """
  if not tfds_name:
    raise ValueError(
      "source 'tfds' needs tfds_name, such as 'imagenette/160px'"
    )
  folder = prepared_folder(tfds_name, data_dir)
  cache = _cache_file(tfds_name, folder, split)
  arrays = _read_cache(cache)
  if arrays is None:
    arrays = _decode(tfds_name, folder, split)
    _write_cache(cache, arrays)
  images, labels, classes = arrays
  return Arrays(
    name=f'{tfds_name} {split}',
    images=fit(images, image_size) if image_size else images,
    labels=labels,
    classes=tuple(str(name) for name in classes),
  )


def prepared_folder(
  tfds_name: str, data_dir: str | os.PathLike | None = None
) -> epath.Path:
  """Finds the folder of a prepared data set without importing TFDS.

  Args:
    tfds_name: 'name', 'name/config' or with ':version'.
    data_dir: TFDS folder; default `TFDS_DATA_DIR` or `~/tensorflow_datasets`.

  Returns:
    The folder of the version asked for, else of the newest.

  Raises:
    FileNotFoundError: there is none.
  """
  root = epath.Path(
    data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  ).expanduser()
  name, _, version = tfds_name.partition(':')
  found = [
    path.parent
    for path in (root / name).glob('*/dataset_info.json')
    if re.fullmatch(r'\d+\.\d+\.\d+', path.parent.name)
    and version in ('', path.parent.name)
  ]
  if not found:
    raise FileNotFoundError(
      f'{tfds_name} is not prepared in data_dir {root}; prepare it with '
      f'`tfds build {name} --data_dir={root}` or set data_dir'
    )
  return max(found, key=lambda p: [int(x) for x in p.name.split('.')])


def _cache_file(tfds_name: str, folder: epath.Path, split: str) -> pathlib.Path:
  """Name, version and split, and a digest that tells two copies apart."""
  root = os.environ.get('REPRE_JAX_CACHE') or '~/.cache/repre_jax'
  info = (folder / 'dataset_info.json').read_bytes()
  digest = hashlib.sha256(os.fsencode(folder) + info).hexdigest()
  stem = '-'.join(
    urllib.parse.quote(part, safe='')
    for part in (tfds_name.partition(':')[0], folder.name, split, digest[:8])
  )
  return pathlib.Path(root).expanduser() / f'{stem}.npz'


def _read_cache(cache: pathlib.Path) -> tuple[np.ndarray, ...] | None:
  """Images, labels, classes; None if the file is missing or damaged."""
  if not cache.exists():
    return None
  try:
    with np.load(cache, allow_pickle=False) as file:
      return tuple(file[key] for key in ('images', 'labels', 'classes'))
  except (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    AttributeError,
    zipfile.BadZipFile,
    zlib.error,
  ) as error:
    logging.warning('cache file %s is damaged, rebuilding: %s', cache, error)
    return None


def _write_cache(cache: pathlib.Path, arrays: tuple[np.ndarray, ...]) -> None:
  """Writes beside the target and renames, so that no reader sees a half."""
  try:
    cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
      dir=cache.parent, suffix='.tmp', delete=False
    ) as file:
      try:
        images, labels, classes = arrays
        np.savez(file, images=images, labels=labels, classes=classes)
        file.flush()
        os.replace(file.name, cache)
      except BaseException:
        os.unlink(file.name)
        raise
  except OSError as error:
    logging.warning('could not write the cache file %s: %s', cache, error)


def _decode(
  tfds_name: str, folder: epath.Path, split: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Reads a split with TFDS: images, int32 labels, names of the classes."""
  # Slow, and not needed with a warm cache.
  import tensorflow as tf
  import tensorflow_datasets as tfds

  # TensorFlow would take the memory of all GPUs that it sees.
  tf.config.set_visible_devices([], 'GPU')
  builder = tfds.builder_from_directory(folder)
  features = builder.info.features
  if not {'image', 'label'} <= set(features):
    raise ValueError(
      f"{tfds_name}: needs the features 'image' and 'label', found "
      f'{sorted(features)}'
    )
  if re.split(r'[\[+]', split)[0] not in builder.info.splits:
    raise ValueError(
      f'{tfds_name}: no split {split!r}; found {sorted(builder.info.splits)}'
    )
  count = builder.info.splits[split].num_examples
  if count == 0:
    raise ValueError(f'{tfds_name}: the split {split!r} is empty')
  images, labels = None, np.empty(count, np.int32)
  examples = tfds.as_numpy(builder.as_dataset(split=split))
  for i, example in enumerate(
    tqdm.tqdm(examples, total=count, desc=f'decoding {tfds_name} {split}')
  ):
    image = example['image']
    if images is None:
      images = np.empty((count, *image.shape), np.uint8)
    if image.shape != images.shape[1:]:
      raise ValueError(
        f'{tfds_name}: images of {images.shape[1:]} and {image.shape}, but '
        'data on the device need one size; resize them into an .npz file and '
        "use the source 'arrays'"
      )
    images[i], labels[i] = image, example['label']
  return images, labels, np.array(features['label'].names)
