"""How layouts of vision transformers name the parameters of ours."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from interop.files import WeightsError
from interop.pairs import Pair, convolution, flat, fused, layer, norm, same


@dataclasses.dataclass(frozen=True, kw_only=True)
class Names:
  """How a layout calls the parts of a ViT; `{}` is the number of a block.

  Attributes:
    title: of the layout.
    patch: convolution of the patch embedding.
    cls: CLS token.
    positions: table of positions.
    block: what begins the names of a block.
    norms: the two norms of a block.
    attention: (query, key, value), or one name of all three, each with what
      comes before `weight`.
    biases: one name of a block for the biases of query and value, in place of
      `attention`'s (BEiT).
    out: output of attention.
    mlp: the two layers.
    glu: the two layers where there is a gate.
    final: norm at the end.
    registers: further tokens, or None.
    pre_norm: norm before the blocks, or None.
    scales: layer scales of both branches, or None.
    relative: {kind: table of relative positions}.
    projection: a last linear map, or None.
    bare: tokens and positions lack the axis of the batch, CLS two.
    fields: fields of `ViT` that the layout implies.
    smooth: whether those with registers antialias positions.
    prefix: how many of the first tokens have a position, if that is not free.
  """

  title: str
  patch: str = 'patch_embed.proj'
  cls: str = 'cls_token'
  positions: str = 'pos_embed'
  block: str = 'blocks.{}.'
  norms: tuple[str, str] = ('norm1', 'norm2')
  attention: tuple[str, ...] = ('attn.qkv.',)
  biases: tuple[str, str] | None = None
  out: str = 'attn.proj'
  mlp: tuple[str, str] = ('mlp.fc1', 'mlp.fc2')
  glu: tuple[str, str] = ('mlp.fc1', 'mlp.fc2')
  final: str = 'norm'
  registers: str | None = None
  pre_norm: str | None = None
  scales: tuple[str, str] | None = ('ls1.gamma', 'ls2.gamma')
  relative: Mapping[str, str] = dataclasses.field(default_factory=dict)
  projection: str | None = None
  bare: bool = False
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  prefix: int | None = None
  smooth: bool = False

  @property
  def anchors(self) -> tuple[str, ...]:
    """See `Layout`."""
    first = self.block.format(0)
    return f'{self.patch}.weight', f'{first}{self.norms[0]}.weight'

  def pairs(self, encoder: Any) -> list[Pair]:
    """How the parameters of a ViT are named."""
    out = [convolution(f'{self.patch}.weight', 'patch_embed/kernel')]
    if encoder.patch_bias:
      out.append(same(f'{self.patch}.bias', 'patch_embed/bias'))
    if encoder.class_token:
      out.append(flat(self.cls, 'cls', 2 if self.bare else 0))
    if encoder.registers:
      out.append(same(self._registers(), 'registers'))
    if encoder.positions == 'learned':
      out.append(flat(self.positions, 'pos_embed', 1 if self.bare else 0))
    if encoder.pre_norm:
      out += norm(str(self.pre_norm), 'norm_pre')
    if encoder.relative == 'shared':
      out.append(same(self.relative['shared'], 'position_bias/shared'))
    for i in range(encoder.depth):
      out += self._block(i, encoder)
    out += norm(self.final, 'norm')
    if encoder.projection:
      out.append(self._projection())
    return out

  def _registers(self) -> str:
    if self.registers is None:
      raise WeightsError(f'{self.title} knows no registers')
    return self.registers

  def _projection(self) -> Pair:
    if self.projection is None:
      raise WeightsError(f'{self.title} knows no projection')
    if self.bare:
      return same(self.projection, 'projection')
    (pair,) = layer(self.projection, 'x', bias=False)
    return dataclasses.replace(pair, ours=('projection',))

  def _block(self, i: int, encoder: Any) -> list[Pair]:
    theirs, ours = self.block.format(i), f'block_{i}'
    out = norm(f'{theirs}{self.norms[0]}', f'{ours}/norm1')
    out += norm(f'{theirs}{self.norms[1]}', f'{ours}/norm2')
    names = [f'{ours}/attention/{k}' for k in ('query', 'key', 'value')]
    for kind, known in (('weight', 'qkv'), ('bias', encoder.biases)):
      leaf = 'kernel' if kind == 'weight' else 'bias'
      paths = [f'{n}/{leaf}' for n in names if n.rpartition('/')[2][0] in known]
      if not paths:
        continue
      kernel = kind == 'weight'
      if kind == 'bias' and self.biases and encoder.biases == 'qv':
        out += [
          same(theirs + name, path)
          for name, path in zip(self.biases, paths, strict=True)
        ]
      elif len(self.attention) == 1:
        name = f'{theirs}{self.attention[0]}{kind}'
        out.append(fused(name, tuple(paths), kernel=kernel))
      else:
        for letter, name, path in zip(
          'qkv', self.attention, names, strict=True
        ):
          if letter in known:
            path = f'{path}/{leaf}'
            out.append(fused(f'{theirs}{name}{kind}', (path,), kernel=kernel))
    out += layer(f'{theirs}{self.out}', f'{ours}/attention/out')
    mlp = self.glu if encoder.mlp == 'swiglu' else self.mlp
    for name, path in zip(mlp, ('fc1', 'fc2'), strict=True):
      out += layer(f'{theirs}{name}', f'{ours}/mlp/{path}')
    if encoder.layer_scale:
      for branch, name in enumerate(self.scales or ('?', '?'), 1):
        path = f'{ours}/layer_scale{branch}/scale'
        out.append(same(f'{theirs}{name}', path))
    if encoder.relative == 'block':
      name = self.relative['block'].format(i)
      out.append(same(name, f'position_bias/block_{i}'))
    return out
