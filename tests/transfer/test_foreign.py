"""Weights of others wherever a run is taken, and ours exported."""

import functools
import json
import pathlib
import shutil

import frozen_jobs
import numpy as np
import pytest
import tiny_run

from interop.files import open_weights
from interop.load import load_encoder
from transfer.backbone import load_backbone

ENCODERS = tiny_run.ROOT / 'tests' / 'goldens' / 'weights' / 'encoders'
FILE = ENCODERS / 'hf_dinov2'


@pytest.fixture
def run(monkeypatch, tmp_path):
  return functools.partial(frozen_jobs.run, monkeypatch)


@pytest.fixture
def refused(monkeypatch):
  return functools.partial(frozen_jobs.refused, monkeypatch)


def without_run(workdir, **fields):
  """Trains on the smallest data, from a file."""
  return tiny_run.pretrain(workdir, '', **fields)


class TestJobs:
  def test_embed_gives_the_features_of_the_file(self, run, tmp_path):
    run('embed.py:arrays', tmp_path, *frozen_jobs.arrays(''), checkpoint=FILE)
    with np.load(tmp_path / 'features.npz') as file:
      found = file['features']
    backbone = load_backbone(FILE)
    images = tiny_run.images(tiny_run.TRAIN, seed=tiny_run.TRAIN)[0]
    images = images.astype(np.float32) / 255
    wanted = backbone.encoder.apply(backbone.variables(), images).pooled
    np.testing.assert_allclose(found, wanted, atol=1e-4)

  def test_it_says_what_it_has_read(self, monkeypatch, tmp_path):
    code, _, err = frozen_jobs.call(
      monkeypatch,
      'knn.py:arrays',
      tmp_path,
      *frozen_jobs.arrays(),
      checkpoint=FILE,
    )
    assert code == 0, err[-2000:]
    summary = json.loads((tmp_path / 'summary.json').read_text())
    assert (summary['checkpoint'], summary['which']) == (str(FILE), 'student')
    said = next(line for line in err.splitlines() if 'Hugging Face' in line)
    assert said == (
      f'{FILE}: Hugging Face DINOv2; ViT of width 16, 2 blocks, 2 heads, '
      'positions of 4x4 patches; not used: embeddings.mask_token'
    )

  def test_pictures(self, run, tmp_path):
    run(
      'visualize.py:arrays',
      tmp_path,
      *frozen_jobs.arrays(),
      '--config.pictures=("attention", "neighbors")',
      checkpoint=FILE,
    )
    assert len(list((tmp_path / 'images').glob('*.png'))) >= 2

  @pytest.mark.parametrize(
    'job, name, options',
    [
      ('linear_probe.py:arrays,cached', 'timm_dinov2_reg', ['epochs=1.0']),
      (
        'finetune.py:arrays,simmim',
        'hf_swin',
        ['steps=1', 'eval_every=1', 'dtype=float32', 'data.image_size=32'],
      ),
      ('fewshot.py:arrays', 'hf_clip', ['fewshot.shots=(2,)']),
    ],
  )
  def test_what_is_trained_on_it(self, run, tmp_path, job, name, options):
    summary = run(
      job,
      tmp_path,
      *frozen_jobs.arrays(),
      *(f'--config.{option}' for option in options),
      *(['--config.fewshot.shares=()'] if 'fewshot' in job else []),
      checkpoint=ENCODERS / name,
    )
    assert summary['checkpoint'] == str(ENCODERS / name)

  def test_what_a_file_does_not_tell(self, run, refused, tmp_path):
    path = tmp_path / 'model.safetensors'
    shutil.copy(ENCODERS / 'timm_vit' / 'model.safetensors', path)
    workdir = tmp_path / 'knn'
    line = refused(
      'knn.py:arrays', workdir, *frozen_jobs.arrays(), checkpoint=path
    )
    assert 'how many heads a ViT of width 16 has: set config.weights.' in line
    assert not workdir.exists()
    run(
      'knn.py:arrays',
      workdir,
      *frozen_jobs.arrays(),
      '--config.weights.num_heads=2',
      '--config.weights.mean=(0.5,0.5,0.5)',
      checkpoint=path,
    )

  def test_runs_of_this_project_say_it_themselves(self, refused, tmp_path):
    line = refused(
      'knn.py:arrays',
      tmp_path / 'knn',
      *frozen_jobs.arrays(),
      '--config.weights.num_heads=2',
    )
    assert "config.weights.num_heads is for files of others' weights" in line


