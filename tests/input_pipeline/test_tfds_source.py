import collections
import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from image_files import read_by_threads

from input_pipeline import cache as cache_module
from input_pipeline import (
  fingerprint,
  in_memory,
  records,
  sources,
  tfds_source,
)
from input_pipeline.decode import decode

SIDE = 6
FORMATS = ('tfrecord', 'array_record')


def pixels(i, side=SIDE):
  return np.full((side, side, 3), 10 * i, np.uint8)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  """Tiny prepared data sets, some of them odd."""
  tfds = pytest.importorskip('tensorflow_datasets')
  kinds = tfds.features
  folder = tmp_path_factory.mktemp('tfds')

  def image(**options):
    shape = options.pop('shape', (None, None, 3))
    return kinds.Image(shape=shape, encoding_format='png', **options)

  def build(name, make, counts=None, file_format='tfrecord', **features):
    tfds.dataset_builders.store_as_tfds_dataset(
      name=name,
      version='1.2.0',
      data_dir=folder,
      features=kinds.FeaturesDict(features),
      split_datasets={
        split: [(i, make(i)) for i in range(count)]
        for split, count in (counts or dict(train=7, test=3)).items()
      },
      file_format=file_format,
    )

  label = kinds.ClassLabel(names=['even', 'odd'])
  for file_format in FORMATS:
    build(
      file_format,
      lambda i: {'image': pixels(i), 'label': i % 2},
      file_format=file_format,
      image=image(),
      label=label,
    )
  build(
    'mixed',
    lambda i: {'image': pixels(i, SIDE if i < 2 else 9), 'label': i % 2},
    image=image(),
    label=label,
  )
  build(
    'named',
    lambda i: {'mask': pixels(i)[..., :1], 'photo': pixels(i), 'kind': i % 2},
    mask=kinds.LabeledImage(
      shape=(None, None, 1), labels=3, encoding_format='png'
    ),
    photo=image(shape=(SIDE, SIDE, 3)),
    kind=label,
  )
  build(
    'unlabelled',
    lambda i: {'image': pixels(i)[..., :1], 'other': pixels(i), 'number': i},
    image=image(shape=(None, None, 1)),
    other=image(),
    number=np.int64,
  )
  build(
    'secret',
    lambda i: {'image': pixels(i), 'label': -1},
    image=image(),
    label=label,
  )
  build(
    'several',
    lambda i: {'left': pixels(i), 'right': pixels(i), 'a': 0, 'b': 0},
    left=image(),
    right=image(),
    a=label,
    b=label,
  )
  build(
    'depth',
    lambda i: {'image': np.ones((2, 2, 1), np.float32)},
    image=image(shape=(None, None, 1), dtype=np.float32),
  )
  build('text', lambda i: {'text': 'no image'}, text=kinds.Text())
  return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('REPRE_JAX_CACHE', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


def load(data_dir, name='tfrecord', **options):
  return sources.load('tfds', tfds_name=name, data_dir=data_dir, **options)


def values(source):
  images = [decode(source.read(i), 3) for i in range(len(source))]
  assert {image.shape for image in images} == {(SIDE, SIDE, 3)}
  return [int(image[0, 0, 0]) // 10 for image in images]


@pytest.mark.parametrize('name', FORMATS)
def test_images_and_labels(data_dir, name):
  source = load(data_dir, name)
  found = values(source)
  assert sorted(found) == list(range(7))
  assert source.classes == ('even', 'odd') and source.channels == 3
  assert source.labels.dtype == np.int32
  assert source.labels.tolist() == [value % 2 for value in found]
  assert source.where(2) == f'{name} train[2]'
  assert source.read(0).startswith(b'\x89PNG')  # not decoded
  for index in (-1, 7):
    with pytest.raises(IndexError):
      source.read(index)


@pytest.mark.parametrize('name', FORMATS)
def test_splits_and_their_parts(data_dir, name):
  train, test = (
    values(load(data_dir, name)),
    values(load(data_dir, name, split='test')),
  )
  for split, expected in (
    ('train[2:5]', train[2:5]),
    ('train[:50%]', train[:4]),
    ('train[-2:]', train[-2:]),
    ('train+test', train + test),
    ('test[1:]+train[:2]', test[1:] + train[:2]),
  ):
    source = load(data_dir, name, split=split)
    assert len(source) == len(expected)
    assert values(source) == expected
    assert source.labels.tolist() == [value % 2 for value in expected]


@pytest.mark.parametrize('name', FORMATS)
def test_the_order_is_that_of_tfds(data_dir, name):
  import tensorflow_datasets as tfds

  builder = tfds.builder(name, data_dir=data_dir)
  split = 'train[1:]+test'
  if name == 'tfrecord':
    theirs = tfds.as_numpy(builder.as_dataset(split=split))
  else:
    theirs = builder.as_data_source(split=split)
  theirs = [int(example['image'][0, 0, 0]) // 10 for example in theirs]
  assert values(load(data_dir, name, split=split)) == theirs


def test_what_changes_has_another_key(data_dir):
  keys = [
    load(data_dir, name, split=split).cache_key
    for name in FORMATS
    for split in ('train', 'test', 'train[:2]')
  ]
  assert len(set(keys)) == 6 and all(str(data_dir) in key for key in keys)
  assert load(data_dir).cache_key == keys[0]


@pytest.mark.parametrize('name', FORMATS)
def test_many_threads_may_read(data_dir, name):
  source = load(data_dir, name)
  expected = [source.read(i) for i in range(7)]
  source = load(data_dir, name)  # nothing opened yet
  assert not read_by_threads(source, expected)


def test_features_are_found_by_type(data_dir):
  named = load(data_dir, 'named')
  assert values(named)[0] in range(7)
  assert named.classes == ('even', 'odd') and len(named.labels) == 7
  unlabelled = load(data_dir, 'unlabelled')
  assert unlabelled.labels is None and unlabelled.classes == ()
  assert unlabelled.channels == 1
  assert decode(unlabelled.read(0), 1).shape == (SIDE, SIDE, 1)


def test_secret_labels_are_none(data_dir, caplog):
  source = load(data_dir, 'secret')
  with caplog.at_level(logging.WARNING):
    assert source.labels is None
  assert 'secret train: without labels, some are unknown' in caplog.text
  assert in_memory.to_arrays(source, channels=3).labels is None


@pytest.mark.parametrize(
  'name, split, message',
  [
    ('tfrecord', 'val', r"no split 'val'; found \['test', 'train'\]"),
    ('tfrecord', 'train[:0]', 'is empty'),
    ('tfrecord', 'train[', 'no split'),
    ('several', 'train', r"one named 'image'; found \['left', 'right'\]"),
    ('depth', 'train', "'image' is .*float32.*, not uint8"),
    ('text', 'train', r"needs one image .* found \['text'\]"),
  ],
)
def test_bad_data_sets(data_dir, cache, name, split, message):
  with pytest.raises(ValueError, match=message):
    load(data_dir, name, split=split)
  assert not cache.exists()


@pytest.mark.parametrize('name', ['cifar10', 'tfrecord:9.9.9'])
def test_not_prepared(data_dir, name):
  with pytest.raises(FileNotFoundError, match='is not prepared in data_dir'):
    load(data_dir, name)


def test_default_folder(data_dir, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(data_dir))
  assert len(load(None, 'tfrecord:1.2.0')) == 7
  with pytest.raises(FileNotFoundError, match=f'cifar10.*{data_dir}'):
    sources.load('cifar10')


def test_the_newest_version_is_taken(tmp_path):
  for version in ('1.9.0', '1.10.0', '1.2.0', '1.11.0.incomplete'):
    (tmp_path / 'some' / version).mkdir(parents=True)
    (tmp_path / 'some' / version / 'dataset_info.json').write_text('{}')
  (tmp_path / 'some' / '2.0.0').mkdir()
  found = tfds_source.prepared_folder
  assert found('some', tmp_path).name == '1.10.0'
  assert found('some:1.2.0', tmp_path).name == '1.2.0'


@pytest.fixture
def prepared(tmp_path):
  """Folders of versions that hold a description alone."""
  for path in (
    'cifar10/3.0.2',
    'cifar10/3.0.10',
    'cifar10/2.9.9',
    'imagenette/160px-v2/1.0.0',
    'imagenette/full-size-v2/1.0.0',
    'odd/cfg/2.0.0-beta',
    'inner/deeper/1.0.0',
  ):
    (tmp_path / path).mkdir(parents=True)
    (tmp_path / path / 'dataset_info.json').write_text('{}')
  return tmp_path


@pytest.mark.parametrize(
  'name, data_dir, expected',
  [
    ('cifar10', '', 'cifar10/3.0.10'),
    ('cifar10:3.0.2', '', 'cifar10/3.0.2'),
    ('cifar10/3.0.2', '', 'cifar10/3.0.2'),
    ('cifar10:3.*.*', '', 'cifar10/3.0.10'),
    ('cifar10:*.*.*', '', 'cifar10/3.0.10'),
    ('cifar10:2.*.*', '', 'cifar10/2.9.9'),
    ('cifar10/', '', 'cifar10/3.0.10'),
    (' cifar10 ', '', 'cifar10/3.0.10'),
    ('cifar10', 'cifar10', 'cifar10/3.0.10'),
    ('cifar10', 'cifar10/', 'cifar10/3.0.10'),
    ('cifar10', 'cifar10/3.0.2', 'cifar10/3.0.2'),
    ('cifar10:3.0.10', 'cifar10/3.0.2', 'cifar10/3.0.10'),
    ('imagenette/160px-v2', '', 'imagenette/160px-v2/1.0.0'),
    ('imagenette/160px-v2:1.*.*', '', 'imagenette/160px-v2/1.0.0'),
    ('imagenette/160px-v2/1.0.0', '', 'imagenette/160px-v2/1.0.0'),
    ('imagenette/160px-v2', 'imagenette', 'imagenette/160px-v2/1.0.0'),
    (
      'imagenette/160px-v2',
      'imagenette/160px-v2',
      'imagenette/160px-v2/1.0.0',
    ),
    (
      'imagenette/160px-v2',
      'imagenette/160px-v2/1.0.0',
      'imagenette/160px-v2/1.0.0',
    ),
    ('imagenette', 'imagenette/160px-v2', 'imagenette/160px-v2/1.0.0'),
    ('imagenette', 'imagenette/160px-v2/1.0.0', 'imagenette/160px-v2/1.0.0'),
  ],
)
def test_where_a_data_set_lies(prepared, name, data_dir, expected):
  found = tfds_source.prepared_folder(name, f'{prepared}/{data_dir}')
  assert str(found) == f'{prepared}/{expected}'


@pytest.mark.parametrize(
  'name, data_dir, message',
  [
    ('cifar10:9.9.9', '', 'no version 9.9.9, found 2.9.9, 3.0.10, 3.0.2'),
    ('cifar10:4.*.*', '', r'no version 4.\*.\*, found 2.9.9'),
    (
      'imagenette',
      '',
      "found 160px-v2, full-size-v2; .*='imagenette/160px-v2'",
    ),
    ('imagenette/160', '', "no config '160', found 160px-v2, .*'160px-v2'?"),
    ('cifar10/plain', '', "no config 'plain', found none"),
    ('Cifar10', '', "found cifar10, .*; did you mean 'cifar10'"),
    ('cifar', '', "did you mean 'cifar10'"),
    ('odd/cfg', '', 'with a dataset_info.json in .*odd/cfg, found 2.0.0-beta'),
    ('deeper', '', 'it lies in .*/inner, set data_dir to that'),
    ('cifar10', 'nowhere', 'there is no such folder'),
    ('mnist', 'cifar10', 'found 2.9.9, 3.0.10, 3.0.2'),
  ],
)
def test_what_is_there_is_named(prepared, name, data_dir, message):
  with pytest.raises(FileNotFoundError, match=message) as caught:
    tfds_source.prepared_folder(name, prepared / data_dir)
  assert 'is not prepared in data_dir' in str(caught.value)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name', ['cifar10:3', 'a/b/c', '..', '/', ':1.0.0'])
def test_names_that_cannot_be(prepared, name):
  with pytest.raises(ValueError, match='tfds_name .* must be'):
    tfds_source.prepared_folder(name, prepared)


@pytest.fixture
def copied(data_dir, tmp_path):
  shutil.copytree(data_dir / 'tfrecord', tmp_path / 'tfds' / 'tfrecord')
  return tmp_path / 'tfds'


@pytest.mark.parametrize('name', ['dataset_info.json', 'features.json'])
@pytest.mark.parametrize(
  'content, message',
  [
    ('', 'it is empty'),
    (' \n', 'it is empty'),
    ('{"name": ', 'no JSON'),
    ('[1]', 'must be an object of JSON, not list'),
    ('null', 'must be an object of JSON, not NoneType'),
    ('{}', '(name must be a text, but is missing|cannot be used)'),
    (None, 'cannot be read: .*No such file'),
  ],
)
def test_a_damaged_description(copied, name, content, message):
  path = copied / 'tfrecord' / '1.2.0' / name
  path.unlink()
  if content is not None:
    path.write_text(content)
  error = ValueError
  if content is None and name == 'dataset_info.json':  # nothing is there then
    error, message = FileNotFoundError, 'no folder of a version'
  with pytest.raises(error, match=message) as caught:
    load(copied)
  text = str(caught.value)
  assert str(path.parent.parent) in text and '\n' not in text
  assert name in text


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(version=3), 'version must be a text, but is 3'),
    (dict(version='x'), 'cannot be used'),
    (dict(splits='train'), "splits must be a list, but is 'train'"),
    (dict(splits=[3]), r'splits\[0\].name must be a text, but is missing'),
    (
      dict(splits=[dict(name='train')]),
      r'splits\[0\].shardLengths must be a list, but is missing',
    ),
    (
      dict(splits=[dict(name='train', shardLengths=['-5'])]),
      'shardLengths must be numbers of examples',
    ),
    (dict(fileFormat='folder'), 'cannot be used'),
  ],
)
def test_a_description_without_sense(copied, change, message):
  path = copied / 'tfrecord' / '1.2.0' / 'dataset_info.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(ValueError, match=message) as caught:
    load(copied)
  assert str(path.parent) in str(caught.value)
  assert '\n' not in str(caught.value)


