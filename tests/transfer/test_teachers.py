"""Frozen teachers: what is read of runs and files, and a whole job with one."""

import json
import pathlib
import shutil
import types

import frozen_jobs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from flax import traverse_util
from test_configs_train import SIZE, small

import main
from configs import mr_mae
from interop.files import WeightsError, open_weights
from interop.load import load_encoder
from pretrain.methods import from_config
from pretrain.run_figures import run_figures
from training import verified
from training.checkpoint import CheckpointError
from training.state import named_leaves
from training.warm_start import load_params
from training.workdir import WorkdirError
from transfer.backbone import load_backbone
from transfer.teachers import load_teachers

GOLDENS = tiny_run.ROOT / 'tests' / 'goldens'
ENCODERS = GOLDENS / 'weights' / 'encoders'
NAMES = sorted(path.name for path in ENCODERS.iterdir())
CLIP = ENCODERS / 'hf_clip'
STEPS = 3


def config_with(checkpoint=None, **fields):
  """A config whose first teacher is there."""
  config = mr_mae.get_config('vit_mini4,arrays,paper')
  config.dtype = 'float32'
  first = config.method.teachers.first
  first.checkpoint = checkpoint and str(checkpoint)
  first.update_from_flattened_dict(fields)
  return config.lock()


def read(tmp_path, checkpoint, *, channels=3, **fields):
  """(method, its teacher's parameters) of `load_teachers`."""
  config, frozen = load_teachers(
    config_with(checkpoint, **fields), tmp_path / 'new', channels=channels
  )
  head = 'teachers/first/'
  assert all(name.startswith(head) for name in frozen)
  params = {name.removeprefix(head): x for name, x in frozen.items()}
  method = from_config(config, channels=channels, steps_per_epoch=1, total=9)
  return method, traverse_util.unflatten_dict(params, sep='/')


def assert_same_teacher(method, params, backbone):
  """The same module, less how it computes, and the same bits."""
  assert method.teachers['first'].encoder == backbone.encoder
  found, wanted = named_leaves(params), backbone.variables()['params']
  wanted = named_leaves(wanted)
  assert found.keys() == wanted.keys()
  for name, leaf in wanted.items():
    np.testing.assert_array_equal(found[name], leaf, err_msg=name)


def assert_no_leaf_is_drawn(method, params, channels=3):
  """What the file brings is all that the method keeps of a teacher."""
  x = jax.ShapeDtypeStruct((1, 16, 16, channels), jnp.float32)
  _, state = jax.eval_shape(method.init, jax.random.key(0), dict(view1=x))
  shapes = {
    name: leaf.shape
    for name, leaf in named_leaves(state['teachers']['first']).items()
  }
  assert shapes == {n: x.shape for n, x in named_leaves(params).items()}


