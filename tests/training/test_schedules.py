"""Schedules against the authors' recorded values."""

import json
import pathlib

import jax
import numpy as np
import pytest

from training import schedules

GOLDENS = pathlib.Path(__file__).parent.parent / 'goldens'


def load(name):
  with np.load(GOLDENS / f'{name}.npz') as file:
    cfg = json.loads(str(file['cfg']))
    return cfg, {name: file[name] for name in file.files if name != 'cfg'}


@pytest.fixture(scope='module')
def recorded():
  return load('schedules_mocov3')


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


# DINO and MoBY.


@pytest.mark.parametrize('name', ['dino_lr', 'dino_lr_start'])
def test_learning_rate_of_dino(name):
  cfg, values = load('schedules_dino_moby')
  cfg, n = cfg[name], cfg[name]['niter_per_ep']
  rate = schedules.dino_cosine(
    cfg['base_value'],
    warmup=cfg['warmup_epochs'] * n,
    total=cfg['epochs'] * n,
    end=cfg['final_value'],
    start=cfg.get('start_warmup_value', 0.0),
  )
  want = values[name.replace('_', '/', 1)]
  got = jax.jit(rate)(np.arange(len(want)))
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-9)


@pytest.mark.parametrize('name', ['wd', 'momentum'])
def test_decay_and_momentum_of_dino(name):
  cfg, values = load('schedules_dino_moby')
  cfg, want = cfg[f'dino_{name}'], values[f'dino/{name}']
  value = schedules.warmup_cosine(
    cfg['base_value'], warmup=0, total=len(want), end=cfg['final_value']
  )
  np.testing.assert_allclose(value(np.arange(len(want))), want, rtol=2e-6)
  if name == 'momentum':
    same = schedules.momentum_cosine(cfg['base_value'], total=len(want))
    np.testing.assert_allclose(same(np.arange(len(want))), want, rtol=1e-6)


def test_learning_rate_and_momentum_of_moby():
  cfg, values = load('schedules_dino_moby')
  cfg = cfg['moby']
  n, total = cfg['iters_per_epoch'], cfg['iters_per_epoch'] * cfg['epochs']
  rate = schedules.unshifted_cosine(
    cfg['base'],
    warmup=cfg['warmup_epochs'] * n,
    total=total,
    start=cfg['warmup_lr'],
    end=cfg['min_lr'],
  )
  np.testing.assert_allclose(
    rate(np.arange(total + 1)), values['moby/lr_of_t'], rtol=2e-5
  )
  late = jax.jit(schedules.one_step_late(rate))
  np.testing.assert_allclose(
    late(np.arange(total)), values['moby/lr_used_at_iteration'], rtol=2e-5
  )
  assert late(0) == late(1) == np.float32(cfg['warmup_lr'])
  momentum = schedules.momentum_cosine(0.99, total=total)
  np.testing.assert_allclose(
    momentum(np.arange(total)), values['moby/momentum'], rtol=1e-6
  )


def test_teacher_temperature_of_dino():
  cfg, values = load('loss_dino')
  temperature = schedules.by_epoch(
    cfg['warmup_teacher_temp'],
    cfg['teacher_temp'],
    warmup_epochs=cfg['warmup_teacher_temp_epochs'],
    steps_per_epoch=7,
  )
  want = np.repeat(values['out/teacher_temp_schedule'], 7)
  got = jax.jit(temperature)(np.arange(len(want)))
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_a_schedule_by_epoch_has_exact_borders():
  """A quotient in float32 would round some of these up."""
  n = 1_250_001
  value = schedules.by_epoch(0.0, 99.0, warmup_epochs=100, steps_per_epoch=n)
  for epoch in (1, 7, 63, 99):
    assert value(epoch * n - 1) == epoch - 1
    assert value(epoch * n) == epoch


def test_no_warmup_epochs_is_a_constant():
  value = schedules.by_epoch(0.04, 0.07, warmup_epochs=0, steps_per_epoch=5)
  assert value(0) == value(12) == np.float32(0.07)


def test_steps_are_those_of_pytorch():
  """`MultiStepLR`: each milestone's own step is the first with less."""
  rate = schedules.multi_step(
    0.4, warmup=2, milestones=(4, 6), factor=0.1, start=0.2
  )
  want = [0.2, 0.3, 0.4, 0.4, 0.04, 0.04, 0.004, 0.004]
  np.testing.assert_allclose(jax.jit(rate)(np.arange(8)), want, rtol=1e-6)


def test_steps_without_a_warmup_begin_at_the_top():
  rate = schedules.multi_step(0.4, warmup=0, milestones=(1,), factor=0.5)
  np.testing.assert_allclose(rate(np.arange(3)), [0.4, 0.2, 0.2])
