"""End to end: what a run leaves behind, and what may be run."""

import functools
import importlib
import inspect
import io
import json
import math
import os
import pathlib
import re
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from PIL import Image

import main
import models
from configs import automatic, common
from configs.data import DATA
from input_pipeline.views import View
from models import sizes
from pretrain.methods import from_config
from training import loop, optim
from training.checkpoint import CheckpointError
from training.fields import teachers_in
from training.metrics import Reporter
from training.rng import step_key
from training.warm_start import load_params

CONFIGS = sorted(
  path.stem
  for path in (tiny_run.ROOT / 'configs').glob('*.py')
  if path.stem not in tiny_run.SHARED_CONFIGS
)


@pytest.fixture(scope='module')
def run():
  return tiny_run.finished()


class TestWorkdir:
  def test_has_what_the_contract_names(self, run):
    assert {path.name for path in run.iterdir()} == {
      'config.json',
      'environment.json',
      'metrics.jsonl',
      'summary.json',
      'checkpoints',
      'images',
      'tensorboard',
    }
    assert tiny_run.saved_steps(run) == [2, 4, 6]

  def test_config_is_resolved(self, run):
    config = json.loads((run / 'config.json').read_text())
    wanted = tiny_run.config()
    assert config == json.loads(wanted.to_json_best_effort())
    assert config['task'] == 'pretrain'
    assert config['method']['repre']['width'] == 8

  def test_environment(self, run):
    found = json.loads((run / 'environment.json').read_text())
    assert found['packages']['jax'] == jax.__version__
    assert len(found['devices']) == jax.device_count()
    assert found['backend'] == 'cpu'
    assert {'python', 'commit', 'command', 'started'} <= found.keys()

  def test_rows_are_unique_and_in_order(self, run):
    rows = tiny_run.rows(run)
    kinds = [(row['step'], 'loss' in row) for row in rows]
    assert len(set(kinds)) == len(kinds)
    assert [row['step'] for row in rows] == sorted(row['step'] for row in rows)
    assert list(tiny_run.losses(run)) == [1, 2, 3, 4, 5, 6]
    assert list(tiny_run.measured(run)) == [0, 3, 6]

  def test_rows_are_finite_numbers(self, run):
    for row in tiny_run.rows(run):
      assert all(math.isfinite(value) for value in row.values()), row

  def test_training_reports_losses_collapse_rate_and_speed(self, run):
    for row in tiny_run.losses(run).values():
      assert {'loss', 'loss_contrast', 'loss_pixels', 'grad_norm'} <= row.keys()
      assert {'feature_std', 'effective_rank', 'lr', 'bad_steps'} <= row.keys()
    assert tiny_run.losses(run)[1]['lr'] == 0
    speeds = [row.get('images_per_second', 1) for row in tiny_run.rows(run)]
    assert all(speed > 0 for speed in speeds[2:])

  def test_no_report_claims_a_speed_of_zero(self, run):
    """The first step compiles; its report has no speed rather than 0."""
    speeds = [row.get('images_per_second') for row in tiny_run.rows(run)]
    assert 0.0 not in speeds

  def test_knn_and_its_baselines(self, run):
    measured = tiny_run.measured(run)
    baselines = {'knn_untrained', 'knn_raw_pixels', 'knn_histogram'}
    assert baselines <= measured[0].keys()
    assert measured[0]['knn_untrained'] == measured[0]['knn_top1']
    for step in (3, 6):
      assert measured[step].keys() == {'step', 'knn_top1', 'knn_top5'}
    for row in measured.values():
      assert all(0 <= row[name] <= 100 for name in row if 'knn' in name)

  def test_summary(self, run):
    summary = json.loads((run / 'summary.json').read_text())
    wanted = {'knn_raw_pixels', 'knn_untrained', 'knn_top1', 'seconds', 'loss'}
    assert {*wanted, 'steps', 'images_per_second'} <= summary.keys()
    assert summary['steps'] == tiny_run.STEPS
    assert summary['seconds'] > 0
    assert summary['images_per_second'] > 0
    assert summary['loss'] == tiny_run.losses(run)[6]['loss']
    assert summary['knn_top1'] == tiny_run.measured(run)[6]['knn_top1']

  def test_pictures_have_the_right_size_and_show_something(self, run):
    files = sorted(path.name for path in (run / 'images').iterdir())
    assert files == [f'reconstruction_{step:07}.png' for step in (0, 3, 6)]
    for name in files:
      image = Image.open(run / 'images' / name)
      # 8 rows of input, reconstruction and error; 16 px are enlarged to 128.
      # Below stands in two lines that nothing is masked.
      assert image.size == (3 * 132 + 4, 20 + 8 * 132 + 4 + 2 * 20)
      pixels = np.asarray(image.convert('RGB'), np.float32)
      for column in range(3):
        cell = pixels[24:152, 4 + column * 132 : 132 + column * 132]
        assert cell.std() > 2, f'{name}: column {column} is blank'

  def test_the_first_column_is_the_images(self, run):
    image = Image.open(run / 'images' / 'reconstruction_0000006.png')
    wanted, _ = tiny_run.images(tiny_run.TEST, seed=tiny_run.TEST)
    first = np.asarray(image)[24:152, 4:132].reshape(16, 8, 16, 8, 3)
    np.testing.assert_array_equal(first[:, 0, :, 0], wanted[0])

  def test_tensorboard_reads_its_file(self, run, monkeypatch):
    # TensorBoard's own switch for reading without TensorFlow: ten times faster.
    without = types.ModuleType('notf')
    monkeypatch.setitem(sys.modules, 'tensorboard.compat.notf', without)
    loader = pytest.importorskip(
      'tensorboard.backend.event_processing.event_file_loader'
    )
    (path,) = (run / 'tensorboard').iterdir()
    values, pictures = {}, {}
    for event in loader.LegacyEventFileLoader(str(path)).Load():
      for value in event.summary.value:
        if value.WhichOneof('value') == 'image':
          png = value.image.encoded_image_string
          pictures[value.tag, event.step] = Image.open(io.BytesIO(png)).size
        else:
          values[value.tag, event.step] = value.simple_value
    for step, row in tiny_run.losses(run).items():
      assert values['loss', step] == pytest.approx(row['loss'])
    assert values['knn_top1', 0] == tiny_run.measured(run)[0]['knn_top1']
    assert set(pictures) == {('reconstruction', step) for step in (0, 3, 6)}


