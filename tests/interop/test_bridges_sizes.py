"""Images of other sizes than the weights of others were trained on."""

import json

import numpy as np
import pytest
from made_encoders import VIT, named

from interop import vit_tables
from interop.files import write_safetensors
from interop.load import load_encoder
from models import make_encoder
from models.posemb import interpolation_matrix

# What PyTorch makes of one-hot maps with mode='bicubic', antialias=True.
FEWER = [
  [0.584615, 0.446154, 0.0, -0.030769, 0.0],
  [-0.037209, 0.246512, 0.581395, 0.246512, -0.037209],
  [0.0, -0.030769, 0.0, 0.446154, 0.584615],
]
MORE = [
  [1.052239, -0.052239, 0.0],
  [0.373246, 0.696913, -0.070159],
  [-0.070159, 0.696913, 0.373246],
  [0.0, -0.052239, 1.052239],
]


@pytest.mark.parametrize('wanted', [FEWER, MORE])
def test_antialiased_positions_are_pytorchs(wanted):
  new, old = np.shape(wanted)
  matrix = interpolation_matrix((old, 1), (new, 1), antialias=True)
  np.testing.assert_allclose(matrix, wanted, atol=1e-6)


@pytest.mark.parametrize(
  ('names', 'registers', 'config', 'wanted'),
  [
    (vit_tables.HF_DINO_V2, 2, {}, True),
    (vit_tables.HF_DINO_V2, 0, {}, False),
    (vit_tables.DINO_V2, 2, {}, True),
    (vit_tables.TIMM, 0, {}, False),
    (vit_tables.TIMM, 0, dict(architecture='vit_small_patch16_224'), True),
  ],
)
def test_who_antialiases(tmp_path, names, registers, config, wanted):
  spec = VIT | dict(registers=registers, layer_scale=0.1)
  file = tmp_path / 'model.safetensors'
  write_safetensors(file, named(names, spec), {})
  (tmp_path / 'config.json').write_text(json.dumps(config))
  loaded = load_encoder(file, num_heads=2)
  assert loaded.layout == names.title
  assert loaded.spec.get('positions_antialias', False) == wanted


@pytest.mark.parametrize(
  ('padding', 'shift', 'size'),
  [('zeros', (0, 0), (4, 4)), ('timm', (0, 2), (4, 4))],
)
def test_hugging_face_shifts_both_axes_or_none(padding, shift, size):
  # A map of 4x8 tokens and windows of 4: along one axis there is but one.
  swin = make_encoder('swin', patch_size=2, window=4, padding=padding)
  windows = swin.windows_of(1, (8, 16))
  assert windows.shift == shift
  assert windows.size == size
