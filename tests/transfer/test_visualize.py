"""The job: every picture of a run, its numbers, and what is left out."""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest
import tiny_run
from flax.traverse_util import unflatten_dict
from PIL import Image
from tensorboard.backend.event_processing import event_accumulator

import main
from configs import visualize as config_file
from input_pipeline.eval_batches import eval_batches
from input_pipeline.feed import open_sources
from pretrain.methods import from_config
from pretrain.run_figures import run_figures
from training.warm_start import load_params
from training.workdir import WorkdirError
from transfer.backbone import load_backbone
from transfer.visualize.job import chosen, chosen_formats
from transfer.visualize.pictures import listed
from transfer.visualize.projections import principal

SIZE = tiny_run.SIZE


def config(**fields):
  """Of the job on the tiny run; two underscores stand for a dot."""
  out = config_file.get_config('arrays')
  out.data.update(
    data_dir=tiny_run.data(),
    image_size=SIZE,
    test_split='test',
    eval_crop=1.0,
    eval_resample='bilinear',
  )
  out.checkpoint = str(tiny_run.finished())
  out.update(images=3, depth_images=6, neighbors=2, batch_size=8)
  names = {name.replace('__', '.'): value for name, value in fields.items()}
  out.update_from_flattened_dict(names)
  return out.lock()


def visualize(workdir, **fields):
  return main.TASKS['visualize'](config(**fields), str(workdir))


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
  """(workdir, summary) of all pictures, a second checkpoint beside."""
  workdir = tmp_path_factory.mktemp('pictures')
  other = str(tiny_run.finished() / 'checkpoints' / '2')
  return workdir, visualize(workdir, compare=other, blocks=(-1, 0))


@pytest.fixture(scope='module')
def numbers(drawn):
  """What was drawn: figures.json and figures.npz."""
  with np.load(drawn[0] / 'figures.npz') as arrays:
    arrays = dict(arrays)
  return json.loads((drawn[0] / 'figures.json').read_text()), arrays


@pytest.fixture(scope='module')
def seen():
  """(sources, encoder's features of the test images, with attention)."""
  backbone = load_backbone(tiny_run.finished())
  train, test = open_sources(config().data)

  def encode(source):
    (batch,) = eval_batches(source, len(source), size=SIZE)
    images = batch['images'].astype(np.float32) / 255
    apply = functools.partial(backbone.encoder.apply, attention=(0, 1))
    return jax.jit(apply)(backbone.variables(), images)

  return train, test, encode(train), encode(test)


ALL = {
  'attention_block_1': (600, 500),
  'attention_block_0': (600, 500),
  'tsne': (800, 700),
  'pca': (800, 700),
  'reconstruction': (600, 700),
  'depth': (1300, 500),
  'neighbors': (500, 600),
  'curves_losses': (1000, 400),
  'curves_probes': (1000, 400),
  'curves_features': (1000, 400),
  'curves_optimisation': (1000, 400),
  'curves_speed': (1000, 400),
  'compare': (1000, 500),
}


