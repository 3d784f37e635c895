"""Recorded steps of plain PyTorch twins, configs and schedules included.

`method_steps.npz` holds training steps of DINO, MoBY, BYOL, MoCo v2 on ViT,
SimSiam and SimCLR in float64, kept as float32. The twins were written from the
papers and from what is known of the authors' code, apart from the methods here,
and in their layouts: query, key and value are one tensor, so is a head. Views
are in [0, 1]. Ours are built from the configs: what is not given below, the
config has to have right.
"""

import functools
import json
import pathlib

import numpy as np
import pytest
from official_names import below, head_from_torch, vit_from_torch
from recorded_steps import follow

from configs import byol, dino, moby, moco_v2, simclr, simsiam
from pretrain.methods import from_config

GOLDEN = pathlib.Path(__file__).parent.parent / 'goldens' / 'method_steps.npz'
CONFIGS = dict(
  dino=dino,
  moby=moby,
  byol=byol,
  moco_v2=moco_v2,
  simsiam=simsiam,
  simclr=simclr,
)
WITH_TEACHER = ('dino', 'moby', 'byol', 'moco_v2')
# The authors move these teachers inside the step, before its keys.
AHEAD = ('moby', 'moco_v2')
LEARNED_POSITIONS = ('dino', 'moby')
STEPS_PER_EPOCH = 2
LOSS, LARGEST, MOVED = 2e-5, 1e-4, 1e-3


@functools.cache
def recorded():
  with np.load(GOLDEN) as file:
    return json.loads(str(file['cfg'])), {k: file[k] for k in file.files}


def arrays_of(name):
  return below(recorded()[1], f'{name}/')


def numbers_of(name):
  return recorded()[0]['methods'][name]


def build(name):
  """(the method, its config) with the sizes and rates of the record."""
  shape, c = recorded()[0], numbers_of(name)
  config = CONFIGS[name].get_config('vit_mini4,arrays')
  config.update(dict(batch_size=shape['batch'], dtype='float32'))
  optim, per = config.optim, config.optim.per / shape['batch']
  optim.base_lr = c['lr'] * per
  config.method.update(hidden=c['hidden'], out=c['out'])
  encoder = dict(
    width=shape['width'], depth=shape['depth'], num_heads=shape['heads']
  )
  if name in LEARNED_POSITIONS:
    side = shape['size'] // shape['patch']
    encoder.update(positions_grid=side, drop_path=0.0)
  if name == 'dino':
    config.method.update(
      bottleneck=c['bottleneck'],
      local_crops=2,
      momentum=c['momentum'],
      warmup_teacher_epochs=c['temperature_epochs'],
    )
    optim.update(
      warmup_epochs=c['warmup_epochs'], end_lr=c['min_lr'], clip=c['clip']
    )
    total = c['epochs'] * c['per_epoch']
  else:
    optim.update(decay=c['wd'], warmup_epochs=c['warmup'] / STEPS_PER_EPOCH)
    total = c['total']
  if name == 'moby':
    optim.update(
      warmup_lr=c['start'] * per, end_lr=c['min_lr'] * per, clip=c['clip']
    )
  if 'queue' in c:
    config.method.queue = c['queue']
  if name in ('byol', 'moco_v2'):
    config.method.momentum = c['momentum']
  if name == 'simsiam':
    config.method.bottleneck = c['predictor_hidden']
  method = from_config(
    config, channels=3, steps_per_epoch=STEPS_PER_EPOCH, total=total, **encoder
  )
  return method, config


@functools.cache
def ours(name):
  """(losses, students, states); see `recorded_steps.follow`."""
  method, config = build(name)
  arrays = recorded()[1]
  batches = [
    {v: np.float32(arrays[v][i]) / 255 for v in method.views}
    for i in range(numbers_of(name)['steps'])
  ]
  queues = {
    k: arrays_of(name)[k][0]
    for k in ('queue', 'queue1', 'queue2')
    if k in arrays_of(name)
  }
  return follow(
    method,
    theirs(name, 'student', 0),
    batches,
    state=queues,
    name=config.optim.name,
    **config.optim.hyper,
  )


