"""Files with random encoders, by the tables of names."""

import itertools

import numpy as np

from interop.recognise import build, shapes

VIT = dict(
  name='vit',
  patch_size=4,
  width=8,
  depth=2,
  num_heads=2,
  positions='learned',
  positions_grid=2,
)
SWIN = dict(
  name='swin',
  patch_size=2,
  width=4,
  depths=(1, 1),
  num_heads=(1, 2),
  window=4,
)


def drawn(spec):
  """An encoder and parameters that all differ."""
  encoder = build(spec)
  count = itertools.count()
  params = {
    path: np.random.default_rng(next(count)).normal(size=shape).astype('f4')
    for path, shape in shapes(encoder).items()
  }
  return encoder, params


def named(names, spec, root=''):
  """The tensors of a file with such an encoder."""
  encoder, params = drawn(spec)
  return {
    root + pair.theirs: np.ascontiguousarray(
      pair.give(*(params[path] for path in pair.ours))
    )
    for pair in names.pairs(encoder)
  }
