"""The names of vision transformers in the files of others."""

import dataclasses

from interop.vit_names import Names

TABLE = 'relative_position_bias.relative_position_bias_table'
CLIP = dict(
  mlp='quick_gelu',
  norm_epsilon=1e-5,
  mean=(0.48145466, 0.4578275, 0.40821073),
  std=(0.26862954, 0.26130258, 0.27577711),
)

TIMM = Names(
  title='timm ViT',  # also DINO, MoCo v3, MAE, DeiT, DINOv2's plain ones
  registers='reg_token',
  pre_norm='norm_pre',
)
DISTILLED = dataclasses.replace(
  TIMM, title='distilled DeiT', registers='dist_token', prefix=2
)
FC_NORM = dataclasses.replace(
  TIMM,
  title="ViT of MAE's fine-tuning",
  final='fc_norm',
  fields=dict(pool='norm_mean'),
)
LOCAL_MIM = dataclasses.replace(TIMM, title='LocalMIM ViT', final='norm.3')
DINO_V2 = dataclasses.replace(
  TIMM,
  title='DINOv2',
  registers='register_tokens',
  smooth=True,
  glu=('mlp.w12', 'mlp.w3'),
  prefix=1,
)
BEIT = dataclasses.replace(
  TIMM,
  title='BEiT or SimMIM ViT',
  biases=('attn.q_bias', 'attn.v_bias'),
  scales=('gamma_1', 'gamma_2'),
  relative=dict(
    shared='rel_pos_bias.relative_position_bias_table',
    block='blocks.{}.attn.relative_position_bias_table',
  ),
)
BEIT_FC_NORM = dataclasses.replace(
  BEIT,
  title="BEiT's or SimMIM's fine-tuned ViT",
  final='fc_norm',
  fields=dict(pool='norm_mean'),
)
HF_VIT = Names(
  title='Hugging Face ViT',  # also ViTMAE
  patch='embeddings.patch_embeddings.projection',
  cls='embeddings.cls_token',
  positions='embeddings.position_embeddings',
  block='encoder.layer.{}.',
  norms=('layernorm_before', 'layernorm_after'),
  attention=tuple(
    f'attention.attention.{k}.' for k in ('query', 'key', 'value')
  ),
  out='attention.output.dense',
  mlp=('intermediate.dense', 'output.dense'),
  final='layernorm',
  scales=None,
  fields=dict(norm_epsilon=1e-12),
)
HF_DISTILLED = dataclasses.replace(
  HF_VIT,
  title='Hugging Face distilled DeiT',
  registers='embeddings.distillation_token',
  prefix=2,
)
HF_BEIT = dataclasses.replace(
  HF_VIT,
  title='Hugging Face BEiT',
  final='pooler.layernorm',
  scales=('lambda_1', 'lambda_2'),
  relative=dict(
    shared=f'encoder.{TABLE}',
    block=f'encoder.layer.{{}}.attention.attention.{TABLE}',
  ),
  fields=dict(norm_epsilon=1e-12, pool='norm_mean'),
)
HF_DINO_V2 = dataclasses.replace(
  HF_VIT,
  title='Hugging Face DINOv2',
  norms=('norm1', 'norm2'),
  registers='embeddings.register_tokens',
  smooth=True,
  scales=('layer_scale1.lambda1', 'layer_scale2.lambda1'),
  mlp=('mlp.fc1', 'mlp.fc2'),
  glu=('mlp.weights_in', 'mlp.weights_out'),
  prefix=1,
  fields=dict(norm_epsilon=1e-6),
)
HF_CLIP = Names(
  title='Hugging Face CLIP',
  patch='embeddings.patch_embedding',
  cls='embeddings.class_embedding',
  positions='embeddings.position_embedding.weight',
  block='encoder.layers.{}.',
  norms=('layer_norm1', 'layer_norm2'),
  attention=tuple(f'self_attn.{k}_proj.' for k in 'qkv'),
  out='self_attn.out_proj',
  pre_norm='pre_layrnorm',
  final='post_layernorm',
  scales=None,
  bare=True,
  fields=CLIP,
)
OPENAI_CLIP = Names(
  title='OpenAI CLIP',
  patch='conv1',
  cls='class_embedding',
  positions='positional_embedding',
  block='transformer.resblocks.{}.',
  norms=('ln_1', 'ln_2'),
  attention=('attn.in_proj_',),
  out='attn.out_proj',
  mlp=('mlp.c_fc', 'mlp.c_proj'),
  pre_norm='ln_pre',
  final='ln_post',
  scales=None,
  projection='proj',
  bare=True,
  fields=CLIP,
)
TABLES = (
  TIMM,
  DISTILLED,
  FC_NORM,
  LOCAL_MIM,
  DINO_V2,
  BEIT,
  BEIT_FC_NORM,
  HF_VIT,
  HF_DISTILLED,
  HF_BEIT,
  HF_DINO_V2,
  HF_CLIP,
  OPENAI_CLIP,
)
