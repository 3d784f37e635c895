"""ViTs of ours in the layouts of other libraries."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from interop import vit_tables
from interop.exported import Export, epsilon_note, renamed, timm_config
from interop.files import WeightsError
from models.posemb import sincos_2d
from models.vit import ViT

HIDDEN_ACT = {
  'gelu': 'gelu',
  'gelu_tanh': 'gelu_pytorch_tanh',
  'quick_gelu': 'quick_gelu',
}


def to_timm(encoder, params, image_size) -> Export:
  """What `timm.create_model('local-dir:FOLDER')` reads."""
  encoder, params = spelled_out(encoder, params, image_size)
  _without(encoder, 'timm', relative='none', projection=0)
  encoder, params = _timm_prefix(encoder, params)
  names = vit_tables.FC_NORM if encoder.pool == 'norm_mean' else vit_tables.TIMM
  grid = encoder.native_grid
  size = [side * encoder.patch_size for side in grid]
  architecture = {
    'gelu': 'vit_base_patch16_224',
    'quick_gelu': 'vit_base_patch16_clip_quickgelu_224',
    'swiglu': 'vit_giant_patch14_dinov2',
  }.get(encoder.mlp)
  if architecture is None:
    raise WeightsError(f'timm has no ViT with mlp={encoder.mlp!r}')
  if encoder.pre_norm and encoder.mlp == 'gelu':
    architecture = 'vit_base_patch16_clip_224'
  arguments = dict(
    img_size=size,
    patch_size=encoder.patch_size,
    in_chans=encoder.in_channels,
    embed_dim=encoder.width,
    depth=encoder.depth,
    num_heads=encoder.num_heads,
    # Its gated MLP counts both halves.
    mlp_ratio=encoder.mlp_ratio * (2 if encoder.mlp == 'swiglu' else 1),
    qkv_bias=encoder.biases == 'qkv',
    init_values=encoder.layer_scale or None,
    class_token=encoder.class_token,
    reg_tokens=encoder.registers,
    no_embed_class=encoder.positions_prefix == 0,
    pos_embed='learn' if encoder.positions == 'learned' else 'none',
    pre_norm=encoder.pre_norm,
    global_pool='token' if encoder.pool == 'cls' else 'avg',
    fc_norm=encoder.pool == 'norm_mean',
  )
  return Export(
    tensors=renamed(names.pairs(encoder), params),
    config=timm_config(architecture, encoder, arguments, size),
    notes=epsilon_note(encoder, 1e-5 if 'clip' in architecture else 1e-6),
  )


def to_hugging_face(encoder, params, image_size) -> Export:
  """What `from_pretrained(FOLDER)` of transformers reads."""
  encoder, params = spelled_out(encoder, params, image_size)
  library = 'Hugging Face'
  _without(encoder, library, relative='none', class_token=True, projection=0)
  if encoder.positions != 'learned' or encoder.positions_prefix != 1:
    raise WeightsError(f'{library} has no ViT without positions of CLS')
  size = [side * encoder.patch_size for side in encoder.native_grid]
  config = dict(
    hidden_size=encoder.width,
    num_hidden_layers=encoder.depth,
    num_attention_heads=encoder.num_heads,
    intermediate_size=round(encoder.width * encoder.mlp_ratio),
    hidden_act=HIDDEN_ACT.get(encoder.mlp, 'gelu'),
    layer_norm_eps=encoder.norm_epsilon,
    image_size=size[0] if size[0] == size[1] else size,
    patch_size=encoder.patch_size,
    num_channels=encoder.in_channels,
    qkv_bias=encoder.biases == 'qkv',
    dtype='float32',
  )
  if encoder.pre_norm:
    _without(encoder, 'CLIP', registers=0, layer_scale=0.0, biases='qkv')
    _without(encoder, 'CLIP', patch_bias=False)
    names, prefix = vit_tables.HF_CLIP, 'vision_model.'
    config |= dict(
      model_type='clip_vision_model', architectures=['CLIPVisionModel']
    )
  elif encoder.layer_scale or encoder.registers or encoder.mlp == 'swiglu':
    names, prefix = vit_tables.HF_DINO_V2, ''
    encoder, params = _with_scales(encoder, params)
    config |= _dino_v2(encoder)
  else:
    names, prefix = vit_tables.HF_VIT, ''
    config |= dict(model_type='vit', architectures=['ViTModel'])
  notes = ()
  if encoder.pool != 'cls':
    notes = ('its pooled output is CLS, ours a mean of the patches',)
  tensors = renamed(names.pairs(encoder), params, prefix)
  return Export(tensors=tensors, config=config, notes=notes)


def to_detectron2(encoder, params, image_size) -> Export:
  """Names of Detectron2's ViTDet: `backbone.net.` and MAE's."""
  encoder, params = spelled_out(encoder, params, image_size)
  _without(
    encoder,
    "Detectron2's ViTDet",
    relative='none',
    registers=0,
    pre_norm=False,
    layer_scale=0.0,
    mlp='gelu',
    class_token=True,
    projection=0,
  )
  pairs = [
    pair
    for pair in vit_tables.TIMM.pairs(encoder)
    if not pair.theirs.startswith('norm.')  # it has none at the end
  ]
  return Export(
    tensors=renamed(pairs, params, 'backbone.net.'),
    config=None,
    notes=epsilon_note(encoder, 1e-6),
  )


def spelled_out(
  encoder: ViT, params: Mapping[str, np.ndarray], image_size: tuple[int, int]
) -> tuple[ViT, dict[str, np.ndarray]]:
  """A ViT whose fixed positions and absent key biases are parameters.

  Others have no word for them, and compute the same with them.
  """
  params = dict(params)
  if encoder.positions in ('sincos', 'mae_sincos'):
    grid = tuple(side // encoder.patch_size for side in image_size)
    mae = encoder.positions == 'mae_sincos'
    table = sincos_2d(grid, encoder.width, columns_first=mae)
    table = np.pad(table, ((int(encoder.class_token), 0), (0, 0)))
    params['pos_embed'] = table[None]
    encoder = encoder.clone(
      positions='learned',
      positions_grid=grid,
      positions_prefix=int(encoder.class_token),
    )
  if encoder.biases not in ('qkv', ''):
    for i in range(encoder.depth):
      for part in ('query', 'key', 'value'):
        path = f'block_{i}/attention/{part}/bias'
        params.setdefault(path, np.zeros(encoder.width, np.float32))
    encoder = encoder.clone(biases='qkv')
  return encoder, params


def _without(encoder: ViT, library: str, **plain: Any) -> None:
  """Raises WeightsError for fields that are not what a library's ViT has."""
  for name, value in plain.items():
    found = dataclasses.asdict(encoder)[name]
    if found != value:
      raise WeightsError(
        f'{library} has no ViT with {name}={found!r}, only with {value!r}'
      )