def test_a_missing_file_is_named(copied):
  (path,) = (copied / 'tfrecord' / '1.2.0').glob('*train*')
  path.rename(path.with_suffix('.gone'))
  with pytest.raises(FileNotFoundError, match=f'1 of 1 files .* as {path};'):
    load(copied)
  assert len(load(copied, split='test')) == 3


def test_a_changed_file_shows(copied):
  before = load(copied)
  known, key = fingerprint.fingerprint(before), before.cache_key
  (path,) = (copied / 'tfrecord' / '1.2.0').glob('*train*')
  content = bytearray(path.read_bytes())
  content[-30] ^= 1  # in the last image
  path.write_bytes(content)
  later = path.stat().st_mtime + 5
  os.utime(path, (later, later))
  after = load(copied)
  assert not fingerprint.same(known, fingerprint.fingerprint(after))
  assert after.cache_key != key


def forbid(monkeypatch, owner, name):
  def fail(*unused, **unused_too):
    raise AssertionError('done again')

  monkeypatch.setattr(owner, name, fail)


def test_places_and_labels_are_found_once(data_dir, monkeypatch):
  first = load(data_dir)
  labels = first.labels
  forbid(monkeypatch, records, '_follow')
  forbid(monkeypatch, tfds_source.TfdsImages, '_read_labels')
  again = load(data_dir)
  np.testing.assert_array_equal(again.labels, labels)
  assert again.read(3) == first.read(3)
  assert load(data_dir, split='train[1:]').read(2) == first.read(3)


