"""From a config's `data` to what feeds the training."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from input_pipeline import folder, mode
from input_pipeline.arrays import Arrays
from input_pipeline.fingerprint import fingerprint as fingerprint
from input_pipeline.fingerprint import with_times as with_times
from input_pipeline.in_memory import SizesDiffer, to_arrays
from input_pipeline.resident import Resident
from input_pipeline.source import Source
from input_pipeline.sources import load
from input_pipeline.stream import Stream
from input_pipeline.views import View

# Fields of `config.data` that are not the source's.
OURS = (
  'name',
  'split',
  'test_split',
  'mode',
  'image_size',
  'eval_crop',
  'eval_resample',
  'resident_size',
  'channels',
  'workers',
  'max_unreadable',
)


def open_sources(config: Any) -> tuple[Source, Source | None]:
  """Training images, and test images where `test_split` names them.

  Args:
    config: `data` of a config; test_split 'auto' takes test images where a
      folder has some.

  Returns:
    (train, test or None).

  Raises:
    ValueError, FileNotFoundError: see `sources.load`; or the two have not the
      same number of channels.
  """
  options = {k: v for k, v in config.items() if k not in OURS}
  train = load(config.name, split=config.split, **options)
  test_split = config.test_split
  if test_split == 'auto':
    there = config.name == 'folder' and config.split != 'all'
    there = there and folder.has_split(config.data_dir, 'test')
    test_split = 'test' if there else ''
  if not test_split:
    return train, None
  test = load(config.name, split=test_split, **options)
  if train.channels != test.channels:
    raise ValueError(
      f'images for training have {train.channels} channels, those for testing '
      f'{test.channels}; they must agree: change the images, or leave those '
      "for testing out with config.data.test_split=''"
    )
  return train, test


def channels_of(config: Any, source: Source) -> int:
  """What images are decoded to: the source's own, else `data.channels`.

  Raises:
    ValueError: both are given and differ.
  """
  if source.channels is None:
    return 3 if config.channels is None else config.channels
  if config.channels not in (None, source.channels):
    raise ValueError(
      f'config.data.channels={config.channels}, but {source.name} has '
      f'{source.channels}; leave it out'
    )
  return source.channels


def make_feed(
  config: Any,
  source: Source,
  views: Mapping[str, View],
  *,
  batch_size: int,
  seed: int,
  shardings: tuple[jax.sharding.Sharding, jax.sharding.Sharding],
  repeats: int = 1,
  agree: Callable[[Any], Any] = lambda choice: choice,
) -> tuple[Resident | Stream, str]:
  """Batches of training images, resident or streamed.

  Args:
    config: `data` of a config.
    source: the training images.
    views: a `View` by name.
    batch_size: global batch size.
    seed: of the run.
    shardings: (of arrays over the batch, of replicated arrays).
    repeats: see `order.batch_indices`.
    agree: makes a choice that of the first process.

  Returns:
    What the loop takes its batches from, and a line that says how it was chosen
    and why. Either has its images as `source`.

  Raises:
    ValueError: bad views or sizes; see `Resident` and `Stream`.
  """
  channels = channels_of(config, source)
  chosen, why = agree(mode.choose(config.mode, source, channels))
  if chosen == 'resident':
    try:
      source = decoded(config, source)
    except SizesDiffer as error:
      if config.mode == 'resident':
        raise
      chosen, why = 'stream', str(error)
  common = dict(batch_size=batch_size, seed=seed, repeats=repeats)
  if chosen == 'resident':
    feed = Resident(source, views, shardings=shardings, **common)
  else:
    feed = Stream(
      source,
      views,
      channels=channels,
      sharding=shardings[0],
      workers=config.workers,
      **common,
    )
  return feed, f'{source.name}: {len(source):,} images, {chosen}: {why}'


def decoded(config: Any, source: Source) -> Arrays:
  """All images in memory, at `data.resident_size` if it is set."""
  return to_arrays(
    source,
    channels=channels_of(config, source),
    size=config.resident_size,
    workers=config.workers,
  )
