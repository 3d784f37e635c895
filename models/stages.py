"""The shape of an encoder's work: how many blocks, of which size."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from flax import linen as nn

from models.convvit import ConvViT
from models.swin import Swin


class Stage(NamedTuple):
  """Blocks of one size.

  Attributes:
    blocks: how many.
    tokens: that pass through each.
    width: of a token.
    heads: of the attention; 0 for convolutions.
    attended: tokens that each token attends to.
  """

  blocks: int
  tokens: float
  width: int
  heads: int
  attended: float

  def flops(self) -> float:
    """Of one image's forward pass: 24 n d^2 + 4 n m d for each block.

    Two per multiply-add; MLPs are four times as wide as the tokens. Norms,
    embeddings and 5 x 5 kernels are left out: some percent.
    """
    products = 24 * self.tokens * self.width**2
    attention = 4 * self.tokens * self.attended * self.width
    return self.blocks * (products + attention * bool(self.heads))


def stages(
  encoder: nn.Module, size: Sequence[int], visible: float = 1.0
) -> tuple[Stage, ...]:
  """Blocks of an encoder for images of a size.

  Args:
    encoder: a `ViT`, `Swin` or `ConvViT`.
    size: (height, width) of the images in pixels.
    visible: share of the cells that a mask leaves to the encoder.

  Returns:
    One `Stage` for each of the encoder's.
  """

  def places(pixels: int) -> float:
    return math.prod(math.ceil(side / pixels) for side in size)

  if isinstance(encoder, Swin):
    return tuple(
      Stage(
        blocks,
        visible * places(encoder.patch_size * 2**i),
        encoder.width * 2**i,
        heads,
        min(encoder.window**2, places(encoder.patch_size * 2**i)),
      )
      for i, (blocks, heads) in enumerate(
        zip(encoder.depths, encoder.num_heads, strict=True)
      )
    )
  if isinstance(encoder, ConvViT):
    last = len(encoder.depths) - 1
    return tuple(
      Stage(
        blocks,
        # Convolutions run over the whole map, hidden or not.
        (visible if i == last else 1.0)
        * places(math.prod(encoder.patch_sizes[: i + 1])),
        encoder.widths[i],
        encoder.num_heads if i == last else 0,
        visible * places(encoder.patch_size),
      )
      for i, blocks in enumerate(encoder.depths)
    )
  tokens = visible * places(encoder.patch_size)
  tokens += int(encoder.class_token) + encoder.registers
  return (
    Stage(encoder.depth, tokens, encoder.width, encoder.num_heads, tokens),
  )
