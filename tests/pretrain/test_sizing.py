"""Recipes for data sets and devices of any size: numbers in, numbers out."""

import math

import pytest

from pretrain import sizing
from pretrain.footprint import Footprint
from pretrain.sizing import Device, choose, chunks_that_fit, refitted

GIB = 2**30
# MoCo v3 + RePre on a ViT-S/16 at 224 px in float32.
COST = Footprint(
  state=0.7e9,
  fixed=0.36e9,
  chunked=0.28e9,
  kept=5e6,
  flops=75.7e9,
  encoding=22e6,
  encoding_flops=9.1e9,
)
PAPER = {
  'batch_size': 4096,
  'epochs': 300.0,
  'log_every': 50,
  'eval_every': 1000,
  'checkpoint_every': 1000,
  'chunks': 1,
  'dtype': 'bfloat16',
  'knn.batch_size': 256,
  'knn.bank_images': 50_000,
  'optim.base_lr': 1.5e-4,
  'optim.warmup_epochs': 40.0,
  'method.queue': 65536,
  'method.warmup_teacher_epochs': 30,
  'method.freeze_last_epochs': 1,
}
IMAGES = (1, 2, 5, 20, 205, 2000, 50_000, 1_300_000)
DEVICES = [Device(memory=n * GIB) for n in (4, 24, 80, 640)]
DEVICES += [
  Device(memory=n * GIB, cores=cores)
  for n, cores in ((4, 2), (24, 2), (80, 64))
]
DEVICES += [Device(memory=24 * GIB, count=4)]


def chosen(images, device, **given):
  given = {name.replace('__', '.'): value for name, value in given.items()}
  return choose(
    PAPER, given, images=images, tests=images // 4, cost=COST, device=device
  )


@pytest.mark.parametrize('device', DEVICES, ids=str)
@pytest.mark.parametrize('images', IMAGES)
def test_every_choice_can_run(images, device):
  choice = chosen(images, device)
  values = choice.values
  batch, steps = values['batch_size'], values['steps']
  assert batch == device.count or batch <= min(images, PAPER['batch_size'])
  assert batch % (device.count * values['chunks']) == 0
  assert choice.fits
  assert choice.bytes <= sizing.FITS * device.memory
  assert steps >= sizing.CPU_STEPS
  epochs = steps / max(images // batch, 1)
  assert values['epochs'] == pytest.approx(epochs, rel=1e-3)
  if batch < PAPER['batch_size']:
    assert 0 < values['optim.warmup_epochs'] <= 0.1001 * epochs
    assert values['method.warmup_teacher_epochs'] <= 0.1 * epochs
  assert values['method.freeze_last_epochs'] <= 0.1 * epochs
  assert values['method.queue'] % (2 * batch) == 0
  for name in ('log_every', 'checkpoint_every'):
    assert 1 <= values[name] <= steps
  assert 0 <= values['eval_every'] <= steps
  # The square-root rule: the rate itself falls by it.
  rate = values['optim.base_lr'] * batch
  whole = PAPER['optim.base_lr'] * PAPER['batch_size']
  expected = whole * math.sqrt(batch / PAPER['batch_size'])
  assert rate == pytest.approx(expected, rel=0.01)
  assert values['dtype'] == ('float32' if device.cores else 'bfloat16')
  if device.cores:
    # Half an hour, or a hundred steps where each takes long.
    each = choice.seconds / steps
    assert each >= batch * COST.flops / device.speed
    least = sizing.CPU_STEPS * each
    assert choice.seconds <= max(sizing.CPU_SECONDS, least) * 1.001
    assert values['log_every'] * each <= max(sizing.CPU_REPORT, each)
  else:
    assert choice.seconds is None


@pytest.mark.parametrize(
  ('images', 'batch', 'steps'),
  [
    (1, 1, 500),
    (2, 2, 500),
    (5, 4, 500),
    (20, 8, 600),
    (205, 64, 900),
    (2000, 64, 9300),
    (9469, 128, 21_900),
    (50_000, 512, 29_100),
    (1_300_000, 4096, 95_100),
  ],
)
def test_batch_and_length_by_images(images, batch, steps):
  values = chosen(images, Device(memory=640 * GIB)).values
  assert (values['batch_size'], values['steps']) == (batch, steps)


def test_a_cpu_takes_half_an_hour():
  choice = chosen(205, Device(memory=23 * GIB, cores=2))
  assert choice.values['batch_size'] == 16
  assert 140 < choice.values['steps'] < int(1800 / (16 * 75.7e9 / 110e9))
  assert 1700 < choice.seconds <= 1800


def test_where_nothing_is_small_it_is_the_papers():
  values = dict(chosen(1_300_000, Device(memory=80 * GIB)).values)
  assert values.pop('chunks') == 32  # of 128 images: 36 GB
  assert values.pop('steps') == 300 * (1_300_000 // 4096)
  changed = {k: v for k, v in values.items() if v != PAPER[k]}
  assert not changed


def test_what_the_user_gives_stays():
  device = Device(memory=24 * GIB)
  values = chosen(205, device, batch_size=48, steps=20).values
  assert (values['batch_size'], values['steps']) == (48, 20)
  assert values['epochs'] == 5.0  # of four steps
  assert values['optim.warmup_epochs'] == 0.5
  values = chosen(205, device, epochs=10.0, optim__warmup_epochs=3.0).values
  assert values['steps'] == 30 and values['epochs'] == 10.0
  assert values['optim.warmup_epochs'] == 3.0
  values = chosen(2000, device, chunks=3).values
  assert values['chunks'] == 3 and values['batch_size'] % 3 == 0
  values = chosen(2000, device, method__queue=96).values
  assert 96 % (2 * values['batch_size']) == 0


def test_chunks_are_the_fewest_that_fit():
  device = Device(memory=24 * GIB)
  chunks = chunks_that_fit(64, COST, device)
  limit = sizing.FITS * device.memory
  assert COST.step(64, chunks) <= limit < COST.step(64, chunks // 2)
  assert chunks_that_fit(64, COST, Device(memory=GIB)) is None


def test_chunks_of_a_run_that_continues():
  small, large = Device(memory=24 * GIB), Device(memory=640 * GIB)
  assert refitted(8, 64, COST, large) == 8  # as they were: the same bits
  assert refitted(1, 64, COST, small) == chunks_that_fit(64, COST, small)
  assert refitted(8, 64, COST, Device(memory=640 * GIB, count=16)) == 1


def test_evaluation_that_takes_too_long_is_left_out():
  device = Device(memory=24 * GIB, cores=2)
  few = chosen(2000, device).values
  assert 0 < few['eval_every'] and few['knn.bank_images'] < 2000
  many = chosen(1_300_000, device).values
  assert many['eval_every'] == 0
