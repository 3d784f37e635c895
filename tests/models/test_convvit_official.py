"""ConvViT against ConvMAE's code, on a recorded masked step at 224 px.

The photographs are scikit-image's, prepared as they were for the record.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from PIL import Image
from skimage import data
from tiny_vit import assert_close

from models import layers
from models.convvit import ConvViT
from models.masking import mask_from_noise
from models.patches import normalize, patchify
from models.posemb import sincos_2d

GOLDEN = pathlib.Path(__file__).parents[1] / 'goldens' / 'convmae.npz'
KEEP, GRID = 49, (14, 14)


def photo(image):
  """Normalised, [224, 224, 3], rounded to bfloat16."""
  side = min(image.shape[:2])
  top, left = ((full - side) // 2 for full in image.shape[:2])
  image = Image.fromarray(image[top : top + side, left : left + side])
  image = np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC))
  image = normalize(image.astype(np.float32) / 255, None, None)
  return np.asarray(image.astype(jnp.bfloat16).astype(jnp.float32))


def linear(z, name):
  return {'kernel': z[f'{name}.weight'].T, 'bias': z[f'{name}.bias']}


def conv(z, name):
  kernel = z[f'{name}.weight'].transpose(2, 3, 1, 0)
  return {'kernel': kernel, 'bias': z[f'{name}.bias']}


def point(z, name):
  found = conv(z, name)
  return found | {'kernel': found['kernel'][0, 0]}


def norm(z, name):
  return {'scale': z[f'{name}.weight'], 'bias': z[f'{name}.bias']}


def conv_block(z, name):
  matrices = dict(point1='conv1', point2='conv2', fc1='mlp.fc1', fc2='mlp.fc2')
  out = {k: point(z, f'{name}.{v}') for k, v in matrices.items()}
  out |= {k: norm(z, f'{name}.{k}') for k in ('norm1', 'norm2')}
  return out | {'depthwise': conv(z, f'{name}.attn')}


def block(z, name):
  qkv = linear(z, f'{name}.attn.qkv')
  kernels, biases = (np.split(qkv[k], 3, axis=-1) for k in ('kernel', 'bias'))
  attention = {
    name: {'kernel': kernel, 'bias': bias}
    for name, kernel, bias in zip(
      ('query', 'key', 'value'), kernels, biases, strict=True
    )
  }
  return {
    'norm1': norm(z, f'{name}.norm1'),
    'norm2': norm(z, f'{name}.norm2'),
    'attention': attention | {'out': linear(z, f'{name}.attn.proj')},
    'mlp': {k: linear(z, f'{name}.mlp.{k}') for k in ('fc1', 'fc2')},
  }


def official_params(z, group):
  """The authors' state dict, or its gradients, as our tree."""
  names = [('patch_embed', 'patch_norm')]
  names += [(f'embed_{i}', f'embed_norm_{i}') for i in (1, 2)]
  params = {
    'project': linear(z, f'{group}/patch_embed4'),
    'norm': norm(z, f'{group}/norm'),
    'fuse_0': conv(z, f'{group}/stage1_output_decode'),
    'fuse_1': conv(z, f'{group}/stage2_output_decode'),
  }
  for i, (embed, normed) in enumerate(names, 1):
    params[embed] = conv(z, f'{group}/patch_embed{i}.proj')
    params[normed] = norm(z, f'{group}/patch_embed{i}.norm')
  for i, name in enumerate(('blocks1.0', 'blocks1.1', 'blocks2.0')):
    params[f'block_{i}'] = conv_block(z, f'{group}/{name}')
  for i in range(2):
    params[f'block_{i + 3}'] = block(z, f'{group}/blocks3.{i}')
  return params


def decoded(z, tokens, mask):
  """The authors' decoder, [b, n, f] from the visible tokens."""
  b, n = mask.hidden.shape
  embed = linear(z, 'w/decoder_embed')
  x = jnp.tile(z['w/mask_token'], (b, n, 1))
  x = x.at[jnp.arange(b)[:, None], mask.visible].set(
    tokens @ embed['kernel'] + embed['bias']
  )
  table = sincos_2d(GRID, 16)
  x = x + np.concatenate([table[:, 8:], table[:, :8]], axis=1)
  params = block(z, 'w/decoder_blocks.0')
  x, _ = layers.Block(num_heads=2, mlp_ratio=2).apply({'params': params}, x)
  params = norm(z, 'w/decoder_norm')
  x = layers.layer_norm('norm').apply({'params': params}, x)
  last = linear(z, 'w/decoder_pred')
  return x @ last['kernel'] + last['bias']


