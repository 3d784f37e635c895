"""A run's recipe, chosen at its first start and kept from then on.

`configs.automatic` leaves fields open; here they get their numbers, once: what
config.json has by then is taken from there, however the data or the device have
changed since. Only `chunks` are chosen again where the old ones do not fit.
"""

import json
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
from absl import logging
from jax.sharding import Mesh

from input_pipeline import order
from input_pipeline.source import Source
from pretrain.changed_defaults import as_begun
from pretrain.estimate import cost_of, device_of, init_shapes, view_sizes
from pretrain.methods import CONTRASTIVE, from_config
from pretrain.out_of_memory import advice, remat_field, settle
from pretrain.sizing import Choice, Device, choose, gib, refitted
from training import distributed, loop, screen, sharding, storage
from training.checkpoint import Checkpoints
from training.fields import get_field, set_field
from training.ranges import leaves
from training.warm_start import check_fits
from training.workdir import check_config, is_free

TRIED = 2  # images of the batch whose cost is looked at


def settled(
  config: Any,
  workdir: str,
  *,
  sources: tuple[Source, Source | None],
  channels: int,
  mesh: Mesh,
  initial: Mapping[str, Any] | None = None,
) -> Any:
  """The config with a number in every open field, checked without pixels.

  Args:
    config: see `configs.automatic`.
    workdir: of the run.
    sources: training images, and test images or None.
    channels: of the images.
    mesh: batches are split over its devices.
    initial: {parameter path: array} that the run begins with.

  Returns:
    The config; what was chosen, and why, is on stderr.

  Raises:
    ValueError, WorkdirError, CheckpointError: see `check`.
  """
  config, words = _settle(
    as_begun(config, workdir), workdir, *sources, channels=channels, mesh=mesh
  )
  check(
    config,
    workdir,
    images=len(sources[0]),
    channels=channels,
    mesh=mesh,
    initial=initial,
  )
  if config.online_probe_lr and sources[0].labels is None:
    raise ValueError(
      f'config.online_probe_lr needs labels, and {sources[0].name} has none'
    )
  if words:
    screen.note(words)
  settle(config)
  return config


def _settle(
  config: Any,
  workdir: str,
  train: Source,
  test: Source | None,
  *,
  channels: int,
  mesh: Mesh,
) -> tuple[Any, str]:
  """Fills in open fields; the config, and what was chosen in words."""
  if not config.get('paper'):
    return config, ''
  paper = json.loads(config.paper)
  config = ml_collections.ConfigDict(config.copy_and_resolve_references())
  with config.unlocked():
    del config.paper
  names = [*paper['open'], *(() if config.epochs is not None else ('steps',))]
  opened = [name for name in names if get_field(config, name) is None]
  old = _recorded(workdir, config, opened, paper['fitted'])
  if len(train) < 2 and config.method.name in CONTRASTIVE:
    raise ValueError(
      f'{train.name} has 1 image, and {config.method.name} compares images: '
      'add more, or take a method that needs no others, such as '
      'configs/mae.py or configs/simmim.py'
    )
  device = device_of(mesh)
  cost = cost_of(_tried(config, paper['open'], device), channels=channels)
  labelled = train.labels is not None and test is not None
  labelled = labelled and test.labels is not None
  given = {name: get_field(config, name) for name in [*paper['open'], 'steps']}
  given |= {name: old[name] for name in opened if name in old}
  if 'chunks' in opened and given['chunks'] and given['batch_size']:
    given['chunks'] = refitted(
      given['chunks'], given['batch_size'], cost, device
    )
  choice = choose(
    paper['open'],
    {name: value for name, value in given.items() if value is not None},
    images=len(train),
    tests=len(test) if labelled else 0,
    cost=cost,
    device=device,
  )
  values = distributed.on_lead(
    lambda: {name: choice.values[name] for name in opened}
  )
  with config.unlocked():
    for name, value in values.items():
      set_field(
        config, name, old.get(name) if name == 'steps' and old else value
      )
    for name, (theirs, ours) in paper['fitted'].items():
      # A run that began before sizes were fitted keeps the paper's.
      if _plain(get_field(config, name)) == ours and old.get(name) == theirs:
        set_field(
          config, name, tuple(theirs) if type(theirs) is list else theirs
        )
  return config, _words(config, choice, len(train), device, old)


