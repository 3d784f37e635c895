"""Images of any number and size, read and cropped by the host with tf.data.

index -> bytes -> decode -> crop, resize, flip -> uint8; what follows (colours,
blur, [0, 1]) runs on the device, inside the train step. Every batch is a
function of (seed, step): threads, processes and restarts change nothing.
"""

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from absl import logging

from input_pipeline import order
from input_pipeline.augment import photometric, row_keys
from input_pipeline.decode import UnreadableError
from input_pipeline.host_crop import DRAWS, Cropper
from input_pipeline.rows import LocalRows
from input_pipeline.source import Source
from input_pipeline.views import View, check_views

# Decoding only what a crop needs, once per view, beats decoding the image once
# for so many views (docs/performance.md): entropy coding, which takes most of
# the time, is done anew for every view up to the crop's last row.
FUSED_VIEWS = 1
# So many unreadable images one after the other are not an accident.
MAX_IN_A_ROW = 100


class Stream:
  """Training batches from a source of any size.

  Attributes:
    source: the data set.
    views: the views by name; their order numbers the keys of the augmentation.
    batch_size: global batch size.
    seed: of the order and the crops.
    size: number of examples.
    steps_per_epoch: whole batches in an epoch; the remainder is dropped.
    spec: what `batch` returns, as `jax.ShapeDtypeStruct`s with shardings.
  """

  def __init__(
    self,
    source: Source,
    views: Mapping[str, View],
    *,
    batch_size: int,
    seed: int,
    channels: int = 3,
    sharding: jax.sharding.Sharding | None = None,
    workers: int | None = None,
    fused: bool | None = None,
    prefetch: int = 2,
  ):
    """Checks everything; nothing is read before the first `batch`.

    Args:
      source: the data set; every process passes the same.
      views: a `View` by name.
      batch_size: global batch size.
      seed: of the order and the crops.
      channels: of the images.
      sharding: of [b, ...] arrays over the batch; None for one device. Only the
        rows of this process's devices are read.
      workers: threads that decode; None for one per core.
      fused: decode only what each crop needs, once per view; None for the
        faster way.
      prefetch: batches that wait on the device.

    Raises:
      ValueError: no views, a reserved name, a batch larger than the data set.
    """
    check_views(views)
    self.source, self.views = source, dict(views)
    self.batch_size, self.seed, self.size = batch_size, seed, len(source)
    self.channels = channels
    self.steps_per_epoch = order.steps_per_epoch(
      size=self.size, batch_size=batch_size
    )
    self._workers, self._prefetch = workers, prefetch
    self._rows = LocalRows(batch_size, sharding)
    self._fused = len(views) <= FUSED_VIEWS if fused is None else fused
    self._background, self._next = None, None
    self._told = set()
    shapes = {
      name: ((*view.size, channels), np.uint8)
      for name, view in self.views.items()
    }
    scalars = ['index', 'row', 'replaced']
    scalars += [] if source.labels is None else ['label']
    shapes |= {name: ((), np.int32) for name in scalars}
    self.spec = {
      name: self._rows.spec(shape, dtype)
      for name, (shape, dtype) in shapes.items()
    }

  def indices(self, step: int) -> np.ndarray:
    """The examples of a step, before unreadable ones are replaced.

    Args:
      step: training step, from 0.

    Returns:
      int64 [batch_size], indices into the source.
    """
    return order.batch_indices(
      step, size=self.size, batch_size=self.batch_size, seed=self.seed
    )

  def batch(self, step: int) -> dict[str, jax.Array]:
    """What the jitted step receives.

    Asked for in order, batches are ready before they are needed; any other step
    starts reading there.

    Args:
      step: training step, from 0.

    Returns:
      Each view by name, uint8 [b, *size, c]; int32 [b] 'index', 'row' (place in
      the global batch), 'replaced' (1 where another image had to take the place
      of an unreadable one) and, if there are labels, 'label'.

    Raises:
      UnreadableError: too many images in a row cannot be read.
    """
    if self._background is None or step != self._next:
      self.close()
      self._background = _Background(
        map(self._rows.put, self.host_batches(step)), self._prefetch
      )
    self._next = step + 1
    return next(self._background)

  def close(self) -> None:
    """Ends reading; a later `batch` begins anew."""
    if self._background is not None:
      self._background.close()
      self._background = None

  def render(
    self, batch: Mapping[str, jax.Array], rng: jax.Array
  ) -> dict[str, jax.Array]:
    """Augments a batch further; pure, for use inside jit.

    Args:
      batch: from `batch`.
      rng: typed PRNG key of the step.

    Returns:
      Each view by name, float32 [b, *size, c] in [0, 1]; 'index', 'replaced'
      and, if there are labels, 'label', int32 [b].
    """
    out = {k: v for k, v in batch.items() if k not in (*self.views, 'row')}
    for number, (name, view) in enumerate(self.views.items()):
      keys = row_keys(rng, number, batch['row'])
      images = batch[name].astype(np.float32) / 255
      out[name] = photometric(images, view, keys)
    return out

  def host_batches(self, start: int) -> Iterator[dict[str, np.ndarray]]:
    """The rows of this process, step after step, without end.

    Args:
      start: the first step.

    Yields:
      As `batch`, on the host and of the local rows only.
    """
    tf = _tensorflow()
    cropper = Cropper(
      tuple(self.views.values()),
      self.channels,
      _decode_part if self._fused else None,
    )
    failures = []  # raised within TensorFlow they would print a page each

    def rows(step):
      return self.indices(int(step))[self._rows.rows]

    def load(step, index, row):
      try:
        return self._load(cropper, int(step), int(index), int(row))
      except BaseException as error:
        failures.append(error)
        return [
          np.zeros(self.spec[n].shape[1:], self.spec[n].dtype) for n in names
        ]

    names = [*self.views, 'index', 'replaced']
    dtypes = [self.spec[name].dtype for name in names]

    def load_all(step, index, row):
      arrays = tf.numpy_function(load, (step, index, row), dtypes)
      for array, name in zip(arrays, names, strict=True):
        array.set_shape(self.spec[name].shape[1:])
      return dict(zip(names, arrays, strict=True), row=tf.cast(row, tf.int32))

    def split(step):
      index = tf.numpy_function(rows, [step], tf.int64)
      steps = tf.repeat(step, local)
      return tf.data.Dataset.from_tensor_slices((steps, index, self._rows.rows))

    local = len(self._rows.rows)
    data = tf.data.Dataset.range(start, 2**62).flat_map(split)
    workers = self._workers or tf.data.AUTOTUNE
    data = data.map(load_all, num_parallel_calls=workers, deterministic=True)
    data = data.batch(local, drop_remainder=True).prefetch(2)
    options = tf.data.Options()
    options.threading.private_threadpool_size = self._workers or 0
    options.threading.max_intra_op_parallelism = 1
    batches = data.with_options(options).as_numpy_iterator()
    for batch in batches:
      if failures:
        raise failures[0]
      if self.source.labels is not None:
        batch['label'] = self.source.labels[batch['index']].astype(np.int32)
      yield batch

  def _load(self, cropper, step, index, row) -> list[np.ndarray]:
    """Views, index and whether it is another's, for one row."""
    draws = order.uniforms((self.seed, step, row), len(self.views) * DRAWS)
    draws = draws.reshape(len(self.views), DRAWS)
    for more in range(min(MAX_IN_A_ROW, self.size)):
      found = (index + more) % self.size
      try:
        views = cropper(self.source.read(found), draws)
      except (OSError, UnreadableError) as error:
        last = error
        self._tell(found, error)
      else:
        return [*views, np.int32(found), np.int32(more > 0)]
    raise UnreadableError(
      f'{self.source.name}: {more + 1} images in a row cannot be read, from '
      f'{self.source.where(index)!r} to {self.source.where(found)!r}: {last}'
    )

  def _tell(self, index: int, error: Exception) -> None:
    if index not in self._told:
      self._told.add(index)
      logging.warning(
        '%r cannot be read (%s); the next image takes its place',
        self.source.where(index),
        error,
      )


