"""Rates and momenta as pure functions of the step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Schedule = Callable[[jax.Array | int], jax.Array]


def constant(value: float) -> Schedule:
  """The same value at every step, float32."""
  return lambda step: jnp.full(jnp.shape(step), value, jnp.float32)


def half_cosine(progress: jax.Array) -> jax.Array:
  """½ (1 + cos(π·progress)): 1 at 0, 0 at 1; progress is clipped."""
  return 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))


def warmup_cosine(
  base: float, *, warmup: float, total: float, end: float = 0.0
) -> Schedule:
  """Linear warm-up from 0, then a half cosine from `base` to `end`.

  MoCo v3's `adjust_learning_rate` at fractional epochs (Chen et al., 2021),
  with epochs counted in steps.

  Args:
    base: the rate at the end of the warm-up.
    warmup: length of the warm-up in steps.
    total: length of the run in steps.
    end: the rate at `total`.

  Returns:
    A function of the step that gives a float32 scalar.
  """

  def rate(step):
    step = jnp.asarray(step, jnp.float32)
    rising = base * step / max(warmup, 1e-9)
    progress = (step - warmup) / max(total - warmup, 1e-9)
    falling = end + (base - end) * half_cosine(progress)
    return jnp.where(step < warmup, rising, falling)

  return rate


def momentum_cosine(start: float, *, total: float) -> Schedule:
  """A teacher's momentum, from `start` at step 0 to 1 at `total`.

  1 − ½ (1 + cos(π t/T)) (1 − start): BYOL (Grill et al., 2020, §3.3), used by
  MoCo v3, MoBY and DINO alike.

  Args:
    start: the momentum at step 0.
    total: length of the run in steps.

  Returns:
    A function of the step that gives a float32 scalar.
  """

  def momentum(step):
    progress = jnp.asarray(step, jnp.float32) / total
    return 1.0 - half_cosine(progress) * (1.0 - start)

  return momentum
