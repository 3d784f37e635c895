"""Students, their momentum teachers, and what both start from."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from training.rng import named_key
from training.state import path_name


def given(params: Any, initial: Mapping[str, jax.Array] | None) -> Any:
  """Replaces freshly drawn parameters by given ones of the same path.

  Args:
    params: a pytree.
    initial: {path: array}; shapes were checked by the caller. None or a path
      that is absent keeps the drawn value.

  Returns:
    The pytree.
  """
  initial = initial or {}

  def pick(path, drawn):
    # Weights may be kept in half precision; parameters are float32.
    return jnp.asarray(initial.get(path_name(path), drawn), drawn.dtype)

  return jax.tree_util.tree_map_with_path(pick, params)


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


def drop_path_noise(
  encoder: Any, rng: jax.Array, rows: int
) -> jax.Array | None:
  """What stochastic depth decides by, [rows, 2 · depth]; None where it is off.

  Drawn for the whole batch at once, so that neither chunks nor devices change
  what is dropped.
  """
  if not encoder.drop_path:
    return None
  key = named_key(rng, 'drop_path')
  return jax.random.uniform(key, (rows, 2 * encoder.depth), jnp.float32)
