"""Layouts of vision transformers, and what their files tell of the encoder."""

import math
import re
from typing import Any

from interop.files import WeightsError
from interop.hints import Hints
from interop.layout import Found, Layout, layouts_of, shape_of, square_kernel
from interop.vit_tables import TABLES, Names

CHANNELS_PER_HEAD = 64  # of most published ViTs, but for these widths
HEADS = {1280: 16, 1408: 16, 1664: 16}
MOCO_V3_HEADS = 12
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
  """All of them."""
  return layouts_of(TABLES, spec, ignored=IGNORED)


def spec(names: Names, found: Found, hints: Hints) -> dict[str, Any]:
  """The encoder of a file, as `config.encoder`.

  Args:
    names: of the layout.
    found: the tensors below the root; the anchors are there.
    hints: what they do not tell.

  Raises:
    WeightsError: something is not to be told.
  """
  width, channels, patch = square_kernel(found, f'{names.patch}.weight')
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
    fields['registers'] = shape_of(found, names.registers, 3)[1]
  if names.scales and names.block.format(0) + names.scales[0] in found:
    fields['layer_scale'] = 1e-5  # what fresh ones would start with
  if names.projection in found:
    fields['projection'] = shape_of(found, names.projection, 2)[1]
  if names.bare and not fields['class_token']:
    raise WeightsError(
      f'{names.title}: {names.cls} is missing; SigLIP pools by attention, '
      'which no encoder here does'
    )
  if hints.pool and (fields['class_token'] or hints.pool != 'cls'):
    mean = names.fields.get('pool', hints.pool)  # the norm tells which
    fields['pool'] = mean if hints.pool == 'mean' else hints.pool
  fields |= _mlp(names, found, hints, width)
  if names.biases and fields.get('mlp') == 'swiglu':
    raise WeightsError(
      f'{names.title}: its MLPs have gates, so it is an EVA-02, whose rotary '
      'positions no encoder here has'
    )
  fields |= _positions(names, found, hints, fields, table)
  return fields | hints.told('norm_epsilon', 'mean', 'std')


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
    if name.format(0) in found:
      return kind, shape_of(found, name.format(0), 2)
  return 'none', None


def _positions(names, found, hints, fields, table) -> dict[str, Any]:
  """Fields of learned and of relative positions."""
  patch = fields['patch_size']
  native = hints.image_size and tuple(s // patch for s in hints.image_size)
  tokens = fields['class_token'] + fields.get('registers', 0)
  out = dict(positions='none')
  if names.positions in found:
    rows = shape_of(found, names.positions, 2 if names.bare else 3)[-2]
    out = dict(positions='learned', positions_offset=0.0)
    if hints.positions_offset is not None:
      out['positions_offset'] = hints.positions_offset
    if hints.positions_antialias is not None:
      out['positions_antialias'] = hints.positions_antialias
    elif names.smooth and fields.get('registers'):
      out['positions_antialias'] = True
    counts = (tokens, 1, 0) if names.prefix is None else (names.prefix,)
    counts = [count for count in counts if count <= tokens]
    out['positions_prefix'], native = _grid(rows, counts, native, names)
  elif table is not None:
    rows = table[0] - (3 if fields['class_token'] else 0)
    side = (math.isqrt(rows) + 1) // 2
    native = native or (side, side)
  elif hints.positions != 'none':
    raise WeightsError(
      f'{names.title}: {names.positions} is missing, and rotary positions are '
      'not known'
    )
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
  if hints.num_heads and width % hints.num_heads:
    raise WeightsError(
      f'a ViT of width {width} cannot have num_heads={hints.num_heads}'
    )
  if not heads or width % heads:
    raise WeightsError(
      f'the file does not tell how many heads a ViT of width {width} has: set '
      'config.weights.num_heads, or put its config.json beside it'
    )
  return heads
