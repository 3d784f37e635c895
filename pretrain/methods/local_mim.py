"""LocalMIM: reconstruction at several depths, each at a scale of its own.

Wang et al.: Masked Image Modeling with Local Multi-Scale Reconstruction, 2023
(arXiv:2303.05251).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from models.convvit import ConvViT
from models.layers import check_word
from models.masked_decoders import MaskedDecoder
from models.swin import Swin
from pretrain.branch import Branch
from pretrain.hog import Hog, random_offset
from pretrain.losses import squared_error
from pretrain.masked_modeling import MaskedModeling
from pretrain.masks import choose_masking
from pretrain.targets import NormalizedPixels
from training.recipe import Recipe

TARGETS = ('hog', 'pixels')
SCALES = (4.0, 2.0, 1.0, 0.5)  # of the ViT's four tasks, shallow to deep


class Tap(NamedTuple):
  """Where one task reads the encoder.

  Attributes:
    where: of `Features.tap`.
    stride: pixels per token there.
    cut: the block or stage after which the segment ends.
  """

  where: int | str
  stride: int
  cut: int


def local_mim(
  encoder: Any,
  recipe: Recipe,
  *,
  decoder: Mapping[str, Any],
  levels: Sequence[int] | None = None,
  scales: Sequence[float] | None = None,
  target: str = 'hog',
  hog_bins: int = 9,
  hog_offset: Any = None,
  normalize_pixels: bool = True,
  mask_ratio: float = 0.75,
  masking: str = 'random',
  isolate_gradients: bool = False,
  fuse: bool = False,
  legacy_swin_geometry: bool = False,
  dtype: str = 'float32',
  chunks: int = 1,
) -> MaskedModeling:
  """LocalMIM (authors' code, `models_mim.py`).

  Each task has a small decoder that predicts what is hidden on a grid of its
  own; the loss is the sum of their mean squared errors. The encoder sees
  visible patches alone, a Swin the same ones in all images.

  Args:
    encoder: a ViT, a Swin, or a ConvViT (our extension).
    recipe: rates and decay.
    decoder: of the `MaskedDecoder`s; `width` may be one number for each task.
    levels: which blocks (ViT: 1 to its depth), stages (Swin, after their
      merging) or levels (ConvViT) have a task, shallow to deep, from 1. None:
      2, 4, N − 2 and N of N blocks; all stages; or all convolution stages and
      the blocks N − 2 and N.
    scales: places per token along a side, of each task; None: 4, 2, 1, 1/2 on
      a ViT, else the grids of the stages.
    target: 'hog', one histogram per place and channel, or 'pixels'.
    hog_bins: of a histogram; 18 for the authors' ViT-L and Swin.
    hog_offset: None, (x, y) added to all gradients, or 'random', other numbers
      in ±1/3 for each task, the same in every run; see `Hog`.
    normalize_pixels: every region of pixels has mean 0 and deviation 1.
    mask_ratio: share of hidden patches or units.
    masking: 'random', or 'blocks' (BEiT's).
    isolate_gradients: each task trains its own segment of the encoder alone.
    fuse: one task instead, whose decoder reads the sum of all levels and
      predicts one place per token.
    legacy_swin_geometry: see `Swin.legacy_geometry`.
    dtype: of the decoders' computations.
    chunks: into how many parts the batch is cut.

  Returns:
    The method; its branches are `level_i` (a second task there `level_i_b`), or
    `fused`.

  Raises:
    ValueError: unknown words, or what does not fit together.
  """
  check_word('method.target', target, TARGETS)
  if legacy_swin_geometry:
    encoder = _legacy(encoder)
  levels = _levels(encoder, levels)
  taps = [_tap(encoder, level) for level in levels]
  names = ['fused'] if fuse else _names(levels)
  groups = [taps] if fuse else [[tap] for tap in taps]
  scales = _scales(encoder, scales, len(names), fuse=fuse)
  decoders = _decoders(decoder, len(names))
  branches = {}
  for i, (name, group) in enumerate(zip(names, groups, strict=True)):
    hog = dict(bins=hog_bins, offset=_offset(hog_offset, i))
    wanted = _target(
      encoder,
      _region(group[-1].stride, scales[i]),
      hog=hog if target == 'hog' else None,
      normalize=normalize_pixels,
    )
    fields = dict(decoders[i], scale=scales[i], dtype=dtype)
    branches[name] = _branch(encoder, group, wanted, fields)
  return MaskedModeling(
    encoder=encoder,
    masking=choose_masking(encoder, kind=masking, ratio=mask_ratio),
    branches=branches,
    recipe=recipe,
    cuts=tuple(tap.cut for tap in taps[:-1]) if isolate_gradients else (),
    chunks=chunks,
    drawn=tuple(branches),
  )


def _legacy(encoder: Any) -> Swin:
  """As the released code encodes.

  Raises:
    ValueError: no Swin.
  """
  if not isinstance(encoder, Swin):
    raise ValueError('method.legacy_swin_geometry is for a Swin')
  return encoder.clone(legacy_geometry=True)


def _levels(encoder: Any, levels: Sequence[int] | None) -> tuple[int, ...]:
  """Levels from 1, checked, or the usual ones."""
  count = len(encoder.strides)
  if levels is None:
    if isinstance(encoder, Swin):
      return tuple(range(1, count + 1))
    first = (2, 4)
    if isinstance(encoder, ConvViT):
      first = tuple(range(1, len(encoder.depths)))
    levels = (*first, count - 2, count)
    if count - 2 < first[-1]:
      raise ValueError(
        f'LocalMIM reads levels {levels} of {count}: an encoder with more '
        'blocks, or method.levels'
      )
  levels = tuple(levels)
  if not levels or list(levels) != sorted(levels):
    raise ValueError(f'method.levels={levels} must go from shallow to deep')
  if levels[0] < 1 or levels[-1] > count:
    raise ValueError(
      f'method.levels={levels}: the encoder has levels 1 to {count}'
    )
  return levels


def _names(levels: Sequence[int]) -> list[str]:
  """Of the tasks; in six blocks the fourth has two."""
  return [
    f'level_{level}' + '_b' * levels[:i].count(level)
    for i, level in enumerate(levels)
  ]


def _tap(encoder: Any, level: int) -> Tap:
  """Of a level from 1; a Swin's stages are read after their merging."""
  i, strides = level - 1, encoder.strides
  if isinstance(encoder, Swin) and level < len(strides):
    return Tap(f'merged_{i}', strides[level], cut=i)
  return Tap(i, strides[i], cut=i)


def _scales(
  encoder: Any, scales: Sequence[float] | None, count: int, *, fuse: bool
) -> tuple[float, ...]:
  if scales is None:
    pyramid = (1.0,) * count
    if isinstance(encoder, ConvViT) and not fuse:
      pyramid = (*pyramid[:-1], 0.5)
    if fuse or isinstance(encoder, Swin | ConvViT):
      return pyramid
    if count != len(SCALES):
      raise ValueError(
        f'method.levels names {count} levels: give method.scales, {count} of '
        f'{SCALES}'
      )
    return SCALES
  if len(scales) != count:
    raise ValueError(
      f'method.scales={tuple(scales)} must be {count} numbers, one per task'
    )
  return tuple(scales)


def _region(stride: int, scale: float) -> int:
  """Side in pixels of what one place predicts."""
  region = round(stride / scale)
  if region < 1 or region * scale != stride:
    raise ValueError(
      f'a scale of {scale} cuts tokens of {stride} px into parts of '
      f'{stride / scale:g} px: change method.scales'
    )
  return region


def _decoders(
  decoder: Mapping[str, Any], count: int
) -> list[Mapping[str, Any]]:
  """Fields of each task's decoder."""
  widths = decoder.get('width', 256)
  widths = (widths,) * count if isinstance(widths, int) else tuple(widths)
  if len(widths) != count:
    raise ValueError(
      f'method.decoder.width={widths} must be one number, or {count}'
    )
  return [dict(decoder, width=width) for width in widths]


def _branch(
  encoder: Any,
  taps: Sequence[Tap],
  target: Hog | NormalizedPixels,
  fields: Mapping[str, Any],
) -> Branch:
  """One task."""
  each = target.bins if isinstance(target, Hog) else target.patch_size**2
  return Branch(
    levels=tuple(tap.where for tap in taps),
    decoder=MaskedDecoder(
      out_features=each * encoder.in_channels,
      norm_input=True,
      conv_out=not isinstance(encoder, Swin),
      attention_impl=encoder.attention_impl,
      **fields,
    ),
    target=target,
    error=squared_error,
    on='masked',
  )


def _target(
  encoder: Any, region: int, *, hog: Mapping[str, Any] | None, normalize: bool
) -> Hog | NormalizedPixels:
  """What a place of `region` px a side is to predict: `hog`, or pixels."""
  statistics = dict(mean=encoder.mean, std=encoder.std)
  if hog is not None:
    return Hog(cell=region, **hog, **statistics)
  return NormalizedPixels(patch_size=region, by_patch=normalize, **statistics)


def _offset(given: Any, task: int) -> tuple[float, float] | None:
  """Of one task's gradients.

  Raises:
    ValueError: neither two numbers nor 'random' nor None.
  """
  if given == 'random':
    return random_offset(task)
  if given is not None and (isinstance(given, str) or len(given) != 2):
    raise ValueError(
      f"method.hog_offset={given!r} must be two numbers, 'random' or None"
    )
  return None if given is None else tuple(given)
