"""ConvMAE's layout of ConvViT."""

import dataclasses
import re
from typing import Any

from interop.files import WeightsError
from interop.hints import Hints
from interop.layout import Found, Layout, layouts_of, square_kernel
from interop.pairs import (
  Pair,
  convolution,
  fixed,
  fused,
  layer,
  norm,
  pointwise,
  same,
)
from interop.vit_layouts import heads_of
from models.posemb import sincos_2d

IGNORED = (r'(head|fc)\..*', r'decoder.*', 'mask_token')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Names:
  """What differs between ConvMAE's pre-training and its fine-tuning.

  Attributes:
    title: of the layout.
    final: norm at the end.
    pool: field of `ConvViT`.
  """

  title: str
  final: str = 'norm'
  pool: str = 'mean'

  @property
  def anchors(self) -> tuple[str, ...]:
    """See `Layout`."""
    return 'patch_embed1.proj.weight', 'blocks1.0.attn.weight'

  def pairs(self, encoder: Any) -> list[Pair]:
    """How the parameters of a ConvViT are named."""
    out = []
    for stage in range(len(encoder.depths)):
      theirs = f'patch_embed{stage + 1}'
      ours = f'embed_{stage}' if stage else 'patch_embed'
      normed = f'embed_norm_{stage}' if stage else 'patch_norm'
      out += _convolution(f'{theirs}.proj', ours)
      out += norm(f'{theirs}.norm', normed)
    last = len(encoder.depths)
    out += layer(f'patch_embed{last + 1}', 'project')
    i = 0
    for stage, depth in enumerate(encoder.depths, 1):
      for j in range(depth):
        theirs, ours = f'blocks{stage}.{j}', f'block_{i}'
        out += (_attending if stage == last else _convolving)(theirs, ours)
        i += 1
    if encoder.fuse:
      for stage in range(last - 1):
        out += _convolution(f'stage{stage + 1}_output_decode', f'fuse_{stage}')
    out += norm(self.final, 'norm')
    return out


def _convolution(theirs: str, ours: str) -> list[Pair]:
  return [
    convolution(f'{theirs}.weight', f'{ours}/kernel'),
    same(f'{theirs}.bias', f'{ours}/bias'),
  ]


def _convolving(theirs: str, ours: str) -> list[Pair]:
  """A block of convolutions; theirs of 1x1 are linear layers of ours."""
  out = norm(f'{theirs}.norm1', f'{ours}/norm1')
  out += norm(f'{theirs}.norm2', f'{ours}/norm2')
  for name, path in (
    ('conv1', 'point1'),
    ('conv2', 'point2'),
    ('mlp.fc1', 'fc1'),
    ('mlp.fc2', 'fc2'),
  ):
    out.append(pointwise(f'{theirs}.{name}.weight', f'{ours}/{path}/kernel'))
    out.append(same(f'{theirs}.{name}.bias', f'{ours}/{path}/bias'))
  return out + _convolution(f'{theirs}.attn', f'{ours}/depthwise')


def _attending(theirs: str, ours: str) -> list[Pair]:
  out = norm(f'{theirs}.norm1', f'{ours}/norm1')
  out += norm(f'{theirs}.norm2', f'{ours}/norm2')
  paths = [f'{ours}/attention/{k}' for k in ('query', 'key', 'value')]
  for kind, leaf in (('weight', 'kernel'), ('bias', 'bias')):
    leaves = tuple(f'{path}/{leaf}' for path in paths)
    name = f'{theirs}.attn.qkv.{kind}'
    out.append(fused(name, leaves, kernel=leaf == 'kernel'))
  out += layer(f'{theirs}.attn.proj', f'{ours}/attention/out')
  for name in ('fc1', 'fc2'):
    out += layer(f'{theirs}.mlp.{name}', f'{ours}/mlp/{name}')
  return out


PRETRAINED = Names(title='ConvMAE')
TUNED = Names(
  title="ConvViT of ConvMAE's fine-tuning", final='fc_norm', pool='norm_mean'
)


def layouts() -> tuple[Layout, ...]:
  """All of them."""
  return layouts_of(
    (PRETRAINED, TUNED), spec, computed=computed, ignored=IGNORED
  )


def computed(found: Found) -> list[Pair]:
  """Tensors that must be what ours computes in their place."""
  if 'pos_embed' not in found:
    return []
  shape = found['pos_embed'].shape
  side = round(shape[1] ** 0.5) if len(shape) == 3 else 0
  if not side or side * side != shape[1] or shape[2] % 4:
    raise WeightsError(f'pos_embed is {list(shape)}, no square of patches')
  table = sincos_2d((side, side), shape[2], columns_first=True)
  return [fixed('pos_embed', table[None])]


def spec(names: Names, found: Found, hints: Hints) -> dict[str, Any]:
  """The encoder of a file, as `config.encoder`."""
  stages = 1
  while f'patch_embed{stages + 1}.proj.weight' in found:
    stages += 1
  kernels = [
    square_kernel(found, f'patch_embed{stage}.proj.weight')
    for stage in range(1, stages + 1)
  ]
  widths = tuple(kernel[0] for kernel in kernels)
  hidden = found.get('blocks1.0.mlp.fc1.weight')
  fields = dict(
    name='convvit',
    patch_sizes=tuple(kernel[2] for kernel in kernels),
    widths=widths,
    depths=tuple(_depth(found, stage) for stage in range(1, stages + 1)),
    num_heads=heads_of(widths[-1], hints),
    mlp_ratio=hidden.shape[0] / widths[0] if hidden else 4.0,
    in_channels=kernels[0][1],
    fuse='stage1_output_decode.weight' in found,
    pool=names.pool,
  )
  return fields | hints.told('mean', 'std')


def _depth(found: Found, stage: int) -> int:
  blocks = {
    int(m[1]) for n in found if (m := re.match(rf'blocks{stage}\.(\d+)\.', n))
  }
  return len(blocks)
