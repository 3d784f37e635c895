"""Training on folders of images, streamed or resident, by `main.py`."""

import json
import pathlib
import shutil
import zipfile

import numpy as np
import pytest
import tiny_run
from PIL import Image

import main
from input_pipeline.stream import Stream
from training.workdir import WorkdirError

COUNT = tiny_run.TRAIN


def write(root, *, broken=()):
  """Images of several sizes in train/ and val/, a folder per class."""
  for split, count in (('train', COUNT), ('val', tiny_run.TEST)):
    pixels, labels = tiny_run.images(count, seed=count)
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
      path = root / split / f'class {label}' / f'{i:03}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      image = Image.fromarray(image).resize((20 + i % 5, 18 + i % 3))
      image.save(path)
      if split == 'train' and i in broken:
        path.write_bytes(path.read_bytes()[:50])
  return root


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  return write(tmp_path_factory.mktemp('images'))


def train(workdir, images, **fields):
  fields = dict(data__data_dir=str(images)) | fields
  return tiny_run.pretrain(workdir, 'folder,repre', **fields)


@pytest.fixture(scope='module')
def finished(images, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('finished')
  train(workdir, images)
  return workdir


def test_a_folder_of_several_sizes_is_streamed_and_measured(finished, capsys):
  assert set(tiny_run.losses(finished)) == set(range(1, tiny_run.STEPS + 1))
  assert set(tiny_run.measured(finished)) == {0, 3, tiny_run.STEPS}
  for row in tiny_run.losses(finished).values():
    assert row['replaced'] == 0
  assert list((finished / 'images').glob('*.png'))


def test_a_stopped_run_continues_exactly(finished, images, tmp_path):
  """Another number of threads, and an archive in place of the folder."""

  class Stop(Exception):
    pass

  def batch(self, step, whole=Stream.batch):
    if step == 4:
      raise Stop
    return whole(self, step)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Stream, 'batch', batch)
    with pytest.raises(Stop):
      train(tmp_path, images)
  assert tiny_run.saved_steps(tmp_path)[-1] == 4
  archive = tmp_path / 'images.zip'
  with zipfile.ZipFile(archive, 'w') as file:
    for path in sorted(images.rglob('*.png')):
      file.write(path, pathlib.Path('top') / path.relative_to(images))
  train(tmp_path, archive, data__workers=1, resume='force')
  assert tiny_run.checksums(tmp_path) == tiny_run.checksums(finished)
  ours, theirs = tiny_run.losses(tmp_path), tiny_run.losses(finished)
  assert ours == theirs


@pytest.mark.parametrize('mode', ['stream', 'resident'])
def test_corrupt_images_are_counted(mode, tmp_path, caplog):
  write(tmp_path / 'images', broken=(0, 5, 6))
  train(
    tmp_path / 'run',
    tmp_path / 'images',
    data__max_unreadable=1.0,
    data__mode=mode,
    data__resident_size=20,
  )
  counts = [r['replaced'] for r in tiny_run.losses(tmp_path / 'run').values()]
  # Two epochs of all 48 images.
  assert sum(counts) == 2 * 3
  lines = [r.getMessage() for r in caplog.records]
  for name in ('000.png', '005.png', '006.png'):
    assert sum(f'{name}' in line for line in lines) == 1


def test_too_many_corrupt_images_stop_the_run(tmp_path):
  write(tmp_path / 'images', broken=range(0, COUNT, 4))
  with pytest.raises(ValueError, match='could not be read, more than conf'):
    train(tmp_path / 'run', tmp_path / 'images', data__max_unreadable=0.1)


def test_resident_and_streamed_runs_see_the_same_examples(images, tmp_path):
  seen = {}
  for mode in ('stream', 'resident'):
    config = tiny_run.config(
      'folder',
      data__data_dir=str(images),
      data__mode=mode,
      data__resident_size=20,
    )
    source, _ = main.feed.open_sources(config.data)
    rows = main.sharding.over_batch(main.sharding.make_mesh())
    whole = main.sharding.replicated(main.sharding.make_mesh())
    data, _ = main.feed.make_feed(
      config.data,
      source,
      {n: main.View(size=16, **v) for n, v in config.views.items()},
      batch_size=tiny_run.BATCH,
      seed=0,
      shardings=(rows, whole),
    )
    batch = data.batch(3)
    views = data.render(batch, main.jax.random.key(0))
    seen[mode] = np.asarray(views['index']), np.asarray(views['label'])
    data.close()
  np.testing.assert_array_equal(seen['stream'], seen['resident'])


def test_check_data_tells_and_draws(images, tmp_path, monkeypatch):
  code, out, err = tiny_run.main_in_process(
    monkeypatch,
    f'--config={tiny_run.__file__}:folder,repre',
    f'--config.data.data_dir={images}',
    '--config.task=check_data',
    f'--workdir={tmp_path}',
  )
  assert code == 0
  assert out == ''
  summary = json.loads((tmp_path / 'summary.json').read_text())
  assert summary['train']['images'] == COUNT
  assert summary['train']['classes']['count'] == tiny_run.CLASSES
  assert summary['test']['images'] == tiny_run.TEST
  assert summary['mode'].startswith('stream')
  for words in ('48 images', 'PNG 48', 'mean and std', 'views: ', 'stream'):
    assert words in err
  sheet = Image.open(tmp_path / 'images' / 'views.png')
  assert min(sheet.size) > 128
  assert np.asarray(sheet).std() > 10


def test_other_data_do_not_continue_a_run(tmp_path):
  folder, workdir = write(tmp_path / 'images'), tmp_path / 'run'
  train(workdir, folder, eval_every=0)
  image = next((folder / 'train' / 'class 1').iterdir())
  shutil.copy(image, image.with_name('more.png'))
  with pytest.raises(WorkdirError, match='48 images, .*; now 49 images, '):
    train(workdir, folder, eval_every=0)
  train(workdir, folder, eval_every=0, resume='force')
