"""Files that are nearly, or not at all, what a layout expects."""

import json

import numpy as np
import pytest
from made_encoders import SWIN, VIT, drawn, named

from interop import swin_layouts, vit_tables
from interop.files import WeightsError, write_safetensors
from interop.formats import export_to
from interop.load import load_encoder
from interop.recognise import build


def load(folder, tensors, config=None, **given):
  write_safetensors(folder / 'model.safetensors', tensors, {})
  if config is not None:
    (folder / 'config.json').write_text(json.dumps(config))
  return load_encoder(folder / 'model.safetensors', **given)


def timm_vit(**arguments):
  return dict(
    architecture='vit_small_patch16_224',
    model_args=dict(num_heads=2, **arguments),
  )


@pytest.mark.parametrize(
  ('names', 'pool', 'wanted'),
  [
    (vit_tables.TIMM, 'token', 'cls'),
    (vit_tables.TIMM, 'avg', 'mean'),
    (vit_tables.FC_NORM, 'avg', 'norm_mean'),
    (vit_tables.FC_NORM, 'token', 'cls'),
  ],
)
def test_timm_says_what_pooled_is(tmp_path, names, pool, wanted):
  config = timm_vit(global_pool=pool)
  loaded = load(tmp_path, named(names, VIT), config)
  assert loaded.spec['pool'] == wanted


@pytest.mark.parametrize(
  ('student', 'teacher'),
  [
    ('backbone', 'momentum_backbone'),  # solo-learn
    ('online_encoder', 'target_encoder'),
    ('module.encoder_q', 'module.encoder_k'),
    ('model', 'model_ema'),
  ],
)
def test_an_average_is_known_by_its_name(tmp_path, student, teacher):
  ours = named(vit_tables.TIMM, VIT, f'{student}.')
  other = {k: v + 1 for k, v in named(vit_tables.TIMM, VIT).items()}
  tensors = ours | {f'{teacher}.{k}': v for k, v in other.items()}
  for which, wanted in (
    ('auto', ours[f'{student}.norm.bias']),
    ('teacher', other['norm.bias']),
  ):
    loaded = load(tmp_path, tensors, which=which, num_heads=2)
    np.testing.assert_array_equal(loaded.params['encoder/norm/bias'], wanted)


def _without(name):
  return lambda tensors: tensors.pop(name)


def _other(name, shape):
  return lambda tensors: tensors.update({name: np.zeros(shape, np.float32)})


@pytest.mark.parametrize(
  ('change', 'given', 'told'),
  [
    (_without('pos_embed'), {}, 'pos_embed is missing'),
    (_without('cls_token'), {}, 'pos_embed has 5 rows'),
    (_other('pos_embed', [8]), {}, r'pos_embed is \[8\]'),
    (_without('blocks.1.norm2.bias'), {}, r'missing blocks\.1\.norm2\.bias'),
    (_other('odd', [3]), {}, 'unexpected odd'),
    (_other('norm.bias', [3]), {}, r'norm\.bias \[3\] for \[8\]'),
    (lambda _: None, dict(num_heads=3), 'width 8 cannot have num_heads=3'),
  ],
)
def test_what_does_not_fit_is_told(tmp_path, change, given, told):
  tensors = named(vit_tables.TIMM, VIT)
  change(tensors)
  with pytest.raises(WeightsError, match=told):
    load(tmp_path, tensors, **dict(num_heads=2) | given)


def test_a_vit_without_positions_has_to_say_so(tmp_path):
  tensors = named(vit_tables.TIMM, VIT | dict(positions='none'))
  loaded = load(tmp_path, tensors, timm_vit(pos_embed='none'))
  assert loaded.spec['positions'] == 'none'


def test_siglip_is_no_clip(tmp_path):
  spec = VIT | dict(class_token=False, pool='mean', positions_prefix=0)
  tensors = named(vit_tables.HF_CLIP, spec, 'vision_model.')
  with pytest.raises(WeightsError, match='class_embedding is missing'):
    load(tmp_path, tensors, num_heads=2)


@pytest.mark.parametrize('relative', ['block', 'shared'])
def test_hugging_faces_beit(tmp_path, relative):
  spec = VIT | dict(
    positions='none',
    relative=relative,
    biases='qv',
    layer_scale=0.1,
    pool='norm_mean',
  )
  tensors = named(vit_tables.HF_BEIT, spec, 'beit.')
  loaded = load(tmp_path, tensors)
  assert loaded.layout == 'Hugging Face BEiT'
  for name, wanted in drawn(spec)[1].items():
    np.testing.assert_array_equal(loaded.params[f'encoder/{name}'], wanted)
  assert {k: loaded.spec[k] for k in spec if k != 'layer_scale'} == {
    k: v if k != 'positions_grid' else (2, 2)
    for k, v in spec.items()
    if k != 'layer_scale'
  }


def test_hugging_faces_distilled_deit(tmp_path):
  spec = VIT | dict(registers=1, positions_prefix=2)
  loaded = load(tmp_path, named(vit_tables.HF_DISTILLED, spec), num_heads=2)
  assert loaded.layout == 'Hugging Face distilled DeiT'
  assert loaded.spec['registers'] == 1
  assert loaded.spec['positions_prefix'] == 2


def test_swins_here_have_gelu(tmp_path):
  tensors = named(swin_layouts.HUGGING_FACE, SWIN)
  with pytest.raises(WeightsError, match='activation quick_gelu'):
    load(tmp_path, tensors, dict(hidden_act='quick_gelu'))


def test_windows_that_shrink_along_one_axis(tmp_path):
  # Maps of 4x8 and 2x4: timm's second table is for windows of 2x4.
  spec = SWIN | dict(native_size=(8, 16), padding='timm')
  tensors = named(swin_layouts.TIMM, spec)
  name = 'layers.1.blocks.0.attn.relative_position_bias_table'
  assert tensors[name].shape == (3 * 7, 2)
  config = dict(architecture='swin', model_args=dict(img_size=(8, 16)))
  loaded = load(tmp_path, tensors, config)
  assert loaded.spec['window'] == 4
  assert loaded.spec['native_size'] == (8, 16)
  again = export_to(
    'timm', build(loaded.spec), loaded.params, image_size=(8, 16)
  )
  assert set(again.tensors) == set(tensors)
  for key, wanted in tensors.items():
    np.testing.assert_array_equal(again.tensors[key], wanted)
  (tmp_path / 'config.json').unlink()
  with pytest.raises(WeightsError, match='set config.weights.image_size'):
    load_encoder(tmp_path / 'model.safetensors')
  with pytest.raises(WeightsError, match='window of 2x4'):
    export_to('microsoft', *drawn(spec), image_size=(8, 16))


def test_padding_that_others_see_is_noted():
  encoder, params = drawn(SWIN)
  for name, size, count in (
    ('timm', (16, 16), 0),
    ('timm', (20, 20), 1),  # a map of 10x10
    ('huggingface', (40, 40), 1),
    ('huggingface', (16, 16), 0),
  ):
    made = export_to(name, encoder, params, image_size=size)
    assert sum('padded' in note for note in made.notes) == count, (name, size)


def test_the_last_norm_of_mmdet_counts_stages():
  made = export_to('mmdet', *drawn(SWIN), image_size=(16, 16))
  assert 'backbone.norm1.weight' in made.tensors
  assert 'backbone.norm3.weight' not in made.tensors
