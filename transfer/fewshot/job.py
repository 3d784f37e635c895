"""Classification with few labels, on the features of a frozen encoder."""

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from input_pipeline.progress import progress_bar
from training import distributed
from training.fields import check_fields
from transfer.fewshot.solvers import logistic, ridge, scale
from transfer.fewshot.subsets import Subset, draw_subsets, listed_subset
from transfer.job import Job, need_labels, run_job
from transfer.knn.vote import ranks
from transfer.parts import keep_features

PER_PART = 50_000  # images per file of kept features


def fewshot(config: Any, workdir: epath.PathLike) -> dict[str, Any]:
  """Logistic and ridge regression on a few labels; see `configs/fewshot.py`.

  Args:
    config: of `configs/fewshot.py`.
    workdir: gets summary.json, and the features in `features/`: of the same
      weights and images they are not computed again, also where other numbers
      follow with `config.resume='force'`.

  Returns:
    The summary: `fewshot`, by subset `images` and `draws`; by solver and
    penalty the mean of `top1` and `top5` in percent over the draws and their
    standard deviation (`top1_std`; none of one draw), and as `best` those of
    the highest top-1.

  Raises:
    ValueError: words or numbers out of range, see `need_labels`,
      `draw_subsets`, `listed_subset`.
  """
  options = config.fewshot
  check_fields(config)
  if not options.logistic and not options.ridge:
    raise ValueError(
      'config.fewshot needs penalties for logistic, ridge or both'
    )
  return run_job(config, workdir, _fewshot)


def _fewshot(job: Job) -> Mapping[str, Any]:
  need_labels(job)
  subsets = distributed.on_lead(lambda: _subsets(job))
  union = np.unique(np.concatenate([s.indices for s in subsets]))
  folder = job.workdir / 'features'
  parts = [
    keep_features(
      job,
      source,
      folder / what,
      what=what,
      per_part=PER_PART,
      indices=indices,
    )
    for source, what, indices in (
      (job.train, 'training images', union),
      (job.test, 'test images', None),
    )
  ]

  def solve():
    (index, train), (test_index, test) = (part.whole() for part in parts)
    unreadable = len(union) + len(job.test) - len(index) - len(test_index)
    if not len(test_index):
      raise ValueError(f'no image of {job.test.name} could be read')
    if unreadable:
      logging.warning('%d images that cannot be read are left out', unreadable)
    scores = collections.defaultdict(list)
    sizes = {}
    labels = job.train.labels[index], job.test.labels[test_index]
    for subset in progress_bar(
      'few-shot', len(subsets), unit='subsets', iterable=subsets
    ):
      rows = np.flatnonzero(np.isin(index, subset.indices))
      sizes[subset.name] = len(rows)
      found = _scores(
        job.config.fewshot,
        (train[rows], labels[0][rows]),
        (test, labels[1]),
        f'{subset.name}, draw {subset.draw}',
      )
      scores[subset.name].append(found)
    told = {n: _told(found, sizes[n]) for n, found in scores.items()}
    return dict(fewshot=told, unreadable=unreadable)

  return distributed.on_lead(solve)


def _subsets(job: Job) -> list[Subset]:
  options = job.config.fewshot
  if options.list:
    return [listed_subset(options.list, job.train)]
  subsets = draw_subsets(
    job.train.labels,
    shares=options.shares,
    shots=options.shots,
    draws=options.draws,
    seed=job.config.seed,
    names=job.train.classes,
  )
  if not subsets:
    raise ValueError(
      'config.fewshot: nothing to do; give shares, shots or a list'
    )
  return subsets


def _scores(
  options: Any,
  train: tuple[np.ndarray, np.ndarray],
  test: tuple[np.ndarray, np.ndarray],
  name: str,
) -> dict[tuple[str, float], tuple[float, float]]:
  """{(solver, penalty): (top-1, top-5) in percent} of one subset."""
  x, queries = scale(train[0], test[0], options.scale)
  labels, true = train[1], test[1]
  seen = np.unique(labels)
  if len(seen) < 2:
    raise ValueError(
      f'few-shot needs images of two classes at least; {name}: {len(seen)}'
    )
  found = {
    ('logistic', penalty): logistic(
      x, labels, queries, penalty=penalty, iterations=options.iterations
    )
    for penalty in options.logistic
  }
  ridges = ridge(x, labels, queries, penalties=options.ridge)
  found |= {
    ('ridge', penalty): scores
    for penalty, scores in zip(options.ridge, ridges, strict=True)
  }
  return {key: _accuracy(scores, seen, true) for key, scores in found.items()}


def _accuracy(
  scores: np.ndarray, seen: np.ndarray, true: np.ndarray
) -> tuple[float, float]:
  """(top-1, top-5) in percent; a class that was not seen is never right."""
  column = np.searchsorted(seen, true).clip(max=len(seen) - 1)
  rank = np.where(seen[column] == true, ranks(scores, column), len(seen))
  hit = [(rank < np.minimum(top, len(seen))).mean() for top in (1, 5)]
  return 100 * float(hit[0]), 100 * float(hit[1])


def _told(
  found: Sequence[dict[tuple[str, float], tuple[float, float]]], size: int
) -> dict[str, Any]:
  """What the summary says of one subset."""
  out = dict(images=size, draws=len(found), logistic={}, ridge={})
  best = dict(top1=-math.inf)
  for solver, penalty in found[0]:
    scores = np.array([draw[solver, penalty] for draw in found])
    means = scores.mean(axis=0)
    row = dict(top1=float(means[0]), top5=float(means[1]))
    if len(found) > 1:
      row['top1_std'] = float(scores[:, 0].std(ddof=1))
    out[solver][f'{penalty:g}'] = row
    if row['top1'] > best['top1']:
      best = dict(row, solver=solver, penalty=penalty)
  return dict(out, best=best)


def table(results: Mapping[str, Any]) -> str:
  """The best of each solver, for a person.

  Args:
    results: `fewshot` of the summary.
  """
  lines = []
  # JSON, from which the results may come, is sorted by name.
  for name, result in sorted(results.items(), key=lambda x: x[1]['images']):
    for solver in ('logistic', 'ridge'):
      if not result[solver]:
        continue
      penalty, row = max(
        result[solver].items(), key=lambda item: item[1]['top1']
      )
      spread = f' ± {row["top1_std"]:.2f}' if 'top1_std' in row else ''
      lines.append(
        f'{name} ({result["images"]:,} images, {result["draws"]} draws), '
        f'{solver} {penalty}: top-1 {row["top1"]:.2f}{spread} %, top-5 '
        f'{row["top5"]:.2f} %'
      )
  return '\n'.join(lines)
