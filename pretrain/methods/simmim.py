"""SimMIM: raw pixels of masked patches, from a linear head.

Xie et al.: SimMIM: A Simple Framework for Masked Image Modeling, 2022
(arXiv:2111.09886).
"""

from typing import Any

from models.convvit import ConvViT
from models.decoders import LinearDecoder
from pretrain.branch import Branch
from pretrain.masked_modeling import MaskedModeling
from pretrain.masks import choose_masking
from pretrain.targets import NormalizedPixels
from training.recipe import Recipe


def simmim(
  encoder: Any,
  recipe: Recipe,
  *,
  mask_ratio: float = 0.6,
  mask_unit: int = 32,
  masking: str = 'random',
  dtype: str = 'float32',
  chunks: int = 1,
) -> MaskedModeling:
  """SimMIM (authors' code, `models/simmim.py`).

  All patches enter the encoder, hidden ones as a learned token. A linear layer
  on each place of the last map predicts the pixels below it; the loss is their
  mean absolute error where they are hidden, with channels normalised as the
  encoder sees them.

  Differs from the paper: n · ratio hidden units are rounded up, as in the
  # authors' code.

  Args:
    encoder: a ViT or a Swin; the method's own has a mask token besides.
    recipe: rates and decay.
    mask_ratio: share of hidden units.
    mask_unit: side in pixels of the squares that are hidden or visible as a
      whole: so many patches, or, of a Swin, a part of its stride.
    masking: 'random' units, or 'blocks' (BEiT's, of the same cells).
    dtype: compute dtype of the head.
    chunks: into how many parts the batch is cut.

  Returns:
    The method.

  Raises:
    ValueError: a ConvViT, or units that do not fit the encoder.
  """
  if isinstance(encoder, ConvViT):
    raise ValueError(
      'SimMIM puts a token in the place of hidden patches, which no ConvViT '
      'has (its convolutions leave them out): take a ViT or a Swin, or MAE'
    )
  cell = _cell(encoder, mask_unit)
  encoder = encoder.clone(mask_token=True)
  return MaskedModeling(
    encoder=encoder,
    masking=choose_masking(
      encoder,
      kind=masking,
      ratio=mask_ratio,
      unit=mask_unit // cell,
      parts=encoder.cell // cell,
    ),
    branches={
      'decoder': Branch(
        levels=('final',),
        decoder=LinearDecoder(
          out_features=cell * cell * encoder.in_channels,
          scale=encoder.strides[-1] // cell,
          dtype=dtype,
        ),
        target=NormalizedPixels(
          patch_size=cell, mean=encoder.mean, std=encoder.std, by_patch=False
        ),
        on='masked',
      )
    },
    recipe=recipe,
    chunks=chunks,
  )


def _cell(encoder: Any, unit: int) -> int:
  """Side in pixels of the cells that masks and predictions are made of.

  The encoder's, or one unit where that is less: a token stands in the place of
  each of the first stage's.
  """
  cell, smallest = encoder.cell, encoder.patch_size
  known = [c for c in range(smallest, cell, smallest) if cell % c == 0]
  if unit in known:
    return unit
  if unit < cell or unit % cell:
    parts = f', or one of {known}' if known else ''
    raise ValueError(
      f'method.mask_unit={unit} px must be a multiple of the {cell} px that '
      f'this encoder can hide{parts}'
    )
  return cell
