"""Layouts of vision transformers, and what their files tell of the encoder."""

import dataclasses
import functools
import math
import re
from typing import Any

from interop.files import WeightsError
from interop.hints import Hints
from interop.layout import Found, Layout
from interop.vit_names import Names

CHANNELS_PER_HEAD = 64  # of most published ViTs, but for these widths
HEADS = {1280: 16, 1408: 16, 1664: 16}
MOCO_V3_HEADS = 12
CLIP = dict(
  mlp='quick_gelu',
  norm_epsilon=1e-5,
  mean=(0.48145466, 0.4578275, 0.40821073),
  std=(0.26862954, 0.26130258, 0.27577711),
)

TIMM = Names(
  title='timm ViT',  # also DINO, MoCo v3, MAE, DeiT, DINOv2's plain ones
  registers='reg_token',
  pre_norm='norm_pre',
)
DISTILLED = dataclasses.replace(
  TIMM, title='distilled DeiT', registers='dist_token', prefix=2
)
FC_NORM = dataclasses.replace(
  TIMM,
  title="ViT of MAE's fine-tuning",
  final='fc_norm',
  fields=dict(pool='norm_mean'),
)
LOCAL_MIM = dataclasses.replace(TIMM, title='LocalMIM ViT', final='norm.3')
DINO_V2 = dataclasses.replace(
  TIMM,
  title='DINOv2',
  registers='register_tokens',
  glu=('mlp.w12', 'mlp.w3'),
  prefix=1,
)
BEIT = dataclasses.replace(
  TIMM,
  title='BEiT or SimMIM ViT',
  biases=('attn.q_bias', 'attn.v_bias'),
  scales=('gamma_1', 'gamma_2'),
  relative=dict(
    shared='rel_pos_bias.relative_position_bias_table',
    block='blocks.{}.attn.relative_position_bias_table',
  ),
)
BEIT_FC_NORM = dataclasses.replace(
  BEIT,
  title="BEiT's or SimMIM's fine-tuned ViT",
  final='fc_norm',
  fields=dict(pool='norm_mean'),
)
HF_VIT = Names(
  title='Hugging Face ViT',  # also ViTMAE
  patch='embeddings.patch_embeddings.projection',
  cls='embeddings.cls_token',
  positions='embeddings.position_embeddings',
  block='encoder.layer.{}.',
  norms=('layernorm_before', 'layernorm_after'),
  attention=tuple(
    f'attention.attention.{k}.' for k in ('query', 'key', 'value')
  ),
  out='attention.output.dense',
  mlp=('intermediate.dense', 'output.dense'),
  final='layernorm',
  scales=None,
  fields=dict(norm_epsilon=1e-12),
)
HF_DINO_V2 = dataclasses.replace(
  HF_VIT,
  title='Hugging Face DINOv2',
  norms=('norm1', 'norm2'),
  registers='embeddings.register_tokens',
  scales=('layer_scale1.lambda1', 'layer_scale2.lambda1'),
  mlp=('mlp.fc1', 'mlp.fc2'),
  glu=('mlp.weights_in', 'mlp.weights_out'),
  prefix=1,
  fields=dict(norm_epsilon=1e-6),
)
HF_CLIP = Names(
  title='Hugging Face CLIP',
  patch='embeddings.patch_embedding',
  cls='embeddings.class_embedding',
  positions='embeddings.position_embedding.weight',
  block='encoder.layers.{}.',
  norms=('layer_norm1', 'layer_norm2'),
  attention=tuple(f'self_attn.{k}_proj.' for k in 'qkv'),
  out='self_attn.out_proj',
  pre_norm='pre_layrnorm',
  final='post_layernorm',
  scales=None,
  bare=True,
  fields=CLIP,
)
OPENAI_CLIP = Names(
  title='OpenAI CLIP',
  patch='conv1',
  cls='class_embedding',
  positions='positional_embedding',
  block='transformer.resblocks.{}.',
  norms=('ln_1', 'ln_2'),
  attention=('attn.in_proj_',),
  out='attn.out_proj',
  mlp=('mlp.c_fc', 'mlp.c_proj'),
  pre_norm='ln_pre',
  final='ln_post',
  scales=None,
  projection='proj',
  bare=True,
  fields=CLIP,
)
TABLES = (
  TIMM,
  DISTILLED,
  FC_NORM,
  LOCAL_MIM,
  DINO_V2,
  BEIT,
  BEIT_FC_NORM,
  HF_VIT,
  HF_DINO_V2,
  HF_CLIP,
  OPENAI_CLIP,
)
# What stands beside an encoder in released files and is none of it.
IGNORED = (
  r'(head|head_dist|fc|classifier|pooler|lm_head)\..*',
  r'decoder.*',
  r'(embeddings\.)?mask_token',
  r'embeddings\.position_ids',
  r'.*relative_position_index',
  r'norm\.[0-2]\..*',  # of LocalMIM's first decoders
)


def layouts() -> tuple[Layout, ...]:
  """All of them; of those that fit equally the first is meant."""
  return tuple(
    Layout(
      name=names.title,
      anchors=names.anchors,
      spec=functools.partial(spec, names),
      pairs=names.pairs,
      ignored=IGNORED,
    )
    for names in TABLES
  )


