"""A contrastive method with masked branches: each part follows itself alone."""

import functools

import jax
import jax.numpy as jnp
import pytest
from tiny import (
  LEARNED,
  MASKED,
  METHODS,
  SIDE,
  TOKENS,
  assert_same_bits,
  cached_run,
  fixed,
  follow,
  moments,
  start,
)

from models.vit import ViT
from pretrain.joint import Joint
from pretrain.methods import make_method
from pretrain.weighting import Fixed
from training import optim
from training.recipe import Recipe
from training.schedules import constant
from training.state import named_leaves

BRANCH = dict(name='mae', weighting='balanced')
BOTH = dict(masked=fixed(BRANCH), repre=fixed(LEARNED))


def branch(**fields):
  return fixed(BRANCH | dict(weighting='fixed') | fields)


@functools.cache
def both():
  """Two steps of MoCo v3 with RePre and MAE."""
  return follow(2, **BOTH, devices=2, chunks=2)


@pytest.mark.parametrize('name', ['mae', 'local_mim'])
def test_branches_of_weight_zero_leave_the_base_alone_bit_for_bit(name):
  """Also its teacher, and the encoder's moments."""
  shared = dict(repre=None, frozen=True, devices=1)
  base = follow(3, **shared)
  wrapped = follow(3, **shared, masked=branch(name=name, weight=0.0))
  for (a, report), (b, alone) in zip(wrapped, base, strict=True):
    assert_same_bits({k: a.params[k] for k in b.params}, b.params)
    assert_same_bits(a.method_state, b.method_state)
    for which in ('mu', 'nu'):
      ours, theirs = moments(a, which), moments(b, which)
      assert theirs and ours.keys() - theirs.keys()  # the decoder's
      assert_same_bits({k: ours[k] for k in theirs}, theirs)
    assert report['loss_masked'] > 0
    assert report['loss'] == alone['loss'] == report['loss_contrast']


@pytest.mark.parametrize('name', ['mae', 'local_mim'])
def test_a_base_of_weight_zero_leaves_the_branches_alone_bit_for_bit(name):
  """The encoder learns the masked task and nothing else."""
  joined = dict(repre=None, masked=branch(name=name, contrast_weight=0.0))
  alone = follow(2, method=name, devices=1)
  wrapped = follow(2, **joined, devices=1)
  for (a, report), (b, wanted) in zip(wrapped, alone, strict=True):
    own = {f'masked_{k}': v for k, v in b.params.items() if k != 'encoder'}
    own['encoder'] = b.params['encoder']
    assert_same_bits({k: a.params[k] for k in own}, own)
    assert report['loss'] == report['loss_masked'] == wanted['loss']
    assert report['loss_contrast'] > 0
  first = start(**joined)
  teacher = wrapped[-1][0].method_state['teacher']['encoder']
  moved = [
    name
    for name, leaf in named_leaves(teacher).items()
    if (leaf != named_leaves(first.params['encoder'])[name]).any()
  ]
  assert len(moved) > 10  # it goes on following the student