class TestAgain:
  def test_the_same_command_does_nothing(self, run, tmp_path, monkeypatch):
    again = shutil.copytree(run, tmp_path / 'run')
    kept = ('metrics.jsonl', 'config.json')
    before = [(again / name).read_bytes() for name in kept]
    old = json.loads((again / 'summary.json').read_text())

    def refuse(*_):
      raise AssertionError('it trained or measured')

    monkeypatch.setattr(Reporter, 'write', refuse)
    monkeypatch.setattr(main.Run, 'init', refuse)
    summary = tiny_run.pretrain(again)
    assert [(again / name).read_bytes() for name in kept] == before
    assert {**summary, 'seconds': 0} == {**old, 'seconds': 0}
    assert tiny_run.checksums(again) == tiny_run.checksums(run)

  def test_a_missing_measurement_is_made_up_for(self, run, tmp_path):
    """The run died between its last checkpoint and its last evaluation."""
    again = shutil.copytree(run, tmp_path / 'run')
    lines = (again / 'metrics.jsonl').read_text().splitlines()
    (again / 'metrics.jsonl').write_text('\n'.join(lines[:-1]) + '\n{"st')
    (again / 'summary.json').unlink()
    tiny_run.pretrain(again)
    assert tiny_run.measured(again) == tiny_run.measured(run)
    assert tiny_run.losses(again) == tiny_run.losses(run)
    assert (again / 'summary.json').exists()


