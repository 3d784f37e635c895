"""Checks of a config before data are read, and where a config has teachers."""

import functools
from collections.abc import Collection, Mapping
from typing import Any

from input_pipeline.known import unknown
from training.ranges import check_numbers
from training.words import TASKS, check_words


def check_fields(config: Any, tasks: Collection[str] = TASKS) -> None:
  """Raises ValueError for a number or word of a config without sense.

  Args:
    config: see `configs/common.py`.
    tasks: names of the jobs.
  """
  if config.get('task') not in (None, *tasks):
    raise unknown('config.task', config['task'], tasks)
  check_words(config)
  check_numbers(config)
  _check_together(config)


def _check_together(config: Any) -> None:
  """Raises ValueError for numbers that do not make sense side by side."""
  for name, view in (config.get('views') or {}).items():
    strength = view.get('strength')
    if strength and strength[3] > 0.5:
      raise ValueError(
        f'config.views.{name}.strength={strength}: the last, the hue, must be '
        'within 0..0.5 turns'
      )
  method = config.get('method') or {}
  warmup = method.get('warmup_teacher_temperature')
  last = method.get('teacher_temperature')
  rises = method.get('warmup_teacher_epochs') != 0  # None: chosen later
  if rises and warmup and last and warmup > last:
    raise ValueError(
      f'config.method.warmup_teacher_temperature={warmup} must not be above '
      f'config.method.teacher_temperature={last}, to which it rises; or set '
      'config.method.warmup_teacher_epochs=0'
    )
  repre, masked = method.get('repre'), method.get('masked')
  if repre and repre.get('weighting') == 'fixed' and repre.get('weights'):
    _need_a_weight('config.method.repre.weights', repre['weights'])
  if masked:
    both = masked.get('weight', 1), masked.get('contrast_weight', 1)
    _need_a_weight('config.method.masked.weight and contrast_weight', both)


def _need_a_weight(name: str, weights: tuple[float, ...]) -> None:
  if not any(weights):
    raise ValueError(
      f'{name}: all are 0, so nothing is learned; set one above 0'
    )


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


def get_field(config: Any, name: str) -> Any:
  """The value of a field whose name has dots; None if it is not there."""
  for part in name.split('.'):
    config = config.get(part) if config is not None else None
  return config


def set_field(config: Any, name: str, value: Any) -> None:
  """Sets a field whose name has dots."""
  *path, last = name.split('.')
  functools.reduce(lambda part, key: part[key], path, config)[last] = value
