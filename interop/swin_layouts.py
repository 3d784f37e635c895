"""Layouts of Swin transformers."""

import dataclasses
import re
from typing import Any

from interop.files import WeightsError
from interop.hints import Hints
from interop.layout import Found, Layout, layouts_of, square_kernel
from interop.pairs import Pair, convolution, fused, layer, linear, norm, same
from interop.swin_pairs import table, unfolded

IGNORED = (
  r'(head|classifier|pooler|fc)\..*',
  r'(embeddings\.)?mask_token',
  r'.*relative_position_index',
  r'.*attn_mask',
  r'decoder.*',
  r'norm\.?\d\..*',  # of LocalMIM's first decoders, of detectors
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Names:
  """How a layout calls the parts of a Swin.

  Attributes:
    title: of the layout.
    patch: convolution of the patch embedding.
    patch_norm: norm after it.
    block: what begins the names of a block; stage, and block in the stage.
    norms: the two norms of a block.
    attention: (query, key, value), or one name of all three.
    out: output of attention.
    table: biases by relative position.
    mlp: the two layers.
    merge: patch merging; its stage.
    merges_at: 0: of the stage before it, 1: of the stage after it.
    final: norm at the end; `{}` is the last stage.
    padding: field of `Swin`.
    fixed: whether windows are those of the size that it was built for.
    square: whether windows stay square where they shrink.
    epsilon: of LayerNorms.
    unfolds: merging reads the four neighbours of a channel side by side, and by
      rows, as PyTorch's `unfold` makes them (mmdet).
  """

  title: str
  patch: str = 'patch_embed.proj'
  patch_norm: str = 'patch_embed.norm'
  block: str = 'layers.{}.blocks.{}.'
  norms: tuple[str, str] = ('norm1', 'norm2')
  attention: tuple[str, ...] = ('attn.qkv',)
  out: str = 'attn.proj'
  table: str = 'attn.relative_position_bias_table'
  mlp: tuple[str, str] = ('mlp.fc1', 'mlp.fc2')
  merge: str = 'layers.{}.downsample'
  merges_at: int = 0
  final: str = 'norm'
  padding: str = 'masked'
  fixed: bool = True
  square: bool = True
  epsilon: float = 1e-5
  unfolds: bool = False

  @property
  def anchors(self) -> tuple[str, ...]:
    """See `Layout`."""
    return f'{self.patch}.weight', self.block.format(0, 0) + self.table

  def pairs(self, encoder: Any) -> list[Pair]:
    """How the parameters of a Swin are named."""
    out = [
      convolution(f'{self.patch}.weight', 'patch_embed/kernel'),
      same(f'{self.patch}.bias', 'patch_embed/bias'),
      *norm(self.patch_norm, 'patch_norm'),
    ]
    i = 0
    for stage, depth in enumerate(encoder.depths):
      sides = self._reach(encoder, stage)
      for j in range(depth):
        out += self._block(self.block.format(stage, j), f'block_{i}')
        name = self.block.format(stage, j) + self.table
        out.append(
          table(name, f'block_{i}/position_bias', sides, encoder.window)
        )
        i += 1
      if stage + 1 < len(encoder.depths):
        merge = self.merge.format(stage + self.merges_at)
        out += self._merging(merge, f'merge_{stage}')
    last = self.final.format(len(encoder.depths) - 1)
    return out + norm(last, 'norm')

  def _reach(self, encoder: Any, stage: int) -> tuple[int, int]:
    """Sides of the windows that tables of a stage are for, in its file."""
    if encoder.native_size is None:
      return (encoder.window,) * 2
    return self.shrunk(
      encoder.window, encoder.native_size, encoder.patch_size * 2**stage
    )

  def shrunk(
    self, window: int, size: tuple[int, int], stride: int
  ) -> tuple[int, int]:
    """Sides of windows on the map of an image of a size."""
    sides = tuple(min(window, -(-side // stride)) for side in size)
    return (min(sides),) * 2 if self.square else sides

  def _merging(self, theirs: str, ours: str) -> list[Pair]:
    out = [linear(f'{theirs}.reduction.weight', f'{ours}/reduction/kernel')]
    out += norm(f'{theirs}.norm', f'{ours}/norm')
    return [unfolded(pair) for pair in out] if self.unfolds else out

  def _block(self, theirs: str, ours: str) -> list[Pair]:
    paths = [f'{ours}/attention/{k}' for k in ('query', 'key', 'value')]
    out = norm(theirs + self.norms[0], f'{ours}/norm1')
    out += norm(theirs + self.norms[1], f'{ours}/norm2')
    for kind, leaf in (('weight', 'kernel'), ('bias', 'bias')):
      leaves = [f'{p}/{leaf}' for p in paths]
      per_name = len(leaves) // len(self.attention)
      for n, name in enumerate(self.attention):
        some = tuple(leaves[n * per_name : (n + 1) * per_name])
        kernel = leaf == 'kernel'
        out.append(fused(f'{theirs}{name}.{kind}', some, kernel=kernel))
    out += layer(theirs + self.out, f'{ours}/attention/out')
    for name, path in zip(self.mlp, ('fc1', 'fc2'), strict=True):
      out += layer(theirs + name, f'{ours}/mlp/{path}')
    return out


MICROSOFT = Names(title='Microsoft Swin')  # also MoBY, SimMIM, GreenMIM
TIMM = dataclasses.replace(
  MICROSOFT, title='timm Swin', merges_at=1, padding='timm', square=False
)
LOCAL_MIM = dataclasses.replace(
  MICROSOFT, title='LocalMIM Swin', final='norm.3', epsilon=1e-6
)
HUGGING_FACE = Names(
  title='Hugging Face Swin',
  patch='embeddings.patch_embeddings.projection',
  patch_norm='embeddings.norm',
  block='encoder.layers.{}.blocks.{}.',
  norms=('layernorm_before', 'layernorm_after'),
  attention=tuple(f'attention.self.{k}' for k in ('query', 'key', 'value')),
  out='attention.output.dense',
  table='attention.self.relative_position_bias_table',
  mlp=('intermediate.dense', 'output.dense'),
  merge='encoder.layers.{}.downsample',
  final='layernorm',
  padding='zeros',
  fixed=False,
)
MMDET = Names(
  title='mmdet Swin',
  patch='patch_embed.projection',
  block='stages.{}.blocks.{}.',
  attention=('attn.w_msa.qkv',),
  out='attn.w_msa.proj',
  table='attn.w_msa.relative_position_bias_table',
  mlp=('ffn.layers.0.0', 'ffn.layers.1'),
  merge='stages.{}.downsample',
  final='norm{}',
  fixed=False,
  unfolds=True,
)
TABLES = (MICROSOFT, TIMM, LOCAL_MIM, HUGGING_FACE, MMDET)


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
    WeightsError: sizes that no Swin has.
  """
  width, channels, patch = square_kernel(found, f'{names.patch}.weight')
  depths = _depths(names, found)
  tables = [
    found[names.block.format(stage, 0) + names.table].shape
    for stage in range(len(depths))
  ]
  if hints.activation not in (None, 'gelu'):
    raise WeightsError(f'no Swin here has the activation {hints.activation}')
  native = hints.image_size if names.fixed else None
  window, native = _windows(names, tables, patch, native)
  fields = dict(
    name='swin',
    patch_size=patch,
    width=width,
    depths=depths,
    num_heads=tuple(table[1] for table in tables),
    window=window,
    mlp_ratio=_hidden(names, found, width) / width,
    in_channels=channels,
    padding=names.padding,
    native_size=native,
    norm_epsilon=names.epsilon,
  )
  return fields | hints.told('norm_epsilon', 'mean', 'std', 'padding')


def _depths(names: Names, found: Found) -> tuple[int, ...]:
  pattern = re.escape(names.block).replace(r'\{\}', r'(\d+)')
  blocks = {
    (int(m[1]), int(m[2])) for n in found if (m := re.match(pattern, n))
  }
  stages = {stage for stage, _ in blocks}
  depths = tuple(
    sum(stage == s for s, _ in blocks) for stage in range(len(stages))
  )
  if 0 in depths:
    raise WeightsError(f'stages {sorted(stages)} do not follow one another')
  return depths


def _windows(
  names: Names,
  tables: list[tuple[int, ...]],
  patch: int,
  native: tuple[int, int] | None,
) -> tuple[int, tuple[int, int] | None]:
  """Side of the windows, and the size of image that shrinks them."""
  rows = [table[0] for table in tables if len(table) == 2]
  if native:
    strides = [patch * 2**stage for stage in range(len(tables))]
    for window in range(1, max(native) // patch + 1):
      shrunk = [names.shrunk(window, native, stride) for stride in strides]
      if rows == [(2 * h - 1) * (2 * w - 1) for h, w in shrunk]:
        return window, native
  sides = [_side(names, table) for table in tables]
  for stage, side in enumerate(sides):
    if side < max(sides) and native is None:
      native = (side * patch * 2**stage,) * 2
  return max(sides), native


def _side(names: Names, table: tuple[int, ...]) -> int:
  side = round(table[0] ** 0.5) if len(table) == 2 else 0
  if side % 2 == 0 or side * side != table[0]:
    raise WeightsError(
      f'{names.title}: a table of relative positions is {list(table)}, which '
      'no square window has: set config.weights.image_size to the (height, '
      'width) that it was built for'
    )
  return (side + 1) // 2


def _hidden(names: Names, found: Found, width: int) -> int:
  name = f'{names.block.format(0, 0)}{names.mlp[0]}.weight'
  return found[name].shape[0] if name in found else 4 * width