def spec(names: Names, found: Found, hints: Hints) -> dict[str, Any]:
  """The encoder of a file, as `config.encoder`.

  Args:
    names: of the layout.
    found: the tensors below the root; the anchors are there.
    hints: what they do not tell.

  Raises:
    WeightsError: something is not to be told.
  """
  width, channels, patch, other = _shape(found, f'{names.patch}.weight', 4)
  if patch != other:
    raise WeightsError(
      f'patches of {patch}x{other} pixels: they must be square'
    )
  relative, table = _relative(names, found)
  fields = dict(
    name='vit',
    patch_size=patch,
    width=width,
    depth=_depth(names, found),
    in_channels=channels,
    class_token=names.cls in found,
    patch_bias=f'{names.patch}.bias' in found,
    pre_norm=f'{names.pre_norm}.weight' in found,
    relative=relative,
    num_heads=table[1] if table else heads_of(width, hints),
    pool=(hints.pool or 'cls') if names.cls in found else 'mean',
    init_scheme='trunc_normal',
    norm_epsilon=1e-6,
    biases=_biases(names, found),
  )
  if fields['pre_norm']:
    fields['norm_epsilon'] = 1e-5  # CLIP's, whoever names it
  fields |= names.fields
  if names.registers in found:
    fields['registers'] = _shape(found, names.registers, 3)[1]
  if names.scales and names.block.format(0) + names.scales[0] in found:
    fields['layer_scale'] = 1e-5  # what fresh ones would start with
  if names.projection in found:
    fields['projection'] = _shape(found, names.projection, 2)[1]
  fields |= _mlp(names, found, hints, width)
  fields |= _positions(names, found, hints, fields, table)
  for name in ('norm_epsilon', 'mean', 'std'):
    if (value := dataclasses.asdict(hints)[name]) is not None:
      fields[name] = value
  return fields


def _shape(found: Found, name: str, axes: int) -> tuple[int, ...]:
  shape = found[name].shape
  if len(shape) != axes or 0 in shape:
    raise WeightsError(f'{name} is {list(shape)}: {axes} axes were expected')
  return shape


def _depth(names: Names, found: Found) -> int:
  pattern = re.compile(re.escape(names.block).replace(r'\{\}', r'(\d+)'))
  return 1 + max(int(m[1]) for n in found if (m := pattern.match(n)))


def _biases(names: Names, found: Found) -> str:
  """Which of query, key and value have one."""
  first = names.block.format(0)
  if names.biases and first + names.biases[0] in found:
    return 'qv'
  if len(names.attention) == 1:
    return 'qkv' if f'{first}{names.attention[0]}bias' in found else ''
  return ''.join(
    letter
    for letter, name in zip('qkv', names.attention, strict=True)
    if f'{first}{name}bias' in found
  )


def _mlp(
  names: Names, found: Found, hints: Hints, width: int
) -> dict[str, Any]:
  first = names.block.format(0)
  for (one, two), factor in ((names.glu, 2), (names.mlp, 1)):
    into, out = (found.get(f'{first}{name}.weight') for name in (one, two))
    if into is None or out is None:
      continue
    if len(into.shape) != 2 or len(out.shape) != 2:
      continue
    if into.shape[0] == factor * out.shape[1]:
      found_out = dict(mlp_ratio=out.shape[1] / width)
      if factor == 2:
        return found_out | dict(mlp='swiglu')
      if hints.activation:
        return found_out | dict(mlp=hints.activation)
      return found_out
  raise WeightsError(
    f'{names.title}: the MLP of the first block ({first}{names.mlp[0]}.weight '
    'and what follows) is missing or of sizes that do not fit'
  )


def _relative(names: Names, found: Found) -> tuple[str, tuple[int, ...] | None]:
  """Kind of relative positions, and the shape of a table."""
  for kind, name in names.relative.items():
    if (tensor := found.get(name.format(0))) is not None:
      return kind, tensor.shape
  return 'none', None


def _positions(names, found, hints, fields, table) -> dict[str, Any]:
  """Fields of learned and of relative positions."""
  patch = fields['patch_size']
  native = hints.image_size and tuple(s // patch for s in hints.image_size)
  tokens = fields['class_token'] + fields.get('registers', 0)
  out = dict(positions='none')
  if names.positions in found:
    rows = found[names.positions].shape[-2]
    out = dict(positions='learned', positions_offset=0.0)
    if hints.positions_offset is not None:
      out['positions_offset'] = hints.positions_offset
    counts = (tokens, 1, 0) if names.prefix is None else (names.prefix,)
    out['positions_prefix'], native = _grid(rows, counts, native, names)
  elif table is not None:
    rows = table[0] - (3 if fields['class_token'] else 0)
    side = (math.isqrt(rows) + 1) // 2
    native = native or (side, side)
  if native:
    out['positions_grid'] = native
  return out


def _grid(rows, counts, native, names) -> tuple[int, tuple[int, int]]:
  """How many rows of a table are no patches', and the grid of the others."""
  for count in counts:
    if native and rows - count == native[0] * native[1]:
      return count, native
  for count in counts:
    side = math.isqrt(max(rows - count, 0))
    if side and side * side == rows - count:
      return count, (side, side)
  raise WeightsError(
    f'{names.positions} has {rows} rows, which is no square of patches: set '
    'config.weights.image_size to the (height, width) it was trained on'
  )


def heads_of(width: int, hints: Hints) -> int:
  """Attention heads, which no shape tells.

  Raises:
    WeightsError: of a width that is not published.
  """
  heads = hints.num_heads or HEADS.get(width, width // CHANNELS_PER_HEAD)
  if not heads or width % heads:
    raise WeightsError(
      f'the file does not tell how many heads a ViT of width {width} has: set '
      'config.weights.num_heads, or put its config.json beside it'
    )
  return heads
