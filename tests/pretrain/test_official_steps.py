"""Recorded steps of the authors' MoCo v3, loss by loss and weight by weight."""

import json
import pathlib

import numpy as np
import pytest
from official_names import (
  below,
  head_from_torch,
  vit_from_torch,
)
from recorded_steps import follow

from models.vit import ViT
from pretrain.methods.moco_v3 import moco_v3
from training import schedules
from training.recipe import Recipe

GOLDENS = pathlib.Path(__file__).parent.parent / 'goldens'


@pytest.fixture(scope='module')
def recorded():
  with np.load(GOLDENS / 'mocov3_steps.npz') as file:
    return json.loads(str(file['cfg'])), {k: file[k] for k in file.files}


def from_torch(arrays, prefix):
  """(student, teacher), each {our parameter path: array}."""
  weights = below(arrays, prefix)
  student, teacher = (
    vit_from_torch(side) | head_from_torch(below(side, 'head.'), 'projector')
    for side in (
      below(weights, 'base_encoder.'),
      below(weights, 'momentum_encoder.'),
    )
  )
  student |= head_from_torch(below(weights, 'predictor.'), 'predictor')
  return student, teacher


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
  batches = [
    {v: arrays[f'in/step{i}/{v}'] for v in ('view1', 'view2')} for i in range(5)
  ]
  losses, students, states = follow(method, student, batches)
  # What steps leave, and the teachers that they begin with.
  return losses, students[1:], [below(s, 'teacher/') for s in states]


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
