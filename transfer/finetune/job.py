"""The job `finetune`: encoder and classifier, from a run or from scratch."""

import dataclasses
from typing import Any

import ml_collections
from etils import epath

from training import lock, screen
from training.fields import check_fields
from training.recipe import make_recipe
from transfer.accuracy import Accuracy, classify
from transfer.finetune.classifier import Classifier
from transfer.finetune.views import make_augment
from transfer.job import Job, need_labels, need_measuring, open_job
from transfer.probe.heads import VIEW
from transfer.train_job import check_run, train_job, with_batch


@lock.releasing()
def finetune(config: Any, workdir: epath.PathLike) -> dict[str, float]:
  """Fine-tunes a trained encoder; without `checkpoint`, supervised training.

  Args:
    config: see `configs/finetune.py`.
    workdir: the folder of the run.

  Returns:
    The summary: `top1` and `top5` in percent, those of the averaged parameters
    where there are some. `lr` is the rate of the head and of the final norm;
    with layer decay all before them learn more slowly.

  Raises:
    CheckpointError, ValueError: see `open_job` and `need_labels`.
  """
  need_measuring(config)
  _check(config)
  job = open_job(config, workdir, **_computing(config))
  need_labels(job)
  mixes = config.augment.mixup or config.augment.cutmix
  config = with_batch(job, unit=2 if mixes else 1)
  job = dataclasses.replace(job, config=config)
  config = _with_encoder(config, job)
  per_epoch, total = check_run(job, config, len(job.train))
  classes = len(job.train.classes)
  method = Classifier(
    encoder=job.backbone.encoder,
    classes=classes,
    recipe=make_recipe(
      config.optim.to_dict(),
      batch_size=config.batch_size,
      steps_per_epoch=per_epoch,
      total=total,
    ),
    layer_decay=config.layer_decay,
    decay_tables=config.decay_tables,
    pool=config.head.pool,
    head_std=config.head.std,
    augment=make_augment(
      config.augment.to_dict(), classes, job.backbone.encoder
    ),
    average=config.average,
    chunks=config.chunks,
  )
  data, how = job.feed(VIEW, repeats=config.augment.repeats)
  screen.note(how)
  headline = 'average' if config.average else 'last'
  extractor = job.extractor_of(classify(method))
  return train_job(
    job,
    config,
    method,
    data,
    Accuracy(extractor, job.test, headline=headline),
    total=total,
    initial=job.backbone.params,
  )


def _check(config: Any) -> None:
  """Numbers that would fail late, or not at all; ValueError."""
  check_fields(config)
  mixes = config.augment.mixup or config.augment.cutmix
  if mixes and config.batch_size % 2:
    raise ValueError(
      f'config.batch_size={config.batch_size} must be even: mixup and CutMix '
      'mix images in pairs (config.augment.mixup and cutmix; 0 for none)'
    )


def _computing(config: Any) -> dict[str, Any]:
  """Fields of the encoder that say how it is trained."""
  return dict(
    drop_path=config.drop_path,
    remat=config.remat,
    attention_impl=config.attention_impl,
  )


def _with_encoder(config: Any, job: Job) -> Any:
  """The config with the encoder in it, so that this run can be read later."""
  out = ml_collections.ConfigDict(config.copy_and_resolve_references())
  with out.unlocked():
    out.encoder = dict(job.backbone.config['encoder'])
  return out