def check(
  config: Any,
  workdir: str,
  *,
  images: int,
  channels: int,
  mesh: Mesh,
  initial: Mapping[str, Any] | None = None,
) -> None:
  """Raises where a run could not start, before images are decoded.

  Also warns of a step that is larger than the device's memory.

  Args:
    config: of the run, nothing left open.
    workdir: of the run.
    images: number of training images.
    channels: of the images.
    mesh: batches are split over its devices.
    initial: {parameter path: array} that the run begins with.

  Raises:
    ValueError: a batch that does not fit devices, chunks, data or queue;
      images that do not fit the encoder; unknown words and fields.
    WorkdirError: the workdir is that of another config.
    CheckpointError: parameters to start from that do not fit.
  """
  sharding.check_batch(config.batch_size, mesh, config.chunks)
  per_epoch = order.steps_per_epoch(size=images, batch_size=config.batch_size)
  total = loop.count_steps(config, per_epoch)
  folder = storage.resolve(workdir)
  if Checkpoints(folder).steps():
    check_config(folder, config)
  method = from_config(
    config, channels=channels, steps_per_epoch=per_epoch, total=total
  )
  shapes = init_shapes(
    method, view_sizes(config), channels=channels, batch=config.batch_size
  )
  if initial:
    check_fits(initial, shapes[0], what=config.init_from)
  if jax.process_index():
    return
  cost = cost_of(config, channels=channels, method=method, shapes=shapes)
  device = device_of(mesh)
  need = cost.step(config.batch_size // mesh.size, config.chunks)
  if need > device.memory:
    ways = advice(
      batch=config.batch_size,
      chunks=config.chunks,
      dtype=config.dtype,
      remat=remat_field(config),
      device=device,
      cost=cost,
    )
    logging.warning(
      'a step needs about %s, by a rough estimate, and the device has %s: '
      'set %s',
      gib(need),
      gib(device.memory),
      ways,
    )


def _tried(config: Any, paper: Mapping[str, Any], device: Device) -> Any:
  """The config with the paper's numbers in open fields, and a small batch.

  What an image costs does not depend on the batch.
  """
  config = ml_collections.ConfigDict(config.copy_and_resolve_references())
  with config.unlocked():
    for name, value in paper.items():
      if get_field(config, name) is None:
        set_field(config, name, value)
    config.batch_size, config.chunks = TRIED, 1
    if 'queue' in config.method:  # it is checked with the real batch
      config.method.queue = 2 * TRIED
    if 'dtype' in paper and device.cores:
      config.dtype = 'float32'
  return config


def _recorded(
  workdir: str, config: Any, opened: list[str], fitted: Mapping[str, Any]
) -> dict[str, Any]:
  """What config.json has, if it is that of this run; else nothing."""

  def read():
    path = storage.resolve(workdir) / 'config.json'
    try:
      return dict(leaves(json.loads(path.read_text())))
    except (OSError, ValueError, AttributeError):
      return {}  # `workdir.check_config` reports it

  old = distributed.on_lead(read)
  if not old or Checkpoints(workdir).steps():
    return old
  # Stopped before it saved anything: the same command, or another run?
  now = dict(leaves(json.loads(config.to_json_best_effort())))
  free = {*opened, *fitted, 'steps', 'epochs'}
  same = all(
    old.get(name) == now.get(name) or is_free(name)
    for name in (old.keys() | now.keys()) - free
  )
  return old if same else {}


def _words(
  config: Any, choice: Choice, images: int, device: Device, old: Any
) -> str:
  """What was chosen, in two lines."""
  steps = config.steps
  length = f'steps={steps}' if steps is not None else f'epochs={config.epochs}'
  chosen = [f'batch_size={config.batch_size}', length]
  if steps is not None:
    chosen[-1] += f' ({config.epochs:g} epochs)'
  chosen += [
    f'optim.warmup_epochs={config.optim.warmup_epochs:g}',
    f'chunks={config.chunks}',
    f'dtype={config.dtype}',
    f'data.image_size={config.data.image_size}',
  ]
  line = ', '.join(chosen)
  if old:
    return f'recipe: as at the first start: {line}'
  need = f'a step takes about {gib(choice.bytes)} of {gib(device.memory)}'
  if choice.seconds is not None:
    need += f', the training about {_time(choice.seconds)}'
  if not choice.fits:
    need += '; that may not fit: take config.encoder.remat=True, a smaller '
    need += 'encoder or smaller images'
  return (
    f'recipe for {images:,} images on {device}: {line}\n'
    f'  {need}; set any of these fields yourself (--config.batch_size=...), or '
    "take the paper's by the config word 'paper'"
  )


def _time(seconds: float) -> str:
  if seconds < 100:
    return f'{max(seconds, 1):.0f} s'
  if seconds < 2 * 3600:
    return f'{seconds / 60:.0f} min'
  return f'{seconds / 3600:.1f} h'


def _plain(value: Any) -> Any:
  return list(value) if isinstance(value, tuple) else value
