"""Students and their momentum teachers."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax


def copy_parts(params: Mapping[str, Any], names: Sequence[str]) -> Any:
  """The named parts of the parameters: what a teacher consists of."""
  return {name: params[name] for name in names}


def move_towards(teacher: Any, student: Any, momentum: jax.Array) -> Any:
  """M · teacher + (1 − m) · student, leaf by leaf, float32."""
  return jax.tree.map(
    lambda t, s: momentum * t + (1.0 - momentum) * s, teacher, student
  )


def select_encoder(params: Any, method_state: Any, which: str) -> Any:
  """The encoder of the student or of the teacher.

  Raises:
    ValueError: `which` is neither.
  """
  if which == 'student':
    return params['encoder']
  if which == 'teacher':
    return method_state['teacher']['encoder']
  raise ValueError(f"which={which!r} must be 'student' or 'teacher'")