class TestPictures:
  def test_all_are_there_and_none_is_blank(self, drawn):
    workdir, summary = drawn
    assert summary['pictures'] == list(ALL)
    assert summary['left_out'] == {}
    assert summary['which'] == 'student'
    files = {path.stem for path in (workdir / 'images').glob('*.png')}
    assert files == set(ALL)
    for name, smallest in ALL.items():
      image = Image.open(workdir / 'images' / f'{name}.png')
      assert all(
        s <= a < 3000 for s, a in zip(smallest, image.size, strict=True)
      )
      assert np.asarray(image.convert('L')).std() > 5

  def test_tensorboard_has_them_at_the_step_of_the_run(self, drawn):
    reader = event_accumulator.EventAccumulator(str(drawn[0] / 'tensorboard'))
    reader.Reload()
    assert set(reader.Tags()['images']) == set(ALL)
    (event,) = reader.Images('depth')
    assert event.step == tiny_run.STEPS
    file = drawn[0] / 'images' / 'depth.png'
    assert event.encoded_image_string == file.read_bytes()

  def test_attention_is_the_encoder_s(self, numbers, seen):
    _, test, _, features = seen
    rows = [0, 8, 15]  # three of sixteen, evenly
    for block in (0, 1):
      weights = np.asarray(features.attention[block], np.float64)[rows]
      want = weights[:, :, 0, 1:]
      want = want / want.sum(-1, keepdims=True)
      maps = numbers[1][f'attention_block_{block}/maps']
      np.testing.assert_allclose(maps, want.reshape(3, 2, 2, 2), rtol=1e-4)

  def test_projections_are_of_all_test_images(self, numbers, seen):
    _, test, _, features = seen
    _, arrays = numbers
    for name in ('tsne', 'pca'):
      np.testing.assert_array_equal(arrays[f'{name}/index'], np.arange(16))
      np.testing.assert_array_equal(arrays[f'{name}/label'], test.labels)
    want, explained = principal(np.asarray(features.pooled))
    np.testing.assert_allclose(
      abs(arrays['pca/points']), abs(want), rtol=1e-2, atol=1e-4
    )
    np.testing.assert_allclose(
      numbers[0]['pca']['explained'], explained, rtol=1e-3
    )

  def test_depth_has_both_runs(self, numbers, seen):
    """NMI of the first six images, patches 1..4, in NumPy."""
    plain = numbers[0]['depth']
    first, second = 'finished/nmi', 'finished, step 2/nmi'
    assert plain.keys() >= {first, second, 'finished/distance'}
    rows = np.linspace(0, 15, 6).round().astype(int)
    for block, attention in sorted(seen[3].attention.items()):
      a = np.asarray(attention, np.float64)[rows][:, :, 1:, 1:]
      a /= a.sum(-1, keepdims=True)
      key = a.mean(2)
      information = (a * np.log(a / key[:, :, None])).sum((2, 3)) / 4
      entropy = -(key * np.log(key)).sum(-1)
      want = (information / np.sqrt(np.log(4) * entropy)).mean(0)
      np.testing.assert_allclose(
        plain[first][block], want, rtol=1e-2, atol=1e-6
      )
    assert plain[first] != plain[second]

  def test_neighbours_are_the_nearest(self, numbers, seen):
    train, test, bank, queries = seen
    _, arrays = numbers
    index = arrays['neighbors/query']
    np.testing.assert_array_equal(index, [0, 8, 15])
    unit = [
      np.asarray(x.pooled) / np.linalg.norm(x.pooled, axis=1, keepdims=True)
      for x in (queries, bank)
    ]
    cosine = np.sort(unit[0][index] @ unit[1].T, axis=1)[:, :-3:-1]
    np.testing.assert_allclose(arrays['neighbors/cosine'], cosine, atol=1e-5)
    found = arrays['neighbors/neighbor']
    assert found.shape == (3, 2)
    want = train.labels[found] == test.labels[index][:, None]
    np.testing.assert_array_equal(arrays['neighbors/same'], want)

  def test_reconstruction_is_the_run_s_own(self, numbers):
    """As the method itself draws it; larger images go through windows."""
    images, _ = tiny_run.images(tiny_run.TEST, seed=tiny_run.TEST)
    images = images[[0, 8, 15]].astype(np.float32) / 255
    method = from_config(
      tiny_run.config(), channels=3, steps_per_epoch=3, total=tiny_run.STEPS
    )
    backbone = load_backbone(tiny_run.finished())
    params = unflatten_dict(load_params(backbone.where), sep='/')
    batch = dict(view1=images, view2=images)
    want = method.figures(params, None, batch)['reconstruction'].images
    error = numbers[0]['reconstruction']['error']
    np.testing.assert_allclose(error, want[:, 2].mean((1, 2, 3)), rtol=1e-4)
    wide = np.concatenate(images, axis=1)  # 16 x 48
    (drawn,) = run_figures(backbone, wide[None], 'float32').values()
    assert drawn.columns == ('input', 'reconstruction', 'error')
    for i in range(3):
      cell = drawn.images[0, :, :, i * SIZE : (i + 1) * SIZE]
      np.testing.assert_allclose(cell, want[i], atol=1e-5)

  def test_curves_are_what_the_run_reported(self, numbers):
    rows = tiny_run.losses(tiny_run.finished())
    got = numbers[0]['curves_losses']['loss/finished']
    assert got['step'] == list(rows)
    assert got['value'] == [row['loss'] for row in rows.values()]

  def test_two_checkpoints_side_by_side(self, numbers):
    _, arrays = numbers
    np.testing.assert_array_equal(
      arrays['compare/finished/maps'], arrays['attention_block_1/mean']
    )
    np.testing.assert_array_equal(
      arrays['compare/finished/points'], arrays['tsne/points']
    )
    other = arrays['compare/finished, step 2/maps']
    assert abs(other - arrays['compare/finished/maps']).max() > 1e-4

  def test_once_is_enough(self, drawn, capsys):
    other = str(tiny_run.finished() / 'checkpoints' / '2')
    again = visualize(drawn[0], compare=other, blocks=(-1, 0))
    assert 'already finished' in capsys.readouterr().err
    assert again == json.loads((drawn[0] / 'summary.json').read_text())


