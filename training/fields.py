"""Fields of a config that would otherwise fail late."""

import difflib
from collections.abc import Collection
from typing import Any

from input_pipeline import mode


def check_fields(config: Any, tasks: Collection[str]) -> None:
  """Numbers and words that would otherwise fail late.

  Args:
    config: see `configs/common.py`.
    tasks: names of jobs.

  Raises:
    ValueError: names the field.
  """
  numbers = {
    'keep_checkpoints': config.keep_checkpoints,
    'nonfinite_limit': config.nonfinite_limit,
    'knn.k': config.knn.k,
    'knn.batch_size': config.knn.batch_size,
    'knn.bank_images': config.knn.bank_images,
    'data.image_size': config.data.image_size,
    'data.resident_size': config.data.resident_size,
    'data.channels': config.data.channels,
    'data.workers': config.data.workers,
  }
  for name, value in numbers.items():
    if value is not None and value < 1:
      raise ValueError(f'config.{name}={value} must be at least 1')
  if not 0 <= (share := config.data.max_unreadable) <= 1:
    raise ValueError(f'config.data.max_unreadable={share} must be within 0..1')
  words = {
    'task': (config.task, tasks),
    'resume': (config.resume, ('auto', 'force')),
    'data.mode': (config.data.mode, mode.MODES),
    'knn.which': (config.knn.which, ('student', 'teacher')),
  }
  for name, (value, known) in words.items():
    if value not in known:
      near = difflib.get_close_matches(value, known, n=1, cutoff=0)[0]
      raise ValueError(
        f'unknown config.{name} {value!r}; did you mean {near!r}? Known: '
        f'{", ".join(known)}'
      )
