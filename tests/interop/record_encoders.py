"""Records tiny random encoders of timm and Hugging Face with what they return.

Needs torch, timm and transformers; nothing that the tests need does. Writes a
folder for each, as its library saves it, with `expected.npz`: `images` uint8
[2, h, w, 3], `level{i}` after every block (Swin: stage), `pooled`, and `mean`,
`std`.

  python tests/interop/record_encoders.py FOLDER
"""

import pathlib
import sys

import numpy as np
import timm
import torch
import transformers

SIZE = 32
PLAIN = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CLIP = dict(
  mean=(0.48145466, 0.4578275, 0.40821073),
  std=(0.26862954, 0.26130258, 0.27577711),
)
SMALL = dict(embed_dim=16, depth=2, num_heads=2, img_size=SIZE, patch_size=8)
# timm: (architecture, arguments, statistics)
TIMM = {
  'timm_vit': ('vit_small_patch16_224', SMALL, PLAIN),
  'timm_deit': ('deit_small_patch16_224', SMALL, IMAGENET),
  'timm_distilled': ('deit_small_distilled_patch16_224', SMALL, IMAGENET),
  'timm_clip': ('vit_base_patch16_clip_quickgelu_224', SMALL, CLIP),
  'timm_dinov2': ('vit_small_patch14_dinov2', SMALL, IMAGENET),
  'timm_dinov2_reg': ('vit_small_patch14_reg4_dinov2', SMALL, IMAGENET),
  'timm_swiglu': (
    'vit_giant_patch14_dinov2',
    SMALL | dict(mlp_ratio=4),
    IMAGENET,
  ),
  'timm_avg': (
    'vit_small_patch16_224',
    SMALL | dict(global_pool='avg', class_token=False),
    PLAIN,
  ),
  'timm_mean': (
    'vit_small_patch16_224',
    SMALL | dict(global_pool='avg', fc_norm=False),
    PLAIN,
  ),
  'timm_reg_all': (
    'vit_small_patch16_224',
    SMALL | dict(reg_tokens=2, no_embed_class=False, qkv_bias=False),
    PLAIN,
  ),
  'timm_wide': (
    'vit_small_patch16_224',
    SMALL | dict(img_size=(32, 48)),
    PLAIN,
  ),
  'timm_beit': ('beit_base_patch16_224', SMALL, PLAIN),
  'timm_swin': (
    'swin_tiny_patch4_window7_224',
    dict(
      img_size=64,
      embed_dim=8,
      depths=(2, 1, 1),
      num_heads=(1, 2, 4),
      window_size=5,
      mlp_ratio=2,
    ),
    IMAGENET,
  ),
}
HF = dict(
  hidden_size=16,
  num_hidden_layers=2,
  num_attention_heads=2,
  image_size=SIZE,
  patch_size=8,
  intermediate_size=32,
)
# transformers: (class, config)
HUGGING_FACE = {
  'hf_vit': ('ViTModel', 'ViTConfig', HF),
  'hf_mae': (
    'ViTMAEForPreTraining',
    'ViTMAEConfig',
    HF
    | dict(
      decoder_hidden_size=16,
      decoder_num_hidden_layers=1,
      decoder_num_attention_heads=2,
      decoder_intermediate_size=16,
      mask_ratio=0.0,
    ),
  ),
  'hf_dinov2': ('Dinov2Model', 'Dinov2Config', HF | dict(mlp_ratio=2)),
  'hf_dinov2_reg': (
    'Dinov2WithRegistersModel',
    'Dinov2WithRegistersConfig',
    HF | dict(mlp_ratio=2, num_register_tokens=3, use_swiglu_ffn=True),
  ),
  'hf_clip': ('CLIPVisionModel', 'CLIPVisionConfig', HF),
  'hf_swin': (
    'SwinModel',
    'SwinConfig',
    dict(
      embed_dim=8,
      depths=[2, 1],
      num_heads=[1, 2],
      window_size=4,
      mlp_ratio=2.0,
      image_size=SIZE,
      patch_size=4,
    ),
  ),
}