class TestFiles:
  @pytest.mark.parametrize('name', NAMES)
  def test_the_teacher_is_the_file_s_encoder(self, tmp_path, name):
    method, params = read(tmp_path, ENCODERS / name)
    assert_same_teacher(method, params, load_backbone(ENCODERS / name))
    assert_no_leaf_is_drawn(method, params)

  @pytest.mark.parametrize('name', ['hf_clip', 'timm_beit', 'hf_swin'])
  def test_it_says_what_the_encoder_says(self, tmp_path, name):
    method, params = read(tmp_path, ENCODERS / name)
    backbone = load_backbone(ENCODERS / name)
    x = jnp.asarray(tiny_run.images(2, seed=0)[0].repeat(2, 1).repeat(2, 2))
    x = x.astype(jnp.float32) / 255

    @jax.jit
    def call():
      said = method.teachers['first'](params, x, (4, 4)).places
      level = backbone.encoder.apply(backbone.variables(), x).levels[-1]
      return said, level.map()

    said, tokens = jax.device_get(call())
    center = tokens - tokens.mean(-1, keepdims=True)
    wanted = center / np.sqrt((center**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(said, wanted, atol=1e-4)

  def test_the_authors_dino(self, tmp_path):
    """Their checkpoint has a student and a teacher."""
    z = np.load(GOLDENS / 'enc_dino_vit.npz')
    weights = {k[2:]: z[k] for k in z.files if k.startswith('w/')}
    arrays = {f'teacher.backbone.{k}': x for k, x in weights.items()}
    arrays |= {f'student.backbone.{k}': 2 * x for k, x in weights.items()}
    path = tmp_path / 'dino.npz'
    np.savez(path, **arrays)
    heads = {'weights.num_heads': 4}
    _, auto = read(tmp_path, path, **heads)
    _, student = read(tmp_path, path, which='student', **heads)
    np.testing.assert_array_equal(auto['norm']['bias'], weights['norm.bias'])
    np.testing.assert_array_equal(
      student['norm']['bias'], 2 * weights['norm.bias']
    )

  def test_what_a_file_does_not_tell_is_asked_for_where_it_is_read(
    self, tmp_path
  ):
    path = tmp_path / 'model.safetensors'
    shutil.copy(ENCODERS / 'timm_vit' / 'model.safetensors', path)
    with pytest.raises(ValueError) as refused:
      read(tmp_path, path)
    field = 'config.method.teachers.first.weights.num_heads'
    assert f'set {field}' in str(refused.value)
    told = {'weights.num_heads': 2, 'weights.positions_offset': 0.0}
    method, _ = read(tmp_path, path, **told)
    encoder = method.teachers['first'].encoder
    assert (encoder.num_heads, encoder.positions_offset) == (2, 0.0)

  def test_nothing_is_a_word_too(self, tmp_path):
    """An offset of 0 is not what is taken for DINO's positions."""
    z = np.load(GOLDENS / 'enc_dino_vit.npz')
    path, weights = tmp_path / 'dino.npz', [k for k in z.files if 'w/' in k]
    np.savez(path, **{f'teacher.backbone.{k[2:]}': z[k] for k in weights})
    offsets = [
      read(tmp_path, path, **{'weights.num_heads': 4} | more)[0]
      .teachers['first']
      .encoder.positions_offset
      for more in ({}, {'weights.positions_offset': 0.0})
    ]
    assert offsets == [0.1, 0.0]

  def test_grey_images_reduce_the_first_layer(self, tmp_path):
    method, params = read(tmp_path, CLIP, channels=1)
    kernel = load_encoder(CLIP).params['encoder/patch_embed/kernel']
    np.testing.assert_allclose(
      params['patch_embed']['kernel'], kernel.sum(2, keepdims=True), rtol=1e-6
    )
    encoder = method.teachers['first'].encoder
    assert encoder.in_channels == 1 and len(encoder.mean) == 1
    assert_no_leaf_is_drawn(method, params, channels=1)

  def test_a_file_that_is_not_there(self, tmp_path):
    for path in (tmp_path / 'none.pth', tmp_path / 'none'):
      with pytest.raises((CheckpointError, WeightsError), match='none'):
        read(tmp_path, path)

  def test_a_damaged_file(self, tmp_path):
    path = tmp_path / 'model.safetensors'
    whole = (CLIP / 'model.safetensors').read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match='model.safetensors'):
      read(tmp_path, path, **{'weights.num_heads': 2})

  def test_two_teachers(self, tmp_path):
    config = config_with(CLIP).copy_and_resolve_references()
    with config.unlocked():
      config.method.teachers.third.checkpoint = str(ENCODERS / 'hf_swin')
    config, frozen = load_teachers(config, tmp_path / 'new', channels=3)
    method = from_config(config, channels=3, steps_per_epoch=1, total=9)
    assert list(method.teachers) == ['first', 'third']
    assert {n.split('/')[1] for n in frozen} == {'first', 'third'}
    assert config.method.teachers.second.encoder is None


class TestRuns:
  def test_student_and_moving_teacher(self, tmp_path):
    run = tiny_run.finished()
    for which in ('student', 'teacher'):
      method, params = read(tmp_path, run, which=which)
      assert_same_teacher(method, params, load_backbone(run, which=which))
      assert_no_leaf_is_drawn(method, params)
    moving = read(tmp_path, run, which='teacher')[1]
    student = read(tmp_path, run)[1]
    kernels = [x['block_1']['mlp']['fc1']['kernel'] for x in (moving, student)]
    assert (kernels[0] != kernels[1]).any()

  def test_one_checkpoint_of_it(self, tmp_path):
    run = tiny_run.finished()
    _, early = read(tmp_path, run / 'checkpoints' / '2')
    _, late = read(tmp_path, run)
    assert (early['norm']['scale'] != late['norm']['scale']).any()

  def test_other_channels(self, tmp_path):
    with pytest.raises(ValueError, match='takes images of 3 .* these have 1'):
      read(tmp_path, tiny_run.finished(), channels=1)

  def test_what_it_says_itself(self, tmp_path):
    field = r'config\.method\.teachers\.first\.weights\.num_heads is for files'
    with pytest.raises(ValueError, match=field):
      read(tmp_path, tiny_run.finished(), **{'weights.num_heads': 2})

  def test_an_unknown_which(self, tmp_path):
    with pytest.raises(ValueError, match="which='both' must be one of auto"):
      read(tmp_path, tiny_run.finished(), which='both')

  def test_a_workdir_that_is_none(self, tmp_path):
    with pytest.raises(CheckpointError, match='neither a workdir nor one of'):
      read(tmp_path, tmp_path)


def test_a_config_without_a_teacher(tmp_path):
  with pytest.raises(ValueError) as refused:
    load_teachers(config_with(), tmp_path, channels=3)
  told = str(refused.value)
  assert 'set config.method.teachers.first.checkpoint to the workdir' in told


def test_methods_without_teachers_are_left_alone(tmp_path):
  config = tiny_run.config()
  assert load_teachers(config, tmp_path, channels=3) == (config, None)


class TestBeside:
  """Teachers of masked branches beside a contrastive method."""

  def config(self, checkpoint):
    config = small('simsiam', 'vit_mini4,masked_mimic')
    config.method.masked.teachers.first.checkpoint = checkpoint
    return config.lock()

  def test_one_is_needed(self, tmp_path):
    where = 'set config.method.masked.teachers.first.checkpoint to the workdir'
    with pytest.raises(ValueError, match=where.replace('.', r'\.')):
      load_teachers(self.config(None), tmp_path, channels=3)

  def test_it_is_mimicked_and_kept(self, tmp_path):
    summary = main.pretrain(self.config(str(CLIP)), str(tmp_path))
    assert summary['loss_masked'] == pytest.approx(
      summary['masked_loss_decoder'] + summary['masked_loss_mimic_first'],
      rel=1e-5,
    )
    found = load_params(tmp_path, which='teachers')
    wanted = load_backbone(str(CLIP)).params
    head = 'first/'
    assert {name.removeprefix(head) for name in found} == {
      name.removeprefix('encoder/') for name in wanted
    }
    for name, leaf in wanted.items():
      name = head + name.removeprefix('encoder/')
      np.testing.assert_array_equal(found[name], leaf)
    run = types.SimpleNamespace(
      config=json.loads((tmp_path / 'config.json').read_text()), where=tmp_path
    )
    images = np.zeros((2, SIZE, SIZE, 3), np.float32)
    drawn = run_figures(run, images, 'float32')
    assert 'masked_reconstruction' in drawn


def job(checkpoint, **fields):
  """A config of three steps that uses what can be used at once."""
  config = small('mr_mae', 'vit_mini4', focus='topk')
  config.method.teachers.first.checkpoint = str(checkpoint)
  config.update(dict(fsdp=2, chunks=2, online_probe_lr=1e-2, eval_every=2))
  config.update(dict(steps=STEPS, checkpoint_every=1, keep_checkpoints=9))
  config.update(dict(dtype='bfloat16'))
  config.knn.update(k=5, batch_size=32)
  config.update_from_flattened_dict(fields)
  return config.lock()


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """(workdir, summary, where the teacher was): its files are gone."""
  folder = tmp_path_factory.mktemp('mr_mae')
  place = folder / 'clip'
  shutil.copytree(CLIP, place)
  summary = main.pretrain(job(place), str(folder / 'run'))
  shutil.rmtree(place)
  return folder / 'run', summary, place


def cut_short(run, workdir, *, after):
  """A copy that ended after a step."""
  shutil.copytree(run, workdir)
  (workdir / 'summary.json').unlink()
  for step in tiny_run.saved_steps(workdir):
    if step > after:
      shutil.rmtree(workdir / 'checkpoints' / str(step))
  return workdir


def head_of(workdir):
  """Leaves of the frozen teacher in the checkpoint's record."""
  record = verified.read_meta(workdir / 'checkpoints' / str(STEPS))['leaves']
  head = 'method_state/teachers/first/'
  return {n.removeprefix(head): x for n, x in record.items() if head in n}


class TestJob:
  def test_what_is_reported(self, trained):
    workdir, summary, _ = trained
    rows = tiny_run.losses(workdir)
    assert list(rows) == [1, 2, 3]
    for row in rows.values():
      assert {'loss_decoder', 'loss_mimic_first', 'loss_probe'} <= row.keys()
      assert all(np.isfinite(value) for value in row.values())
      assert row['bad_steps'] == 0 and row['grad_norm'] > 0
    assert {'knn_top1', 'probe_top1'} <= summary.keys()
    pictures = sorted(path.name for path in (workdir / 'images').iterdir())
    assert pictures[-1] == 'reconstruction_0000003.png'

  def test_the_checkpoint_holds_the_teacher_and_nothing_else_of_it(
    self, trained
  ):
    """Once, in float32: no moments, no second copy."""
    workdir, _, _ = trained
    found = load_params(workdir, which='teachers')
    file = load_encoder(CLIP)
    wanted = {
      n.replace('encoder/', 'first/'): x for n, x in file.params.items()
    }
    assert found.keys() == wanted.keys()
    for name, leaf in wanted.items():
      np.testing.assert_array_equal(found[name], leaf, err_msg=name)
    leaves = head_of(workdir)
    assert {leaf['dtype'] for leaf in leaves.values()} == {'float32'}
    size = sum(int(np.prod(leaf['shape'])) for leaf in leaves.values())
    assert size == sum(x.size for x in file.params.values())
    record = verified.read_meta(workdir / 'checkpoints' / str(STEPS))['leaves']
    others = [n for n in record if 'teacher' in n]
    assert len(others) == len(leaves)

  def test_the_config_says_which_encoder_it_is(self, trained):
    workdir, _, place = trained
    config = json.loads((workdir / 'config.json').read_text())
    first = config['method']['teachers']['first']
    assert first['checkpoint'] == str(place)
    assert first['encoder']['mlp'] == 'quick_gelu'
    assert config['method']['teachers']['second']['encoder'] is None

  def test_it_continues_without_the_file_bit_for_bit(self, trained, tmp_path):
    workdir, _, place = trained
    again = cut_short(workdir, tmp_path / 'run', after=1)
    assert not place.exists()
    main.pretrain(job(place), str(again))
    assert tiny_run.checksums(again, STEPS) == tiny_run.checksums(
      workdir, STEPS
    )
    assert tiny_run.losses(again) == tiny_run.losses(workdir)

  def test_another_teacher_does_not_continue_it(self, trained, tmp_path):
    workdir, _, place = trained
    again = cut_short(workdir, tmp_path / 'run', after=1)
    name = 'method.teachers.first.checkpoint'
    with pytest.raises(WorkdirError, match=f'{name}: {place} there, .*hf_vit'):
      main.pretrain(job(ENCODERS / 'hf_vit'), str(again))
    second = {'method.teachers.second.checkpoint': str(ENCODERS / 'hf_vit')}
    with pytest.raises(WorkdirError, match='teachers.second.checkpoint'):
      main.pretrain(job(place, **second), str(again))

  def test_who_forces_it_is_told_which_teacher_stays(
    self, trained, capsys, tmp_path
  ):
    workdir, _, place = trained
    other = ENCODERS / 'hf_vit'
    config, params = load_teachers(job(other), workdir, channels=3)
    assert params is None
    kept = json.loads((workdir / 'config.json').read_text())['method']
    encoder = config.method.teachers.first.encoder.to_dict()
    assert encoder['name'] == kept['teachers']['first']['encoder']['name']
    assert encoder['width'] == kept['teachers']['first']['encoder']['width']
    told = f'stays what the checkpoint has, {place}; {other} is not read'
    assert told in capsys.readouterr().err
    load_teachers(job(place), workdir, channels=3)
    assert not capsys.readouterr().err

  def test_a_workdir_of_another_method_is_told_as_such(self, tmp_path):
    workdir = shutil.copytree(tiny_run.finished(), tmp_path / 'run')
    with pytest.raises(WorkdirError, match='method.name: moco_v3 there'):
      main.pretrain(job(CLIP), str(workdir))

  def test_probes_read_its_encoder(self, trained, monkeypatch, tmp_path):
    workdir, summary, _ = trained
    found = frozen_jobs.run(
      monkeypatch,
      'knn.py:arrays',
      tmp_path,
      *frozen_jobs.arrays(),
      '--config.neighbors.k=(5,)',
      '--config.dtype=bfloat16',
      checkpoint=workdir,
    )
    assert found['knn_top1'] == summary['knn_top1']

  def test_it_is_exported(self, trained, monkeypatch, tmp_path):
    workdir, _, _ = trained
    code, _, err = tiny_run.main_in_process(
      monkeypatch,
      f'--config={tiny_run.ROOT}/configs/export.py:timm',
      f'--workdir={tmp_path}',
      f'--config.checkpoint={workdir}',
    )
    assert code == 0, err[-2000:]
    files = json.loads((tmp_path / 'summary.json').read_text())['files']
    (file,) = [name for name in files if 'safetensors' in name]
    weights = open_weights(pathlib.Path(file))
    assert weights.metadata['method'] == 'mr_mae'
    assert not [name for name in weights.tensors if 'teacher' in name]

  def test_its_masks_are_drawn_with_the_teacher(
    self, trained, monkeypatch, tmp_path
  ):
    """Pictures of a run alone, also of images larger than its own."""
    workdir, _, _ = trained
    for size in (16, 32):
      frozen_jobs.run(
        monkeypatch,
        'visualize.py:arrays',
        tmp_path / str(size),
        *frozen_jobs.arrays(),
        '--config.pictures=("reconstruction",)',
        f'--config.data.image_size={size}',
        checkpoint=workdir,
      )
      assert list((tmp_path / str(size) / 'images').glob('*.png'))

  def test_it_teaches_the_next_one(self, trained, tmp_path):
    workdir, _, _ = trained
    method, params = read(tmp_path, workdir)
    assert_same_teacher(method, params, load_backbone(workdir))
    with pytest.raises(CheckpointError, match='has no teacher'):
      read(tmp_path, workdir, which='teacher')

  def test_it_cannot_teach_itself(self, tmp_path):
    workdir = tmp_path / 'run'
    with pytest.raises(CheckpointError, match='neither a workdir'):
      main.pretrain(job(workdir), str(workdir))
    assert not workdir.exists()