@functools.cache
def theirs(name, who, row):
  """{our parameter path: array} of a row of the record."""
  layouts = numbers_of(name)
  layout = layouts['layout']
  if who == 'teacher':
    layout = layouts.get('teacher_layout', layout)
  flat, weights = arrays_of(name)[who][row], {}
  for part, shape in layout:
    weights[part], flat = np.split(flat, [int(np.prod(shape))])
    weights[part] = weights[part].reshape(shape)
  assert not flat.size
  vit = below(weights, 'backbone.' if name == 'dino' else 'encoder.')
  out = vit_from_torch(vit, learned_positions=name in LEARNED_POSITIONS)
  if name == 'dino':
    head = below(weights, 'head.')
    last = {
      'projector/last/v': head['weight_v'].T,
      'projector/last/g': head['weight_g'][:, 0],
    }
    return out | last | head_from_torch(below(head, 'mlp.'), 'projector')
  for head in ('projector', 'predictor'):
    out |= head_from_torch(below(weights, f'{head}.'), head)
  return out


def without_gradient(name):
  """Parameters whose true gradient is 0.

  Adam divides by √v: where only rounding is left, so is the direction of the
  update. The softmax ignores the key's bias; a BatchNorm ignores what is added
  to all its rows: the bias before it, or before the layer before it.
  """
  out = {f'encoder/block_{i}/attention/key/bias' for i in range(2)}
  if name != 'dino':
    out |= {'encoder/norm/bias'}
  if name in ('moby', 'byol'):
    out |= {'projector/dense_0/bias', 'predictor/dense_0/bias'}
  if name == 'moby':
    out |= {'projector/dense_1/bias'}
  return out


def assert_same(name, got, want, start, where):
  """Compares weights, and how far they have come."""
  assert got.keys() == want.keys() == start.keys()
  c = numbers_of(name)
  for path, leaf in want.items():
    error = np.abs(got[path] - leaf).max()
    scale = np.abs(leaf).max()
    moved = np.abs(leaf - start[path]).max()
    allowed = min(LARGEST * scale, 1e-6 * scale + MOVED * moved)
    if path in without_gradient(name):
      allowed = 2.5 * c['lr'] * c['steps']  # both go anywhere, step by step
    assert error <= allowed, (
      f'{name}, {where}: {path} differs by {error:.2e}, '
      f'{error / scale:.1e} of its largest, {error / max(moved, 1e-30):.1e} of '
      'its way'
    )


@pytest.fixture(params=CONFIGS)
def name(request):
  return request.param


def test_losses(name):
  # Two directions are summed everywhere, SimSiam's excepted.
  want = arrays_of(name)['loss']
  ratio = ours(name)[0] / want
  np.testing.assert_allclose(
    ratio, 1, rtol=LOSS, err_msg=f'loss of {name} over the recorded one'
  )


def test_students(name):
  _, students, _ = ours(name)
  start = theirs(name, 'student', 0)
  for i, got in enumerate(students):
    want = theirs(name, 'student', i)
    assert_same(name, got, want, start, f'student after {i} steps')


@pytest.mark.parametrize('name', WITH_TEACHER)
def test_teachers(name):
  _, _, states = ours(name)
  start = theirs(name, 'teacher', 0)
  rows = len(arrays_of(name)['teacher'])
  assert rows == len(states) - (name in AHEAD)
  for i in range(rows):
    got, want = below(states[i], 'teacher/'), theirs(name, 'teacher', i)
    assert_same(name, got, want, start, f'teacher of step {i}')


@pytest.mark.parametrize(
  ('name', 'queue'),
  [('moby', 'queue1'), ('moby', 'queue2'), ('moco_v2', 'queue')],
)
def test_queues(name, queue):
  want = arrays_of(name)[queue]
  got = np.stack([state[queue] for state in ours(name)[2]])
  np.testing.assert_allclose(got, want, atol=LARGEST, rtol=0)
  pointers = [int(state['pointer']) for state in ours(name)[2]]
  assert pointers == arrays_of(name)['pointer'].tolist()


def test_centre():
  want = arrays_of('dino')['centre']
  got = np.stack([state['centre'] for state in ours('dino')[2]])
  np.testing.assert_allclose(got, want, atol=LOSS * np.abs(want).max(), rtol=0)


@pytest.mark.parametrize('name', ['byol', 'moco_v2', 'simclr'])
def test_patch_embedding_is_frozen(name):
  start, end = ours(name)[1][0], ours(name)[1][-1]
  for path in ('encoder/patch_embed/kernel', 'encoder/patch_embed/bias'):
    np.testing.assert_array_equal(end[path], start[path])


def test_last_layer_waits_for_an_epoch():
  students = ours('dino')[1]
  start, last = students[0], 'projector/last/v'
  np.testing.assert_array_equal(students[STEPS_PER_EPOCH][last], start[last])
  assert np.any(students[STEPS_PER_EPOCH + 1][last] != start[last])
  gain = 'projector/last/g'
  np.testing.assert_array_equal(students[-1][gain], start[gain])