def shaken(model):
  """Noise on every parameter, so that each of them matters."""
  generator = torch.Generator().manual_seed(1)
  with torch.no_grad():
    for parameter in model.parameters():
      noise = torch.randn(parameter.shape, generator=generator)
      parameter.add_(0.1 * noise)
  return model.eval()


def draw(height, width, statistics):
  generator = torch.Generator().manual_seed(2)
  images = torch.randint(256, (2, 3, height, width), generator=generator)
  mean, std = (
    torch.tensor(statistics[k])[:, None, None] for k in ('mean', 'std')
  )
  return images, (images / 255 - mean) / std


def save(folder, images, levels, pooled, statistics):
  arrays = {f'level{i}': x.detach().numpy() for i, x in enumerate(levels)}
  np.savez_compressed(
    folder / 'expected.npz',
    images=images.permute(0, 2, 3, 1).numpy().astype(np.uint8),
    pooled=pooled.detach().numpy(),
    **statistics,
    **arrays,
  )


def record_timm(folder, architecture, arguments, statistics):
  torch.manual_seed(0)
  model = shaken(timm.create_model(architecture, num_classes=0, **arguments))
  model.pretrained_cfg.update(statistics)
  timm.models.save_for_hf(
    model, folder, model_args=arguments, safe_serialization=True
  )
  size = arguments['img_size']
  height, width = (size, size) if isinstance(size, int) else size
  images, x = draw(height, width, statistics)
  if 'swin' in architecture:
    levels = model.forward_intermediates(x, intermediates_only=True)
    levels = [level.flatten(2).transpose(1, 2) for level in levels]
  else:
    y = model.forward_intermediates(
      x, norm=False, return_prefix_tokens=True, intermediates_only=True
    )
    levels = []
    for level in y:
      patches, prefix = level if isinstance(level, tuple) else (level, None)
      tokens = patches.flatten(2).transpose(1, 2)
      parts = [tokens] if prefix is None else [prefix, tokens]
      levels.append(torch.cat(parts, dim=1))
  features = model.forward_features(x)
  pooled = model.forward_head(features, pre_logits=True)
  if 'distilled' in architecture:
    pooled = features[:, 0]
  save(folder, images, levels, pooled, statistics)


def record_hugging_face(folder, name, config, arguments):
  torch.manual_seed(0)
  config = getattr(transformers, config)(**arguments)
  model = shaken(getattr(transformers, name)(config))
  statistics = CLIP if 'CLIP' in name else IMAGENET
  model.save_pretrained(folder)
  images, x = draw(SIZE, SIZE, statistics)
  encoder = model.vit if 'MAE' in name else model
  extra = {}
  if 'MAE' in name:  # otherwise it shuffles
    extra = dict(noise=torch.arange(16.0).expand(2, 16))
  y = encoder(x, output_hidden_states=True, **extra)
  last = y.last_hidden_state
  if name == 'SwinModel':
    # Its hidden states come after merging; the last of each stage before it
    # is what merging reads.
    levels = [y.hidden_states[-1]]
    pooled = last.mean(dim=1)
  else:
    levels = y.hidden_states[1:]
    pooled = y.pooler_output if 'CLIP' in name else last[:, 0]
  save(folder, images, levels, pooled, statistics)


def main(out):
  for name, arguments in TIMM.items():
    folder = pathlib.Path(out, name)
    folder.mkdir(parents=True, exist_ok=True)
    record_timm(folder, *arguments)
  for name, arguments in HUGGING_FACE.items():
    folder = pathlib.Path(out, name)
    folder.mkdir(parents=True, exist_ok=True)
    record_hugging_face(folder, *arguments)


if __name__ == '__main__':
  main(sys.argv[1])
