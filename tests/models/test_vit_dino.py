"""The vision transformer with learned positions against the official DINO."""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_vit_moco_v3 import official_params as shared_params
from tiny_vit import (
  assert_close,
  count,
  encode,
  gradient,
  images,
  initial,
  tiny,
)

from models import make_encoder
from models.masking import random_masking
from models.posemb import interpolation_matrix
from models.vit import ViT

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'
DINO = dict(positions='learned', init_scheme='trunc_normal')


def official_params(z, group='w'):
  """DINO's state dict, or its gradients, as our tree."""
  params = shared_params(z, group)
  return params | {'pos_embed': z[f'{group}/pos_embed']}


@pytest.fixture(scope='module')
def golden():
  z = dict(np.load(GOLDENS / 'enc_dino_vit.npz'))
  cfg = json.loads(str(z['cfg']))
  encoder = ViT(
    patch_size=cfg['patch'],
    width=cfg['dim'],
    depth=cfg['depth'],
    num_heads=cfg['heads'],
    positions_grid=cfg['img'] // cfg['patch'],
    mean=(0.0,),  # the recorded images are normalised already
    std=(1.0,),
    **DINO,
  )
  return z, encoder


@pytest.mark.parametrize('case', ['full48', 'crop32', 'big64', 'rect40x24'])
def test_dino_on_its_own_size_and_others(golden, case):
  z, encoder = golden
  x = z[f'{case}/x'].transpose(0, 2, 3, 1)
  features = encode(encoder, official_params(z), x, attention=(-1,))
  for i in (0, 3):
    level = features.levels[i]
    got = jnp.concatenate([level.prefix, level.tokens], axis=1)
    assert_close(got, z[f'{case}/block{i}'], name=f'block {i}')
  if case != 'big64':
    assert_close(features.attention[-1], z[f'{case}/last_selfattention'])
  assert_close(features.cls, z[f'{case}/y'])


def test_dino_gradients_pass_through_resampled_positions(golden):
  z, encoder = golden

  def scalar(features):
    return (features.pooled * z['gradcase/cotangent']).sum()

  x = z['gradcase/x'].transpose(0, 2, 3, 1)
  got = gradient(encoder, official_params(z), x, scalar)
  want = official_params(z, 'grad')
  assert set(got) - set(want) == {'block_0', 'block_1', 'block_2'}
  # A softmax ignores what is added to all keys: the gradient of the key's bias
  # is rounding noise around 0.
  a, b = got['block_3']['attention'], want['block_3']['attention']
  difference = a['key'].pop('bias') - b['key'].pop('bias')
  assert np.abs(difference).max() < 2e-5 * np.abs(b['query']['bias']).max()
  jax.tree.map_with_path(
    lambda path, a, b: assert_close(a, b, name=jax.tree_util.keystr(path)),
    {name: got[name] for name in want},
    want,
  )


# Positions.


@pytest.mark.parametrize(
  'name, grid',
  [('to96', (6, 6)), ('to384', (24, 24)), ('to128x320', (8, 20))],
)
def test_positions_of_224_on_other_grids(golden, name, grid):
  z, _ = golden
  matrix = interpolation_matrix((14, 14), grid)
  assert matrix.dtype == np.float32
  assert_close(matrix @ z['interp14/pos'][0, 1:], z[f'interp14/{name}'][0, 1:])
  assert_close(matrix.sum(axis=1), np.ones(len(matrix)))


def test_the_matrix_itself(golden):
  want = golden[0]['interp14/matrix_36x196']
  assert_close(interpolation_matrix((14, 14), (6, 6)), want)


@pytest.mark.parametrize(
  'name, grid', [('vit/interp48x40', (6, 5)), ('dinov2/interp70x42', (5, 3))]
)
def test_positions_as_hugging_face_resamples_them(name, grid):
  z = np.load(GOLDENS / 'hf_positions.npz')
  table = z[f'{name.split("/")[0]}/table'][0, 1:]
  plain = interpolation_matrix((4, 4), grid, offset=0) @ table
  assert_close(plain, z[name][0, 1:])
  dinos = interpolation_matrix((4, 4), grid) @ table
  assert np.abs(dinos - plain).max() > 0.01 * np.abs(plain).max()


