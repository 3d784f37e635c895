"""ConvViTs of ours in ConvMAE's layout."""

from interop import convvit_layouts
from interop.exported import Export, renamed
from models.posemb import sincos_2d


def to_convmae(encoder, params, image_size) -> Export:
  """Names of ConvMAE's authors, positions included."""
  names = convvit_layouts.PRETRAINED
  if encoder.pool == 'norm_mean':
    names = convvit_layouts.TUNED
  tensors = renamed(names.pairs(encoder), params)
  grid = tuple(side // encoder.patch_size for side in image_size)
  table = sincos_2d(grid, encoder.width, columns_first=True)
  return Export(tensors=tensors | {'pos_embed': table[None]}, config=None)