def test_decodes_once_then_reads_the_cache(data_dir, monkeypatch):
  first = in_memory.to_arrays(load(data_dir), channels=3)
  found = (first.images[:, 0, 0, 0] // 10).tolist()
  assert sorted(found) == list(range(7))
  assert first.labels.tolist() == [value % 2 for value in found]
  forbid(monkeypatch, in_memory, 'decode')
  forbid(monkeypatch, tfds_source.TfdsImages, '_features')
  again = in_memory.to_arrays(load(data_dir), channels=3)
  np.testing.assert_array_equal(again.images, first.images)
  np.testing.assert_array_equal(again.labels, first.labels)
  assert again.classes == first.classes == ('even', 'odd')


@pytest.mark.parametrize('name', FORMATS)
def test_tensorflow_is_never_imported(data_dir, name):
  program = f"""
import sys
from input_pipeline import in_memory, sources
data = sources.load('tfds', tfds_name={name!r}, data_dir={str(data_dir)!r})
assert len(data.labels) == 7
assert in_memory.to_arrays(data, channels=3).images.shape == (7, 6, 6, 3)
assert 'tensorflow' not in sys.modules
"""
  root = pathlib.Path(tfds_source.__file__).parent.parent
  subprocess.run([sys.executable, '-c', program], check=True, cwd=root)


@pytest.mark.parametrize('damage', ['cut', 'flip', 'empty', 'other'])
def test_a_damaged_cache_is_rebuilt(data_dir, cache, damage, caplog):
  first = in_memory.to_arrays(load(data_dir), channels=3)
  for path in cache.iterdir():  # places, labels, images
    content = bytearray(path.read_bytes())
    if damage == 'cut':
      path.write_bytes(content[:-100])
    elif damage == 'flip':
      content[content.find(b'NUMPY') + 130] ^= 1
      path.write_bytes(content)
    elif damage == 'empty':
      path.write_bytes(b'')
    else:
      np.savez(path, something=np.zeros(3))
  with caplog.at_level(logging.WARNING):
    again = in_memory.to_arrays(load(data_dir), channels=3)
  assert caplog.text.count('damaged, rebuilding') == 3
  np.testing.assert_array_equal(again.images, first.images)
  np.testing.assert_array_equal(again.labels, first.labels)
  caplog.clear()
  in_memory.to_arrays(load(data_dir), channels=3)
  assert not caplog.text


def test_an_unwritable_cache_is_no_obstacle(
  data_dir, tmp_path, monkeypatch, caplog
):
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('REPRE_JAX_CACHE', str(tmp_path / 'file'))
  assert len(in_memory.to_arrays(load(data_dir), channels=3)) == 7
  assert 'nothing is kept between runs' in caplog.text


def test_a_failed_write_leaves_nothing_behind(data_dir, cache, monkeypatch):
  def fail(*unused):
    raise OSError('disk full')

  monkeypatch.setattr(cache_module.os, 'replace', fail)
  assert len(in_memory.to_arrays(load(data_dir), channels=3)) == 7
  assert not list(cache.iterdir())


def test_images_of_several_sizes(data_dir):
  source = load(data_dir, 'mixed')
  with pytest.raises(in_memory.SizesDiffer, match=r'mixed train\[.*9 x 9'):
    in_memory.to_arrays(source, channels=3)
  fitted = in_memory.to_arrays(source, channels=3, size=4)
  assert fitted.images.shape == (7, 4, 4, 3)


Part = collections.namedtuple('Part', 'filename skip take examples_in_shard')


def chain(*contents):
  return b''.join(
    len(content).to_bytes(8, 'little') + bytes(4) + content + bytes(4)
    for content in contents
  )


def test_records_over_several_files(tmp_path):
  contents = [bytes([i] * (i % 5)) for i in range(30)]
  parts = []
  for number in range(3):
    path = tmp_path / f'{number}'
    path.write_bytes(chain(*contents[10 * number : 10 * number + 10]))
    parts.append(Part(str(path), number, 8 - number, 10))
  found = records.TfRecords(parts[::-1], name='x')
  assert len(found) == 21
  expected = contents[22:28] + contents[11:18] + contents[0:8]
  assert [found[i] for i in range(21)] == expected
  with pytest.raises(IndexError):
    found[21]


@pytest.mark.parametrize('cut', [0, 5, 30, 38])
def test_a_damaged_file_of_records(tmp_path, cache, cut):
  path = tmp_path / 'x.tfrecord'
  whole = chain(b'abc', b'defg')
  path.write_bytes(whole[:cut])
  part = Part(str(path), 0, 2, 2)
  with pytest.raises(ValueError, match='x.tfrecord: .* record . of 2; prepare'):
    records.TfRecords([part], name='x')
  path.write_bytes(whole + chain(b'more'))
  with pytest.raises(ValueError, match='more than 2 records'):
    records.TfRecords([part], name='x')
  assert not cache.exists()
  path.write_bytes(whole)
  found = records.TfRecords([part], name='x')
  assert found[1] == b'defg'
  path.write_bytes(whole[:25])
  with pytest.raises(OSError, match='cut off'):
    found[1]


def test_a_record_that_is_no_example(data_dir, monkeypatch):
  source = load(data_dir)
  source._records = [b'\xff\xff', b''] * 4
  with pytest.raises(OSError, match='DecodeError'):
    source.read(0)
  with pytest.raises(OSError, match='the example has 0 images'):
    source.read(1)


def test_as_many_files_as_there_are_may_be_open(monkeypatch):
  resource = pytest.importorskip('resource')
  limits = {'now': (100, 2000)}
  monkeypatch.setattr(resource, 'getrlimit', lambda _: limits['now'])
  monkeypatch.setattr(
    resource, 'setrlimit', lambda _, new: limits.update(now=new)
  )
  for count, expected in ((1024, 1536), (10, 1536), (9999, 2000)):
    tfds_source._allow_open_files(count)
    assert limits['now'] == (expected, 2000)