class TestStart:
  """Pre-training from a file."""

  def test_the_encoder_is_the_file_s(self, tmp_path):
    """With a rate of 0 it stays as it was."""
    without_run(
      tmp_path, init_from=str(FILE), optim__base_lr=0.0, eval_every=0, steps=2
    )
    config = json.loads((tmp_path / 'config.json').read_text())
    assert config['encoder']['width'] == 16
    assert config['encoder']['layer_scale'] > 0
    trained, file = load_backbone(tmp_path), load_encoder(FILE)
    assert trained.params.keys() == file.params.keys()
    for name, x in file.params.items():
      np.testing.assert_array_equal(trained.params[name], x)

  def test_it_continues_without_the_file(self, tmp_path):
    place = tmp_path / 'file'
    shutil.copytree(FILE, place)
    fields = dict(init_from=str(place), eval_every=0)
    whole = without_run(tmp_path / 'whole', **fields)
    checkpoints = tmp_path / 'part' / 'checkpoints'
    shutil.copytree(tmp_path / 'whole', tmp_path / 'part')
    (tmp_path / 'part' / 'summary.json').unlink()
    for step in map(int, [path.name for path in checkpoints.iterdir()]):
      if step > 4:
        shutil.rmtree(checkpoints / str(step))
    shutil.rmtree(place)
    again = without_run(tmp_path / 'part', **fields)
    assert again['loss'] == whole['loss']

  def test_grey_images_reduce_the_first_layer(self, tmp_path):
    data = tiny_run.write_data(tmp_path / 'grey.npz', channels=1)
    without_run(
      tmp_path / 'run',
      init_from=str(FILE),
      data__data_dir=data,
      optim__base_lr=0.0,
      eval_every=0,
      steps=1,
    )
    kernel = load_encoder(FILE).params['encoder/patch_embed/kernel']
    found = load_backbone(tmp_path / 'run').params['encoder/patch_embed/kernel']
    np.testing.assert_allclose(found, kernel.sum(2, keepdims=True), rtol=1e-6)

  @pytest.mark.parametrize(
    'fields, message',
    [
      (
        dict(init_from=str(ENCODERS / 'hf_swin')),
        'holds a swin, and the config word vit_mini8 means a vit: take a word',
      ),
      (dict(weights__num_heads=2), 'config.init_from=None is none'),
    ],
  )
  def test_what_is_refused(self, tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
      without_run(tmp_path / 'run', **fields)
    assert not (tmp_path / 'run').exists()


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
  """The smallest run in every format of a ViT, and the summary."""
  folder = tmp_path_factory.mktemp('export')
  with pytest.MonkeyPatch.context() as patch:
    code, out, err = tiny_run.main_in_process(
      patch,
      f'--config={tiny_run.ROOT}/configs/export.py:'
      'timm,huggingface,detectron2,npz',
      f'--workdir={folder}',
      f'--config.checkpoint={tiny_run.finished()}',
    )
  assert code == 0, err[-2000:]
  assert out == ''
  return folder, json.loads((folder / 'summary.json').read_text())


class TestExport:
  def test_every_format_gives_the_same_neighbours(
    self, exported, run, tmp_path
  ):
    folder, _ = exported
    want = run('knn.py:arrays', tmp_path / 'run', *frozen_jobs.arrays())
    for name in ('timm', 'huggingface', 'npz/model.npz'):
      found = run(
        'knn.py:arrays',
        tmp_path / name.partition('/')[0],
        *frozen_jobs.arrays(),
        checkpoint=folder / name,
      )
      assert found['knn_top1'] == want['knn_top1']

  def test_metadata_tell_where_it_is_from(self, exported):
    folder, _ = exported
    told = open_weights(folder / 'timm' / 'model.safetensors').metadata
    assert told['method'] == 'moco_v3'
    assert int(told['step']) == tiny_run.STEPS
    assert json.loads(told['run'])['encoder']['name'] == 'vit_mini8'
    assert json.loads(told['encoder'])['num_heads'] == 2
    assert json.loads(told['image_size']) == [tiny_run.SIZE] * 2
    assert told['producer'].startswith('RePre-JAX ')
    assert {'commit', 'layout', 'which'} <= told.keys()

  def test_summary_and_files(self, exported):
    folder, summary = exported
    assert [pathlib.Path(f).exists() for f in summary['files']] == [True] * 4
    assert (folder / 'huggingface' / 'preprocessor_config.json').exists()
    assert not (folder / 'detectron2' / 'config.json').exists()

  @pytest.mark.parametrize(
    'words, message',
    [
      ('mmdet', 'mmdet has no ViT; formats that have: timm, huggingface'),
      ('npz,swin_t', "unknown config word 'swin_t'"),
    ],
  )
  def test_what_is_refused(self, refused, tmp_path, words, message):
    line = refused(f'export.py:{words}', tmp_path / 'export')
    assert message in line
    assert not (tmp_path / 'export').exists()
