"""MAE: an autoencoder that sees a quarter of the patches.

He et al.: Masked Autoencoders Are Scalable Vision Learners, 2022
(arXiv:2111.06377).
"""

import functools
from collections.abc import Mapping
from typing import Any

from models.masked_decoders import MaskedDecoder
from models.masking import random_masking
from models.swin import Swin
from pretrain.branch import Branch
from pretrain.losses import squared_error
from pretrain.masked_modeling import MaskedModeling
from pretrain.targets import NormalizedPixels
from training.recipe import Recipe


def mae(
  encoder: Any,
  recipe: Recipe,
  *,
  decoder: Mapping[str, Any],
  mask_ratio: float = 0.75,
  normalize_pixels: bool = True,
  dtype: str = 'float32',
  chunks: int = 1,
) -> MaskedModeling:
  """MAE (authors' code, `models_mae.py`).

  The loss is the squared error of the hidden patches' pixels, averaged over
  all hidden patches of the batch.

  Args:
    encoder: a ViT, or a ConvViT (ConvMAE, arXiv:2205.03892).
    recipe: rates and decay; the authors exclude vectors from decay.
    decoder: `width`, `depth`, `num_heads` of the `MaskedDecoder`.
    mask_ratio: share of hidden patches; int(n · (1 − ratio)) of n stay visible.
    normalize_pixels: whether every patch of the target has mean 0 and standard
      deviation 1.
    dtype: compute dtype of the decoder.
    chunks: into how many parts the batch is cut.

  Returns:
    The method.

  Raises:
    ValueError: a Swin, whose windows need all patches.
  """
  if isinstance(encoder, Swin):
    raise ValueError(
      'MAE needs an encoder that is given visible patches alone: a ViT or a '
      'ConvViT, not a Swin'
    )
  side = encoder.patch_size
  return MaskedModeling(
    encoder=encoder,
    masking=functools.partial(random_masking, ratio=mask_ratio),
    branches={
      'decoder': Branch(
        levels=('final',),
        decoder=MaskedDecoder(
          out_features=side * side * encoder.in_channels,
          attention_impl=encoder.attention_impl,
          dtype=dtype,
          **decoder,
        ),
        target=NormalizedPixels(
          patch_size=side,
          mean=encoder.mean,
          std=encoder.std,
          by_patch=normalize_pixels,
        ),
        error=squared_error,
        on='masked',
      )
    },
    recipe=recipe,
    chunks=chunks,
  )
