"""Encoders of timm and Hugging Face, recorded, and of others by their names."""

import dataclasses
import re

import numpy as np
import pytest
from bridges import (
  ENCODERS,
  GOLDENS,
  NAMES,
  RAW,
  assert_near,
  encode,
  in_memory,
  recorded,
  tensors_of,
  write,
  written_back,
)

from interop import swin_layouts
from interop.files import WeightsError, open_weights
from interop.load import load_encoder
from interop.recognise import recognise
from models.posemb import sincos_2d

each_encoder = pytest.mark.parametrize('name', NAMES)


def loaded(name, **given):
  z = recorded(name)
  stated = {k: tuple(map(float, z[k])) for k in ('mean', 'std')}
  return load_encoder(ENCODERS / name, **stated | given)


@each_encoder
def test_features_are_those_of_the_library(name):
  z = recorded(name)
  found = encode(loaded(name), z['images'].astype(np.float32) / 255)
  wanted = [z[f'level{i}'] for i in range(100) if f'level{i}' in z]
  # Of Hugging Face's Swin only the last stage is to be had before merging.
  for level, expected in zip(found.levels[-len(wanted) :], wanted, strict=True):
    tokens = np.concatenate([level.prefix, level.tokens], axis=1)
    assert_near(tokens, expected)
  assert_near(found.pooled, z['pooled'])


@each_encoder
def test_back_and_forth_gives_the_same_bytes(name):
  weights = open_weights(ENCODERS / name)
  back = written_back(weights, load_encoder(ENCODERS / name))
  assert len(back) > 20
  for theirs, x in back.items():
    original = tensors_of(name)[theirs]
    assert (x.dtype, x.shape) == (original.dtype, original.shape)
    assert np.ascontiguousarray(x).tobytes() == original.tobytes(), theirs


@each_encoder
def test_the_config_beside_the_file_is_not_needed_but_for_the_heads(name):
  """The rest is in names and shapes."""
  given = {}
  spec = loaded(name).spec
  if 'swin' not in name:
    given['num_heads'] = spec['num_heads']
  weights = in_memory(tensors_of(name))
  if 'num_heads' in given and 'beit' not in name:
    with pytest.raises(WeightsError, match='how many heads a ViT of width 16'):
      recognise(weights, given={})
  if name == 'timm_wide':  # 25 rows are also 5 x 5 without CLS
    given['image_size'] = (32, 48)
  alone = recognise(weights, given=given).spec
  told = ('norm_epsilon', 'mean', 'std', 'mlp', 'native_size', 'pool')
  told += ('positions_antialias',)
  same = {k: v for k, v in spec.items() if k not in told}
  assert {k: v for k, v in alone.items() if k not in told} == same


NESTED = {
  'model.': {'optimizer.state.0.exp_avg': (3,)},
  'state_dict.module.': {},
  'state_dict.model.backbone.': {'state_dict.model.head.weight': (2, 16)},
  'module._orig_mod.': {},
  'teacher.backbone.': {'student.module.head.mlp.0.weight': (4, 4)},
}


@pytest.mark.parametrize('root', NESTED)
def test_wherever_in_the_file_it_is(root):
  arrays = {root + k: v for k, v in tensors_of('timm_vit').items()}
  arrays |= {k: np.zeros(s, np.float32) for k, s in NESTED[root].items()}
  fit = recognise(in_memory(arrays), given=dict(num_heads=2))
  assert fit.root == root
  assert set(fit.unused) == set(NESTED[root])


def two(first, second):
  """A file with two encoders; the second one's weights are doubled."""
  tensors = tensors_of('timm_vit')
  return {first + k: v for k, v in tensors.items()} | {
    second + k: 2 * v for k, v in tensors.items()
  }


@pytest.mark.parametrize(
  'student, teacher, auto',
  [
    ('student.module.backbone.', 'teacher.backbone.', 'teacher'),
    (
      'state_dict.module.base_encoder.',
      'state_dict.module.momentum_encoder.',
      'student',
    ),
    ('model.encoder.', 'model.encoder_k.', 'student'),
    ('state_dict.', 'state_dict_ema.', 'student'),
  ],
)
def test_student_and_teacher(tmp_path, student, teacher, auto):
  path = write(tmp_path, two(student, teacher))
  norms = {}
  for which in ('student', 'teacher', 'auto'):
    got = load_encoder(path, which=which, num_heads=2)
    norms[which] = np.linalg.norm(got.params['encoder/norm/scale'])
    assert got.which == (auto if which == 'auto' else which)
  np.testing.assert_allclose(norms['teacher'], 2 * norms['student'])
  assert norms['auto'] == norms[auto]


