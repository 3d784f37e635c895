"""Layer-wise decay against the groups that the authors' code makes."""

import dataclasses
import pathlib
import re

import jax
import numpy as np
import pytest

from models import make_encoder
from training.optim import assign
from training.recipe import VECTORS, Recipe
from training.schedules import constant
from training.state import named_leaves
from transfer.finetune.layer_decay import layer_of, layer_rules

GOLDEN = pathlib.Path(__file__).parent.parent / 'goldens' / 'layer_decay.npz'
RECIPE = Recipe(
  lr=constant(2.0), decay=0.05, peak=2.0, total=10, exclude=VECTORS
)


def shapes(encoder, size):
  images = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
  found = jax.eval_shape(encoder.init, jax.random.key(0), images)['params']
  head = dict(kernel=0, bias=0)
  return dict(encoder=found, head=head, fc_norm=dict(scale=0, bias=0))


def groups(encoder, params, recipe=RECIPE, **fields):
  """{our path: (scale of the rate, decay)}."""
  rules = layer_rules(encoder, recipe, **fields)
  found = {}
  for name, number in assign(params, rules).items():
    rule = rules[number][1]
    assert float(rule.lr(0)) == 2.0
    found[name] = rule.scale, rule.decay
  return found


def theirs(name, depths):
  """A name of timm's as the start of ours."""
  starts = np.cumsum((0, *depths))

  def block(match):
    return f'encoder/block_{starts[int(match[1])] + int(match[2])}/'

  name = re.sub(r'^layers\.(\d+)\.blocks\.(\d+)\.', block, name)
  name = re.sub(r'^layers\.(\d+)\.downsample\.', r'encoder/merge_\1/', name)
  name = re.sub(r'^blocks\.(\d+)\.', r'encoder/block_\1/', name)
  name = re.sub(r'^patch_embed\.norm\.', 'encoder/patch_norm/', name)
  name = re.sub(r'^patch_embed\.proj\.', 'encoder/patch_embed/', name)
  name = re.sub(r'^norm\.', 'encoder/norm/', name)
  name = {
    'cls_token': 'encoder/cls',
    'pos_embed': 'encoder/pos_embed',
  }.get(name, name)
  name = name.replace('attn.qkv', 'attention/query').replace(
    'attn.proj', 'attention/out'
  )
  name = name.replace('attn.relative_position_bias_table', 'position_bias')
  name = name.replace('.', '/')
  norm = re.search(r'norm\d?/weight$', name)
  return name.replace('weight', 'scale' if norm else 'kernel')


@pytest.mark.parametrize(
  'key', ['mae_vit12_gp0_ld0.65', 'mae_vit12_gp1_ld0.75', 'localmim_swin']
)
def test_groups_are_the_authors(key):
  with np.load(GOLDEN) as file:
    key = next(k.split('/')[0] for k in file.files if k.startswith(key))
    names, scales, decays = (
      file[f'{key}/{kind}'] for kind in ('name', 'lr_scale', 'weight_decay')
    )
  if 'swin' in key:
    depths = (2, 2, 6, 2)
    encoder = make_encoder('swin_t', width=8, num_heads=(1, 1, 1, 1))
    # Their tables decay.
    fields = dict(layer_decay=0.8, decay_tables=True)
    params = shapes(encoder, 32)
  else:
    depths = (12,)
    encoder = make_encoder('vit_s16', width=8, num_heads=1, positions='learned')
    fields = dict(layer_decay=float(key[-4:]))
    params = shapes(encoder, 32)
  found = groups(encoder, params, **fields)
  compared = set()
  for name, scale, decay in zip(names, scales, decays, strict=True):
    ours = theirs(str(name), depths)
    assert found[ours][0] == pytest.approx(scale, rel=1e-5), name
    assert found[ours][1] == pytest.approx(decay), name
    compared.add(ours)
  # What they have in one tensor we have in three.
  rest = {
    n.replace('/key/', '/query/').replace('/value/', '/query/') for n in found
  }
  assert {n for n in rest - compared if 'norm/' not in n} == set()


def test_layers_by_hand():
  """Spec: embed .65^13, first block .65^12, last .65, head 1."""
  encoder = make_encoder('vit_s16', width=8, num_heads=1)
  found = groups(encoder, shapes(encoder, 32), layer_decay=0.65)
  assert found['encoder/patch_embed/kernel'] == (pytest.approx(0.65**13), 0.05)
  assert found['encoder/cls'] == (pytest.approx(0.65**13), 0.0)
  assert found['encoder/block_0/mlp/fc1/kernel'][0] == pytest.approx(0.65**12)
  assert found['encoder/block_11/mlp/fc1/bias'] == (pytest.approx(0.65), 0.0)
  assert found['encoder/norm/scale'] == (1.0, 0.0)
  assert found['head/kernel'] == (1.0, 0.05)


def test_convolutions_of_convvit_are_one_layer():
  """Spec: both convolution stages and all embeddings 0, blocks 1 to 11."""
  encoder = make_encoder('convvit_s', widths=(4, 8, 12), num_heads=1)
  found = groups(encoder, shapes(encoder, 16), layer_decay=0.65)
  first = {n for n in found if re.search(r'(embed|project|block_[0-3]/)', n)}
  first |= {n for n in found if '/patch_norm/' in n}
  last = {
    n for n in found if re.search(r'(encoder/norm|fuse_\d|^head|^fc_norm)/', n)
  }
  layers = {n: 0 for n in first} | {n: 12 for n in last}
  for name in found.keys() - layers.keys():
    layers[name] = int(re.fullmatch(r'encoder/block_(\d+)/.*', name)[1]) - 3
  assert set(layers.values()) == set(range(13)) and len(first) == 4 * 14 + 14
  for name, (scale, decay) in found.items():
    assert layer_of(name, encoder) == layers[name], name
    assert scale == pytest.approx(0.65 ** (12 - layers[name])), name
    assert decay == (0.0 if re.search('(bias|scale)$', name) else 0.05), name
  # More convolution blocks than there are layers.
  encoder = encoder.copy(depths=(3, 3, 1))
  found = groups(encoder, shapes(encoder, 16), layer_decay=0.5)
  assert {scale for scale, _ in found.values()} == {0.25, 0.5, 1.0}


def test_tables_do_not_decay_unless_asked():
  encoder = make_encoder('swin_t', width=8, num_heads=(1, 1, 1, 1))
  name = 'encoder/block_3/position_bias'
  params = shapes(encoder, 32)
  assert name in named_leaves(params)
  assert groups(encoder, params)[name] == (1.0, 0.0)
  assert groups(encoder, params, decay_tables=True)[name] == (1.0, 0.05)
  assert layer_of('encoder/merge_1/norm/scale', encoder) == 4
  assert layer_of('encoder/block_4/norm1/scale', encoder) == 5


def test_vectors_decay_where_the_recipe_does_not_exclude_them():
  encoder = make_encoder('vit_s16', width=8, num_heads=1)
  params = shapes(encoder, 32)
  recipe = dataclasses.replace(RECIPE, exclude='')
  found = groups(encoder, params, recipe)
  still = {name for name, (_, decay) in found.items() if decay == 0}
  assert still == {'encoder/cls'}
