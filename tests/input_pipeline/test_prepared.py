import logging
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from input_pipeline import prepared, sources

SIDE = 6


def pixels(i, side=SIDE):
  return np.full((side, side, 3), 10 * i, np.uint8)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  """Two tiny prepared data sets; in 'mixed' the sizes vary."""
  tfds = pytest.importorskip('tensorflow_datasets')

  def build(name, folder, sides, label='label'):
    features = tfds.features.FeaturesDict(
      {
        'image': tfds.features.Image(
          shape=(None, None, 3), encoding_format='png'
        ),
        label: tfds.features.ClassLabel(names=['even', 'odd']),
      }
    )
    tfds.dataset_builders.store_as_tfds_dataset(
      name=name,
      version='1.2.0',
      data_dir=folder,
      features=features,
      split_datasets={
        split: [
          (i, {'image': pixels(i, side), label: i % 2})
          for i, side in enumerate(sides[:count])
        ]
        for split, count in (('train', 7), ('test', 3))
      },
    )

  folder = tmp_path_factory.mktemp('tfds')
  build('tiny', folder, [SIDE] * 7)
  build('mixed', folder, [SIDE, SIDE, 9, 9, 9, 9, 9])
  build('unlabelled', folder, [SIDE] * 7, label='kind')
  return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('REPRE_JAX_CACHE', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


def load(data_dir, name='tiny', **options):
  return sources.load('tfds', tfds_name=name, data_dir=data_dir, **options)


def forbid_decoding(monkeypatch):
  def fail(*unused):
    raise AssertionError('decoded again')

  monkeypatch.setattr(prepared, '_decode', fail)


def test_decodes_once_then_reads_the_cache(data_dir, cache, monkeypatch):
  first = load(data_dir)
  assert first.classes == ('even', 'odd')
  values = first.images[:, 0, 0, 0] // 10
  assert sorted(values) == list(range(7))
  assert first.images.shape == (7, SIDE, SIDE, 3)
  np.testing.assert_array_equal(first.images.std(axis=(1, 2, 3)), 0)
  np.testing.assert_array_equal(first.labels, values % 2)
  assert [path.suffix for path in cache.iterdir()] == ['.npz']
  forbid_decoding(monkeypatch)
  again = load(data_dir)
  np.testing.assert_array_equal(again.images, first.images)
  np.testing.assert_array_equal(again.labels, first.labels)
  assert again.classes == first.classes
  assert load(data_dir, image_size=3).images.shape == (7, 3, 3, 3)


def test_a_warm_cache_does_not_import_tensorflow(data_dir, cache):
  load(data_dir)
  program = f"""
import sys
from input_pipeline import sources
data = sources.load('tfds', tfds_name='tiny', data_dir={str(data_dir)!r})
assert len(data) == 7
assert not {{'tensorflow', 'tensorflow_datasets'}} & set(sys.modules)
"""
  root = pathlib.Path(prepared.__file__).parent.parent
  subprocess.run([sys.executable, '-c', program], check=True, cwd=root)


def test_splits_have_cache_files_of_their_own(data_dir, cache):
  sizes = {
    split: len(load(data_dir, split=split))
    for split in ('train', 'test', 'train[:50%]', 'train[:2]', 'train+test')
  }
  assert list(sizes.values()) == [7, 3, 4, 2, 10]
  assert len(list(cache.iterdir())) == 5


@pytest.mark.parametrize('damage', ['cut', 'flip', 'empty', 'other'])
def test_a_damaged_cache_is_rebuilt(data_dir, cache, damage, caplog):
  first = load(data_dir)
  (path,) = cache.iterdir()
  content = bytearray(path.read_bytes())
  if damage == 'cut':
    path.write_bytes(content[:-100])
  elif damage == 'flip':
    content[content.find(bytes([60] * SIDE))] ^= 1
    path.write_bytes(content)
  elif damage == 'empty':
    path.write_bytes(b'')
  else:
    np.savez(path, something=np.zeros(3))
  with caplog.at_level(logging.WARNING):
    again = load(data_dir)
  assert 'damaged, rebuilding' in caplog.text
  np.testing.assert_array_equal(again.images, first.images)
  caplog.clear()
  load(data_dir)
  assert not caplog.text


def test_an_unwritable_cache_is_no_obstacle(
  data_dir, tmp_path, monkeypatch, caplog
):
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('REPRE_JAX_CACHE', str(tmp_path / 'file'))
  assert len(load(data_dir)) == 7
  assert 'could not write the cache file' in caplog.text


def test_a_failed_write_leaves_nothing_behind(data_dir, cache, monkeypatch):
  def fail(*unused):
    raise OSError('disk full')

  monkeypatch.setattr(prepared.os, 'replace', fail)
  assert len(load(data_dir)) == 7
  assert not list(cache.iterdir())


@pytest.mark.parametrize(
  'name, split, message',
  [
    ('mixed', 'train', r'data on the device need one size'),
    ('tiny', 'val', r"no split 'val'; found \['test', 'train'\]"),
    ('tiny', 'train[:0]', 'is empty'),
    ('unlabelled', 'train', r"found \['image', 'kind'\]"),
  ],
)
def test_bad_data_sets(data_dir, cache, name, split, message):
  with pytest.raises(ValueError, match=message):
    load(data_dir, name, split=split)
  assert not cache.exists()


@pytest.mark.parametrize('name', ['cifar10', 'tiny:9.9.9'])
def test_not_prepared(data_dir, name):
  with pytest.raises(FileNotFoundError, match='is not prepared in data_dir'):
    load(data_dir, name)


def test_default_folder(data_dir, cache, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(data_dir))
  assert len(load(None, 'tiny:1.2.0')) == 7
  with pytest.raises(FileNotFoundError, match=f'cifar10.*{data_dir}'):
    sources.load('cifar10')


def test_the_newest_version_is_taken(tmp_path):
  for version in ('1.9.0', '1.10.0', '1.2.0', '1.11.0.incomplete'):
    (tmp_path / 'some' / version).mkdir(parents=True)
    (tmp_path / 'some' / version / 'dataset_info.json').write_text('{}')
  (tmp_path / 'some' / '2.0.0').mkdir()
  assert prepared.prepared_folder('some', tmp_path).name == '1.10.0'
  assert prepared.prepared_folder('some:1.2.0', tmp_path).name == '1.2.0'