class TestVariants:
  def test_the_base_method_alone_and_no_labels(self, tmp_path):
    path = tiny_run.write_data(tmp_path / 'data.npz', labelled=False)
    workdir = tmp_path / 'run'
    summary = tiny_run.pretrain(workdir, words='', data__data_dir=path)
    assert math.isfinite(summary['loss'])
    assert 'loss_pixels' not in summary
    assert not [name for name in summary if 'knn' in name]
    assert list(workdir.glob('images/*')) == []
    names = tiny_run.checksums(workdir)
    assert not [name for name in names if 'decoder' in name]
    assert [name for name in names if 'projector' in name]

  def test_without_test_split_it_trains_without_knn(self, tmp_path, run):
    path = tiny_run.write_data(tmp_path / 'data.npz', test=False)
    summary = tiny_run.pretrain(
      tmp_path / 'run', data__data_dir=path, data__test_split=''
    )
    assert not [name for name in summary if 'knn' in name]
    assert tiny_run.losses(tmp_path / 'run') == tiny_run.losses(run)
    assert len(list((tmp_path / 'run' / 'images').iterdir())) == 3

  def test_grey_photographs(self, tmp_path):
    summary = tiny_run.pretrain(
      tmp_path,
      words='repre,photos',
      data__gray=True,
      data__tile=128,
      eval_every=10**6,  # step 0 and the end
      knn__batch_size=512,
    )
    assert math.isfinite(summary['loss'])
    assert summary['knn_untrained'] > 100 / 17
    kernel = load_params(tmp_path)['encoder/patch_embed/kernel']
    assert kernel.shape[2] == 1
    (image,) = tmp_path.glob('images/*0000006.png')
    pixels = np.asarray(Image.open(image).convert('RGB'))
    assert (pixels == pixels[..., :1]).all()
    assert pixels.std() > 20