def test_two_that_cannot_be_told_apart():
  with pytest.raises(WeightsError, match=r"several encoders, below 'a\.', 'b"):
    recognise(in_memory(two('a.', 'b.')), given=dict(num_heads=2))


class TestAuthors:
  """What only the authors' own files have."""

  def test_moco_v3_has_twelve_heads_at_any_width(self):
    arrays = {f'module.base_encoder.{k}': v for k, v in wide(384).items()}
    assert recognise(in_memory(arrays), given={}).spec['num_heads'] == 12
    arrays = {f'model.{k}': v for k, v in wide(384).items()}
    assert recognise(in_memory(arrays), given={}).spec['num_heads'] == 6

  @pytest.mark.parametrize('view', ['full48', 'crop32', 'big64', 'rect40x24'])
  def test_dino_resamples_positions_its_own_way(self, tmp_path, view):
    z = np.load(GOLDENS / 'enc_dino_vit.npz')
    arrays = {
      f'teacher.backbone.{k[2:]}': z[k] for k in z.files if k.startswith('w/')
    }
    got = load_encoder(write(tmp_path, arrays), num_heads=4, **RAW)
    assert got.spec['positions_offset'] == 0.1
    found = encode(got, z[f'{view}/x'].transpose(0, 2, 3, 1))
    assert_near(found.cls, z[f'{view}/y'])

  def test_moco_v3_block_by_block(self, tmp_path):
    z = np.load(GOLDENS / 'enc_mocov3_vit.npz')
    root = 'state_dict.module.base_encoder.'
    arrays = {root + k[2:]: z[k] for k in z.files if k.startswith('w/')}
    got = load_encoder(write(tmp_path, arrays), num_heads=4, **RAW)
    found = encode(got, z['in/x'].transpose(0, 2, 3, 1))
    for i, level in enumerate(found.levels):
      tokens = np.concatenate([level.prefix, level.tokens], axis=1)
      assert_near(tokens, z[f'out/block{i}'])
    assert_near(found.pooled, z['out/y'])

  def test_moby_s_swin_before_and_after_merging(self, tmp_path):
    """Microsoft's code; recorded as far as its second stage."""
    z = np.load(GOLDENS / 'enc_swin.npz')
    root = 'model.encoder.'
    arrays = {root + k[2:]: z[k] for k in z.files if k.startswith('w/')}
    width = z['out/stage1_premerge'].shape[-1]
    for leaf, value in (('weight', 1.0), ('bias', 0.0)):
      arrays[f'{root}norm.{leaf}'] = np.full(width, value, np.float32)
    got = load_encoder(write(tmp_path, arrays), **RAW)
    assert got.layout == 'Microsoft Swin'
    found = encode(got, z['in/x'][:1].transpose(0, 2, 3, 1))
    for i, level in enumerate(found.levels):
      assert_near(level.tokens, z[f'out/stage{i}_premerge'])
    assert_near(found.merged[0].tokens, z['out/stage0_out'])

  def test_openai_s_clip_is_hugging_face_s(self, tmp_path):
    arrays = openai(tensors_of('hf_clip'))
    path = write(tmp_path, {f'visual.{k}': v for k, v in arrays.items()})
    got = load_encoder(path, num_heads=2)
    assert (got.layout, got.spec['mlp']) == ('OpenAI CLIP', 'quick_gelu')
    z = recorded('hf_clip')
    found = encode(got, z['images'].astype(np.float32) / 255)
    assert_near(found.pooled, z['pooled'] @ arrays['proj'])
    assert_near(found.cls, z['pooled'])
    back = written_back(open_weights(path), got, num_heads=2)
    for name, x in arrays.items():
      np.testing.assert_array_equal(back[f'visual.{name}'], x)

  def test_dino_v2_is_hugging_face_s(self, tmp_path):
    arrays = dino_v2(tensors_of('hf_dinov2_reg'))
    got = load_encoder(write(tmp_path, arrays), num_heads=2)
    z = recorded('hf_dinov2_reg')
    found = encode(got, z['images'].astype(np.float32) / 255)
    assert (got.layout, found.cls.shape) == ('DINOv2', (2, 16))
    assert_near(found.pooled, z['pooled'])

  def test_simmim_shares_one_table(self, tmp_path):
    """Tables of all blocks alike are a shared one."""
    arrays = dict(tensors_of('timm_beit'))
    table = arrays['blocks.0.attn.relative_position_bias_table']
    arrays['blocks.1.attn.relative_position_bias_table'] = table
    given = dict(num_heads=2) | RAW
    each = load_encoder(write(tmp_path, arrays), **given)
    shared = {k: v for k, v in arrays.items() if 'relative' not in k}
    shared['rel_pos_bias.relative_position_bias_table'] = table
    arrays = {f'encoder.{k}': v for k, v in shared.items()}
    one = load_encoder(write(tmp_path, arrays, 'one.npz'), **given)
    assert (each.spec['relative'], one.spec['relative']) == ('block', 'shared')
    images = recorded('timm_beit')['images'].astype(np.float32) / 255
    assert_near(encode(one, images).pooled, encode(each, images).pooled, 1e-6)

  def test_decoders_of_mae_and_local_mim_are_left(self):
    arrays = dict(tensors_of('timm_vit'))
    extra = {
      'decoder_pos_embed': (1, 5, 8),
      'decoder_blocks.0.norm1.weight': (8,),
      'mask_token': (1, 1, 8),
    }
    arrays |= {k: np.ones(s, np.float32) for k, s in extra.items()}
    fit = recognise(in_memory(arrays), given=dict(num_heads=2))
    assert set(fit.unused) == set(extra)
    arrays = dict(tensors_of('timm_vit'))
    for leaf in ('weight', 'bias'):
      arrays[f'norm.3.{leaf}'] = arrays.pop(f'norm.{leaf}')
      arrays[f'norm.0.{leaf}'] = np.ones(16, np.float32)
    fit = recognise(in_memory(arrays), given=dict(num_heads=2))
    assert fit.layout.name == 'LocalMIM ViT'
    assert set(fit.unused) == {'norm.0.weight', 'norm.0.bias'}

  def test_conv_mae(self, tmp_path):
    z = np.load(GOLDENS / 'convmae.npz')
    arrays = {k[2:]: z[k] for k in z.files if k.startswith('w/')}
    path = write(tmp_path, arrays)
    got = load_encoder(path, num_heads=2)
    assert got.spec['patch_sizes'] == (4, 2, 2)
    for name, x in written_back(open_weights(path), got, num_heads=2).items():
      np.testing.assert_array_equal(x, arrays[name])
    table = sincos_2d((14, 14), 24, columns_first=True)[None]
    load_encoder(
      write(tmp_path, arrays | {'pos_embed': table}, 'right.npz'), num_heads=2
    )
    arrays['pos_embed'] = table + 0.1
    with pytest.raises(WeightsError, match='pos_embed is not the fixed table'):
      load_encoder(write(tmp_path, arrays, 'other.npz'), num_heads=2)

  def test_mmdet_s_merging_reads_neighbours_in_another_order(self, tmp_path):
    """As mmdet converts the authors' weights: by channel, then row by row."""
    arrays = dict(tensors_of('hf_swin'))
    ours = load_encoder(ENCODERS / 'hf_swin')
    encoder = recognise(in_memory(arrays), given={}).encoder
    bare = {k.removeprefix('encoder/'): v for k, v in ours.params.items()}
    theirs = {
      pair.theirs: pair.give(*(bare[path] for path in pair.ours))
      for pair in swin_layouts.MMDET.pairs(encoder)
    }
    weight = arrays['encoder.layers.0.downsample.reduction.weight']
    out, n = weight.shape
    wanted = weight.reshape(out, 4, n // 4)[:, [0, 2, 1, 3]]
    wanted = wanted.transpose(0, 2, 1).reshape(out, n)
    found = theirs['stages.0.downsample.reduction.weight']
    np.testing.assert_array_equal(found, wanted)
    again = load_encoder(write(tmp_path, theirs))
    assert again.layout == 'mmdet Swin'
    for name, leaf in ours.params.items():
      np.testing.assert_array_equal(again.params[name], leaf)


def wide(width):
  """Names and shapes of a ViT of two blocks; the values do not matter."""
  shapes = {
    'cls_token': (1, 1, width),
    'pos_embed': (1, 5, width),
    'patch_embed.proj.weight': (width, 3, 8, 8),
    'patch_embed.proj.bias': (width,),
    'norm.weight': (width,),
    'norm.bias': (width,),
  }
  block = {
    'norm1.weight': (width,),
    'norm1.bias': (width,),
    'attn.qkv.weight': (3 * width, width),
    'attn.qkv.bias': (3 * width,),
    'attn.proj.weight': (width, width),
    'attn.proj.bias': (width,),
    'norm2.weight': (width,),
    'norm2.bias': (width,),
    'mlp.fc1.weight': (2 * width, width),
    'mlp.fc1.bias': (2 * width,),
    'mlp.fc2.weight': (width, 2 * width),
    'mlp.fc2.bias': (width,),
  }
  shapes |= {f'blocks.{i}.{k}': s for i in range(2) for k, s in block.items()}
  return {k: np.broadcast_to(np.float32(0), s) for k, s in shapes.items()}


def openai(tensors):
  """Hugging Face's CLIP under OpenAI's names, with a projection."""
  names = (
    ('embeddings.class_embedding', 'class_embedding'),
    ('embeddings.position_embedding.weight', 'positional_embedding'),
    ('embeddings.patch_embedding', 'conv1'),
    ('pre_layrnorm', 'ln_pre'),
    ('post_layernorm', 'ln_post'),
    ('encoder.layers', 'transformer.resblocks'),
    ('layer_norm', 'ln_'),
    ('self_attn.out_proj', 'attn.out_proj'),
    ('mlp.fc1', 'mlp.c_fc'),
    ('mlp.fc2', 'mlp.c_proj'),
  )
  out = {'proj': np.linspace(-1, 1, 16 * 6, dtype=np.float32).reshape(16, 6)}
  for name, x in tensors.items():
    name = name.removeprefix('vision_model.')
    for theirs, ours in names:
      name = name.replace(theirs, ours)
    if match := re.fullmatch(r'(.*)\.self_attn\.q_proj\.(weight|bias)', name):
      parts = [
        value
        for k in 'qkv'
        for other, value in tensors.items()
        if re.search(rf'self_attn\.{k}_proj\.{match[2]}', other)
        and f'layers.{match[1].rpartition(".")[2]}.' in other
      ]
      out[f'{match[1]}.attn.in_proj_{match[2]}'] = np.concatenate(parts)
    elif 'self_attn' not in name:
      out[name] = x
  return out


def dino_v2(tensors):
  """Hugging Face's DINOv2 under the authors' names."""
  names = (
    ('embeddings.cls_token', 'cls_token'),
    ('embeddings.register_tokens', 'register_tokens'),
    ('embeddings.mask_token', 'mask_token'),
    ('embeddings.position_embeddings', 'pos_embed'),
    ('embeddings.patch_embeddings.projection', 'patch_embed.proj'),
    ('encoder.layer', 'blocks'),
    ('attention.output.dense', 'attn.proj'),
    ('layer_scale1.lambda1', 'ls1.gamma'),
    ('layer_scale2.lambda1', 'ls2.gamma'),
    ('mlp.weights_in', 'mlp.w12'),
    ('mlp.weights_out', 'mlp.w3'),
    ('layernorm', 'norm'),
  )
  out = {}
  for name, x in tensors.items():
    if 'attention.attention.' in name:
      block, _, leaf = name.partition('.attention.attention.')
      part, _, kind = leaf.partition('.')
      if part == 'query':
        x = np.concatenate(
          [
            tensors[f'{block}.attention.attention.{k}.{kind}']
            for k in ('query', 'key', 'value')
          ]
        )
        out[f'{block}.attn.qkv.{kind}'.replace('encoder.layer', 'blocks')] = x
      continue
    for theirs, ours in names:
      name = name.replace(theirs, ours)
    out[name] = x
  return out


class TestChanges:
  """Other channels, windows and statistics than the file's."""

  def test_grey_images_give_what_they_gave_as_rgb(self):
    z = recorded('timm_vit')
    grey = z['images'][..., :1].astype(np.float32) / 255
    same = dict(mean=(0.4,) * 3, std=(0.2,) * 3)
    rgb = encode(loaded('timm_vit', **same), np.repeat(grey, 3, axis=-1))
    one = loaded('timm_vit', **same, in_channels=1)
    assert one.spec['in_channels'] == 1
    assert '3 channels turned into 1' in one.said
    assert_near(encode(one, grey).pooled, rgb.pooled)

  def test_more_channels_repeat_and_scale(self):
    kernel = loaded('timm_vit').params['encoder/patch_embed/kernel']
    five = loaded('timm_vit', in_channels=5)
    found = five.params['encoder/patch_embed/kernel']
    wanted = kernel[:, :, [0, 1, 2, 0, 1]] * 3 / 5
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert len(five.spec['mean']) == 5

  def test_other_windows_resample_the_tables(self):
    before, after = loaded('hf_swin'), loaded('hf_swin', window=8)
    name = 'encoder/block_0/position_bias'
    assert after.spec['window'] == 8
    old, new = before.params[name], after.params[name]
    assert (len(old), len(new)) == (49, 225)
    # The middle, no offset at all, is where it was.
    np.testing.assert_allclose(new[112], old[24], rtol=1e-5)

  def test_windows_are_for_swin(self):
    with pytest.raises(WeightsError, match='weights.window=8 is for a Swin'):
      loaded('hf_vit', window=8)

  def test_what_the_user_says_comes_first(self):
    got = loaded('hf_vit', num_heads=4, norm_epsilon=1e-5, activation='gelu')
    assert (got.spec['num_heads'], got.spec['norm_epsilon']) == (4, 1e-5)


def changed(name, drop=(), **extra):
  arrays = {k: v for k, v in tensors_of(name).items() if k not in drop}
  return in_memory(arrays | extra)


class TestErrors:
  """One line that names the layout and lists what is wrong."""

  def test_missing(self):
    weights = changed('timm_vit', drop=('blocks.1.mlp.fc2.bias',))
    with pytest.raises(WeightsError) as error:
      recognise(weights, given=dict(num_heads=2))
    assert str(error.value) == (
      'file.pth is most like timm ViT, but does not fit: missing '
      'blocks.1.mlp.fc2.bias'
    )

  def test_unexpected(self):
    extra = {'blocks.0.attn.q_norm.weight': np.ones(8, np.float32)}
    weights = changed('timm_vit', **extra)
    with pytest.raises(
      WeightsError, match=r'unexpected blocks\.0\.attn\.q_norm\.weight$'
    ):
      recognise(weights, given=dict(num_heads=2))

  def test_of_another_shape(self):
    extra = {'blocks.1.mlp.fc1.weight': np.ones((3, 16), np.float32)}
    weights = changed('timm_vit', **extra)
    with pytest.raises(
      WeightsError,
      match=r'another shape blocks\.1\.mlp\.fc1\.weight \[3, 16\] for \[64, 16',
    ):
      recognise(weights, given=dict(num_heads=2))

  def test_sizes_that_no_machine_has(self):
    """Names and a patch kernel promise what no tensor keeps."""
    extra = {'blocks.2000000000.norm1.weight': np.ones(16, np.float32)}
    with pytest.raises(WeightsError, match='2000000001 blocks'):
      recognise(changed('timm_vit', **extra), given=dict(num_heads=2))
    wide = np.broadcast_to(np.float32(0), (10**7, 3, 8, 8))
    weights = changed('timm_vit', **{'patch_embed.proj.weight': wide})
    with pytest.raises(WeightsError, match=r'cls_token \[1, 1, 16\] for'):
      recognise(weights, given=dict(num_heads=2))

  def test_swin_v2_is_no_swin(self):
    extra = {'layers.0.blocks.0.attn.logit_scale': np.ones(1, np.float32)}
    with pytest.raises(WeightsError, match=r'timm Swin.*logit_scale'):
      recognise(changed('timm_swin', **extra), given={})

  def test_nothing_of_the_kind(self):
    arrays = {'conv1.weight': np.ones((8, 3, 7, 7), np.float32)}
    with pytest.raises(
      WeightsError, match='no encoder of a known layout; its 1 tensors are'
    ):
      recognise(in_memory(arrays), given={})

  def test_integers_are_no_weights(self, tmp_path):
    arrays = dict(tensors_of('timm_vit'))
    arrays['norm.bias'] = np.ones(16, np.int64)
    path = write(tmp_path, arrays)
    with pytest.raises(WeightsError, match='norm.bias holds int64'):
      load_encoder(path, num_heads=2)

  def test_weights_that_broke(self, tmp_path):
    arrays = dict(tensors_of('timm_vit'))
    arrays['norm.bias'] = np.full(16, np.nan, np.float32)
    path = write(tmp_path, arrays)
    with pytest.raises(WeightsError, match='norm.bias holds NaN or infinity'):
      load_encoder(path, num_heads=2)

  @pytest.mark.parametrize(
    'config, message',
    [
      ({'hidden_act': 'swish'}, "hidden_act 'swish' is none of gelu"),
      ({'image_size': 'large'}, 'cannot be read'),
      ({'vision_config': 3}, 'cannot be read'),
      (
        {'model_args': {'always_partition': True}},
        'always_partition: windows here shrink',
      ),
    ],
  )
  def test_a_config_that_cannot_be_meant(self, config, message):
    weights = dataclasses.replace(changed('hf_vit'), config=config)
    with pytest.raises(WeightsError, match=message):
      recognise(weights, given={})