def test_the_same_grid_is_left_alone():
  for grid in ((3, 3), (2, 5)):
    matrix = interpolation_matrix(grid, grid)
    np.testing.assert_array_equal(matrix, np.eye(grid[0] * grid[1]))


def test_the_offset_reaches_the_positions():
  encoder = tiny(positions_grid=3, depth=1, **DINO)
  x = images(1, 8, 20, 3)
  params = initial(encoder, x)
  ours = encode(encoder, params, x)
  plain = encode(encoder.copy(positions_offset=0.0), params, x)
  assert (ours.cls != plain.cls).any()
  own = images(1, 12, 12, 3)
  np.testing.assert_array_equal(
    encode(encoder, params, own).cls,
    encode(encoder.copy(positions_offset=0.0), params, own).cls,
  )


@pytest.mark.parametrize('size', [(12, 12), (8, 20)])
def test_visible_patches_keep_their_positions(size):
  """Without attention a token is what it is in the whole image."""
  encoder = tiny(positions_grid=3, depth=1, **DINO)
  x = images(2, *size, 3)
  params = initial(encoder, x)
  quiet = jax.tree.map(jnp.zeros_like, params['block_0'])
  params = params | {'block_0': quiet}
  grid = size[0] // 4, size[1] // 4
  mask = random_masking(jax.random.key(1), grid, batch=2, ratio=0.5)
  whole = encode(encoder, params, x)
  part = encode(encoder, params, x, mask=mask)
  assert part.tokens.shape[1] < grid[0] * grid[1]
  want = jnp.take_along_axis(whole.tokens, mask.visible[..., None], axis=1)
  assert_close(part.tokens, want)
  assert_close(part.cls, whole.cls)


# Sizes, initialisation, errors.


def test_published_size_with_positions():
  encoder = make_encoder('vit_s16', num_heads=6, **DINO)
  x = jax.ShapeDtypeStruct((1, 96, 96, 3), jnp.float32)
  params = jax.eval_shape(encoder.init, jax.random.key(0), x)['params']
  assert params['pos_embed'].shape == (1, 197, 384)
  assert count(params) == 21_665_664  # the authors' 21 M


def test_initialisation_is_dinos():
  encoder = make_encoder('vit_mini4', depth=1, positions_grid=8, **DINO)
  params = initial(encoder, images(1, 32, 32, 3))
  block = params['block_0']
  normal = [params['pos_embed'], block['mlp']['fc1']['kernel']]
  normal += [block['mlp']['fc2']['kernel']]
  normal += [x['kernel'] for x in block['attention'].values()]
  for leaf in normal:
    np.testing.assert_allclose(leaf.std(), 0.02, rtol=0.05)
  np.testing.assert_allclose(params['cls'].std(), 0.02, rtol=0.3)
  bound = 1 / math.sqrt(4 * 4 * 3)
  for leaf in params['patch_embed'].values():
    assert 0.95 * bound < float(jnp.abs(leaf).max()) <= bound
    np.testing.assert_allclose(leaf.std(), bound / math.sqrt(3), rtol=0.15)
  for path, leaf in jax.tree.leaves_with_path(block):
    if path[-1].key == 'bias':
      assert not leaf.any(), path


@pytest.mark.parametrize(
  'fields, message',
  [
    (
      {'positions': 'sine'},
      "unknown positions 'sine'; known: 'sincos', 'learned'",
    ),
    (
      {'init_scheme': 'xavier'},
      "unknown init_scheme 'xavier'; known: 'moco_v3', 'trunc",
    ),
  ],
)
def test_errors_name_the_way_out(fields, message):
  with pytest.raises(ValueError, match=message):
    tiny(**fields).init(jax.random.key(0), images(1, 8, 8, 3))
