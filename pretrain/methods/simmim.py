"""SimMIM: raw pixels of masked patches, from a linear head.

Xie et al.: SimMIM: A Simple Framework for Masked Image Modeling, 2022
(arXiv:2111.09886).
"""

import functools
from typing import Any

from models.convvit import ConvViT
from models.decoders import LinearDecoder
from models.masking import random_masking
from pretrain.branch import Branch
from pretrain.masked_modeling import MaskedModeling
from pretrain.targets import NormalizedPixels
from training.recipe import Recipe


def simmim(
  encoder: Any,
  recipe: Recipe,
  *,
  mask_ratio: float = 0.6,
  mask_unit: int = 32,
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
      whole.
    dtype: compute dtype of the head.
    chunks: into how many parts the batch is cut.

  Returns:
    The method.

  Raises:
    ValueError: a ConvViT, or units that are not made of the encoder's cells.
  """
  if isinstance(encoder, ConvViT):
    raise ValueError(
      'SimMIM puts a token in the place of hidden patches, which no ConvViT '
      'has (its convolutions leave them out): take a ViT or a Swin, or MAE'
    )
  cell, side = encoder.cell, encoder.strides[-1]
  if mask_unit < cell or mask_unit % cell:
    lower = max(mask_unit // cell, 1) * cell
    raise ValueError(
      f'method.mask_unit={mask_unit} px is not made of cells of {cell} px, '
      f'below which this encoder cannot mask: take {lower} or {lower + cell}'
    )
  return MaskedModeling(
    encoder=encoder.clone(mask_token=True),
    masking=functools.partial(
      random_masking, ratio=mask_ratio, unit=mask_unit // cell
    ),
    branches={
      'decoder': Branch(
        levels=('final',),
        decoder=LinearDecoder(
          out_features=side * side * encoder.in_channels, dtype=dtype
        ),
        target=NormalizedPixels(
          patch_size=side, mean=encoder.mean, std=encoder.std, by_patch=False
        ),
        on='masked',
      )
    },
    recipe=recipe,
    chunks=chunks,
  )
