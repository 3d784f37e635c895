"""LocalMIM's ViT against the authors' code, on a recorded step.

The record is of a ViT of eight blocks on 96-px images: every weight and input,
four predictions, targets and losses, and every gradient. Of predictions,
targets and gradients each seventh number is kept, of tokens each third channel.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from official_names import below, blocks_from_torch

from models.masking import mask_from_noise
from models.posemb import sincos_2d
from models.vit import ViT
from pretrain.methods.local_mim import local_mim

GOLDEN = pathlib.Path(__file__).parents[1] / 'goldens' / 'localmim_vit.npz'
STRIDE = 7
LEVELS = (2, 4, 6, 8)


@functools.cache
def record():
  return dict(np.load(GOLDEN))


def ours(weights):
  """Nested parameters by our names, of weights or of their gradients."""
  flat = {
    'encoder/cls': weights['cls_token'],
    'encoder/patch_embed/bias': weights['patch_embed.proj.bias'],
    'encoder/patch_embed/kernel': weights['patch_embed.proj.weight'].transpose(
      2, 3, 1, 0
    ),
  }
  flat |= blocks_from_torch(weights, 'blocks.', 'encoder/', depth=8)
  for task, level in enumerate(LEVELS):
    flat |= decoder(below(weights, f'decoder.{task}.'), f'level_{level}')
    for name, theirs in dict(scale='weight', bias='bias').items():
      flat[f'level_{level}/norm_input/{name}'] = weights[
        f'norm.{task}.{theirs}'
      ]
  return flat


def decoder(weights, name):
  """One task's decoder; which layers rescale is told by their kernels."""
  flat = blocks_from_torch(weights, 'blocks.', f'{name}/', depth=1)
  flat[f'{name}/mask_token'] = weights['mask_token']
  flat[f'{name}/embed/kernel'] = weights['embed.weight'].T
  flat[f'{name}/embed/bias'] = weights['embed.bias']
  flat[f'{name}/norm/scale'] = weights['norm.weight']
  flat[f'{name}/norm/bias'] = weights['norm.bias']
  ups = 0
  for number in sorted({n.split('.')[1] for n in weights if 'pred.' in n}):
    kernel = weights[f'pred.{number}.weight']
    bias = weights[f'pred.{number}.bias']
    if kernel.ndim == 1:
      flat[f'{name}/up_norm/scale'] = kernel
      flat[f'{name}/up_norm/bias'] = bias
    elif kernel.shape[2] == 2:
      flat[f'{name}/up_{ups}/kernel'] = kernel.transpose(0, 2, 3, 1)
      flat[f'{name}/up_{ups}/bias'] = bias
      ups += 1
    else:
      flat[f'{name}/out/kernel'] = kernel[:, :, 0, 0].T
      flat[f'{name}/out/bias'] = bias
  return flat


@functools.cache
def step():
  """(method, predictions, targets, losses, total, gradients)."""
  z = record()
  cfg = json.loads(str(z['cfg']))
  method = local_mim(
    ViT(
      patch_size=cfg['patch'],
      width=cfg['dim'],
      depth=cfg['depth'],
      num_heads=cfg['heads'],
      mlp_ratio=cfg['mlp_ratio'],
      positions='mae_sincos',
      mean=(0.0,),
      std=(1.0,),
    ),
    None,
    decoder=dict(
      width=cfg['dec_dim'],
      depth=cfg['dec_depth'],
      num_heads=cfg['dec_heads'],
      mlp_ratio=cfg['mlp_ratio'],
    ),
  )
  images = jnp.asarray(z['in/x'].transpose(0, 2, 3, 1))
  mask = mask_from_noise(jnp.asarray(z['in/noise']), keep=9)
  weights = {k: jnp.asarray(v) for k, v in ours(below(z, 'w/')).items()}
  # The encoder's last norm has no part in it.
  weights['encoder/norm/scale'] = jnp.ones(cfg['dim'])
  weights['encoder/norm/bias'] = jnp.zeros(cfg['dim'])
  params = traverse_util.unflatten_dict(weights, sep='/')

  def loss(params):
    features = method.encode(params, images, mask)
    found = {}
    for name, branch in method.branches.items():
      prediction = branch.predict(params[name], features)
      target = branch.target(images)
      error = branch.mean(branch.error(prediction, target), mask)
      found[name] = prediction, target, error
    losses = {name: error for name, (*_, error) in found.items()}
    return method.total(losses), (features, found)

  run = jax.jit(jax.value_and_grad(loss, has_aux=True))
  (total, (features, found)), grads = run(params)
  return method, mask, features, found, total, grads


def test_the_mask_hides_what_theirs_hides():
  _, mask, *_ = step()
  np.testing.assert_array_equal(mask.hidden, record()['out/mask'])
  half = record()['out/mask_scale3'].reshape(2, 3, 3)
  np.testing.assert_allclose(mask.share((3, 3)), half)
  assert set(np.unique(half)) > {0, 1}  # parts of places


@pytest.mark.parametrize('task', range(4))
def test_predictions_targets_and_losses(task):
  z, found = record(), step()[3][f'level_{LEVELS[task]}']
  for what, got in zip(('pred', 'target'), found, strict=False):
    want = z[f'out/{what}{task}']
    got = np.asarray(got).reshape(2, -1)[:, ::STRIDE]
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())
  assert float(found[2]) == pytest.approx(float(z[f'out/loss{task}']), rel=5e-6)


def test_total():
  want = float(record()['out/loss'])
  assert float(step()[4]) == pytest.approx(want, rel=2e-6)


def test_gradients():
  z, grads = record(), step()[-1]
  shapes = {name: leaf.shape for name, leaf in below(z, 'w/').items()}
  spread = {}
  for name, sparse in below(z, 'grad/').items():
    full = np.full(np.prod(shapes[name]), np.nan, np.float32)
    full[::STRIDE] = sparse
    spread[name] = full.reshape(shapes[name])
  want, got = ours(spread), traverse_util.flatten_dict(grads, sep='/')
  unused = {'encoder/norm/scale', 'encoder/norm/bias'}
  assert got.keys() - unused == want.keys()
  for name, leaf in want.items():
    there = ~np.isnan(leaf)
    assert there.any(), name
    error = np.abs(np.asarray(got[name])[there] - leaf[there]).max()
    # Of a key's bias the gradient is 0 but for rounding.
    assert error <= 2e-5 * max(np.abs(leaf[there]).max(), 1e-3), name


def test_positions():
  table = record()['w/pos_embed'][0]
  assert not table[0].any()  # of CLS
  mine = sincos_2d((6, 6), 32, columns_first=True)
  np.testing.assert_allclose(mine, table[1:], atol=2e-6)