def test_a_workdir_from_before_there_were_formats(drawn):
  """Its pictures are PNG: the same command finds the job finished."""
  path = drawn[0] / 'config.json'
  settings = json.loads(path.read_text())
  del settings['format'], settings['class_names']
  path.write_text(json.dumps(settings))
  other = str(tiny_run.finished() / 'checkpoints' / '2')
  fields = dict(compare=other, blocks=(-1, 0))
  assert visualize(drawn[0], **fields)['pictures'] == list(ALL)
  with pytest.raises(WorkdirError, match='format: png there, pdf now'):
    visualize(drawn[0], **fields, format='pdf')


def test_what_cannot_be_drawn_is_left_out(tmp_path, capsys):
  """No decoder, no reports; without labels t-SNE is grey."""
  run = tiny_run.copy(tiny_run.finished(), tmp_path / 'run')
  (run / 'metrics.jsonl').unlink()
  settings = json.loads((run / 'config.json').read_text())
  settings['method']['repre'] = None
  (run / 'config.json').write_text(json.dumps(settings))
  data = tiny_run.write_data(tmp_path / 'data.npz', labelled=False, test=False)
  summary = visualize(
    tmp_path / 'out',
    checkpoint=str(run),
    pictures=('tsne', 'reconstruction', 'neighbors', 'curves'),
    data__data_dir=data,
    data__test_split='',
    points=6,
  )
  assert summary['pictures'] == ['tsne', 'neighbors']
  assert summary['left_out'].keys() == {'reconstruction', 'curves'}
  err = capsys.readouterr().err
  assert f'left out reconstruction: {run} has no decoder' in err
  assert 'left out curves: there are no reports to draw in' in err
  with np.load(tmp_path / 'out' / 'figures.npz') as arrays:
    assert 'tsne/label' not in arrays and 'neighbors/same' not in arrays
    assert arrays['tsne/points'].shape == (6, 2)
    # Of the training images themselves: not each its own nearest.
    query = arrays['neighbors/query']
    assert not (arrays['neighbors/neighbor'] == query[:, None]).any()


