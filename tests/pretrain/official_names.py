"""Weights in the layouts of the authors' PyTorch code, by our names."""

import numpy as np


def below(weights, prefix):
  """What stands below a prefix, without it."""
  return {
    name.removeprefix(prefix): weight
    for name, weight in weights.items()
    if name.startswith(prefix)
  }


def vit_from_torch(weights, *, learned_positions=False):
  """{our parameter path: array} of a ViT in the names of timm and DINO."""
  out = {
    'encoder/cls': weights['cls_token'],
    'encoder/patch_embed/kernel': weights['patch_embed.proj.weight'].transpose(
      2, 3, 1, 0
    ),
    'encoder/patch_embed/bias': weights['patch_embed.proj.bias'],
    'encoder/norm/scale': weights['norm.weight'],
    'encoder/norm/bias': weights['norm.bias'],
  }
  if learned_positions:
    out['encoder/pos_embed'] = weights['pos_embed']
  return out | blocks_from_torch(weights, 'blocks.', 'encoder/')


def blocks_from_torch(weights, theirs, ours, depth=2):
  """{our parameter path: array} of some blocks, in the names of timm."""
  out = {}
  for i in range(depth):
    block, mine = f'{theirs}{i}.', f'{ours}block_{i}/'
    for norm in ('norm1', 'norm2'):
      out[f'{mine}{norm}/scale'] = weights[f'{block}{norm}.weight']
      out[f'{mine}{norm}/bias'] = weights[f'{block}{norm}.bias']
    kernels = np.split(weights[f'{block}attn.qkv.weight'], 3)
    biases = np.split(weights[f'{block}attn.qkv.bias'], 3)
    for name, w, b in zip(
      ('query', 'key', 'value'), kernels, biases, strict=True
    ):
      out[f'{mine}attention/{name}/kernel'] = w.T
      out[f'{mine}attention/{name}/bias'] = b
    layers = (
      ('attn.proj', 'attention/out'),
      ('mlp.fc1', 'mlp/fc1'),
      ('mlp.fc2', 'mlp/fc2'),
    )
    for name, layer in layers:
      out[f'{mine}{layer}/kernel'] = weights[f'{block}{name}.weight'].T
      out[f'{mine}{layer}/bias'] = weights[f'{block}{name}.bias']
  return out


def head_from_torch(weights, name):
  """{our parameter path: array} of a Sequential of Linear and BatchNorm."""
  out, dense = {}, -1
  # Activations and a BatchNorm without parameters leave gaps in the numbers.
  for i in sorted({int(n.split('.')[0]) for n in weights if n[0].isdigit()}):
    weight, bias = weights.get(f'{i}.weight'), weights.get(f'{i}.bias')
    if weight is None:
      continue
    if weight.ndim == 2:
      dense += 1
      out[f'{name}/dense_{dense}/kernel'] = weight.T
      if bias is not None:
        out[f'{name}/dense_{dense}/bias'] = bias
    else:
      out[f'{name}/norm_{dense}/scale'] = weight
      if bias is not None:
        out[f'{name}/norm_{dense}/bias'] = bias
  return out
