"""Recorded steps of plain PyTorch twins, configs and schedules included.

`method_steps.npz` holds training steps of DINO, MoBY, BYOL, MoCo v2 on ViT,
SimSiam and SimCLR in float64, kept as float32. The twins were written from the
papers and from what is known of the authors' code, apart from the methods here,
and in their layouts: query, key and value are one tensor, so is a head. Views
are in [0, 1]. Ours are built from the configs: what is not given below, the
config has to have right.

`method_variants.npz` holds steps on the same views of what the configs offer
besides, from twins made in the same way: MoCo v2 as its authors have it (one
direction, two layers without BatchNorm, SGD), DINO with a last layer whose gain
trains, SimCLR and BYOL with their authors' heads and LARS. For LARS query, key
and value are a layer each; the authors trained no ViT with it.
"""

import functools

import numpy as np
import pytest
from official_names import below
from recorded_steps import Record, follow

from configs import byol, dino, moby, moco_v2, simclr, simsiam
from configs import optim as optims
from pretrain.methods import from_config

SGD = optims.sgd(base_lr=0.03, decay=1e-4)
# The config, its words, and what the run changes in it.
CASES = dict(
  dino=(dino, '', {}),
  moby=(moby, '', {}),
  byol=(byol, '', {}),
  moco_v2=(moco_v2, '', {}),
  simsiam=(simsiam, '', {}),
  simclr=(simclr, '', {}),
  dino_trained_gain=(dino, '', dict(method=dict(norm_last=False))),
  moco_v2_official=(
    moco_v2,
    '',
    dict(method=dict(head='official', symmetric=False), optim=SGD),
  ),
  simclr_lars=(simclr, 'lars', dict(method=dict(head='simclr'))),
  byol_lars=(byol, 'lars', {}),
)
WITH_TEACHER = [n for n in CASES if not n.startswith(('simsiam', 'simclr'))]
# The authors move these teachers inside the step, before its keys.
AHEAD = ('moby', 'moco_v2', 'moco_v2_official')
WITHOUT_ADAM = ('moco_v2_official', 'simclr_lars', 'byol_lars')
DINOS = ('dino', 'dino_trained_gain')
LOSS, LARGEST, MOVED = 2e-5, 1e-4, 1e-3
RECORD = Record('method_steps.npz', 'method_variants.npz')


def build(name):
  """(the method, its config) with the sizes and rates of the record."""
  shape, c = RECORD.shape, RECORD.numbers(name)
  module, words, changes = CASES[name]
  config = module.get_config(
    ','.join(['vit_mini4', 'arrays', 'paper', *words.split()])
  )
  config.method.update(changes.get('method', {}))
  config.optim = changes.get('optim', config.optim)
  config.update(dict(batch_size=shape['batch'], dtype='float32'))
  optim, per = config.optim, config.optim.per / shape['batch']
  steps_per_epoch = c.get('per_epoch', 2)
  optim.base_lr = c['lr'] * per
  config.method.update(hidden=c['hidden'], out=c['out'])
  encoder = dict(
    width=shape['width'], depth=shape['depth'], num_heads=shape['heads']
  )
  if name in DINOS or name == 'moby':
    side = shape['size'] // shape['patch']
    encoder.update(positions_grid=side, drop_path=0.0)
  if name in DINOS:
    config.method.update(
      bottleneck=c['bottleneck'],
      local_crops=2,
      momentum=c['momentum'],
      warmup_teacher_epochs=c['temperature_epochs'],
    )
    optim.update(
      warmup_epochs=c['warmup_epochs'], end_lr=c['min_lr'], clip=c['clip']
    )
    total = c['epochs'] * steps_per_epoch
  else:
    optim.update(decay=c['wd'], warmup_epochs=c['warmup'] / steps_per_epoch)
    total = c['total']
  if name == 'moby':
    optim.update(
      warmup_lr=c['start'] * per, end_lr=c['min_lr'] * per, clip=c['clip']
    )
  if 'queue' in c:
    config.method.queue = c['queue']
  if config.method.name in ('byol', 'moco_v2'):
    config.method.momentum = c['momentum']
  if name == 'simsiam':
    config.method.bottleneck = c['predictor_hidden']
  method = from_config(
    config, channels=3, steps_per_epoch=steps_per_epoch, total=total, **encoder
  )
  return method, config


@functools.cache
def ours(name):
  """(losses, students, states); see `recorded_steps.follow`."""
  method, config = build(name)
  rows = RECORD.arrays(name)
  return follow(
    method,
    RECORD.weights(name, 'student', 0),
    RECORD.batches(method.views, RECORD.numbers(name)['steps']),
    state={k: x[0] for k, x in rows.items() if k.startswith('queue')},
    name=config.optim.name,
    **config.optim.hyper,
  )