@pytest.fixture(scope='module')
def official():
  """Record, features, loss and gradients of our encoder, in one program."""
  z = dict(np.load(GOLDEN))
  cfg = json.loads(str(z['cfg']))
  encoder = ConvViT(
    patch_sizes=tuple(cfg['patch']),
    widths=tuple(cfg['dim']),
    depths=tuple(cfg['depth']),
    num_heads=cfg['heads'],
    mlp_ratio=cfg['mlp_ratio'],
    mean=(0.0,),  # the images are normalised already
    std=(1.0,),
  )
  x = np.stack([photo(data.astronaut()), photo(data.chelsea())])
  mask = mask_from_noise(jnp.asarray(z['in/noise']), KEEP)

  def loss(params):
    features = encoder.apply({'params': params}, x, mask)
    target = rearrange(patchify(x, 16), 'b h w f -> b (h w) f')
    error = ((decoded(z, features.tokens, mask) - target) ** 2).mean(axis=-1)
    return (error * mask.hidden).sum() / mask.hidden.sum(), features

  params = official_params(z, 'w')
  run = jax.jit(jax.value_and_grad(loss, has_aux=True))
  (value, features), grads = run(params)
  return z, mask, features, value, grads


def in_our_order(z, tokens):
  """The authors keep visible tokens in the order of their noise."""
  kept = np.argsort(z['in/noise'], axis=1)[:, :KEEP]
  return np.take_along_axis(tokens, np.argsort(kept, 1)[:, :, None], axis=1)


def visible_part(level, z, name, every):
  """A level and the recorded map where the record and the mask have both."""
  recorded = rearrange(z[name], 'b d h w -> b h w d')
  got, want = [], []
  for image, index in enumerate(np.asarray(level.index)):
    row, column = np.divmod(index, level.grid[1])
    both = (row % every == 0) & (column % every == 0)
    got.append(np.asarray(level.tokens[image])[both])
    want.append(recorded[image, row[both] // every, column[both] // every])
  return np.concatenate(got), np.concatenate(want)


def test_maps_and_tokens(official):
  z, mask, features, _, _ = official
  levels = features.levels
  assert [level.grid[0] for level in levels] == [56, 28, 14, 14]
  np.testing.assert_array_equal(levels[3].index, mask.visible)
  for level, name, every in (
    (levels[0], 'out/blocks1.1_every8', 8),
    (levels[1], 'out/blocks2.0_every2', 2),
  ):
    got, want = visible_part(level, z, name, every)
    assert got.shape[0] >= 2 * KEEP // 4
    assert_close(got, want, name=name)
  assert_close(levels[3].tokens, in_our_order(z, z['out/blocks3.1']))
  assert_close(features.tokens, in_our_order(z, z['out/latent']))


def test_positions_are_those_of_mae(official):
  z = official[0]
  table = sincos_2d(GRID, 24)[:28]
  table = np.concatenate([table[:, 12:], table[:, :12]], axis=1)
  np.testing.assert_allclose(table, z['out/pos_embed_row'], atol=1e-7)


def test_loss_and_gradients(official):
  z, _, _, value, got = official
  assert_close(value, z['out/loss'])
  want = official_params(z, 'grad')
  # A softmax ignores what is added to all keys: rounding noise around 0.
  for i in (3, 4):
    a, b = got[f'block_{i}']['attention'], want[f'block_{i}']['attention']
    scale = np.abs(b['query']['bias']).max()
    difference = a['key'].pop('bias') - b['key'].pop('bias')
    assert np.abs(difference).max() < 2e-5 * scale
  leaves = jax.tree.leaves_with_path(want)
  assert len(leaves) == 4 * 3 + 2 + 2 + 4 + 3 * 14 + 2 * 15
  for path, b in leaves:
    a = got
    for key in path:
      a = a[key.key]
    assert_close(a, b, name=jax.tree_util.keystr(path))
