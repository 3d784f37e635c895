"""k-NN of a trained encoder on a whole data set, for several k at once."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from training.fields import check_fields
from transfer.extract import Extractor
from transfer.frozen import features, pooled
from transfer.job import Job, need_labels, run_job
from transfer.knn.online import BASELINE_SIZE
from transfer.knn.vote import Neighbors, raw_pixels, vote


def knn(config: Any, workdir: epath.PathLike) -> dict[str, Any]:
  """Weighted k-NN on frozen features; see `configs/knn.py`.

  The queries are encoded first and kept; the bank is encoded batch by batch,
  compared and forgotten.

  Args:
    config: of `configs/knn.py`.
    workdir: gets summary.json.

  Returns:
    The summary: `knn_top1_k10` and `knn_top5_k10` in percent for every k, those
    of the best k as `knn_top1`, `knn_top5` and `knn_k`, numbers of images, and
    `knn_raw_pixels` where it was asked for.

  Raises:
    ValueError: numbers out of range, or see `need_labels`.
  """
  check_fields(config)
  return run_job(config, workdir, _measure)


def _measure(job: Job) -> dict[str, Any]:
  need_labels(job)
  scores, (bank, queries) = _scores(job, job.extractor(pooled(job)))
  best = max(scores, key=lambda k: scores[k]['top1'])  # of equals the smallest
  summary = dict(bank_images=bank, query_images=queries, knn_k=best)
  summary['unreadable'] = len(job.train) + len(job.test) - bank - queries
  summary |= {f'knn_{top}': value for top, value in scores[best].items()}
  for k, score in scores.items():
    summary |= {f'knn_{top}_k{k}': value for top, value in score.items()}
  if job.config.neighbors.raw_pixels:
    scores, _ = _scores(job, _pixels(job), raw_pixels)
    best = max(scores.values(), key=lambda score: score['top1'])
    summary['knn_raw_pixels'] = best['top1']
  return summary


def _scores(
  job: Job,
  extractor: Extractor,
  feature: Callable[[np.ndarray], np.ndarray] = lambda found: found,
) -> tuple[dict[int, dict[str, float]], tuple[int, int]]:
  """Accuracy by k, and how many images of (bank, queries) could be read."""
  found = [
    (feature(x), rows['label'])
    for x, rows in features(job, extractor, job.test, what='queries')
  ]
  queries, labels = map(np.concatenate, zip(*found, strict=True))
  if not len(queries):
    raise ValueError(f'no image of {job.test.name} could be read')
  wanted = job.config.neighbors.k
  k = min(max(wanted), len(job.train))
  nearest = Neighbors(queries, k=k, mesh=job.mesh)
  del queries, found
  for x, rows in features(job, extractor, job.train, what='bank'):
    nearest.add(feature(x), rows['label'])
  if not nearest.seen:
    raise ValueError(f'no image of {job.train.name} could be read')
  scores = vote(
    *nearest.result(),
    labels,
    ks=_within(wanted, nearest.seen),
    temperature=job.config.neighbors.temperature,
  )
  return scores, (nearest.seen, len(labels))


def _within(ks: Sequence[int], bank: int) -> list[int]:
  """Numbers of neighbours that a bank has."""
  larger = sorted({k for k in ks if k > bank})
  if larger:
    logging.warning(
      'k=%s is more than the %d images of the bank: all of them vote instead',
      ', '.join(map(str, larger)),
      bank,
    )
  return sorted({min(k, bank) for k in ks})


def _pixels(job: Job) -> Extractor:
  """Images instead of features, small as for the k-NN while training."""
  data = job.config.data
  return Extractor(
    lambda weights, images: images,
    mesh=job.mesh,
    batch_size=job.config.batch_size,
    size=min(data.image_size, BASELINE_SIZE),
    channels=job.backbone.encoder.in_channels,
    crop=data.eval_crop,
    resample=data.eval_resample,
  )
