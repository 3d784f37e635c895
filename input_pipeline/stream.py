"""Images of any number and size, read and cropped by the host with tf.data.

index -> bytes -> decode -> crop, resize, flip -> uint8; what follows (colours,
blur, [0, 1]) runs on the device, inside the train step. Every batch is a
function of (seed, step): threads, processes and restarts change nothing.
"""

import os
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from input_pipeline import order
from input_pipeline.augment import photometric, row_keys
from input_pipeline.background import Background
from input_pipeline.decode import UnreadableError
from input_pipeline.host_crop import DRAWS, Cropper
from input_pipeline.rows import LocalRows
from input_pipeline.source import Source
from input_pipeline.unreadable import tell
from input_pipeline.views import View, check_views

# Decoding only what a crop needs pays for one view of a large image: a tenth
# of the time at 2000 x 1500 px, half at 4000 x 3000, nothing at 500 x 375; for
# two views of 2000 x 1500 it costs more (docs/performance.md). What is above a
# crop has to be undone for every view.
FUSED_VIEWS, FUSED_PIXELS = 1, 10**6
# Rows that a thread does at a time: TensorFlow's calls of Python are not free.
ROWS = 8
# So many unreadable images one after the other are not an accident.
MAX_IN_A_ROW = 100


class Stream:
  """Training batches from a source of any size.

  Attributes:
    source: the data set.
    views: the views by name; their order numbers the keys of the augmentation.
    batch_size: global batch size.
    seed: of the order and the crops.
    repeats: see `order.batch_indices`.
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
    repeats: int = 1,
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
      repeats: see `order.batch_indices`.
      channels: of the images.
      sharding: of [b, ...] arrays over the batch; None for one device. Only the
        rows of this process's devices are read.
      workers: threads that decode; None for one more than there are cores.
      fused: decode only what each crop needs, once per view; None for the
        faster way.
      prefetch: batches that wait on the device.

    Raises:
      ValueError: no views, a reserved name, a batch larger than the data set.
    """
    check_views(views)
    self.source, self.views = source, dict(views)
    self.batch_size, self.seed, self.size = batch_size, seed, len(source)
    self.channels, self.repeats = channels, repeats
    self.steps_per_epoch = order.steps_per_epoch(
      size=self.size, batch_size=batch_size
    )
    self._workers, self._prefetch = workers, prefetch
    self._rows = LocalRows(batch_size, sharding)
    self._fused = len(views) <= FUSED_VIEWS if fused is None else fused
    self._part_pixels = FUSED_PIXELS if fused is None else 0
    self._background, self._next = None, None
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
      step,
      size=self.size,
      batch_size=self.batch_size,
      seed=self.seed,
      repeats=self.repeats,
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
      self._background = Background(
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
      self._part_pixels,
    )
    local = self._rows.rows
    part = max(n for n in range(1, ROWS + 1) if len(local) % n == 0)
    names = [*self.views, 'index', 'replaced']
    specs = [self.spec[name] for name in names]
    failures = []  # raised within TensorFlow they would print a page each

    def indices(step):
      return self.indices(int(step))[local]

    def split(step):
      index = tf.reshape(
        tf.numpy_function(indices, [step], tf.int64), (-1, part)
      )
      rows = local.reshape(-1, part)
      steps = tf.repeat(step, len(rows))
      return tf.data.Dataset.from_tensor_slices((steps, index, rows))

    def load(step, index, rows):
      out = [np.zeros((part, *spec.shape[1:]), spec.dtype) for spec in specs]
      try:
        self._load(cropper, int(step), index, rows, out)
      except BaseException as error:
        failures.append(error)
      return out

    workers = self._workers or os.cpu_count() + 1
    data = tf.data.Dataset.range(start, 2**62).flat_map(split)
    data = data.map(
      lambda *args: tf.numpy_function(load, args, [s.dtype for s in specs]),
      num_parallel_calls=workers,
      deterministic=True,
    )
    data = data.batch(len(local) // part).prefetch(1)
    options = tf.data.Options()
    options.threading.private_threadpool_size = workers + 1
    options.threading.max_intra_op_parallelism = 1
    for arrays in data.with_options(options).as_numpy_iterator():
      if failures:
        raise failures[0]
      batch = {
        name: array.reshape(-1, *array.shape[2:])
        for name, array in zip(names, arrays, strict=True)
      }
      batch['row'] = local.astype(np.int32)
      if self.source.labels is not None:
        batch['label'] = self.source.labels[batch['index']].astype(np.int32)
      yield batch

  def _load(self, cropper, step, indices, rows, out) -> None:
    """Fills in views, indices and whether they are another's, row by row."""
    count = len(self.views)
    draws = order.uniforms(rows, count * DRAWS, seed=self.seed, step=step)
    draws = draws.reshape(len(rows), count, DRAWS)
    for i, index in enumerate(indices.tolist()):
      views, found = self._first_readable(cropper, index, draws[i])
      for array, value in zip(
        out, (*views, found, found != index), strict=True
      ):
        array[i] = value

  def _first_readable(self, cropper, index, draws):
    """(views, index) of an image, or of the next one that can be read."""
    for more in range(min(MAX_IN_A_ROW, self.size)):
      found = (index + more) % self.size
      try:
        return cropper(self.source.read(found), draws), found
      except (OSError, UnreadableError) as error:
        last = error
        tell(self.source, found, error)
    raise UnreadableError(
      f'{self.source.name}: {more + 1} images in a row cannot be read, from '
      f'{self.source.where(index)!r} to {self.source.where(found)!r}: {last}; '
      'run --config.task=check_data to see what is there'
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