class TestInitFrom:
  def start(self, workdir, source, **fields):
    """Parameters at step 0 of a run that starts from another one."""
    kept = {}
    train = loop.train

    def first(run, *_, **__):
      kept.update(params=run.init().params)
      return {}

    try:
      loop.train = first
      tiny_run.pretrain(workdir, init_from=str(source), **fields)
    finally:
      loop.train = train
    return optim.named_leaves(kept['params'])

  def test_the_encoder_is_the_other_run_s(self, run, tmp_path):
    found = self.start(tmp_path, run, seed=1)
    wanted = load_params(run)
    assert set(found) == set(wanted)
    for name, leaf in wanted.items():
      np.testing.assert_array_equal(found[name], leaf, err_msg=name)

  def test_from_one_checkpoint(self, run, tmp_path):
    source = run / 'checkpoints' / '2'
    found = self.start(tmp_path, source)
    name = 'encoder/block_1/mlp/fc1/kernel'
    np.testing.assert_array_equal(found[name], load_params(source)[name])
    assert (found[name] != load_params(run)[name]).any()

  def test_the_rest_of_another_method_is_drawn(self, run, tmp_path, capsys):
    found = self.start(tmp_path, run, method__hidden=48, method__out=8)
    wanted = load_params(run)
    for name in wanted:
      if name.startswith('encoder/'):
        np.testing.assert_array_equal(found[name], wanted[name])
    assert found['projector/dense_0/kernel'].shape == (32, 48)
    shown = capsys.readouterr().err
    assert re.search(r'start: \d+ of \d+ arrays of ', shown)
    assert re.search(r'  start fresh: .*projector \(\d+\)', shown)

  @pytest.mark.parametrize(
    'fields, told',
    [
      (
        dict(encoder__depth=3),
        r'missing: encoder/block_2/attention/key/bias,.*unexpected: none',
      ),
      (
        dict(encoder__width=48, encoder__num_heads=3),
        r'mis-shaped: encoder/block_0/attention/key/bias is float32\[32\] '
        r'there, float32\[48\] here, .* and 29 more',
      ),
      (
        dict(method__repre__levels=1, encoder__depth=1),
        r'missing: none; unexpected: encoder/block_1/attention/key/bias',
      ),
    ],
    ids=['deeper', 'wider', 'shallower'],
  )
  def test_another_architecture(self, run, tmp_path, fields, told):
    with pytest.raises(CheckpointError, match=told) as error:
      tiny_run.pretrain(tmp_path / 'new', init_from=str(run), **fields)
    assert str(run) in str(error.value)
    assert not (tmp_path / 'new').exists()

  def test_nothing_there(self, tmp_path):
    with pytest.raises(CheckpointError, match='neither a workdir'):
      tiny_run.pretrain(tmp_path / 'new', init_from=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


class TestProcess:
  def test_photographs_without_tensorflow(self, tmp_path, run):
    """Also on another number of devices than the run it starts from."""
    stub = tmp_path / 'stub' / 'tensorflow'
    stub.mkdir(parents=True)
    (stub / '__init__.py').write_text("raise ImportError('tensorflow is out')")
    again = tiny_run.command(
      tmp_path / 'run',
      '--config.steps=2',
      '--config.data.test_split=',
      '--config.data.gray=false',
      f'--config.init_from={run}',
      words='repre,photos',
    )
    again = [word for word in again if 'data_dir' not in word]
    path = os.pathsep.join([str(stub.parent), str(tiny_run.ROOT)])
    done = tiny_run.call(again, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / 'run/summary.json').read_text())
    assert summary['steps'] == 2
    assert done.stdout == ''
    assert tiny_run.saved_steps(tmp_path / 'run') == [2]
    events = pathlib.Path(tmp_path / 'run/tensorboard').iterdir()
    assert sum(path.stat().st_size for path in events) > 1000

    done = tiny_run.call(again, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    again = json.loads((tmp_path / 'run/summary.json').read_text())
    assert again['loss'] == summary['loss']
    assert 'already at its last step 2' in done.stderr
    assert 'first step after' not in done.stderr

  def test_four_devices_start_from_one(self, tmp_path):
    command = tiny_run.command(tmp_path / 'one', '--config.eval_every=0')
    done = tiny_run.call(command)
    assert done.returncode == 0, done.stderr
    summary = tiny_run.pretrain(
      tmp_path / 'four', eval_every=0, init_from=str(tmp_path / 'one')
    )
    assert math.isfinite(summary['loss'])


def config_file(name):
  return importlib.import_module(f'configs.{name}')


MIXED = ('masked', 'masked_mimic', 'fusion')  # flags of some configs


def words_of(name):
  """Words of a config: every encoder and every data set, and the flags."""
  get_config = config_file(name).get_config
  if not inspect.signature(get_config).parameters:
    return ['']
  if get_config().task != 'pretrain':  # the encoder is that of a checkpoint
    return list(DATA)
  words = []
  for flags in ('', 'repre'):
    words += [f'{name}4,photos,{flags}' for name in common.VITS]
    words += [f'{name},photos,{flags}' for name in common.COMPLETE]
    words += [f'vit_mini4,{d},{flags}' for d in DATA if d != 'photos']
  minis = ('vit_mini4', 'swin_mini', 'convvit_mini')
  return words + [f'{e},photos,{w}' for w in MIXED for e in minis]


LOADED = [(name, words) for name in CONFIGS for words in words_of(name)]
# Tracing takes seconds: small encoders with every method, the others with one,
# and less deep.
SHALLOW = dict(
  vit=dict(depth=4), swin=dict(depths=(1,) * 4), convvit=dict(depths=(1, 1, 2))
)
BUILT = [
  (name, words)
  for name, words in LOADED
  if not words
  or ('mini' in words and 'photos' in words and 'masked' not in words)
  or (name == 'moco_v3' and 'photos,repre' in words)
  or (name == 'dino' and words.endswith('masked'))
  or (name == 'moco_v2' and 'vit_mini4,photos,masked_mimic' in words)
]


@functools.cache
def load_config(name, words):
  """The config, or None where the file has no such flag or data."""
  get_config = config_file(name).get_config
  try:
    config = get_config(words.rstrip(',')) if words else get_config()
    return automatic.as_published(config)
  except ValueError as error:
    no_flag = f"unknown config word '{words.rsplit(',')[-1]}'" in str(error)
    unfit = name == 'simmim' and 'has no mask token' in str(error)
    other_data = name == 'quickstart' and 'is for data' in str(error)
    assert no_flag or unfit or other_data
    return None


class TestConfigs:
  def test_there_are_some(self):
    assert 'moco_v3' in CONFIGS

  def test_words_name_encoders(self):
    assert set(common.ENCODERS) <= set(models.ENCODERS)
    assert {f'vit_{size}' for size in sizes.VIT} <= set(common.ENCODERS)

  @pytest.mark.parametrize('name, words', LOADED)
  def test_every_config_has_the_common_fields(self, name, words):
    config = load_config(name, words)
    if config is None:
      pytest.skip(f'{name} has no such word')
    fields = 'task seed batch_size epochs steps log_every eval_every'
    fields += ' checkpoint_every init_from checkpoint resume dtype data'
    if config.task == 'pretrain':
      fields += ' method optim'
    assert set(fields.split()) <= set(config.keys())
    data = {'name', 'data_dir', 'split', 'mode', 'image_size'}
    assert data <= set(config.data.keys())
    assert config.task in main.TASKS
    assert config.to_json()  # plain data

  @pytest.mark.parametrize('crops', [0, 6, 10])
  def test_dino_crops_as_often_as_its_word_says(self, crops):
    config = load_config('dino', f'vit_s16,arrays,crops{crops}')
    method = from_config(config, channels=3, steps_per_epoch=10, total=100)
    assert set(method.views) == set(config.views.keys())
    assert len(method.views) == 2 + crops
    smallest = 0.4 if crops else 0.14
    assert config.views.view1.scale == (smallest, 1.0)

  @pytest.mark.parametrize('name', ['simclr', 'byol'])
  @pytest.mark.parametrize('data', ['arrays', 'photos'])
  def test_lars_leaves_vectors_alone(self, name, data):
    config = load_config(name, f'vit_mini4,{data},lars')
    method = from_config(config, channels=3, steps_per_epoch=10, total=100)
    assert (config.optim.name, config.optim.base_lr) == ('lars', 0.3)
    params = dict(norm=dict(scale=jnp.ones(3)), dense=dict(kernel=jnp.ones(3)))
    hyper = config.optim.hyper.to_dict()
    optim.make_optimizer(params, method.rules(), name='lars', **hyper)
    rules = method.rules()
    found = {n: rules[i][1] for n, i in optim.assign(params, rules).items()}
    assert found['dense/kernel'].adaptive and found['dense/kernel'].decay > 0
    assert not found['norm/scale'].adaptive and found['norm/scale'].decay == 0

  @pytest.mark.parametrize('name, words', BUILT)
  def test_every_method_is_built(self, name, words):
    """Shapes only: initial state, loss, optimiser groups, probes' encoder."""
    config = load_config(name, words)
    if config is None or config.task != 'pretrain':
      pytest.skip(f'{name} has no such word or trains no encoder')
    channels, rows = 3, 2 * config.chunks
    _, teachers = teachers_in(config.method)
    if teachers:  # `load_teachers` fills it in
      teachers.first.encoder = dict(name='vit_mini8')
    fewer = {}
    if words and 'mini' not in words:
      fewer = SHALLOW[config.encoder.name.partition('_')[0]]
    size = config.data.image_size
    if config.encoder.name in ('convvit_s', 'convvit_b'):
      size = 32  # patches of 16 do not tile the small photographs
      config.data.image_size = size
    method = from_config(
      config, channels=channels, steps_per_epoch=10, total=100, **fewer
    )
    batch = {}
    for view, fields in config.views.items():
      sides = View(**{'size': size, **fields}).size
      shape = (rows, *sides, channels)
      batch[view] = jax.ShapeDtypeStruct(shape, jnp.float32)
    rng = jax.eval_shape(lambda: step_key(0, 0))
    params, state = jax.eval_shape(method.init, rng, batch)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    loss, aux = jax.eval_shape(method.loss, params, state, batch, rng, step)
    assert loss.shape == ()
    assert 'effective_rank' in aux.metrics
    assert ('feature_std' in aux.metrics) == ('view2' in batch)
    after = jax.eval_shape(method.after_update, params, state, aux, step)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert set(optim.assign(params, method.rules())) == set(
      optim.named_leaves(params)
    )
    encoder = method.encoder_params(params, state)
    assert jax.tree.structure(encoder) == jax.tree.structure(params['encoder'])
