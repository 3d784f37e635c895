"""Runs of tiny methods, and how two of them are compared."""

import functools
import math
import re

import jax
import numpy as np
import pytest

from configs import common
from input_pipeline.arrays import Arrays
from input_pipeline.resident import Resident
from input_pipeline.views import View
from models.convvit import ConvViT
from models.swin import Swin
from models.vit import ViT
from pretrain.methods import make_method
from training import sharding
from training.recipe import Recipe
from training.schedules import warmup_cosine
from training.state import named_leaves
from training.step import Run

BATCH, SIDE, PATCH, WIDTH, OUT = 16, 16, 4, 16, 8
TOKENS = (SIDE // PATCH) ** 2
TOTAL, LR, EPS = 6, 1e-3, 1e-3
LEARNED = dict(width=8, levels=2)
FOLLOWS_BASE = dict(LEARNED, weighting='fixed', weights=(1.0, 0.0))
HEAD = dict(hidden=32, out=OUT)
# Every method at its smallest; what is not here is the method's default.
METHODS = dict(
  simclr=dict(HEAD, temperature=0.5),
  byol=dict(HEAD, momentum=0.9),
  simsiam=dict(HEAD, bottleneck=4),
  moco_v2=dict(HEAD, queue=64, momentum=0.9),
  moco_v3=dict(HEAD, momentum=0.9),
  moby=dict(HEAD, queue=32, momentum=0.9),
  dino=dict(HEAD, out=24, bottleneck=8, local_crops=2, momentum=0.9),
)
# The same of masked modelling, which learns from one view.
DECODER = dict(width=16, depth=1, num_heads=2)
FUSION = dict(kind='fusion', width=8, levels=2)
SMALL_VIT = dict(name='vit', patch_size=4, width=16, depth=2, num_heads=2)
MASKED = dict(
  mae=dict(decoder=DECODER),
  simmim=dict(mask_unit=8, mask_ratio=0.75),
  local_mim=dict(
    decoder=DECODER, levels=(1, 2), scales=(2, 0.5), target='pixels'
  ),
  mr_mae=dict(decoder=DECODER, teachers=dict(first=dict(encoder=SMALL_VIT))),
)
LOCAL = 8  # side of DINO's local crops


def mesh_of(devices, fsdp=1):
  return jax.make_mesh(
    (devices // fsdp, fsdp),
    sharding.AXES,
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
    devices=jax.devices()[:devices],
  )


@functools.cache
def arrays():
  rng = np.random.default_rng(0)
  coarse = rng.integers(0, 256, (48, 5, 5, 3)).astype(np.uint8)
  return Arrays(
    name='blocks', images=np.kron(coarse, np.ones((1, 4, 4, 1), np.uint8))
  )


def views(method):
  # Crops and flips draw from the keys of the rows, which is what matters here.
  plain = dict(scale=(0.4, 1.0), jitter=0.0, gray=0.0, blur=0.0)
  count = 1 if method in MASKED else 2
  out = {f'view{i + 1}': View(size=SIDE, **plain) for i in range(count)}
  if method == 'dino':
    out |= {f'local{i}': View(size=LOCAL, **plain) for i in (1, 2)}
  return out


def make_run(
  *,
  method='moco_v3',
  encoder='vit',
  devices=4,
  fsdp=1,
  chunks=1,
  repre=LEARNED,
  masked=None,
  fusion=False,
  remat=False,
  dtype='float32',
  frozen=False,
  initial=None,
  **config_fields,
):
  config = common.base()
  # Key biases have a gradient of zero; a larger eps keeps Adam from making
  # steps out of its rounding.
  hyper = dict(b1=0.9, b2=0.999, eps=EPS)
  config.optim = dict(name='adamw', hyper=hyper)
  config.update(dict(batch_size=BATCH, chunks=chunks, eval_every=0))
  config.update(config_fields)
  mesh = mesh_of(devices, fsdp)
  data = Resident(
    arrays(),
    views(method),
    batch_size=BATCH,
    seed=config.seed,
    shardings=(sharding.over_batch(mesh), sharding.replicated(mesh)),
  )
  shared = dict(mlp_ratio=2, dtype=dtype, drop_path=0.3, remat=remat)
  if encoder == 'vit':
    sizes = dict(patch_size=PATCH, width=WIDTH, depth=2, num_heads=2)
    made = ViT(**sizes, **shared)
  elif encoder == 'swin':
    sizes = dict(width=WIDTH // 2, depths=(1, 1), num_heads=(1, 2), window=2)
    made = Swin(patch_size=PATCH, **sizes, **shared)
  else:
    sizes = dict(widths=(4, 8, WIDTH), depths=(1, 1, 1), patch_sizes=(2, 2, 1))
    made = ConvViT(num_heads=2, **sizes, **shared)
  fields = dict((METHODS | MASKED)[method], name=method)
  if method in METHODS:
    fields.update(frozen_patch_embed=frozen, repre=repre and dict(repre))
    fields.update(masked=masked and MASKED[masked['name']] | dict(masked))
  if fusion:
    fields.update(decoder=FUSION)
  learned = make_method(
    made,
    fields,
    Recipe(
      lr=warmup_cosine(LR, warmup=0, total=2 * TOTAL),
      decay=0.1,
      peak=LR,
      total=TOTAL,
      steps_per_epoch=3,
    ),
    dtype=dtype,
    chunks=chunks,
  )
  return Run(config, mesh=mesh, method=learned, data=data, initial=initial)


@functools.cache
def cached_run(**fields):
  for name in ('repre', 'masked'):
    if fields.get(name):
      fields[name] = dict(fields[name])
  return make_run(**fields)


@functools.cache
def start(**kind):
  """The state of step 0 on the host."""
  run = cached_run(**kind)
  return jax.tree.map(np.array, run.init())


@functools.cache
def follow(steps, **fields):
  """(state, metrics) after each of the first steps, on the host.

  All start from one state: it does not depend on devices or chunks, and
  compiling its initialisation takes as long as compiling the step.
  """
  run = cached_run(**fields)
  kind = {
    k: v
    for k, v in fields.items()
    if k in ('method', 'encoder', 'repre', 'masked', 'fusion', 'frozen')
  }
  state = jax.device_put(jax.tree.map(np.copy, start(**kind)), run.shardings)
  found = []
  for step in range(steps):
    state, report = run.step(state, run.data.batch(step))
    found.append(jax.tree.map(np.array, (state, report)))
  return found


def fixed(values):
  """A hashable form of a dict, for the caches."""
  return tuple(sorted(values.items()))


def moments(state, which='mu'):
  """{parameter path: first or second moment of Adam}."""
  found = {}
  for name, leaf in named_leaves(state.opt_state).items():
    _, middle, path = name.partition(f'/{which}/')
    if middle:
      found[path] = leaf
  return found


def assert_same_bits(got, want):
  got, want = named_leaves(got), named_leaves(want)
  assert got.keys() == want.keys()
  for name, leaf in want.items():
    a, b = np.asarray(got[name]), np.asarray(leaf)
    assert a.dtype == b.dtype and a.shape == b.shape, name
    assert a.tobytes() == b.tobytes(), name


def assert_close(got, want, tolerance):
  """Leaf by leaf, relative to its largest element.

  Leaves whose value is zero in theory hold rounding only; they are compared
  on the scale of the others.
  """
  assert got.keys() == want.keys()
  most = max(np.abs(leaf).max() for leaf in want.values())
  for name, leaf in want.items():
    error = np.abs(got[name] - leaf).max()
    allowed = tolerance * (np.abs(leaf).max() + 1e-2 * most)
    assert error <= allowed, f'{name}: {error} > {allowed}'


def assert_same_steps(got, want, *, loss, gradient):
  """First loss, first gradients, then parameters and teachers of all steps."""
  assert got[0][1]['loss'] == pytest.approx(want[0][1]['loss'], rel=loss)
  first = moments(got[0][0]), moments(want[0][0])  # 0.1 · gradient
  assert first[0]
  assert_close(*first, gradient)
  for (a, _), (b, _) in zip(got, want, strict=True):
    for part in ('params', 'method_state'):
      ours, theirs = (named_leaves(getattr(s, part)) for s in (a, b))
      for name, leaf in theirs.items():
        # A step moves a parameter by about the rate, however small its
        # gradient; this is a five-hundredth of one step. Queues hold vectors
        # of length 1, new in every step: they are as exact as features.
        allowed = 1e-5 if name.startswith('queue') else 2e-3 * LR
        np.testing.assert_allclose(
          ours[name], leaf, atol=allowed, rtol=0, err_msg=name
        )


COLLECTIVE = re.compile(
  r'= (.+?) (all-reduce|all-gather|all-to-all|collective-permute|'
  r'reduce-scatter|collective-broadcast|ragged-all-to-all)(?:-start)?\('
)


def collectives(text):
  """[(what, elements, shape)] of every array that travels."""
  found = []
  for types, kind in COLLECTIVE.findall(text):
    for shape in re.findall(r'\w+\[([\d,]*)\]', types):
      sizes = [int(n) for n in shape.split(',') if n]
      found.append((kind, math.prod(sizes), shape))
  return found
