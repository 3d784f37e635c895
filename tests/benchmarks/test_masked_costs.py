"""What masked methods cost beside each other, from shapes alone."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import build, costs, step, timing
from models import make_encoder
from models.masking import random_masking
from pretrain.methods import MASKED


def products(*, tokens, width, depth, patch, channels=3):
  """FLOPs of the products of one pass of a ViT over one image, by hand."""
  embed = (tokens - 1) * patch**2 * channels * width
  return 2 * (embed + depth * (12 * tokens * width**2 + 2 * tokens**2 * width))


def test_local_mim_takes_little_more_than_half_of_maes_step():
  """Four small decoders of one block each in the place of eight of 512."""
  base, row = costs.tabulate(
    methods=['local_mim'], encoders=['vit_b16'], batch_size=2, against='mae'
  )
  assert (base['method'], row['method']) == ('mae', 'local_mim')
  assert base['against'] == 1 and 0.5 < row['against'] < 0.55
  # Three passes of the encoder over CLS and 49 patches; its 147 hidden ones
  # are embedded too.
  encoder = products(tokens=50, width=768, depth=12, patch=16)
  encoder += 2 * 147 * 768**2
  assert 0.8 < 3e-9 * encoder / row['gflops'] < 0.9


def test_a_frozen_teacher_is_told_apart():
  base, row = costs.tabulate(
    methods=['mr_mae'], encoders=['vit_mini4'], batch_size=2, against='mae'
  )
  assert 'teacher_gflops' not in base
  teacher = 1e-9 * products(tokens=65, width=96, depth=6, patch=4)
  assert row['teacher_gflops'] == pytest.approx(teacher, rel=0.05)
  # Three passes of the head over the visible patches are next to nothing.
  head = 3e-9 * 2 * 16 * 96**2
  added = row['gflops'] - base['gflops']
  assert added == pytest.approx(row['teacher_gflops'] + head, rel=0.05)


def test_flops_of_swin_follow_the_visible_units():
  """12 of 49; attention is among all visible tokens, in place of windows."""
  encoder = make_encoder('swin_b')
  x = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
  mask = jax.eval_shape(
    lambda: random_masking(
      jax.random.key(0), (7, 7), batch=2, ratio=0.75, shared=True
    )
  )
  params = jax.eval_shape(encoder.init, jax.random.key(0), x)

  def flops(*mask):
    return costs.flops(jax.jit(encoder.apply).lower(params, x, *mask))

  assert 12 / 49 < flops(mask) / flops() < 0.29


@pytest.mark.parametrize('word', ['vit_mini4', 'swin_mini', 'convvit_mini'])
def test_every_masked_method_has_images_that_fit(word):
  for method in MASKED:
    if (method, word) == ('simmim', 'convvit_mini'):
      continue  # no mask token
    config = costs.load(method, word)
    config.batch_size = 2
    built = build.make(config)
    batch = build.view_shapes(config, 3)
    params, _ = jax.eval_shape(built.init, jax.random.key(0), batch)
    assert 'encoder' in params


def test_a_teacher_alone_is_timed():
  config = costs.load('mr_mae', 'vit_mini4')
  small = dict(width=16, depth=1, num_heads=1)
  config.method.teachers.first.encoder = dict(name='vit_mini4', **small)
  config.method.decoder.update(width=16, depth=1, num_heads=1)
  config.batch_size = 4
  run = build.make_run(config, given='views', **small)
  assert timing.teacher_seconds(run, run.init(), 2) > 0
  base = build.make_run(costs.load('mae', 'vit_mini4'), given='views')
  assert timing.teacher_seconds(base, None, 2) is None


def test_two_methods_are_timed_in_turn(monkeypatch, tmp_path):
  given = []

  def measure(variants, **options):
    given.append(variants)
    return [dict(seconds=1.0, overhead=1), dict(seconds=2.0, overhead=2)]

  monkeypatch.setattr(step.timing, 'measure', measure)
  rows = step.clock(
    methods=['mr_mae', 'simmim'],
    encoders=['convvit_mini'],
    against='mae',
    batch_size=8,
    dtype='float32',
  )
  # SimMIM has no ConvViT.
  ((first, second),) = [variants.items() for variants in given]
  assert (first[0], second[0]) == ('mae', 'mr_mae')
  for name, config in (first, second):
    assert config.method.name == name and config.batch_size == 8
  assert len(rows) == 2
