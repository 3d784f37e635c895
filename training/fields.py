"""Fields of a config that would otherwise fail late, or not at all."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from input_pipeline import mode
from input_pipeline.known import unknown


class Limit(NamedTuple):
  """What a number has to be, in words and as a test."""

  words: str
  holds: Callable[[float], bool]


AT_LEAST_1 = Limit('at least 1', lambda x: x >= 1)
AT_LEAST_0 = Limit('at least 0', lambda x: x >= 0)
ABOVE_0 = Limit('above 0', lambda x: x > 0)
SHARE = Limit('within 0..1', lambda x: 0 <= x <= 1)
PART = Limit('above 0 and at most 1', lambda x: 0 < x <= 1)
BELOW_1 = Limit('at least 0 and below 1', lambda x: 0 <= x < 1)

COMMON: Mapping[str, Limit] = {
  'keep_checkpoints': AT_LEAST_1,
  'nonfinite_limit': AT_LEAST_1,
  'eval_every': AT_LEAST_0,
  'checkpoint_every': AT_LEAST_0,
  'check_images': AT_LEAST_0,
  'watchdog': AT_LEAST_0,
  'hang_limit': AT_LEAST_0,
  'online_probe_lr': AT_LEAST_0,
  'knn.k': AT_LEAST_1,
  'knn.temperature': ABOVE_0,
  'knn.batch_size': AT_LEAST_1,
  'knn.bank_images': AT_LEAST_1,
  'data.image_size': AT_LEAST_1,
  'data.resident_size': AT_LEAST_1,
  'data.channels': AT_LEAST_1,
  'data.workers': AT_LEAST_1,
  'data.eval_crop': PART,
  'data.max_unreadable': SHARE,
  'optim.base_lr': AT_LEAST_0,
  'optim.per': AT_LEAST_1,
  'optim.decay': AT_LEAST_0,
  'optim.end_decay': AT_LEAST_0,
  'optim.warmup_epochs': AT_LEAST_0,
  'optim.warmup_lr': AT_LEAST_0,
  'optim.end_lr': AT_LEAST_0,
  'optim.milestones': PART,
  'optim.step_factor': ABOVE_0,
  'optim.clip': AT_LEAST_0,
  'optim.hyper.b1': BELOW_1,
  'optim.hyper.b2': BELOW_1,
  'optim.hyper.eps': ABOVE_0,
  'optim.hyper.momentum': BELOW_1,
  'optim.hyper.trust': ABOVE_0,
}


def check_numbers(config: Any, limits: Mapping[str, Limit]) -> None:
  """Whether the numbers of a config make sense.

  Args:
    config: a config.
    limits: by field, with dots. Fields that are not there or None do not count,
      of a tuple every number does.

  Raises:
    ValueError: names the first that does not.
  """
  for name, limit in limits.items():
    value = _field(config, name)
    if value is None:
      continue
    each = value if isinstance(value, Sequence) else (value,)
    if not all(math.isfinite(x) and limit.holds(x) for x in each):
      raise ValueError(f'config.{name}={value} must be {limit.words}')


def _field(config: Any, name: str) -> Any:
  for part in name.split('.'):
    if part not in config:
      return None
    config = config[part]
  return config


def check_fields(config: Any, tasks: Collection[str]) -> None:
  """Numbers and words of every job that would otherwise fail late.

  Args:
    config: see `configs/common.py`.
    tasks: names of jobs.

  Raises:
    ValueError: names the field.
  """
  check_numbers(config, COMMON)
  words = {
    'task': tasks,
    'resume': ('auto', 'force'),
    'data.mode': mode.MODES,
    'knn.which': ('student', 'teacher'),
  }
  for name, known in words.items():
    value = _field(config, name)
    if value is not None and value not in known:
      raise unknown(f'config.{name}', value, known)


def teachers_in(method: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
  """The frozen teachers of a method, and where a config has them.

  Args:
    method: `config.method`, or what JSON made of it.

  Returns:
    The name of the field, and the teachers by name: the method's, or those of
    the masked branches beside it; ('', {}) where there are none.
  """
  beside = method.get('masked') or {}
  for place, fields in (('masked.', beside), ('', method)):
    if fields.get('teachers'):
      return f'config.method.{place}teachers', fields['teachers']
  return '', {}
