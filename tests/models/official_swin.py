"""Weights of Swin's authors, and of those who kept their names, as our tree."""

import json
import pathlib

import numpy as np

from models.swin import Swin

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'


def load(name, **fields):
  """The record of a run and the encoder that it is of."""
  z = dict(np.load(GOLDENS / name))
  cfg = json.loads(str(z['cfg']))
  fields |= dict(mean=(0.0,), std=(1.0,))  # images are normalised already
  encoder = Swin(
    patch_size=cfg['patch'],
    width=cfg['dim'],
    depths=tuple(cfg['depths']),
    num_heads=tuple(cfg['heads']),
    window=cfg['window'],
    mlp_ratio=cfg['mlp_ratio'],
    norm_epsilon=cfg.get('ln_eps', 1e-5),
    **fields,
  )
  return z, encoder


def nhwc(x):
  return x.transpose(0, 2, 3, 1)


def linear(z, name):
  if f'{name}.weight' not in z:  # the official run kept some gradients only
    return {}
  found = {'kernel': z[f'{name}.weight'].T}
  return found | ({'bias': z[f'{name}.bias']} if f'{name}.bias' in z else {})


def norm(z, name):
  return {'scale': z[f'{name}.weight'], 'bias': z[f'{name}.bias']}


def official_params(z, group='w', stages=2, merges=1):
  """Weights, or gradients, of the first stages of two blocks and mergings."""
  name = f'{group}/patch_embed'
  params = {
    'patch_embed': {
      'kernel': z[f'{name}.proj.weight'].transpose(2, 3, 1, 0),
      'bias': z[f'{name}.proj.bias'],
    },
    'patch_norm': norm(z, f'{name}.norm'),
  }
  for i in range(merges):
    name = f'{group}/layers.{i}.downsample'
    params[f'merge_{i}'] = {
      'norm': norm(z, f'{name}.norm'),
      'reduction': linear(z, f'{name}.reduction'),
    }
  for i in range(2 * stages):
    name = f'{group}/layers.{i // 2}.blocks.{i % 2}'
    qkv = linear(z, f'{name}.attn.qkv')
    kernels, biases = (np.split(qkv[k], 3, axis=-1) for k in ('kernel', 'bias'))
    attention = {
      name: {'kernel': kernel, 'bias': bias}
      for name, kernel, bias in zip(
        ('query', 'key', 'value'), kernels, biases, strict=True
      )
    }
    attention['out'] = linear(z, f'{name}.attn.proj')
    params[f'block_{i}'] = {
      'position_bias': z[f'{name}.attn.relative_position_bias_table'],
      'norm1': norm(z, f'{name}.norm1'),
      'norm2': norm(z, f'{name}.norm2'),
      'attention': attention,
      'mlp': {k: linear(z, f'{name}.mlp.{k}') for k in ('fc1', 'fc2')},
    }
  return params
