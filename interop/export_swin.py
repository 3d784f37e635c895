"""Swins of ours in the layouts of other libraries."""

from interop import swin_layouts
from interop.exported import Export, epsilon_note, renamed, timm_config
from interop.files import WeightsError


def to_timm(encoder, params, image_size) -> Export:
  """What `timm.create_model('local-dir:FOLDER')` reads."""
  size = list(encoder.native_size or image_size)
  encoder = encoder.clone(native_size=tuple(size))
  arguments = dict(
    img_size=size,
    patch_size=encoder.patch_size,
    in_chans=encoder.in_channels,
    embed_dim=encoder.width,
    depths=list(encoder.depths),
    num_heads=list(encoder.num_heads),
    window_size=encoder.window,
    mlp_ratio=encoder.mlp_ratio,
  )
  name = 'swin_tiny_patch4_window7_224'
  notes = epsilon_note(encoder, 1e-5) + _padding_note(encoder, size, 'timm')
  return Export(
    tensors=renamed(swin_layouts.TIMM.pairs(encoder), params),
    config=timm_config(name, encoder, arguments, size),
    notes=notes,
  )


def to_hugging_face(encoder, params, image_size) -> Export:
  """What `from_pretrained(FOLDER)` of transformers reads."""
  size = list(encoder.native_size or image_size)
  smallest = min(size) // encoder.strides[-1]
  if smallest < encoder.window:
    raise WeightsError(
      f"Hugging Face's Swin has no windows of {encoder.window} on its last map "
      f'of {smallest}x{smallest}: take the format timm'
    )
  config = dict(
    model_type='swin',
    architectures=['SwinModel'],
    embed_dim=encoder.width,
    depths=list(encoder.depths),
    num_heads=list(encoder.num_heads),
    window_size=encoder.window,
    mlp_ratio=encoder.mlp_ratio,
    image_size=size[0] if size[0] == size[1] else size,
    patch_size=encoder.patch_size,
    num_channels=encoder.in_channels,
    layer_norm_eps=encoder.norm_epsilon,
    hidden_act='gelu',
    qkv_bias=True,
    dtype='float32',
  )
  encoder = encoder.clone(native_size=None)
  return Export(
    tensors=renamed(swin_layouts.HUGGING_FACE.pairs(encoder), params),
    config=config,
    notes=_padding_note(encoder, size, 'zeros'),
  )


def to_mmdet(encoder, params, image_size) -> Export:
  """Names of mmdet's and mmseg's SwinTransformer, below `backbone.`."""
  del image_size
  encoder = encoder.clone(native_size=None)  # tables are for whole windows
  tensors = renamed(swin_layouts.MMDET.pairs(encoder), params, 'backbone.')
  return Export(tensors=tensors, config=None, notes=epsilon_note(encoder, 1e-5))


def to_microsoft(encoder, params, image_size) -> Export:
  """Names of Swin's authors, which their detection code reads as well."""
  encoder = encoder.clone(native_size=encoder.native_size or image_size)
  for stride in encoder.strides:
    size = encoder.native_size
    height, width = swin_layouts.TIMM.shrunk(encoder.window, size, stride)
    if height != width:
      raise WeightsError(
        f'a window of {height}x{width}, which images of {size} give, is none '
        "of the authors' code: take the format timm"
      )
  return Export(
    tensors=renamed(swin_layouts.MICROSOFT.pairs(encoder), params),
    config=None,
    notes=epsilon_note(encoder, 1e-5),
  )


def _padding_note(encoder, size, theirs: str) -> tuple[str, ...]:
  """A note where windows do not tile the maps and padding is seen or not."""
  maps = [-(-side // stride) for stride in encoder.strides for side in size]
  if encoder.padding == theirs or all(
    side % min(side, encoder.window) == 0 for side in maps
  ):
    return ()
  return (
    f'windows of {encoder.window} do not tile the maps of images of '
    f'{size[0]}x{size[1]}, and its attention sees what is padded',
  )