def _tensorflow():
  """TensorFlow, kept off accelerators: it would take all their memory."""
  import tensorflow as tf

  for kind in ('GPU', 'TPU'):
    tf.config.set_visible_devices([], kind)
  return tf


def _decode_part(data: bytes, box: Sequence[int], channels: int) -> np.ndarray:
  """Decodes a part of a JPEG; see `host_crop.DecodePart`."""
  import tensorflow as tf

  try:
    # Pillow's discrete cosine transform; TensorFlow's default is less exact.
    return tf.io.decode_and_crop_jpeg(
      data, box, channels=channels, dct_method='INTEGER_ACCURATE'
    ).numpy()
  except tf.errors.OpError as error:
    raise UnreadableError(' '.join(error.message.split())[:200]) from error


class _Background:
  """An iterator that a thread runs ahead of."""

  def __init__(self, items: Iterator, ahead: int):
    self._queue = queue.Queue(maxsize=ahead)
    self._stop = threading.Event()
    self._thread = threading.Thread(
      target=self._run, args=(items,), name='input', daemon=True
    )
    self._thread.start()

  def _run(self, items):
    try:
      for item in items:
        if not self._offer((item, None)):
          return
    except BaseException as error:
      self._offer((None, error))

  def _offer(self, entry) -> bool:
    while not self._stop.is_set():
      try:
        self._queue.put(entry, timeout=0.1)
        return True
      except queue.Full:
        pass
    return False

  def __next__(self):
    item, error = self._queue.get()
    if error is not None:
      raise error
    return item

  def close(self) -> None:
    """Ends the thread, after the item it is making."""
    self._stop.set()
    self._thread.join()
