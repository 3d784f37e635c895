"""Swin transformer."""

from typing import ClassVar

import jax
from einops import rearrange
from flax import linen as nn

from models import layers, patches, pieces
from models.features import Features
from models.initializers import TORCH_PATCHES
from models.masking import Mask, MaskToken, check_mask
from models.swin_blocks import EPSILON, PatchMerging, SwinBlock
from models.visible_windows import VisibleWindows, released_places
from models.windows import PADDINGS, Windows, fitting


class Swin(nn.Module):
  """Swin transformer (Liu et al., arXiv:2103.14030).

  A pyramid: stage i works on maps 2**i times coarser and wider than the first.
  Attention stays inside windows, which every second block shifts by half their
  side; its logits have a learned bias by relative position, and there are no
  other positions. LayerNorm after the patch embedding and at the end.
  Initialised as the authors do: N(0, 0.02^2) for matrices and bias tables,
  biases 0, PyTorch's default for the patch kernel and its bias.

  Takes images of any size that patches tile. Where windows do not tile a map it
  is padded below and to the right; where a map is smaller than a window the
  window shrinks to it, along that axis, and is not shifted.

  A mask is over the grid of the last stage. Its cells take all that lies under
  them out of the earlier stages as well (GreenMIM, arXiv:2205.13515; LocalMIM,
  arXiv:2303.05251), so that no merging crosses a cell and nothing is computed
  for what is hidden. A mask that all images share costs least: the biases of
  its windows are made once (see `VisibleWindows`). With `mask_token` nothing is
  taken out (SimMIM, arXiv:2111.09886).

  Parameters: `patch_embed` (kernel [p, p, c, d], bias), `patch_norm`, `block_i`
  (`SwinBlock`, counted over the whole network), `merge_i` (after stage i,
  `PatchMerging`), `norm` and, where the field says so, `mask_token`. They are
  float32 whatever `dtype` says.

  Attributes:
    patch_size: side of a patch in pixels.
    width: width d of the first stage's tokens.
    depths: number of blocks of every stage.
    num_heads: attention heads of every stage.
    window: side of the windows in tokens.
    mlp_ratio: hidden width of the MLPs over the width.
    in_channels: channels c of the images.
    padding: 'masked' hides padding from attention: what is no image has no say
      and a shrunken window equals a padded one. 'zeros' and 'timm' reproduce
      Hugging Face (and the authors' detection code) and timm, whose attention
      sees padding; for weights trained that way. All are the same where
      windows tile the maps. See `Windows`. With 'zeros' windows also stay
      square: a map that is small along one axis is not shifted along either.
    native_size: (height, width) of the images that decide where windows
      shrink and are not shifted, None for each image's own. timm and the
      authors fix it when they build a model.
    drop_path: rate of stochastic depth in the last block; linear from 0.
    remat: recompute each block in the backward pass to save memory.
    dtype: 'float32' or 'bfloat16': products and residual stream.
    attention_impl: 'auto', 'einsum' or 'xla'; see `Attention`. Not 'cudnn',
      which has no gradient of a bias for windows of odd size.
    mean: per-channel image mean, or one number for all; None is ImageNet's for
      three channels and 0.5 otherwise.
    std: per-channel image standard deviation; None as for `mean`.
    norm_epsilon: of every LayerNorm (1e-6 in LocalMIM's code).
    mask_token: a mask puts a learned vector in the place of hidden tokens,
      after `patch_norm`; they stay, and all levels are whole. Cells may then
      be of any size that patches tile.
    legacy_geometry: with a mask, err like LocalMIM's released code, to compare
      with its checkpoints or to go on from them: mergings concatenate row by
      row, and after them windows hold tokens that are not theirs. Without a
      mask, as when its authors fine-tune, nothing differs.
  """

  patch_size: int = 4
  width: int = 96
  depths: tuple[int, ...] = (2, 2, 6, 2)
  num_heads: tuple[int, ...] = (3, 6, 12, 24)
  window: int = 7
  mlp_ratio: float = 4
  in_channels: int = 3
  padding: str = 'masked'
  native_size: tuple[int, int] | None = None
  drop_path: float = 0.0
  remat: bool = False
  dtype: str = 'float32'
  attention_impl: str = 'auto'
  mean: tuple[float, ...] | None = None
  std: tuple[float, ...] | None = None
  norm_epsilon: float = EPSILON
  mask_token: bool = False
  legacy_geometry: bool = False

  pool: ClassVar[str] = 'mean'  # what `pooled` is; there is no CLS token

  @property
  def depth(self) -> int:
    """Number of blocks of all stages."""
    return sum(self.depths)

  @property
  def strides(self) -> tuple[int, ...]:
    """Pixels per token along a side, for every level."""
    return tuple(self.patch_size * 2**i for i in range(len(self.depths)))

  @property
  def cell(self) -> int:
    """Side in pixels of a cell of a mask: a token of the last stage."""
    return self.strides[-1]

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    mask: Mask | None = None,
    cuts: tuple[int, ...] = (),
    attention: tuple[int, ...] = (),
    noise: jax.Array | None = None,
  ) -> Features:
    """Encodes a batch of images.

    Args:
      x: images in [0, 1], [b, H, W, c] float.
      mask: hides tokens of the last stage and what lies under them; every
        level, merged or not, reports the visible tokens alone, with their index
        in its grid (but see `mask_token`).
      cuts: stages (0-based; negative from the end) after which the stream is
        stop-gradiented. A stage ends with its merging: neither the level nor
        the merged map reported there is stop-gradiented.
      attention: blocks, counted over all stages, whose attention weights are
        wanted: [b, windows, heads, n, n], where windows are those of the
        shifted map in row-major order and padding is a key like others
        (weight 0 where it is masked). Of visible tokens alone: [b, 1, heads, n,
        n] in the order of the level, 0 between windows.
      noise: uniform numbers in [0, 1) for stochastic depth, [b, 2 * depth];
        column 2 * i + j is for branch j of block i. None switches it off
        (teachers, evaluation).

    Returns:
      Features: one level per stage, before merging, and one merged level per
      merging, in `dtype`; tokens of the last stage and their mean, pooled,
      after the final norm in float32. There is no cls.

    Raises:
      ValueError: for images, mask, noise or fields that do not fit together.
    """
    self._check(x, mask, noise)
    stages = len(self.depths)
    cuts = {layers.resolve(i, stages, 'cuts', 'stage') for i in cuts}
    wanted = {
      i: layers.resolve(i, self.depth, 'attention', 'block') for i in attention
    }
    grids = self._grids(x.shape[1:3])
    x = self._embed(x, mask)
    mask = None if self.mask_token else mask
    levels, merged, weights = [], [], {}
    for stage in range(stages):
      windows = fitting(*grids[stage], self.window, self.padding)
      visible = self._visible(stage, windows, mask)
      x = self._stage(x, stage, windows, visible, noise, wanted, weights)
      levels.append(pieces.level(x, mask))
      if stage < stages - 1:
        x = PatchMerging(
          row_by_row=self.legacy_geometry and mask is not None,
          dtype=layers.compute_dtype(self.dtype),
          epsilon=self.norm_epsilon,
          name=f'merge_{stage}',
        )(x)
        merged.append(pieces.level(x, mask))
      if stage in cuts:
        x = jax.lax.stop_gradient(x)
    # float32 from here on, for losses and for what probes store.
    x = rearrange(x, 'b k p q d -> b (k p q) d')
    tokens = layers.layer_norm('norm', epsilon=self.norm_epsilon)(x)
    return Features(
      levels=tuple(levels),
      tokens=tokens,
      pooled=tokens.mean(axis=1),
      merged=tuple(merged),
      attention={asked: weights[i] for asked, i in wanted.items()},
    )

  def _embed(self, x: jax.Array, mask: Mask | None) -> jax.Array:
    """Images [b, H, W, c] to pieces of normed tokens, [b, k, p, q, d]."""
    dtype = layers.compute_dtype(self.dtype)
    x = pieces.take(x, None if self.mask_token else mask, self.cell)
    b, k, height, width, _ = x.shape
    x = patches.normalize(x, self.mean, self.std)
    x = patches.patchify(x.reshape(b * k, height, width, -1), self.patch_size)
    x = x.reshape(b, k, *x.shape[1:])
    x = patches.PatchEmbed(
      patch_size=self.patch_size,
      in_channels=self.in_channels,
      width=self.width,
      dtype=dtype,
      start=TORCH_PATCHES,
      name='patch_embed',
    )(x)
    x = layers.layer_norm('patch_norm', dtype, self.norm_epsilon)(x)
    if not self.mask_token:
      return x
    tokens = x.reshape(b, -1, self.width)
    return MaskToken(name='mask_token')(tokens, mask).reshape(x.shape)

  def _visible(self, stage, windows, mask):
    """What a mask leaves of these windows; None without one."""
    if mask is None:
      return None, None
    side = self.cell // self.strides[stage]
    legacy = self.legacy_geometry and stage > 0
    row, column = (released_places if legacy else pieces.places)(mask, side)
    order = pieces.row_major(mask, side)[1]
    return tuple(VisibleWindows.at(w, row, column, order) for w in windows)

  def _stage(self, x, stage, windows, visible, noise, wanted, weights):
    """Blocks of one stage on pieces [b, k, p, q, d]; fills `weights`."""
    block_type = nn.remat(SwinBlock) if self.remat else SwinBlock
    rates = layers.drop_path_rates(self.depth, self.drop_path)
    shape = x.shape
    x = x.reshape(len(x), -1, shape[-1])
    start = sum(self.depths[:stage])
    for i in range(start, start + self.depths[stage]):
      shifted = (i - start) % 2
      block = block_type(
        num_heads=self.num_heads[stage],
        windows=windows[shifted],
        reach=self.window,
        mlp_ratio=self.mlp_ratio,
        drop_path=rates[i],
        dtype=layers.compute_dtype(self.dtype),
        attention_impl=self.attention_impl,
        with_map=i in wanted.values(),
        epsilon=self.norm_epsilon,
        name=f'block_{i}',
      )
      branches = None if noise is None else noise[:, 2 * i : 2 * i + 2]
      x, weights[i] = block(x, branches, visible[shifted])
    return x.reshape(shape)

  def windows_of(self, block: int, size: tuple[int, int]) -> Windows:
    """How a block cuts its map: where its attention weights belong.

    Args:
      block: counted over all stages, 0-based; negative from the end.
      size: (height, width) of the images.
    """
    block = layers.resolve(block, self.depth, 'block')
    grids = self._grids(size)
    for depth, grid in zip(self.depths, grids, strict=True):
      if block < depth:
        return fitting(*grid, self.window, self.padding)[block % 2]
      block -= depth
    raise AssertionError('resolve() lets no other block through')

  def _grids(self, size):
    """Per stage the grid and the one that decides about windows."""
    both = size, self.native_size or size
    return [
      tuple(tuple(-(-side // stride) for side in sides) for sides in both)
      for stride in self.strides
    ]

  def _check(
    self, x: jax.Array, mask: Mask | None, noise: jax.Array | None
  ) -> None:
    """Raises ValueError, before anything compiles, for what cannot work."""
    if len(self.depths) != len(self.num_heads) or min(self.depths) < 1:
      raise ValueError(
        f'depths {self.depths} and num_heads {self.num_heads} must have one '
        'number of at least 1 for every stage'
      )
    if self.window < 1:
      raise ValueError(f'window must be at least 1, not {self.window}')
    layers.check_word('padding', self.padding, PADDINGS)
    if self.attention_impl == 'cudnn':
      raise ValueError(
        "attention_impl 'cudnn' cannot train Swin's position bias: use 'auto' "
        "or 'xla'"
      )
    if self.mask_token and self.legacy_geometry:
      raise ValueError(
        'legacy_geometry is about tokens that a mask takes out, and mask_token '
        'keeps them all: set one of the two'
      )
    patches.check_images(x, self.in_channels)
    patches.check_divisible(x.shape[1:3], self.patch_size)
    layers.check_noise(noise, len(x), self.depth)
    if mask is None:
      return
    cell = self.cell
    if self.mask_token:  # nothing is merged by cells
      patches_wide = x.shape[1] // mask.grid[0] // self.patch_size
      cell = max(patches_wide, 1) * self.patch_size
    patches.check_divisible(x.shape[1:3], cell, "a mask's cell")
    check_mask(mask, x.shape, cell)
