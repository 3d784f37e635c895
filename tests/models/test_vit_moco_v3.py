"""The vision transformer against the official MoCo v3."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_vit import (
  assert_close,
  encode,
  gradient,
  largest,
)

from models.vit import ViT

GOLDEN = pathlib.Path(__file__).parents[1] / 'goldens' / 'enc_mocov3_vit.npz'


def official_params(z, group='w'):
  """MoCo v3's state dict, or its gradients, as our tree."""

  def linear(name):
    return {
      'kernel': z[f'{group}/{name}.weight'].T,
      'bias': z[f'{group}/{name}.bias'],
    }

  def norm(name):
    return {
      'scale': z[f'{group}/{name}.weight'],
      'bias': z[f'{group}/{name}.bias'],
    }

  params = {'cls': z[f'{group}/cls_token'], 'norm': norm('norm')}
  for i in range(4):
    if f'{group}/blocks.{i}.attn.qkv.weight' not in z:
      continue
    qkv = linear(f'blocks.{i}.attn.qkv')
    names = ('query', 'key', 'value')
    kernels = np.split(qkv['kernel'], 3, axis=1)
    biases = np.split(qkv['bias'], 3)
    attention = {
      name: {'kernel': kernel, 'bias': bias}
      for name, kernel, bias in zip(names, kernels, biases, strict=True)
    }
    attention['out'] = linear(f'blocks.{i}.attn.proj')
    params[f'block_{i}'] = {
      'norm1': norm(f'blocks.{i}.norm1'),
      'norm2': norm(f'blocks.{i}.norm2'),
      'attention': attention,
      'mlp': {
        'fc1': linear(f'blocks.{i}.mlp.fc1'),
        'fc2': linear(f'blocks.{i}.mlp.fc2'),
      },
    }
  if f'{group}/patch_embed.proj.weight' in z:
    params['patch_embed'] = {
      'kernel': z[f'{group}/patch_embed.proj.weight'].transpose(2, 3, 1, 0),
      'bias': z[f'{group}/patch_embed.proj.bias'],
    }
  return params


@pytest.fixture(scope='module')
def golden():
  z = dict(np.load(GOLDEN))
  cfg = json.loads(str(z['cfg']))
  encoder = ViT(
    patch_size=cfg['patch'],
    width=cfg['dim'],
    depth=cfg['depth'],
    num_heads=cfg['heads'],
    mean=(0.0,),  # the recorded images are normalised already
    std=(1.0,),
  )
  return z, encoder, z['in/x'].transpose(0, 2, 3, 1)


@pytest.mark.parametrize('impl', ['einsum', 'xla'])
def test_moco_v3_blocks(golden, impl):
  z, encoder, x = golden
  features = encode(encoder.copy(attention_impl=impl), official_params(z), x)
  for i, level in enumerate(features.levels):
    got = jnp.concatenate([level.prefix, level.tokens], axis=1)
    assert_close(got, z[f'out/block{i}'], name=f'block {i}')
  assert_close(features.cls, z['out/norm'][:, 0])
  assert_close(features.tokens, z['out/norm'][:, 1:])
  assert_close(features.pooled, z['out/y'])


def test_moco_v3_gradients(golden):
  z, encoder, x = golden

  def scalar(features):
    return (features.pooled * z['in/cotangent']).sum()

  got = gradient(encoder, official_params(z), x, scalar)
  # The official run froze the patch embedding and recorded no gradient of it.
  assert largest(got.pop('patch_embed')) > 0
  want = official_params(z, 'grad')
  # A softmax ignores what is added to all keys, so the gradient of the key's
  # bias is rounding noise around 0; judge it on the scale of the other biases.
  for i in range(4):
    a, b = got[f'block_{i}']['attention'], want[f'block_{i}']['attention']
    scale = np.abs(b['query']['bias']).max()
    difference = a['key'].pop('bias') - b['key'].pop('bias')
    assert np.abs(difference).max() < 2e-5 * scale
  jax.tree.map_with_path(
    lambda path, a, b: assert_close(a, b, name=jax.tree_util.keystr(path)),
    got,
    want,
  )
