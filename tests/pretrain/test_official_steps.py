"""Recorded steps of the authors' MoCo v3, loss by loss and weight by weight."""

import json
import pathlib

import jax
import numpy as np
import optax
import pytest

from models.vit import ViT
from pretrain.methods.moco_v3 import moco_v3
from pretrain.recipe import Recipe
from training import optim, schedules
from training.state import named_leaves

GOLDENS = pathlib.Path(__file__).parent.parent / 'goldens'


@pytest.fixture(scope='module')
def recorded():
  with np.load(GOLDENS / 'mocov3_steps.npz') as file:
    return json.loads(str(file['cfg'])), {k: file[k] for k in file.files}


def encoder_from_torch(weights, prefix):
  """{our parameter path: array} of an encoder in the authors' names."""
  take = {
    n.removeprefix(prefix): w
    for n, w in weights.items()
    if n.startswith(prefix)
  }
  out = {
    'encoder/cls': take['cls_token'],
    'encoder/patch_embed/kernel': take['patch_embed.proj.weight'].transpose(
      2, 3, 1, 0
    ),
    'encoder/patch_embed/bias': take['patch_embed.proj.bias'],
    'encoder/norm/scale': take['norm.weight'],
    'encoder/norm/bias': take['norm.bias'],
  }
  for i in range(2):
    theirs, ours = f'blocks.{i}.', f'encoder/block_{i}/'
    for norm in ('norm1', 'norm2'):
      out[f'{ours}{norm}/scale'] = take[f'{theirs}{norm}.weight']
      out[f'{ours}{norm}/bias'] = take[f'{theirs}{norm}.bias']
    kernels = np.split(take[f'{theirs}attn.qkv.weight'], 3)
    biases = np.split(take[f'{theirs}attn.qkv.bias'], 3)
    for name, w, b in zip(
      ('query', 'key', 'value'), kernels, biases, strict=True
    ):
      out[f'{ours}attention/{name}/kernel'] = w.T
      out[f'{ours}attention/{name}/bias'] = b
    layers = (
      ('attn.proj', 'attention/out'),
      ('mlp.fc1', 'mlp/fc1'),
      ('mlp.fc2', 'mlp/fc2'),
    )
    for name, mine in layers:
      out[f'{ours}{mine}/kernel'] = take[f'{theirs}{name}.weight'].T
      out[f'{ours}{mine}/bias'] = take[f'{theirs}{name}.bias']
  return out | head_from_torch(weights, f'{prefix}head.', 'projector', 3)


def head_from_torch(weights, prefix, name, layers):
  out = {}
  for i in range(layers):
    # Their Sequential counts Linear, BatchNorm, ReLU.
    out[f'{name}/dense_{i}/kernel'] = weights[f'{prefix}{3 * i}.weight'].T
    if i < layers - 1:
      out[f'{name}/norm_{i}/scale'] = weights[f'{prefix}{3 * i + 1}.weight']
      out[f'{name}/norm_{i}/bias'] = weights[f'{prefix}{3 * i + 1}.bias']
  return out


def from_torch(arrays, prefix):
  """(student, teacher), each {our parameter path: array}."""
  weights = {
    k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)
  }
  student = encoder_from_torch(weights, 'base_encoder.')
  student |= head_from_torch(weights, 'predictor.', 'predictor', 2)
  return student, encoder_from_torch(weights, 'momentum_encoder.')


@pytest.fixture(scope='module')
def ours(recorded):
  """Loss at every step; student and teacher after every step."""
  cfg, arrays = recorded
  steps = cfg['epochs'] * cfg['iters_per_epoch']
  warmup = cfg['warmup_epochs'] * cfg['iters_per_epoch']
  method = moco_v3(
    ViT(patch_size=4, width=cfg['dim'], depth=2, num_heads=cfg['heads']),
    Recipe(
      lr=schedules.warmup_cosine(cfg['lr'], warmup=warmup, total=steps),
      decay=cfg['wd'],
      peak=cfg['lr'],
      total=steps,
    ),
    hidden=cfg['mlp_dim'],
    out=cfg['out'],
    temperature=cfg['temperature'],
    momentum=cfg['momentum'],
  )
  student, _ = from_torch(arrays, 'w/')

  def batch(i):
    return {v: arrays[f'in/step{i}/{v}'] for v in ('view1', 'view2')}

  params, method_state = jax.jit(method.init)(
    jax.random.key(0), batch(0), student
  )
  optimizer = optim.make_optimizer(params, method.rules())
  opt_state = optimizer.init(params)

  @jax.jit
  def update(params, method_state, opt_state, batch, step):
    (loss, aux), grads = jax.value_and_grad(method.loss, has_aux=True)(
      params, method_state, batch, jax.random.key(0), step
    )
    updates, opt_state = optimizer.update(grads, opt_state, params, step=step)
    params = optax.apply_updates(params, updates)
    method_state = method.after_update(params, method_state, aux, step)
    return params, method_state, opt_state, loss

  losses, students, teachers = [], [], []
  for i in range(5):
    teachers.append(named_leaves(method_state['teacher']))
    params, method_state, opt_state, loss = update(
      params, method_state, opt_state, batch(i), i
    )
    losses.append(float(loss))
    students.append(named_leaves(params))
  return losses, students, teachers


def test_every_weight_is_taken_over(recorded, ours):
  _, arrays = recorded
  student, teacher = from_torch(arrays, 'w/')
  _, students, teachers = ours
  assert student.keys() == students[0].keys()
  assert teacher.keys() == teachers[0].keys()


@pytest.mark.parametrize('step', range(5))
def test_loss(recorded, ours, step):
  # A first loss agrees to 2e-5; four float32 steps of Adam add their rounding.
  tolerance = 2e-5 if step < 2 else 5e-5
  np.testing.assert_allclose(
    ours[0][step], recorded[1][f'out/step{step}/loss'], rtol=tolerance
  )


def assert_same(got, want):
  for name in want:
    scale = np.abs(want[name]).max()
    error = np.abs(np.asarray(got[name]) - want[name]).max()
    # Adam divides by √v: where the true gradient is 0 and only rounding is
    # left, so is the direction of the update. The softmax ignores the key's
    # bias; the BatchNorm behind the first layer of the projector ignores the
    # bias of the encoder's last norm.
    if not name.endswith(('attention/key/bias', 'encoder/norm/bias')):
      assert error < 1e-4 * scale, f'{name}: {error / scale}'


@pytest.mark.parametrize('step', [1, 4])
def test_student_after_the_step(recorded, ours, step):
  want, _ = from_torch(recorded[1], f'out/step{step}/')
  assert_same(ours[1][step], want)


@pytest.mark.parametrize('step', [1, 4])
def test_teacher_of_the_step(recorded, ours, step):
  # The authors move the teacher inside the step, before its keys; theirs after
  # step i is the one our step i began with.
  _, want = from_torch(recorded[1], f'out/step{step}/')
  assert_same(ours[2][step], want)


def test_patch_embedding_is_frozen(recorded, ours):
  student, _ = from_torch(recorded[1], 'w/')
  for name in ('encoder/patch_embed/kernel', 'encoder/patch_embed/bias'):
    np.testing.assert_array_equal(ours[1][4][name], student[name])