class TestRuns:
  def test_curves_need_no_checkpoint(self, tmp_path, capsys):
    run = tiny_run.finished()
    other = tmp_path / 'other'
    other.mkdir()
    (other / 'metrics.jsonl').write_text('{"step": 3, "loss": 1.25}\n')
    settings = dict(checkpoint='', runs=f'{run},{other}', format='pdf,svg')
    summary = visualize(tmp_path / 'out', **settings)
    assert summary['pictures'][0] == 'curves_losses'
    assert summary['formats'] == ['pdf', 'svg']
    begin = dict(pdf=b'%PDF-', svg=b'<?xml')
    files = list((tmp_path / 'out' / 'images').iterdir())
    assert len(files) == 2 * len(summary['pictures'])
    for path in files:
      assert path.read_bytes().startswith(begin[path.suffix[1:]])
    assert 'curves_probes' in summary['pictures']
    assert 'config.checkpoint is not set' in summary['left_out']['attention']
    read = json.loads((tmp_path / 'out' / 'figures.json').read_text())
    losses = read['curves_losses']
    assert losses['loss/other'] == dict(step=[3], value=[1.25])
    assert len(losses['loss/finished']['step']) == tiny_run.STEPS
    # The run goes on, and the same command draws it again.
    with (other / 'metrics.jsonl').open('a') as file:
      file.write('{"step": 4, "loss": 1.0}\n')
    visualize(tmp_path / 'out', **settings)
    read = json.loads((tmp_path / 'out' / 'figures.json').read_text())
    assert read['curves_losses']['loss/other']['step'] == [3, 4]
    with pytest.raises(WorkdirError, match='another config'):
      visualize(tmp_path / 'out', **settings, mass=0.5)


class TestWords:
  def test_unknown_pictures(self, tmp_path):
    with pytest.raises(
      ValueError, match="'atention'.*did you mean 'attention'"
    ):
      visualize(tmp_path / 'out', pictures=('pca', 'atention'))
    with pytest.raises(ValueError, match='config.pictures is empty'):
      chosen(())
    assert not (tmp_path / 'out').exists()

  def test_unknown_formats(self, tmp_path):
    assert chosen_formats('PNG, pdf,png') == ('png', 'pdf')
    assert chosen_formats(('svg',)) == ('svg',)
    with pytest.raises(
      ValueError, match="'eps'.*config.format|config.format.*'eps'"
    ):
      visualize(tmp_path / 'out', format='png,eps')
    with pytest.raises(ValueError, match='empty; known: png, pdf, svg'):
      chosen_formats(' ,')
    assert not (tmp_path / 'out').exists()

  def test_a_missing_table_of_classes(self, tmp_path):
    with pytest.raises(FileNotFoundError, match='config.class_names'):
      visualize(tmp_path / 'out', class_names=str(tmp_path / 'names.csv'))
    assert not (tmp_path / 'out').exists()

  def test_commas_as_on_the_command_line(self):
    assert chosen(('tsne,pca', 'tsne')) == ('tsne', 'pca')
    assert chosen('depth') == ('depth',)
    assert listed("('/runs/a-1', 'b')") == ['/runs/a-1', 'b']
    assert listed(None) == []

  def test_nothing_to_look_at(self, tmp_path):
    with pytest.raises(
      ValueError, match='set config.checkpoint .* config.runs'
    ):
      visualize(tmp_path / 'out', checkpoint='')

  @pytest.mark.parametrize(
    'fields', [dict(mass=0.0), dict(points=0), dict(blocks=())]
  )
  def test_numbers_out_of_range(self, tmp_path, fields):
    (name,) = fields
    with pytest.raises(ValueError, match=f'config.{name}'):
      visualize(tmp_path / 'out', **fields)
    assert not (tmp_path / 'out').exists()

  def test_the_same_run_twice(self, tmp_path):
    run = str(tiny_run.finished())
    with pytest.raises(ValueError, match='is what config.checkpoint is'):
      visualize(tmp_path / 'out', compare=run)

  def test_the_encoder_is_the_run_s(self):
    with pytest.raises(ValueError, match="unknown config word 'vit_s16'"):
      config_file.get_config('vit_s16,photos')
    assert config_file.get_config('photos').data.name == 'photos'


def test_images_are_small_enough_to_keep(drawn):
  """Thirteen pictures of a paper's size."""
  total = sum(p.stat().st_size for p in pathlib.Path(drawn[0]).rglob('*.png'))
  assert total < 3e6
