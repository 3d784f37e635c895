"""What a run with non-finite losses is advised to change."""

import math

import pytest

from training.nonfinite import BadSteps, advice

SOME = dict(
  first=40,
  last=59,
  loss=math.nan,
  lr=1e-2,
  dtype='float32',
  warmup_epochs=0.5,
  rising=False,
  clip=1.0,
)


@pytest.mark.parametrize(
  'change, present, absent',
  [
    (
      {},
      ['the loss overflowed', '0.01', 'lower config.optim.base_lr'],
      ['float32', 'warmup', 'clip', 'check_data'],
    ),
    (dict(dtype='bfloat16'), ['config.dtype=float32 (now bfloat16)'], []),
    (dict(loss=3.5), ['the gradient overflowed'], ['the loss']),
    (dict(rising=True), ['raise config.optim.warmup_epochs=0.5'], []),
    (dict(clip=0.0), ['config.optim.clip=1.0'], []),
    (
      dict(first=0, lr=0.0, rising=True, clip=0.0),
      ['base_lr is not the cause', 'temperatures', 'check_data'],
      ['lower', 'warmup', 'clip', 'float32'],
    ),
    (dict(first=1, lr=0.0), ['base_lr is not the cause'], ['lower']),
    (
      dict(first=0, dtype='bfloat16'),
      ['base_lr is not the cause', 'config.dtype=float32'],
      ['lower'],
    ),
    (
      dict(first=0, started_from='runs/a'),
      ['check the weights of runs/a'],
      ['lower'],
    ),
    (dict(started_from='runs/a'), ['lower'], ['runs/a']),
  ],
)
def test_advice_fits_the_cause(change, present, absent):
  text = advice(BadSteps(**SOME | change))
  assert all(part in text for part in present), text
  assert not [part for part in absent if part in text], text
  assert '\n' not in text