def _timm_prefix(encoder, params):
  """Timm gives a position to all of the first tokens, or to none of them."""
  first = encoder.positions_prefix
  if encoder.positions != 'learned' or first in (0, encoder.prefix):
    return encoder, params
  table = params['pos_embed']
  params = dict(params, pos_embed=table[:, first:])
  params['cls'] = params['cls'] + table[:, :1]
  if first > 1:
    raise WeightsError('positions of some registers only: timm has no such ViT')
  return encoder.clone(positions_prefix=0), params


def _dino_v2(encoder: ViT) -> dict[str, Any]:
  hidden = round(encoder.width * encoder.mlp_ratio)
  gated = encoder.mlp == 'swiglu'
  ratio = _gated_ratio(encoder.width, hidden) if gated else encoder.mlp_ratio
  config = dict(
    model_type='dinov2',
    architectures=['Dinov2Model'],
    mlp_ratio=ratio,
    layerscale_value=1.0,
    use_swiglu_ffn=gated,
  )
  if encoder.registers:
    config |= dict(
      model_type='dinov2_with_registers',
      architectures=['Dinov2WithRegistersModel'],
      num_register_tokens=encoder.registers,
    )
  return config


def _gated_ratio(width: int, hidden: int) -> int:
  """The ratio of which its code makes a gated MLP of this width."""
  for ratio in range(1, 17):
    if (int(int(width * ratio) * 2 / 3) + 7) // 8 * 8 == hidden:
      return ratio
  raise WeightsError(
    f'Hugging Face has no gated MLP of width {hidden} for tokens of {width}'
  )


def _with_scales(encoder: ViT, params):
  """DINOv2 always has layer scales; of 1 they change nothing."""
  if encoder.layer_scale:
    return encoder, params
  ones = {
    f'block_{i}/layer_scale{k}/scale': np.ones(encoder.width, np.float32)
    for i in range(encoder.depth)
    for k in (1, 2)
  }
  return encoder.clone(layer_scale=1.0), dict(params) | ones
