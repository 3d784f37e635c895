"""Pictures of a trained encoder, and curves of runs."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from input_pipeline.known import unknown
from training import distributed, lock, storage
from training import workdir as workdirs
from training.checkpoint import Checkpoints
from training.fields import check_fields
from training.metrics import write_json
from transfer.backbone import load_backbone
from transfer.job import Job, run_job
from transfer.visualize.album import Album
from transfer.visualize.class_names import read_table
from transfer.visualize.curves import short_names
from transfer.visualize.drawing import FORMATS
from transfer.visualize.pictures import (
  PICTURES,
  FiguresOf,
  compare,
  curves,
  listed,
)
from transfer.visualize.subject import Subject


@lock.releasing()
def visualize(
  config: Any, workdir: str, *, figures_of: FiguresOf
) -> dict[str, Any]:
  """Draws what `config.pictures` names; see `configs/visualize.py`.

  With `config.runs` and without `config.checkpoint` only curves are drawn, and
  drawn again whenever asked: the runs may have gone on.

  Args:
    config: of the job.
    workdir: gets `images/` in `config.format`, the numbers behind them
      (figures.json and figures.npz) and summary.json.
    figures_of: (backbone, images [n, h, w, c] in [0, 1], dtype) -> the figures
      of the method that trained it, by name.

  Returns:
    The summary: {'pictures': names, 'left_out': {word: reason}, ...}.

  Raises:
    ValueError: an unknown picture or format, a number out of range, or neither
      a checkpoint nor runs.
    FileNotFoundError: there is no `config.class_names`.
  """
  words, formats = chosen(config.pictures), chosen_formats(config.format)
  check_fields(config)
  if config.class_names:
    read_table(config.class_names)
  if config.checkpoint:
    work = functools.partial(_of_checkpoint, words, formats, figures_of)
    return run_job(config, workdir, work)
  if not config.runs:
    raise ValueError(
      'nothing to look at: set config.checkpoint to the workdir of a run, or '
      'config.runs to those whose curves are wanted'
    )
  folder = workdirs.open_workdir(workdir)
  workdirs.check_config(folder, config)
  workdirs.record(folder, config)
  album = Album(folder, step=0, formats=formats)
  if 'curves' in words:
    album.add('curves', lambda: curves(listed(config.runs)))
  others = [word for word in words if word != 'curves']
  album.leave_out(others, 'config.checkpoint is not set')
  summary = album.close()
  distributed.on_lead(lambda: write_json(folder / 'summary.json', summary))
  return summary


def chosen(pictures: str | Sequence[str]) -> tuple[str, ...]:
  """The words of `config.pictures`, each once.

  Raises:
    ValueError: none, or an unknown one, with the nearest known.
  """
  words = tuple(dict.fromkeys(listed(pictures)))
  if not words:
    raise ValueError(f'config.pictures is empty; known: {", ".join(PICTURES)}')
  for word in words:
    if word not in PICTURES:
      raise unknown('picture in config.pictures', word, PICTURES)
  return words


def chosen_formats(formats: str | Sequence[str]) -> tuple[str, ...]:
  """The formats of `config.format`, each once.

  Raises:
    ValueError: none, or an unknown one, with the nearest known.
  """
  words = tuple(dict.fromkeys(w.lower() for w in listed(formats)))
  if not words:
    raise ValueError(f'config.format is empty; known: {", ".join(FORMATS)}')
  for word in words:
    if word not in FORMATS:
      raise unknown('format in config.format', word, FORMATS)
  return words


def _of_checkpoint(
  words: Sequence[str],
  formats: Sequence[str],
  figures_of: FiguresOf,
  job: Job,
) -> dict[str, Any]:
  """All pictures of a checkpoint, and of a second one where it is set."""
  config = job.config
  jobs = [job]
  if config.compare:
    jobs.append(dataclasses.replace(job, backbone=_other(job)))
  subjects = _named(jobs)
  album = Album(job.workdir, step=subjects[0].step or 0, formats=formats)
  for word in words:
    draw = functools.partial(PICTURES[word], subjects, figures_of)
    album.add(word, draw)
  if config.compare:
    album.add('compare', functools.partial(compare, subjects))
  return album.close()


def _other(job: Job) -> Any:
  """The encoder of `config.compare`."""
  config = job.config
  other = load_backbone(config.compare, which=config.which, dtype=config.dtype)
  channels, wanted = other.encoder.in_channels, job.backbone.encoder.in_channels
  if channels != wanted:
    raise ValueError(
      f'config.compare: the encoder of {other.where} reads {channels} '
      f'channels, that of {job.backbone.where} {wanted}; compare encoders of '
      'the same images'
    )
  if other.where == job.backbone.where:
    raise ValueError(
      f'config.compare={config.compare!r} is what config.checkpoint is'
    )
  return other


def _named(jobs: Sequence[Job]) -> list[Subject]:
  """Encoders by their workdirs, and by steps where these were chosen."""
  found = []
  for job in jobs:
    path = storage.resolve(job.backbone.where)
    step = None
    if path.parent.name == 'checkpoints':
      path, step = path.parent.parent, int(path.name)
    found.append((job, str(path), step))
  names = short_names([path for _, path, _ in found])
  subjects = []
  for name, (job, path, step) in zip(names, found, strict=True):
    if step is None:
      saved = distributed.on_lead(Checkpoints(path).steps)
      step = saved[-1] if saved else None
    else:
      name = f'{name}, step {step}'
    subjects.append(Subject(name=name, job=job, workdir=path, step=step))
  return subjects
