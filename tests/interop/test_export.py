"""Encoders in the layouts of other libraries, read back."""

import json

import jax
import numpy as np
import pytest
from bridges import (
  ENCODERS,
  NAMES,
  assert_near,
  encode,
  nested,
  recorded,
  tensors_of,
)

from interop import own
from interop.files import (
  WeightsError,
  open_weights,
  write_npz,
  write_safetensors,
)
from interop.formats import export_to, preprocessor
from interop.load import load_encoder
from interop.recognise import build
from models.convvit import ConvViT
from models.swin import Swin
from models.vit import ViT

SIZE = (32, 32)
# What a library's ViT cannot be.
IMPOSSIBLE = {
  ('timm_beit', 'timm'): "timm has no ViT with relative='block'",
  ('timm_beit', 'huggingface'): "relative='block', only with 'none'",
  ('timm_avg', 'huggingface'): 'class_token=False, only with True',
  ('timm_dinov2_reg', 'huggingface'): 'no ViT without positions of CLS',
  ('timm_reg_all', 'huggingface'): 'no ViT without positions of CLS',
  ('timm_distilled', 'huggingface'): 'no ViT without positions of CLS',
  ('timm_swin', 'huggingface'): 'no windows of 5 on its last map of 4x4',
}


def written(folder, export, metadata=None):
  if export.config is not None:
    (folder / 'config.json').write_text(json.dumps(export.config))
  write_safetensors(
    folder / 'model.safetensors', export.tensors, metadata or {}
  )
  return folder


@pytest.mark.parametrize('library', ['timm', 'huggingface'])
@pytest.mark.parametrize('name', NAMES)
def test_what_was_exported_is_the_same_encoder(tmp_path, name, library):
  z = recorded(name)
  stated = {k: tuple(map(float, z[k])) for k in ('mean', 'std')}
  ours = load_encoder(ENCODERS / name, **stated)
  encoder = build(ours.spec)
  height, width = z['images'].shape[1:3]

  def export():
    return export_to(library, encoder, ours.params, image_size=(height, width))

  if (name, library) in IMPOSSIBLE:
    with pytest.raises(WeightsError, match=IMPOSSIBLE[name, library]):
      export()
    return
  out = export()
  again = load_encoder(written(tmp_path, out), **stated)
  images = z['images'].astype(np.float32) / 255
  found, wanted = encode(again, images), encode(ours, images)
  if any('pooled' in note for note in out.notes):
    assert_near(found.tokens, wanted.tokens, 3e-5)
  else:
    assert_near(found.pooled, wanted.pooled, 3e-5)


@pytest.mark.parametrize(
  'name, library',
  [
    ('timm_vit', 'timm'),
    ('timm_dinov2_reg', 'timm'),
    ('timm_swiglu', 'timm'),
    ('timm_swin', 'timm'),
    ('hf_vit', 'huggingface'),
    ('hf_dinov2', 'huggingface'),
    ('hf_dinov2_reg', 'huggingface'),
    ('hf_swin', 'huggingface'),
  ],
)
def test_in_then_out_is_the_same_file(name, library):
  """By name and byte, but for what is no part of an encoder."""
  ours = load_encoder(ENCODERS / name)
  out = export_to(
    library, build(ours.spec), ours.params, image_size=SIZE
  ).tensors
  for theirs, x in out.items():
    original = tensors_of(name)[theirs]
    assert np.ascontiguousarray(x).tobytes() == original.tobytes(), theirs
  left = tensors_of(name).keys() - out.keys()
  assert all('mask_token' in n or 'pooler' in n for n in left), left


def drawn(encoder, size=32):
  """An encoder and random parameters of it."""
  image = jax.numpy.zeros((1, size, size, encoder.in_channels))
  params = jax.jit(encoder.init)(jax.random.key(0), image)['params']
  leaves, tree = jax.tree.flatten(params)
  rng = np.random.default_rng(0)
  params = tree.unflatten(
    [x + rng.normal(0, 0.1, x.shape).astype(np.float32) for x in leaves]
  )
  flat = jax.tree_util.tree_flatten_with_path(params)[0]
  return {
    'encoder/' + '/'.join(k.key for k in path): np.asarray(x)
    for path, x in flat
  }


TINY = {
  'vit': ViT(patch_size=8, width=16, depth=2, num_heads=2),
  'swin': Swin(width=8, depths=(1, 2), num_heads=(1, 2), window=4),
  'convvit': ConvViT(
    patch_sizes=(2, 2, 2),
    widths=(8, 8, 16),
    depths=(1, 1, 1),
    num_heads=2,
    mlp_ratio=2,
  ),
}


