"""Features of a frozen encoder: pooled as a config says, and finite."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.source import Source
from models.features import Features
from transfer.extract import Extractor
from transfer.job import Job
from transfer.pooling import pool_blocks


def pooled(job: Job) -> Callable[[Any, Features], jax.Array]:
  """What `config.features` asks for, for `Job.extractor`.

  Args:
    job: read here: `config.features`, that is `blocks` and `pooling` of
      `pool_blocks`, and `level` where there is such a field: the mean over the
      map of one block or stage, raw, in place of them; None for them.

  Returns:
    (variables, Features) -> float32 [b, d].

  Raises:
    ValueError: of the function, see `pool_blocks`; or no such level.
  """
  options = dict(job.config.features)
  level = options.pop('level', None)

  def pick(variables, found):
    if level is None:
      params = variables['params']
      return pool_blocks(job.backbone.encoder, params, found, **options)
    count = len(found.levels)
    if not -count <= level < count:
      raise ValueError(
        f'config.features.level={level} must be within 0..{count - 1}, what '
        'this encoder has, or count from the end: -1 for the last'
      )
    return found.levels[level].tokens.astype(jnp.float32).mean(axis=1)

  return pick


def features(
  job: Job,
  extractor: Extractor,
  source: Source,
  *,
  what: str,
  indices: Sequence[int] | None = None,
) -> Iterator[tuple[np.ndarray, Mapping[str, np.ndarray]]]:
  """As `Job.features`, of one array per batch.

  Raises:
    ValueError: NaN or infinity among the features.
  """
  # Closed at once where something fails: an error stands behind a bar that
  # has ended, on a line of its own.
  with contextlib.closing(
    job.features(extractor, source, what=what, indices=indices)
  ) as found:
    for values, rows in found:
      bad = ~np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
      if bad.any():
        name = source.where(int(rows['index'][bad][0]))
        raise ValueError(
          f'{job.backbone.where}: the features of {name} are not finite: that '
          'training diverged, or config.dtype is too narrow'
        )
      yield values, rows
