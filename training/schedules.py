"""Rates and momenta as pure functions of the step."""

from collections.abc import Callable, Sequence

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
  base: float,
  *,
  warmup: float,
  total: float,
  start: float = 0.0,
  end: float = 0.0,
) -> Schedule:
  """Linear warm-up from `start`, then a half cosine from `base` to `end`.

  MoCo v3's `adjust_learning_rate` at fractional epochs (Chen et al., 2021),
  with epochs counted in steps.

  Args:
    base: the rate at the end of the warm-up.
    warmup: length of the warm-up in steps.
    total: length of the run in steps.
    start: the rate at step 0 of a warm-up.
    end: the rate at `total`.

  Returns:
    A function of the step that gives a float32 scalar.
  """

  def rate(step):
    step = jnp.asarray(step, jnp.float32)
    rising = start + (base - start) * step / max(warmup, 1e-9)
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


def dino_cosine(
  base: float, *, warmup: int, total: int, end: float, start: float = 0.0
) -> Schedule:
  """DINO's `cosine_scheduler` (Caron et al., 2021), the learning rate.

  The warm-up reaches `base` with its last step and not with the one after, and
  `base` comes again with the first step of the cosine. Weight decay and
  momentum, which do not warm up, are `warmup_cosine(..., warmup=0)`.

  Args:
    base: the rate at the end of the warm-up.
    warmup: length of the warm-up in steps.
    total: length of the run in steps.
    end: the rate at `total`, one step after the last.
    start: the rate at step 0, if there is a warm-up.

  Returns:
    A function of the step that gives a float32 scalar.
  """
  falling = warmup_cosine(base, warmup=0, total=total - warmup, end=end)

  def rate(step):
    step = jnp.asarray(step, jnp.float32)
    rising = start + (base - start) * step / max(warmup - 1, 1)
    return jnp.where(step < warmup, rising, falling(step - warmup))

  return rate


def unshifted_cosine(
  base: float, *, warmup: int, total: int, start: float, end: float
) -> Schedule:
  """Linear warm-up, then a cosine that has run since step 0: MoBY's.

  timm's `CosineLRScheduler` with `t_initial` = total and without
  `warmup_prefix`, as Swin's code base uses it: the warm-up goes to `base`, the
  cosine is by then a little below it.

  Args:
    base: where the warm-up leads, and the top of the cosine.
    warmup: length of the warm-up in steps.
    total: length of the run in steps.
    start: the rate at step 0, if there is a warm-up.
    end: the rate at `total`.

  Returns:
    A function of the step that gives a float32 scalar.
  """
  falling = warmup_cosine(base, warmup=0, total=total, end=end)

  def rate(step):
    step = jnp.asarray(step, jnp.float32)
    rising = start + (base - start) * step / max(warmup, 1)
    return jnp.where(step < warmup, rising, falling(step))

  return rate


def multi_step(
  base: float,
  *,
  warmup: float,
  milestones: Sequence[float],
  factor: float,
  start: float = 0.0,
) -> Schedule:
  """Linear warm-up, then `base`, multiplied by `factor` at every milestone.

  PyTorch's `MultiStepLR` after a warm-up, as SimMIM's code uses it (Xie et al.,
  arXiv:2111.09886).

  Args:
    base: the rate at the end of the warm-up.
    warmup: length of the warm-up in steps.
    milestones: steps from which on the rate is lower.
    factor: by how much.
    start: the rate at step 0 of a warm-up.

  Returns:
    A function of the step that gives a float32 scalar.
  """

  def rate(step):
    step = jnp.asarray(step, jnp.float32)
    rising = start + (base - start) * step / max(warmup, 1e-9)
    passed = sum((step >= m).astype(jnp.float32) for m in milestones)
    return jnp.where(step < warmup, rising, base * factor**passed)

  return rate


def one_step_late(schedule: Schedule) -> Schedule:
  """What a loop applies that moves its scheduler after the update.

  Step i gets the value of i - 1, and step 0 that of 0: MoBY's loop.

  Args:
    schedule: a function of the step.

  Returns:
    A function of the step.
  """
  return lambda step: schedule(jnp.maximum(jnp.asarray(step) - 1, 0))


def by_epoch(
  start: float, end: float, *, warmup_epochs: int, steps_per_epoch: int
) -> Schedule:
  """Rises by whole epochs, then stays: DINO's teacher temperature.

  Linear from `start` in epoch 0 to `end` in epoch `warmup_epochs` - 1 (Caron
  et al., 2021, `DINOLoss`); `end` from the beginning without warm-up epochs.

  Args:
    start: the value in epoch 0.
    end: the value from the last epoch of the warm-up on.
    warmup_epochs: number of epochs of the warm-up.
    steps_per_epoch: length of an epoch in steps.

  Returns:
    A function of the step, a whole number, that gives a float32 scalar.
  """

  def value(step):
    epoch = (jnp.asarray(step) // steps_per_epoch).astype(jnp.float32)
    rising = start + (end - start) * epoch / max(warmup_epochs - 1, 1)
    return jnp.where(epoch < warmup_epochs, rising, jnp.float32(end))

  return value
