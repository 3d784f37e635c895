"""Layer-wise learning-rate decay: deeper layers move faster."""

import dataclasses
import re
from typing import Any

from models.convvit import ConvViT
from training.optim import Rule, Rules
from training.recipe import Recipe

TOKENS = r'encoder/(cls|registers|pos_embed)'
TABLES = r'.*position_bias(/.*)?'
BLOCK = re.compile(r'encoder/(?:position_bias/)?block_(\d+)(?:/.*)?')
MERGE = re.compile(r'encoder/merge_(\d+)/.*')
EMBEDS = (
  r'encoder/(patch_embed|patch_norm|norm_pre|project|embed_(norm_)?\d+)/.*'
)
FIRST = f'{EMBEDS}|{TOKENS}'


def layer_of(name: str, encoder: Any) -> int:
  """The number of a parameter's layer, 0 to depth + 1.

  0 is what makes tokens of patches, i + 1 is block i, counted over all stages;
  a merging of Swin belongs to the block before it; depth + 1 is all else: the
  final norm and the head (BEiT and MAE, `util/lr_decay.py`; SimMIM,
  `optimizer.py`). The convolutions of ConvViT belong to layer 0, and its blocks
  that attend are counted alone (ConvMAE, `util/lr_decay.py`).

  Args:
    name: path of the parameter, 'encoder/block_0/mlp/fc1/kernel'.
    encoder: the module; its `depth` and `depths` are read.
  """
  stem = _stem(encoder)
  if match := BLOCK.fullmatch(name):
    return max(int(match[1]) + 1 - stem, 0)
  if match := MERGE.fullmatch(name):
    return sum(encoder.depths[: int(match[1]) + 1])
  return 0 if re.fullmatch(FIRST, name) else encoder.depth - stem + 1


def _stem(encoder: Any) -> int:
  """How many blocks belong to layer 0."""
  return encoder.conv_depth if isinstance(encoder, ConvViT) else 0


def layer_rules(
  encoder: Any,
  recipe: Recipe,
  *,
  layer_decay: float = 1.0,
  decay_tables: bool = False,
) -> Rules:
  """One group per layer that decays, and one per layer that does not.

  Args:
    encoder: the module.
    recipe: rate, decay and clipping.
    layer_decay: d: a layer's rate is d^(depth + 1 - layer) of the recipe's.
      The whole update is scaled, decay included, as PyTorch's AdamW does.
    decay_tables: tables of relative positions decay, as in LocalMIM's code.
      CLS and positions never do, biases and scales where
      `recipe.exclude` matches them.

  Returns:
    Rules for `encoder/...` and everything else.
  """
  stem = _stem(encoder)
  depth = encoder.depth - stem
  patterns = {0: FIRST, depth + 1: '.*'}
  patterns |= {
    i + 1 - stem: rf'encoder/(position_bias/block_{i}|block_{i}/.*)'
    for i in range(stem, encoder.depth)
  }
  for i in range(stem):
    patterns[0] += rf'|encoder/block_{i}/.*'
  for stage in range(len(encoder.depths) - 1):
    layer = max(sum(encoder.depths[: stage + 1]) - stem, 0)
    patterns[layer] += rf'|encoder/merge_{stage}/.*'
  bare = [TOKENS, *([] if decay_tables else [TABLES])]
  bare = '|'.join([*filter(None, [recipe.exclude]), *bare])
  clip = recipe.clip
  rules = []
  for layer in sorted(patterns):
    scale = layer_decay ** (depth + 1 - layer)
    rule = Rule(lr=recipe.lr, scale=scale, decay=recipe.decay, clip=clip)
    still = dataclasses.replace(rule, decay=0.0, adaptive=False)
    rules.append((rf'(?=({bare})$)({patterns[layer]})', still))
    rules.append((patterns[layer], rule))
  return tuple(rules)
