"""The job `linear_probe`: from a config to the accuracies of all probes."""

import dataclasses
import time
from typing import Any

from etils import epath

from training import distributed, lock, loop, screen
from training.fields import check_fields
from training.metrics import write_json
from training.recipe import make_recipe
from training.schedules import constant
from training.workdir import writable
from transfer.accuracy import Accuracy, classify
from transfer.job import Job, need_labels, need_measuring, open_job
from transfer.probe.cached import CachedExtractor
from transfer.probe.heads import VIEW, LinearProbes, Probe
from transfer.probe.kept import kept_data
from transfer.train_job import check_run, train_job, with_batch


@lock.releasing()
def linear_probe(config: Any, workdir: epath.PathLike) -> dict[str, Any]:
  """Trains linear classifiers on a frozen encoder and tests them.

  Args:
    config: see `configs/linear_probe.py`.
    workdir: the folder of the job.

  Returns:
    The summary: `top1` and `top5` of the best classifier in percent and `best`,
    which one; `grid.json` has all.

  Raises:
    CheckpointError, ValueError: see `open_job` and `need_labels`.
  """
  began = time.time()
  need_measuring(config)
  check_fields(config)
  job = open_job(config, workdir)
  need_labels(job)
  config = with_batch(job)
  job = dataclasses.replace(job, config=config)
  per_epoch, total = check_run(job, config, len(job.train))
  _schedule(config, per_epoch, total)  # unknown words, before features are made
  fields = dict(
    encoder=_encoder(job),
    probes=_probes(config.probe, job.backbone.encoder),
    rates=tuple(config.probe.lrs or (config.optim.base_lr,)),
    classes=len(job.train.classes),
    decay=config.optim.decay,
    clip=config.optim.clip,
    batch_norm=config.probe.batch_norm,
    init_std=config.probe.init_std,
    smoothing=config.probe.smoothing,
    noisy=config.probe.drop_path > 0,
    chunks=config.chunks,
  )
  if config.probe.cached:
    reader = LinearProbes(**fields, schedule=constant(1.0))
    data, test, how = kept_data(job, reader)
  else:
    data, how = job.feed(VIEW)
  per_epoch = data.steps_per_epoch
  total = loop.count_steps(config, per_epoch)
  schedule = _schedule(config, per_epoch, total)
  method = LinearProbes(**fields, schedule=schedule)
  if config.probe.cached:
    extractor = CachedExtractor(
      *test, classify(method), mesh=job.mesh, batch_size=config.batch_size
    )
  else:
    extractor = job.extractor_of(classify(method))

  def label(name, i):
    return f'{name}/lr{method.rates[i]:g}'

  screen.note(how)
  prepared = time.time() - began
  summary = train_job(
    job,
    config,
    method,
    data,
    Accuracy(extractor, job.test, label),
    total=total,
    initial=None if config.probe.cached else job.backbone.params,
  )
  summary['seconds'] = round(summary['seconds'] + prepared, 1)
  return _conclude(job, summary)


def _probes(config: Any, encoder: Any) -> tuple[Probe, ...]:
  """Blocks times poolings, each once: Swin pools by the mean in any case."""
  poolings = [encoder.pool if p == 'auto' else p for p in config.pooling]
  return tuple(
    Probe(blocks=blocks, pooling=pooling)
    for blocks in dict.fromkeys(config.blocks)
    for pooling in dict.fromkeys(poolings)
  )


def _encoder(job: Job) -> Any:
  """The frozen encoder; it may drop paths while training."""
  rate = job.config.probe.drop_path
  return job.backbone.encoder.clone(drop_path=rate)


def _schedule(config: Any, per_epoch: int, total: int):
  """Factor of the rates by step: batch over `per` at the top."""
  recipe = make_recipe(
    config.optim.to_dict() | dict(base_lr=1.0),
    batch_size=config.batch_size,
    steps_per_epoch=per_epoch,
    total=total,
  )
  return recipe.lr


def _conclude(job: Job, summary: dict[str, Any]) -> dict[str, Any]:
  """Names the best and writes the grid."""
  grid = {
    name.removeprefix('top1/'): summary[name]
    for name in summary
    if name.startswith('top1/')
  }
  ranked = sorted(grid, key=grid.get, reverse=True)
  top5 = {name: summary[f'top5/{name}'] for name in grid}
  summary = {k: v for k, v in summary.items() if '/' not in k}
  if ranked:
    summary['best'] = ranked[0]

  def write():
    write_json(job.workdir / 'summary.json', summary)
    if grid:
      rows = [dict(probe=n, top1=grid[n], top5=top5[n]) for n in ranked]
      write_json(job.workdir / 'grid.json', rows)

  if writable(job.workdir):
    distributed.on_lead(write)
  return summary
