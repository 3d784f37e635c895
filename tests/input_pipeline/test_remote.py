"""Folders and archives in an object store, played by a local folder."""

import logging
import os
import tarfile
import zipfile

import pytest
from etils.epath import backend, gpath
from image_files import first_pixels, names, png, read_by_threads, write

from input_pipeline import folder, hidden_images, sources
from input_pipeline.in_memory import to_arrays
from input_pipeline.records import TfRecords

local = pytest.importorskip('fsspec.implementations.local')


@pytest.fixture
def bucket(tmp_path, monkeypatch, cache):
  """The folder that stands for gs://bucket; it counts calls."""

  class Store(local.LocalFileSystem):
    calls = []
    cachable = False

    @classmethod
    def _strip_protocol(cls, path):
      path = os.fspath(path).rstrip('/')
      if path.startswith('gs://'):
        return f'{tmp_path}/{path.removeprefix("gs://")}'
      return super()._strip_protocol(path)

    def ls(self, path, **kwargs):
      self.calls.append(('ls', os.fspath(path)))
      return super().ls(path, **kwargs)

    def open(self, path, mode='rb', **kwargs):
      self.calls.append(('open', os.fspath(path)))
      return super().open(path, mode, **kwargs)

  store = Store()
  monkeypatch.setattr(gpath, '_is_tf_installed', lambda: False)
  monkeypatch.setattr(
    backend.fsspec_backend, '_get_filesystem', lambda name: store
  )
  (tmp_path / 'bucket').mkdir()
  return tmp_path / 'bucket', Store.calls


def load(path, split='train', **options):
  return sources.load('folder', data_dir=path, split=split, **options)


def test_a_folder(bucket, cache, caplog):
  root, calls = bucket
  paths = ['train/b/1.png', 'train/a/x/2.JPG', 'val/b/ü 3.png', 'val/.d/4.png']
  write(root / 'data', *paths, 'train/note.txt')
  source = load('gs://bucket/data')
  assert names(source) == ['a/x/2.JPG', 'b/1.png']
  assert source.where(0) == 'gs://bucket/data/train/a/x/2.JPG'
  assert first_pixels(source) == [1, 0]
  assert source.classes == ('a', 'b') and source.labels.tolist() == [0, 1]
  test = load('gs://bucket/data/', 'test')
  assert first_pixels(test) == [2] and test.labels.tolist() == [1]
  assert folder.has_split('gs://bucket/data', 'test')
  # The list is taken as it is, and where to delete it is said.
  write(root / 'data', 'train/b/5.png')
  calls.clear()
  with caplog.at_level(logging.INFO):
    assert len(load('gs://bucket/data')) == 2
  assert [path for kind, path in calls if 'train' in path] == []
  kept = [path for path in cache.iterdir() if '-train-' in path.name]
  assert f'delete {kept[0]} to have it listed again' in caplog.text
  kept[0].unlink()
  assert len(load('gs://bucket/data')) == 3


def test_what_is_left_out(bucket, caplog):
  root, calls = bucket
  write(root, 'train/b/1.jp2', 'train/a/2.png', 'train/a/3.heic', 'val/a/4.png')
  write(
    root, 'train/@eaDir/1.png/x.png', 'train/#recycle/5.png', 'lost+found/6'
  )
  source = load('gs://bucket')
  assert names(source) == ['a/2.png', 'b/1.jp2'] and source.classes == (
    'a',
    'b',
  )
  assert source.left_out.kinds == {'.heic': 1}
  # What is named like an image is taken for one: `1.png` is a folder.
  assert source.left_out.hidden == {'@eaDir': 1, '#recycle': 1}
  assert 'left out: 1 .heic; for .heic Pillow needs' in caplog.text


def test_hidden_folders_of_a_bucket_are_looked_at_a_little(bucket, monkeypatch):
  root, calls = bucket
  write(root, 'a/1.png', *(f'a/@eaDir/{i}/x.png' for i in range(20)))
  monkeypatch.setattr(hidden_images, 'REMOTE_CALLS', 5)
  source = load('gs://bucket')
  assert source.left_out.hidden_images().startswith('at least 3 images')
  assert sum('@eaDir' in path for kind, path in calls if kind == 'ls') <= 10


def test_tables(bucket):
  root, _ = bucket
  write(root, '1.png', '2.png')
  (root / 'labels.csv').write_text('1.png,b\n2.png,a\n')
  for path in ('labels.csv', 'gs://bucket/labels.csv'):
    source = load('gs://bucket', labels=path)
    assert source.labels.tolist() == [1, 0]


def test_what_vanishes_is_unreadable(bucket):
  root, _ = bucket
  write(root, '1.png', '2.png')
  source = load('gs://bucket')
  (root / '1.png').unlink()
  with pytest.raises(OSError, match='1.png'):
    source.read(0)
  assert source.read(1) == png(1)


def test_errors(bucket):
  root, _ = bucket
  with pytest.raises(FileNotFoundError, match='gs://bucket/x does not exist'):
    load('gs://bucket/x')
  (root / 'a.txt').write_text('')
  with pytest.raises(ValueError, match=r'no images; .*seen: 1 \.txt'):
    load('gs://bucket')
  with pytest.raises(ValueError, match='neither a folder of images nor'):
    load('gs://bucket/a.txt')


@pytest.mark.parametrize('name', ['x.zip', 'x.tar'])
def test_an_archive(bucket, name):
  root, calls = bucket
  paths = [f'top/{label}/{i}.png' for label in 'ab' for i in range(10)]
  write(root / 'in', *paths)
  if name == 'x.zip':
    with zipfile.ZipFile(root / name, 'w') as file:
      for path in paths:
        file.write(root / 'in' / path, path)
  else:
    with tarfile.open(root / name, 'w') as file:
      file.add(root / 'in/top', 'top')
  source = load(f'gs://bucket/{name}')
  assert source.classes == ('a', 'b')
  assert source.where(0) == f'gs://bucket/{name}/top/a/0.png'
  calls.clear()
  assert not read_by_threads(source, [png(i) for i in range(20)], threads=4)
  assert len([kind for kind, _ in calls if kind == 'open']) == 4  # each its own
  assert to_arrays(source, channels=3).images.shape == (20, 3, 4, 3)


def test_tfrecords(bucket):
  root, _ = bucket
  contents = [bytes(i) for i in (3, 0, 5)]
  with open(root / 'data.tfrecord', 'wb') as file:
    for content in contents:
      size = len(content).to_bytes(8, 'little')
      file.write(size + bytes(4) + content + bytes(4))

  class Part:
    filename = 'gs://bucket/data.tfrecord'
    skip, take, examples_in_shard = 1, 2, 3

  assert list(TfRecords([Part()], name='x')) == contents[1:]
