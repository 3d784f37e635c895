"""Encoders of runs: the right weights, and clear words where there are none."""

import json

import jax
import numpy as np
import pytest
import tiny_run

from models import make_encoder
from training.checkpoint import CheckpointError
from training.warm_start import load_params
from transfer.backbone import load_backbone
from transfer.pooling import pool_blocks


def test_student_and_teacher():
  run = tiny_run.finished()
  student = load_backbone(run, which='student')
  teacher = load_backbone(run / 'checkpoints' / '6', which='teacher')
  name = 'encoder/block_1/mlp/fc1/kernel'
  np.testing.assert_array_equal(student.params[name], load_params(run)[name])
  assert student.params.keys() == teacher.params.keys()
  assert (student.params[name] != teacher.params[name]).any()
  assert all(k.startswith('encoder/') for k in student.params)
  assert load_backbone(run).which == 'student'  # as the run's k-NN
  older = load_backbone(run / 'checkpoints' / '2')
  assert (older.params[name] != student.params[name]).any()


def test_the_encoder_is_the_run_s():
  found = load_backbone(tiny_run.finished())
  encoder = found.encoder
  assert (encoder.width, encoder.depth, encoder.patch_size) == (32, 2, 8)
  assert encoder.drop_path == 0 and encoder.in_channels == 3
  images, _ = tiny_run.images(2, seed=0)
  features = encoder.apply(found.variables(), images / np.float32(255))
  assert features.pooled.shape == (2, 32)
  assert load_backbone(tiny_run.finished(), drop_path=0.1).encoder.drop_path


def test_what_is_not_there(tmp_path):
  with pytest.raises(CheckpointError, match='set config.checkpoint'):
    load_backbone(None)
  with pytest.raises(CheckpointError, match='neither a workdir nor one of'):
    load_backbone(tmp_path)
  run = tiny_run.copy(tiny_run.finished(), tmp_path / 'run')
  with pytest.raises(ValueError, match="which='techer' must be one of auto"):
    load_backbone(run, which='techer')
  probed = dict(task='linear_probe', checkpoint='runs/mine')
  (run / 'config.json').write_text(json.dumps(probed))
  with pytest.raises(CheckpointError, match=r"'linear_probe' that read runs/m"):
    load_backbone(run)


class TestPooling:
  @pytest.fixture
  def vit(self):
    encoder = make_encoder('vit_mini4', width=16, depth=3, num_heads=2)
    return self.made(encoder)

  def made(self, encoder):
    images = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3))
    params = encoder.init(jax.random.key(1), images)['params']
    params['norm'] = jax.tree.map(
      lambda x: x + 0.1 * np.arange(x.size), params['norm']
    )
    return encoder, params, encoder.apply({'params': params}, images)

  def normed(self, encoder, params, x):
    """NumPy twin of the final norm."""
    x = np.asarray(x, np.float64)
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + encoder.norm_epsilon)
    return x * params['norm']['scale'] + params['norm']['bias']

  def test_one_block_is_what_the_encoder_returns(self, vit):
    encoder, params, found = vit
    for pooling in ('auto', 'cls'):
      got = pool_blocks(encoder, params, found, pooling=pooling)
      np.testing.assert_array_equal(got, found.pooled)
    mean = pool_blocks(encoder, params, found, pooling='mean')
    np.testing.assert_allclose(mean, found.tokens.mean(1), rtol=1e-6)

  def test_last_blocks_through_the_final_norm(self, vit):
    encoder, params, found = vit
    got = pool_blocks(encoder, params, found, blocks=3, pooling='cls')
    want = [
      self.normed(encoder, params, level.prefix[:, 0]) for level in found.levels
    ]
    np.testing.assert_allclose(got, np.concatenate(want, -1), atol=1e-5)
    both = pool_blocks(encoder, params, found, blocks=2, pooling='cls_mean')
    want = [*want[1:], np.asarray(found.tokens).mean(1)]
    np.testing.assert_allclose(both, np.concatenate(want, -1), atol=1e-5)

  def test_stages_of_swin_have_their_own_widths(self):
    encoder = make_encoder(
      'swin_mini', width=8, depths=(1, 1), num_heads=(1, 2), window=2
    )
    encoder, params, found = self.made(encoder)
    got = pool_blocks(encoder, params, found, blocks=2)
    assert got.shape == (2, 8 + 16)
    np.testing.assert_array_equal(got[:, 8:], found.pooled)
    np.testing.assert_allclose(np.asarray(got[:, :8]).mean(-1), 0, atol=1e-6)
    with pytest.raises(ValueError, match='needs a CLS token'):
      pool_blocks(encoder, params, found, pooling='cls')

  def test_wrong_words(self, vit):
    with pytest.raises(ValueError, match=r'blocks=4 must be within 1\.\.3'):
      pool_blocks(*vit, blocks=4)
    with pytest.raises(ValueError, match="unknown pooling 'clss'"):
      pool_blocks(*vit, pooling='clss')