@pytest.mark.parametrize(
  'kind, library, marks',
  [
    ('vit', 'timm', {'pos_embed', 'blocks.1.attn.qkv.weight'}),
    ('vit', 'huggingface', {'embeddings.position_embeddings'}),
    ('vit', 'detectron2', {'backbone.net.pos_embed'}),
    ('swin', 'timm', {'layers.1.downsample.norm.bias'}),
    ('swin', 'huggingface', {'encoder.layers.0.downsample.norm.bias'}),
    ('swin', 'microsoft', {'layers.0.downsample.norm.bias'}),
    ('swin', 'mmdet', {'backbone.stages.0.blocks.0.attn.w_msa.qkv.bias'}),
    ('convvit', 'convmae', {'pos_embed', 'stage1_output_decode.weight'}),
  ],
)
def test_encoders_of_this_project(tmp_path, kind, library, marks):
  encoder, params = TINY[kind], drawn(TINY[kind])
  export = export_to(library, encoder, params, image_size=SIZE)
  assert marks <= export.tensors.keys()
  metadata = own.about(own.spec_of(encoder), {})
  if library == 'detectron2':  # which has no norm at the end
    with pytest.raises(WeightsError, match=r'missing norm\.weight, norm\.bias'):
      load_encoder(written(tmp_path, export, metadata))
    return
  again = load_encoder(written(tmp_path, export, metadata))
  images = np.random.default_rng(1).random((2, *SIZE, 3), np.float32)
  wanted = encoder.apply({'params': nested(params)}, images)
  found = encode(again, images)
  assert_near(found.pooled, wanted.pooled)
  for ours, theirs in zip(wanted.levels, found.levels, strict=True):
    assert_near(theirs.tokens, ours.tokens)


class TestOwn:
  """The .npz with our names."""

  @pytest.mark.parametrize('kind', TINY)
  def test_comes_back_as_it_was(self, tmp_path, kind):
    encoder, params = TINY[kind], drawn(TINY[kind])
    metadata = own.about(own.spec_of(encoder), dict(step=7))
    write_npz(tmp_path / 'model.npz', own.own_names(params, metadata))
    again = load_encoder(tmp_path / 'model.npz')
    assert build(again.spec) == encoder
    assert again.params.keys() == params.keys()
    for name, x in params.items():
      np.testing.assert_array_equal(again.params[name], x)

  def test_says_itself_what_others_are_asked(self, tmp_path):
    encoder = TINY['vit']
    arrays = own.own_names(drawn(encoder), own.about(own.spec_of(encoder), {}))
    write_npz(tmp_path / 'model.npz', arrays)
    with pytest.raises(WeightsError, match='config.weights.num_heads is for'):
      load_encoder(tmp_path / 'model.npz', num_heads=4, window=None)

  def test_without_a_word_on_the_encoder(self, tmp_path):
    write_npz(tmp_path / 'model.npz', drawn(TINY['vit']))
    with pytest.raises(WeightsError, match='does not say which encoder'):
      load_encoder(tmp_path / 'model.npz')

  @pytest.mark.parametrize(
    'change, message',
    [
      (dict(depth=3), r'missing, unexpected or of other shapes'),
      (dict(name='resnet'), 'no encoder can be made of what it says'),
      (dict(colour='red'), 'no encoder can be made of what it says'),
    ],
  )
  def test_what_it_says_must_be_so(self, tmp_path, change, message):
    spec = own.spec_of(TINY['vit']) | change
    arrays = own.own_names(drawn(TINY['vit']), own.about(spec, {}))
    write_npz(tmp_path / 'model.npz', arrays)
    with pytest.raises(WeightsError, match=message):
      load_encoder(tmp_path / 'model.npz')


def test_metadata_tells_what_no_shape_does(tmp_path):
  """Heads, statistics and epsilon of an encoder whose config.json is lost."""
  encoder = TINY['vit'].clone(mean=(0.1,), std=(0.3,), norm_epsilon=1e-5)
  export = export_to('timm', encoder, drawn(encoder), image_size=SIZE)
  path = tmp_path / 'alone.safetensors'
  metadata = own.about(own.spec_of(encoder), dict(commit='abc', step=3))
  write_safetensors(path, export.tensors, metadata)
  spec = load_encoder(path).spec
  assert (spec['num_heads'], spec['norm_epsilon']) == (2, 1e-5)
  assert (spec['mean'], spec['std']) == ((0.1,), (0.3,))
  found = open_weights(path).metadata
  assert (found['commit'], found['step']) == ('abc', '3')
  assert found['format'] == 'pt'


def test_statistics_of_other_channels():
  encoder = TINY['vit'].clone(in_channels=1)
  beside = preprocessor(encoder, SIZE)
  assert (beside['image_mean'], beside['image_std']) == ([0.5], [0.5])


def test_an_unknown_format_and_one_for_others():
  params = drawn(TINY['swin'])
  with pytest.raises(WeightsError, match="unknown format 'onnx'; known: conv"):
    export_to('onnx', TINY['swin'], params, image_size=SIZE)
  with pytest.raises(
    WeightsError, match='detectron2 has no Swin; formats that have: timm'
  ):
    export_to('detectron2', TINY['swin'], params, image_size=SIZE)
