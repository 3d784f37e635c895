"""From the numbers of a config to rates, decay and clipping by parameter."""

import ml_collections
import pytest

from configs import optim as optims
from training.optim import NEVER, Clip, assign
from training.recipe import make_recipe, warnings_of_length

PARAMS = {
  'encoder': {
    'patch_embed': {'kernel': 0, 'bias': 0},
    'block_0': {'position_bias': 0, 'norm1': {'scale': 0, 'bias': 0}},
    'cls': 0,
  },
  'projector': {'dense_0': {'kernel': 0, 'bias': 0}, 'last': {'v': 0, 'g': 0}},
}


def recipe(**fields):
  fields = dict(base_lr=0.5, decay=0.1, warmup_epochs=2.0) | fields
  optim = ml_collections.ConfigDict(optims.optim('adamw', **fields)).to_dict()
  return make_recipe(optim, batch_size=128, steps_per_epoch=10, total=100)


def by_path(rules):
  return {path: rules[i][1] for path, i in assign(PARAMS, rules).items()}


def test_rates_are_per_images():
  assert recipe().peak == 0.25
  assert recipe(per=512).peak == 0.125
  assert float(recipe().lr(20)) == pytest.approx(0.25)
  assert float(recipe().lr(10)) == pytest.approx(0.125)


@pytest.mark.parametrize('schedule', ['cosine', 'dino', 'moby'])
def test_every_schedule_warms_up_and_ends(schedule):
  made = recipe(schedule=schedule, end_lr=0.01)
  assert float(made.lr(0)) == 0
  assert max(float(made.lr(step)) for step in range(100)) <= 0.25
  late = 1 if schedule == 'moby' else 0
  assert float(made.lr(100 + late)) == pytest.approx(0.01)


def test_the_end_may_be_per_images_too():
  assert float(recipe(end_lr=0.01, scale_end_lr=True).lr(100)) == (
    pytest.approx(0.005)
  )


def test_a_warm_up_begins_where_it_should():
  for schedule in ('cosine', 'epochs', 'dino', 'moby'):
    made = recipe(schedule=schedule, warmup_lr=0.1)
    assert float(made.lr(0)) == pytest.approx(0.05), schedule
  assert float(recipe(warmup_lr=0.1).lr(10)) == pytest.approx(0.15)


def test_an_unknown_schedule_is_told():
  with pytest.raises(
    ValueError, match="'linear'; known: cosine, epochs, dino, moby, steps"
  ):
    recipe(schedule='linear')


def test_steps_are_parts_of_the_run_and_come_one_step_late():
  made = recipe(schedule='steps', milestones=(0.4, 0.65), warmup_lr=0.1)
  # As with timm's scheduler, which is moved after the update.
  want = {0: 0.05, 1: 0.05, 21: 0.25, 40: 0.25, 41: 0.025, 66: 0.0025}
  got = {step: float(made.lr(step)) for step in want}
  assert got == pytest.approx(want)


def test_steps_have_to_be_given():
  with pytest.raises(ValueError, match='optim.milestones: where in the run'):
    recipe(schedule='steps')


def test_everything_decays_unless_told_otherwise():
  assert {rule.decay for rule in by_path(recipe().rules()).values()} == {0.1}


def test_vectors_are_excluded_by_name():
  rules = by_path(recipe(exclude_vectors=True).rules())
  still = {path for path, rule in rules.items() if rule.decay == 0}
  assert still == {
    'encoder/patch_embed/bias',
    'encoder/block_0/norm1/scale',
    'encoder/block_0/norm1/bias',
    'projector/dense_0/bias',
  }
  assert all(rules[path].adaptive == (path not in still) for path in rules)


def test_decay_may_rise():
  made = recipe(decay=0.04, end_decay=0.4)
  assert [float(made.decay(s)) for s in (0, 50, 100)] == pytest.approx(
    [0.04, 0.22, 0.4]
  )


def test_the_patch_embedding_may_be_frozen():
  rules = by_path(recipe().rules(frozen_patch_embed=True))
  frozen = {p for p, rule in rules.items() if rule.trainable_from == NEVER}
  assert frozen == {'encoder/patch_embed/kernel', 'encoder/patch_embed/bias'}


def test_clipping():
  assert recipe().clip is None
  clip = recipe(clip=3.0, clip_per='tensor').clip
  assert (clip.norm, clip.per) == (3.0, 'tensor')
  assert all(
    isinstance(rule.clip, Clip)
    for rule in by_path(recipe(clip=5.0, exclude_vectors=True).rules()).values()
  )


def test_what_is_longer_than_the_run_is_named():
  config = ml_collections.ConfigDict(
    dict(
      optim=dict(warmup_epochs=40.0, warmup_lr=0.0),
      method=dict(warmup_teacher_epochs=3, freeze_last_epochs=1),
    )
  )
  lines = warnings_of_length(config, steps_per_epoch=12, total=100)
  (line,) = lines
  assert 'config.optim.warmup_epochs=40 epochs are 480 steps' in line
  assert 'the run has 100' in line and 'at most 0.83' in line
  config.optim.warmup_epochs = 0.5
  assert not warnings_of_length(config, steps_per_epoch=12, total=100)
  lines = warnings_of_length(config, steps_per_epoch=12, total=10)
  assert [line.split('=')[0] for line in lines] == [
    'config.method.freeze_last_epochs',
    'config.method.warmup_teacher_epochs',
  ]
