"""Schedules against the authors' recorded values."""

import json
import pathlib

import numpy as np
import pytest

from training import schedules

GOLDENS = pathlib.Path(__file__).parent.parent / 'goldens'


@pytest.fixture(scope='module')
def recorded():
  with np.load(GOLDENS / 'schedules_mocov3.npz') as file:
    cfg = json.loads(str(file['cfg']))
    return cfg, {name: file[name] for name in file.files if name != 'cfg'}


def test_learning_rate_at_fractional_epochs(recorded):
  cfg, values = recorded
  cfg = cfg['mocov3']
  rate = schedules.warmup_cosine(
    cfg['lr'], warmup=cfg['warmup_epochs'], total=cfg['epochs']
  )
  np.testing.assert_allclose(
    rate(values['mocov3/epoch']), values['mocov3/lr'], rtol=2e-5, atol=2e-9
  )


def test_teacher_momentum(recorded):
  cfg, values = recorded
  cfg = cfg['mocov3']
  momentum = schedules.momentum_cosine(cfg['moco_m'], total=cfg['epochs'])
  np.testing.assert_allclose(
    momentum(values['mocov3/epoch']), values['mocov3/momentum'], rtol=1e-6
  )


def test_end_points():
  momentum = schedules.momentum_cosine(0.99, total=10)
  assert momentum(0) == np.float32(0.99)
  assert momentum(10) == 1
  rate = schedules.warmup_cosine(0.5, warmup=4, total=10, end=0.1)
  assert rate(0) == 0
  assert rate(4) == 0.5
  np.testing.assert_allclose(rate(10), 0.1, rtol=1e-6)
  np.testing.assert_allclose(rate(12), 0.1, rtol=1e-6)  # does not come back


def test_no_warmup_starts_at_the_base():
  assert schedules.warmup_cosine(0.5, warmup=0, total=10)(0) == 0.5


def test_constant():
  assert schedules.constant(0.3)(7) == np.float32(0.3)
