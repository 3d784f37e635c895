"""What jobs that train on an encoder share: batch, checks and the loop."""

import contextlib
import json
import math
from collections.abc import Mapping
from typing import Any

import ml_collections

from input_pipeline import feed, order
from training import distributed, loop, screen, sharding
from training import workdir as workdirs
from training.checkpoint import Checkpoints
from training.metrics import write_json
from training.protocols import Evaluator
from training.step import Run
from transfer.job import Job


def with_batch(job: Job, *, unit: int = 1) -> Any:
  """The config with a batch that the data can fill, with a notice if changed.

  Args:
    job: a job that trains; where its workdir has a checkpoint, the batch of
      that run is kept, on any number of devices.
    unit: what else divides the batch.

  Raises:
    ValueError: too few images for a batch at all, or a batch that devices and
      chunks do not divide.
  """
  config, images = job.config, len(job.train)
  unit = math.lcm(job.mesh.size * max(config.chunks, 1), unit)
  most = images // unit * unit
  if config.batch_size <= images or not most:
    return config
  most = _recorded_batch(job) or most
  screen.note(
    f'config.batch_size={config.batch_size} is more than the {images:,} '
    f'training images: {most} in its place; rates are per {config.optim.per} '
    'images and follow'
  )
  config = ml_collections.ConfigDict(config.copy_and_resolve_references())
  with config.unlocked():
    config.batch_size = most
  return config


def _recorded_batch(job: Job) -> int | None:
  """The batch of the run that continues; None where there is none."""
  if not Checkpoints(job.workdir).steps():  # which all processes ask together
    return None

  def read():
    try:
      return json.loads((job.workdir / 'config.json').read_text())['batch_size']
    except (OSError, ValueError, TypeError, KeyError):
      return None  # `workdir.check_config` reports it

  return distributed.on_lead(read)


def check_run(job: Job, config: Any, images: int) -> tuple[int, int]:
  """Raises where a job that trains could not, before images are decoded.

  Args:
    job: the job.
    config: as it is recorded.
    images: number of training images.

  Returns:
    (steps per epoch, steps of the run).

  Raises:
    ValueError: a batch that does not fit devices, chunks or data; no steps.
    WorkdirError: the workdir is that of another config.
  """
  sharding.check_batch(config.batch_size, job.mesh, config.chunks)
  per_epoch = order.steps_per_epoch(size=images, batch_size=config.batch_size)
  total = loop.count_steps(config, per_epoch)
  if Checkpoints(job.workdir).steps():
    workdirs.check_config(job.workdir, config)
  return per_epoch, total


def train_job(
  job: Job,
  config: Any,
  method: Any,
  data: Any,
  evaluator: Evaluator,
  *,
  total: int,
  initial: Mapping[str, Any] | None,
) -> dict[str, float]:
  """Trains and measures what a job adds to an encoder; the loop's summary.

  Args:
    job: the job.
    config: as it is recorded.
    method: what is trained.
    data: its batches; closed at the end.
    evaluator: measures it.
    total: number of steps.
    initial: {parameter path: array} of the encoder to begin with, or None.
  """
  run = Run(
    config,
    mesh=job.mesh,
    method=method,
    data=data,
    initial=initial,
    what=job.backbone.where,
  )
  with contextlib.closing(data):
    summary = loop.train(
      run,
      job.workdir,
      total=total,
      evaluators=[evaluator],
      data_fingerprint=feed.with_times(feed.fingerprint(job.train), job.train),
    )
  summary |= dict(checkpoint=job.backbone.where, which=job.backbone.which)
  if workdirs.writable(job.workdir):
    path = job.workdir / 'summary.json'
    distributed.on_lead(lambda: write_json(path, summary))
  return summary
