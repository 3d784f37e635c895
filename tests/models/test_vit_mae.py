"""ViT in MAE's flavour: where it starts, its positions, its final level."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_vit import encode, images, initial, tiny, tiny_params

from interop.export_vit import spelled_out
from models import make_encoder
from models.masking import random_masking
from training.state import named_leaves

MAE = dict(positions='mae_sincos', init_scheme='mae')


def test_initialisation_is_maes():
  encoder = make_encoder('vit_mini4', depth=1, **MAE)
  params = named_leaves(initial(encoder, images(1, 32, 32, 3)))
  d, pixels = 96, 3 * 4 * 4
  mlp = math.sqrt(6 / (5 * d))
  fused = math.sqrt(6 / (4 * d))  # one d x 3d matrix
  bounds = {
    'patch_embed/kernel': math.sqrt(6 / (pixels + d)),
    'patch_embed/bias': 1 / math.sqrt(pixels),
    'block_0/attention/out/kernel': math.sqrt(6 / (2 * d)),
    'block_0/mlp/fc1/kernel': mlp,
    'block_0/mlp/fc2/kernel': mlp,
  }
  for name in ('query', 'key', 'value'):
    bounds[f'block_0/attention/{name}/kernel'] = fused
  for name, bound in bounds.items():
    leaf = params.pop(name)
    assert 0.95 * bound < float(jnp.abs(leaf).max()) <= bound, name
    np.testing.assert_allclose(leaf.std(), bound / math.sqrt(3), rtol=0.15)
  assert 0.014 < float(params.pop('cls').std()) < 0.026
  for name, leaf in params.items():
    start = 1 if name.endswith('scale') else 0
    np.testing.assert_array_equal(leaf, start, err_msg=name)


def test_positions_differ_from_moco_v3s_by_the_order_of_halves():
  """Spelled out as a learned table they give the same features."""
  x = images(2, 8, 12, 3)
  moco, mae = tiny(depth=1), tiny(depth=1, **MAE)
  here = encode(mae, tiny_params(), x).pooled
  assert np.abs(here - encode(moco, tiny_params(), x).pooled).max() > 1e-2
  flat = {n: np.asarray(v) for n, v in named_leaves(tiny_params()).items()}
  learned, flat = spelled_out(mae, flat, (8, 12))
  assert learned.positions == 'learned'
  params = dict(tiny_params(), pos_embed=flat['pos_embed'])
  there = encode(learned, params, x).pooled
  np.testing.assert_allclose(there, here, atol=1e-5)


@pytest.mark.parametrize('class_token', [True, False])
def test_the_final_level_is_what_follows_the_norm(class_token):
  pool = 'cls' if class_token else 'mean'
  encoder = tiny(depth=1, class_token=class_token, pool=pool)
  mask = random_masking(jax.random.key(0), (2, 3), batch=2, ratio=0.5)
  features = encode(encoder, tiny_params(), images(2, 8, 12, 3), mask=mask)
  final = features.final
  np.testing.assert_array_equal(final.tokens, features.tokens)
  np.testing.assert_array_equal(final.index, mask.visible)
  assert final.grid == (2, 3)
  assert final.prefix.shape == (2, int(class_token), 16)
  if class_token:
    np.testing.assert_array_equal(final.prefix[:, 0], features.cls)
