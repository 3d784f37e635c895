"""MAE: an autoencoder that sees a quarter of the patches.

He et al.: Masked Autoencoders Are Scalable Vision Learners, 2022
(arXiv:2111.06377). On a Swin: Huang et al., Green Hierarchical Vision
Transformer for Masked Image Modeling, 2022 (arXiv:2205.13515).
"""

from collections.abc import Mapping
from typing import Any

from models.decoders import level_indices
from models.layers import check_word
from models.masked_decoders import MaskedDecoder
from models.masked_fusion import MaskedFusionDecoder
from pretrain.branch import Branch
from pretrain.losses import squared_error
from pretrain.masked_modeling import MaskedModeling
from pretrain.masks import choose_masking
from pretrain.targets import NormalizedPixels
from training.recipe import Recipe

DECODERS = ('blocks', 'fusion')


def mae(
  encoder: Any,
  recipe: Recipe,
  *,
  decoder: Mapping[str, Any],
  mask_ratio: float = 0.75,
  masking: str = 'random',
  masks_per_image: int = 1,
  normalize_pixels: bool = True,
  dtype: str = 'float32',
  chunks: int = 1,
) -> MaskedModeling:
  """MAE (authors' code, `models_mae.py`).

  The loss is the squared error of the hidden patches' pixels, averaged over
  all hidden patches of the batch. A Swin hides tokens of its last stage, the
  same ones in all images of a batch, and predicts their pixels (GreenMIM).

  Differs from GreenMIM's code: the decoder puts every visible unit in its own
  # place; theirs takes units in the order of the grid for units in the order of
  # the noise, and so exchanges them.

  Args:
    encoder: a ViT, a ConvViT (ConvMAE, arXiv:2205.03892) or a Swin.
    recipe: rates and decay; the authors exclude vectors from decay.
    decoder: `kind` 'blocks' (where nothing is said): `width`, `depth`,
      `num_heads` of the `MaskedDecoder`. 'fusion': `levels`, how many of the
      encoder's are fused, as RePre chooses them, and `width`, `fusion`,
      `fusion_layers` of the `MaskedFusionDecoder`; it predicts patches of the
      shallowest level, and the encoder's final norm learns nothing.
    mask_ratio: share of hidden patches; int(n · (1 − ratio)) of n stay visible.
    masking: 'random', or 'blocks' (BEiT's).
    masks_per_image: 1, or 1 / (1 − mask_ratio): every image is masked so often
      that each patch is visible once, while it is read once (FastConvMAE).
    normalize_pixels: whether every patch of the target has mean 0 and standard
      deviation 1.
    dtype: compute dtype of the decoder.
    chunks: into how many parts the batch is cut.

  Returns:
    The method.

  Raises:
    ValueError: unknown words, more levels than there are, or numbers of masks
      and ratios that do not fit.
  """
  fields = dict(decoder)
  kind = fields.pop('kind', 'blocks')
  check_word('method.decoder.kind', kind, DECODERS)
  build = _fusion if kind == 'fusion' else _blocks
  levels, side, module = build(encoder, dtype=dtype, **fields)
  return MaskedModeling(
    encoder=encoder,
    masking=choose_masking(
      encoder,
      kind=masking,
      ratio=mask_ratio,
      masks_per_image=masks_per_image,
    ),
    copies=masks_per_image,
    branches={
      'decoder': Branch(
        levels=levels,
        decoder=module,
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


def _blocks(encoder: Any, **fields: Any) -> tuple[tuple, int, MaskedDecoder]:
  """MAE's decoder: what it reads, the side of what it predicts, itself."""
  side = encoder.cell
  decoder = MaskedDecoder(
    out_features=side * side * encoder.in_channels,
    attention_impl=encoder.attention_impl,
    **fields,
  )
  return ('final',), side, decoder


def _fusion(
  encoder: Any, *, levels: int = 4, **fields: Any
) -> tuple[tuple, int, MaskedFusionDecoder]:
  """RePre's decoder, likewise."""
  taps = level_indices(len(encoder.strides), levels)
  side = encoder.strides[taps[0]]
  decoder = MaskedFusionDecoder(
    patch_size=side, out_channels=encoder.in_channels, **fields
  )
  return taps, side, decoder
