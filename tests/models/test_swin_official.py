"""Swin against the authors' code, timm and Hugging Face, on recorded vectors.

The authors' and timm's record is of the first two stages of four.
"""

import jax
import numpy as np
import pytest
from official_swin import linear, load, nhwc, norm, official_params
from tiny_vit import assert_close, encode, gradient


def with_final_norm(params, width):
  ones, zeros = np.ones(width, np.float32), np.zeros(width, np.float32)
  return params | {'norm': {'scale': ones, 'bias': zeros}}


@pytest.fixture(scope='module')
def official():
  z, encoder = load('enc_swin.npz')
  return z, encoder, with_final_norm(official_params(z), 48)


@pytest.mark.parametrize('impl', ['einsum', 'xla'])
def test_authors_stages(official, impl):
  z, encoder, params = official
  encoder = encoder.copy(attention_impl=impl)
  features = encode(encoder, params, nhwc(z['in/x'][:1]))
  assert_close(features.levels[0].tokens, z['out/stage0_premerge'])
  assert_close(features.merged[0].tokens, z['out/stage0_out'])
  assert_close(features.levels[1].tokens, z['out/stage1_premerge'])


@pytest.mark.parametrize('impl', ['einsum', 'xla'])
def test_authors_gradients(official, impl):
  z, encoder, params = official

  def scalar(features):
    return (features.levels[1].tokens * z['in/cotangent']).sum()

  encoder = encoder.copy(attention_impl=impl)
  got = gradient(encoder, params, nhwc(z['in/x']), scalar)
  want = official_params(z, 'grad')
  # A softmax ignores what is added to all keys, so the gradient of the key's
  # bias is rounding noise around 0; judge it on the scale of the other biases.
  for i in range(4):
    a, b = got[f'block_{i}']['attention'], want[f'block_{i}']['attention']
    scale = np.abs(b['query']['bias']).max()
    difference = a['key'].pop('bias') - b['key'].pop('bias')
    assert np.abs(difference).max() < 2e-5 * scale
  leaves = jax.tree.leaves_with_path(want)
  assert len(leaves) == 4 + 3 + 4 * 12
  for path, b in leaves:
    a = got
    for key in path:
      a = a[key.key]
    assert_close(a, b, name=jax.tree_util.keystr(path))


@pytest.mark.parametrize('size', ['pad56', 'pad72x40'])
def test_timm_with_padded_windows(official, size):
  z, encoder, params = official
  # timm fixed its windows when the model was built for 64 x 64.
  encoder = encoder.copy(padding='timm', native_size=(64, 64))
  features = encode(encoder, params, nhwc(z[f'timm/{size}/x']))
  for i, level in enumerate(features.levels):
    assert_close(level.map(), z[f'timm/{size}/stage{i}'])


def hugging_face_params(z):
  name = 'w/embeddings.patch_embeddings.projection'
  params = {
    'patch_embed': {
      'kernel': z[f'{name}.weight'].transpose(2, 3, 1, 0),
      'bias': z[f'{name}.bias'],
    },
    'patch_norm': norm(z, 'w/embeddings.norm'),
    'norm': norm(z, 'w/layernorm'),
  }
  for stage in range(2):
    name = f'w/encoder.layers.{stage}.downsample'
    params[f'merge_{stage}'] = {
      'norm': norm(z, f'{name}.norm'),
      'reduction': linear(z, f'{name}.reduction'),
    }
  for i in range(6):
    name = f'w/encoder.layers.{i // 2}.blocks.{i % 2}'
    attention = f'{name}.attention.self'
    params[f'block_{i}'] = {
      'position_bias': z[f'{attention}.relative_position_bias_table'],
      'norm1': norm(z, f'{name}.layernorm_before'),
      'norm2': norm(z, f'{name}.layernorm_after'),
      'attention': {
        'out': linear(z, f'{name}.attention.output.dense'),
        **{k: linear(z, f'{attention}.{k}') for k in ('query', 'key', 'value')},
      },
      'mlp': {
        'fc1': linear(z, f'{name}.intermediate.dense'),
        'fc2': linear(z, f'{name}.output.dense'),
      },
    }
  return params


@pytest.fixture(scope='module')
def hugging_face():
  z, encoder = load('hf_swin.npz')
  return z, encoder, hugging_face_params(z)


def test_hugging_face_whole_and_its_attention(hugging_face):
  z, encoder, params = hugging_face
  x = nhwc(z['in/pixel_values'])
  features = encode(encoder, params, x, attention=(1, -1))
  assert_close(features.tokens, z['out/last_hidden_state'])
  assert_close(features.pooled, z['out/pooler_output'])
  assert_close(features.attention[1][0], z['out/attentions0'])
  assert_close(features.attention[-1][0], z['out/attentions2'])


def test_hugging_face_with_padded_windows(hugging_face):
  z, encoder, params = hugging_face
  x = nhwc(z['pad56/pixel_values'])
  features = encode(encoder.copy(padding='zeros'), params, x)
  assert_close(features.tokens, z['pad56/last_hidden_state'])
  assert_close(features.pooled, z['pad56/pooler_output'])