def without_gradient(name):
  """Parameters whose true gradient is 0.

  The softmax ignores the key's bias; a BatchNorm ignores what is added to all
  its rows: the bias before it, or before the layer before it.
  """
  out = {f'encoder/block_{i}/attention/key/bias' for i in range(2)}
  if name not in (*DINOS, 'moco_v2_official'):  # there is no BatchNorm
    out |= {'encoder/norm/bias'}
  if name in ('moby', 'byol', 'byol_lars'):
    out |= {'projector/dense_0/bias', 'predictor/dense_0/bias'}
  if name == 'moby':
    out |= {'projector/dense_1/bias'}
  return out


def assert_same(name, got, want, start, where):
  """Compares weights, and how far they have come."""
  assert got.keys() == want.keys() == start.keys()
  c = RECORD.numbers(name)
  for path, leaf in want.items():
    error = np.abs(got[path] - leaf).max()
    scale = np.abs(leaf).max()
    moved = np.abs(leaf - start[path]).max()
    allowed = min(LARGEST * scale, 1e-6 * scale + MOVED * moved)
    if path in without_gradient(name):
      # SGD and LARS move them by the rounding that is left; the twins come to
      # 3e-6 in float32. Adam divides it by its size: there they go anywhere.
      way = c['lr'] * c['steps']
      allowed += way * 1e-5 if name in WITHOUT_ADAM else 2.5 * way
    assert error <= allowed, (
      f'{name}, {where}: {path} differs by {error:.2e}, '
      f'{error / scale:.1e} of its largest, {error / max(moved, 1e-30):.1e} of '
      'its way'
    )


@pytest.fixture(params=CASES)
def name(request):
  return request.param


def test_losses(name):
  # Two directions are summed everywhere, SimSiam's excepted.
  want = RECORD.arrays(name)['loss']
  ratio = ours(name)[0] / want
  np.testing.assert_allclose(
    ratio, 1, rtol=LOSS, err_msg=f'loss of {name} over the recorded one'
  )


def test_students(name):
  _, students, _ = ours(name)
  start = RECORD.weights(name, 'student', 0)
  for i, got in enumerate(students):
    want = RECORD.weights(name, 'student', i)
    assert_same(name, got, want, start, f'student after {i} steps')


@pytest.mark.parametrize('name', WITH_TEACHER)
def test_teachers(name):
  _, _, states = ours(name)
  start = RECORD.weights(name, 'teacher', 0)
  rows = len(RECORD.arrays(name)['teacher'])
  assert rows == len(states) - (name in AHEAD)
  for i in range(rows):
    got, want = below(states[i], 'teacher/'), RECORD.weights(name, 'teacher', i)
    assert_same(name, got, want, start, f'teacher of step {i}')


@pytest.mark.parametrize(
  ('name', 'queue'),
  [
    ('moby', 'queue1'),
    ('moby', 'queue2'),
    ('moco_v2', 'queue'),
    ('moco_v2_official', 'queue'),
  ],
)
def test_queues(name, queue):
  want = RECORD.arrays(name)[queue]
  got = np.stack([state[queue] for state in ours(name)[2]])
  np.testing.assert_allclose(got, want, atol=LARGEST, rtol=0)
  pointers = [int(state['pointer']) for state in ours(name)[2]]
  assert pointers == RECORD.arrays(name)['pointer'].tolist()


@pytest.mark.parametrize('name', DINOS)
def test_centre(name):
  want = RECORD.arrays(name)['centre']
  got = np.stack([state['centre'] for state in ours(name)[2]])
  np.testing.assert_allclose(got, want, atol=LOSS * np.abs(want).max(), rtol=0)


@pytest.mark.parametrize(
  'name', ['byol', 'byol_lars', 'moco_v2', 'simclr', 'simclr_lars']
)
def test_patch_embedding_is_frozen(name):
  start, end = ours(name)[1][0], ours(name)[1][-1]
  for path in ('encoder/patch_embed/kernel', 'encoder/patch_embed/bias'):
    np.testing.assert_array_equal(end[path], start[path])


@pytest.mark.parametrize('name', DINOS)
def test_last_layer_waits_for_an_epoch(name):
  students = ours(name)[1]
  epoch = RECORD.numbers(name)['per_epoch']
  for part in ('v', 'g'):
    path = f'projector/last/{part}'
    start, waited, after, *_ = (
      s[path] for s in (students[0], *students[epoch:])
    )
    np.testing.assert_array_equal(waited, start)
    # The gain of 1 stays for good.
    assert np.any(after != start) == (name != 'dino' or part == 'v')