class TestTogether:
  def test_everything_learns_and_is_reported(self):
    first, (state, report) = start(**BOTH), both()[1]
    before, after = named_leaves(first.params), named_leaves(state.params)
    assert {name.split('/')[0] for name in before} == {
      'encoder',
      'projector',
      'predictor',
      'decoder',  # RePre's
      'masked_decoder',
    }
    assert all((before[n] != after[n]).any() for n in before)
    for name in ('loss_contrast', 'loss_pixels', 'masked_loss_decoder'):
      assert report[name] > 0
    assert report['bad_steps'] == 0
    assert {'effective_rank', 'feature_std'} < report.keys()
    assert set(state.method_state) == {
      'teacher',
      'weighting',
      'masked_weighting',
    }
    assert set(state.method_state['teacher']) == {'encoder', 'projector'}

  def test_the_loss_is_the_sum_and_features_are_the_base_s(self):
    method = cached_run(**BOTH, devices=2, chunks=2).method
    state = start(**BOTH)
    x = jax.random.uniform(jax.random.key(1), (2, 4, SIDE, SIDE, 3))
    views = dict(view1=x[0], view2=x[1])
    weighed = Joint(
      base=method.base,
      masked=method.masked,
      weighting=Fixed(dict(contrast=2.0, masked=3.0)),
    )

    @jax.jit
    def losses(params, method_state):
      rng = jax.random.key(0)
      found = [
        m.loss(params, method_state, views, rng, 0)
        for m in (weighed, method.base)
      ]
      alone = dict(encoder=params['encoder'], decoder=params['masked_decoder'])
      view = dict(view1=views['view1'])
      masked = method.masked.loss(alone, {}, view, rng, 0)
      return [loss for loss, _ in found], masked[0], found[0][1].features

    (total, base), masked, features = losses(state.params, state.method_state)
    assert float(total) == pytest.approx(float(2 * base + 3 * masked), rel=1e-6)
    assert set(features) == {'view1', 'view2'}
    assert features['view1'].tokens.shape[1] == TOKENS  # nothing is hidden

  def test_balanced_weights_are_one_over_the_mean_of_each_task_s_loss(self):
    """All three count as much: contrast, RePre's pixels, MAE's pixels."""
    names = dict(
      contrast='loss_contrast', pixels='loss_pixels', masked='loss_masked'
    )
    means = dict.fromkeys(names, 0.0)
    for n, (_, report) in enumerate(both(), start=1):
      want = 0.0
      for name, key in names.items():
        means[name] += (float(report[key]) - means[name]) / n
        assert report[f'weight_{name}'] == pytest.approx(
          1 / means[name], rel=1e-5
        )
        want += means['contrast'] / means[name] * float(report[key])
      assert report['loss'] == pytest.approx(want, rel=1e-5)

  def test_rules_cover_every_parameter_and_the_branches_come_first(self):
    run = cached_run(**BOTH, devices=2, chunks=2)
    clipped = Recipe(
      lr=constant(1e-3),
      decay=0.1,
      peak=1e-3,
      total=1,
      exclude=r'(.*/)?(bias|scale)',
      clip=optim.Clip(norm=1.0),
    )
    masked = dict(MASKED['mae'], name='mae')
    fields = dict(METHODS['moco_v3'], name='moco_v3', masked=masked)
    fields.update(repre=LEARNED, frozen_patch_embed=False)
    encoder = ViT(patch_size=4, width=16, depth=2, num_heads=2)
    method = make_method(encoder, fields, clipped, dtype='float32', chunks=1)
    rules = method.rules()
    groups = optim.assign(run.like.params, rules)

    def rule(name):
      return rules[groups[name]][1]

    for name in ('block_0/norm1/scale', 'out/bias'):
      assert rule(f'masked_decoder/{name}').decay == 0
    assert rule('masked_decoder/out/kernel').decay == 0.1
    # The base's clipping is over the base's gradients.
    clipping = {name.split('/')[0] for name in groups if rule(name).clip}
    assert clipping == {'encoder', 'projector', 'predictor'}

  def test_figures_of_both(self):
    run, state = cached_run(**BOTH, devices=2, chunks=2), start(**BOTH)
    x = jax.random.uniform(jax.random.key(0), (2, SIDE, SIDE, 3))
    drawn = jax.eval_shape(
      run.method.figures,
      state.params,
      state.method_state,
      dict(view1=x, view2=x),
    )
    assert {n: f.columns for n, f in drawn.items()} == dict(
      reconstruction=('input', 'reconstruction', 'error'),
      masked_reconstruction=('input', 'visible', 'reconstruction'),
    )


def made(masked, name='simsiam', **fields):
  method = dict(METHODS.get(name, MASKED.get(name)), name=name, masked=masked)
  encoder = ViT(patch_size=4, width=16, depth=4, num_heads=2)
  recipe = Recipe(lr=constant(1e-3), decay=0.1, peak=1e-3, total=1)
  return make_method(
    encoder, method | fields, recipe, dtype='float32', chunks=1
  )


def shapes(method):
  views = {n: jnp.zeros((2, SIDE, SIDE, 3)) for n in ('view1', 'view2')}
  return jax.eval_shape(method.init, jax.random.key(0), views)


def test_several_branches_with_cuts():
  local = dict(
    name='local_mim',
    decoder=dict(width=8, depth=1, num_heads=2),
    levels=(1, 2, 4),
    scales=(1.0, 1.0, 0.5),
    isolate_gradients=True,
  )
  method = made(local, 'moby')
  assert method.masked.cuts == (0, 1)
  params, state = shapes(method)
  names = {n for n in params if n.startswith('masked_')}
  assert names == {'masked_level_1', 'masked_level_2', 'masked_level_4'}
  assert 'queue1' in state


def test_both_methods_get_the_encoder_with_a_mask_token():
  method = made(dict(name='simmim', mask_unit=8))
  assert method.encoder.mask_token and method.encoder is method.base.encoder
  params, _ = shapes(method)
  assert 'mask_token' in params['encoder']


@pytest.mark.parametrize(
  'masked, told',
  [
    (dict(name='simclr'), "unknown method.masked.name 'simclr'.*Known: mae,"),
    (dict(name='mea'), "did you mean 'mae'"),
  ],
)
def test_what_masks_nothing_is_no_branch(masked, told):
  with pytest.raises(ValueError, match=told):
    made(masked)


def test_a_masked_method_is_no_base():
  masked = dict(MASKED['mae'], name='mae')
  with pytest.raises(ValueError, match='beside a contrastive method'):
    made(masked, 'mae')


def test_a_view_that_the_base_lacks():
  masked = dict(MASKED['mae'], name='mae', view='local1')
  with pytest.raises(
    ValueError, match=r"view='local1' .* \['view1', 'view2'\]"
  ):
    shapes(made(masked))
