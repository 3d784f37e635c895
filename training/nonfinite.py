"""What a run with non-finite losses should change, from what is known of it."""

import dataclasses
import math


class NonFiniteError(RuntimeError):
  """Too many non-finite steps in a row."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadSteps:
  """A row of steps whose loss or gradient was not finite.

  Attributes:
    first: the first of them, from 0.
    last: the last of them.
    loss: the loss of the first.
    lr: the learning rate of the step before the first.
    dtype: what the model computes in, `config.dtype`.
    warmup_epochs: `config.optim.warmup_epochs`.
    rising: whether the rate is higher after the first than before it.
    clip: `config.optim.clip`, 0 for none.
    started_from: `config.init_from`, or None.
  """

  first: int
  last: int
  loss: float
  lr: float
  dtype: str
  warmup_epochs: float
  rising: bool
  clip: float
  started_from: str | None = None

  @property
  def untrained(self) -> bool:
    """Whether nothing had been learned: the first step, or a rate of 0."""
    return self.first == 0 or self.lr == 0.0


def advice(bad: BadSteps) -> str:
  """What to change, the likeliest cause first.

  Args:
    bad: the steps.

  Returns:
    A few words to follow 'non-finite ...;'.
  """
  remedies = []
  if bad.untrained:
    where = (
      'it was so before any parameter changed, so config.optim.base_lr is not '
      'the cause'
    )
    if bad.started_from:
      remedies.append(f'check the weights of {bad.started_from}')
    remedies.append(
      'look at the numbers of config.method and config.encoder (temperatures, '
      'weights, std) and at the images (--config.task=check_data)'
    )
  else:
    part = 'gradient' if math.isfinite(bad.loss) else 'loss'
    where = f'the {part} overflowed after steps at a rate of {bad.lr:.3g}'
    remedies.append('lower config.optim.base_lr')
    if bad.rising:
      longer = f'raise config.optim.warmup_epochs={bad.warmup_epochs:g}'
      remedies.append(f'{longer}: the rate was still rising')
    if not bad.clip:
      remedies.append('clip gradients (config.optim.clip=1.0)')
  if bad.dtype != 'float32':
    remedies.append(f'set config.dtype=float32 (now {bad.dtype})')
  return f'{where}; {", or ".join(remedies)}'
