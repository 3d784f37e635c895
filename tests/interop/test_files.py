"""Weights as named tensors, against what torch itself saw in the files."""

import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys

import made_files
import ml_dtypes
import numpy as np
import pytest

from interop import files
from interop.files import WeightsError

ROOT = pathlib.Path(__file__).parent.parent.parent
RECORDED = ROOT / 'tests' / 'goldens' / 'weights'


@functools.cache
def recorded():
  with np.load(RECORDED / 'torch_files.npz') as file:
    rows = dict(file)
  return rows, json.loads(str(rows.pop('dtypes')))


def some():
  """Arrays of every type that our writers know."""
  numbers = np.arange(24.0).reshape(2, 3, 4)
  kinds = 'float16 float32 float64 int8 int64 uint8 bool complex64'.split()
  return {f'some.{kind}': numbers.astype(kind) for kind in kinds} | dict(
    scalar=np.float32(3.5),
    empty=np.zeros((0, 3), np.int32),
    transposed=numbers.astype(np.float32).transpose(2, 0, 1),
    every_second=numbers.astype(np.float32)[:, ::2],
    big_endian=numbers.astype('>f4'),
  )


def narrow():
  x = np.linspace(-2, 2, 12).reshape(3, 4)
  return dict(
    bfloat16=x.astype(ml_dtypes.bfloat16),
    float8=x.astype(ml_dtypes.float8_e4m3fn),
  )


def assert_same(tensors, arrays):
  assert sorted(tensors) == sorted(arrays)
  for name, x in arrays.items():
    tensor, x = tensors[name], np.asarray(x)
    values = tensor.read()
    assert values.shape == tensor.shape == x.shape, name
    assert values.dtype == tensor.dtype, name
    assert tensor.dtype.newbyteorder('=') == x.dtype.newbyteorder('='), name
    np.testing.assert_array_equal(values, x, name)
    assert not values.flags.writeable, name


@pytest.mark.parametrize(
  'file',
  ['torch_zip.pth', 'torch_protocol4.pth', 'torch_old.pth', 'torch_script.pt'],
)
def test_every_tensor_is_as_torch_saw_it(file):
  weights = files.open_weights(RECORDED / file)
  rows, dtypes = recorded()
  names = [n.partition('/')[2] for n in rows if n.startswith(f'{file}/')]
  if file == 'torch_script.pt':  # where the code is, buffers stand first
    names, found = sorted(names), sorted(weights.tensors)
  else:
    found = list(weights.tensors)
  assert found == names
  for name in names:
    tensor, expected = weights.tensors[name], rows[f'{file}/{name}']
    assert str(tensor.dtype) == dtypes[f'{file}/{name}'], name
    values = tensor.read()
    assert values.dtype == tensor.dtype
    assert values.shape == tensor.shape == expected.shape, name
    assert not values.flags.writeable
    np.testing.assert_array_equal(values.astype(expected.dtype), expected)


def test_views_of_one_storage_take_no_memory():
  tensors = files.open_weights(RECORDED / 'torch_zip.pth').tensors
  base = tensors['views.base'].read()
  for name in ('transposed', 'part', 'every_second', 'of_a_scalar'):
    assert np.shares_memory(base, tensors[f'views.{name}'].read()), name
  assert not base.flags.owndata


def test_safetensors_come_back(tmp_path):
  path = tmp_path / 'one.safetensors'
  arrays = some() | narrow()
  files.write_safetensors(path, arrays, {'format': 'np', 'made': 'hére'})
  weights = files.open_weights(path)
  assert_same(weights.tensors, arrays)
  assert weights.metadata == {'format': 'np', 'made': 'hére'}
  assert weights.path == str(path)
  assert weights.config == weights.preprocessor == {}
  x = weights.tensors['some.float32'].read()
  assert not x.flags.owndata and x.flags.aligned


def test_the_package_reads_what_we_write(tmp_path):
  import safetensors.numpy

  path, arrays = tmp_path / 'one.safetensors', some()
  files.write_safetensors(path, arrays, {'format': 'np'})
  read = safetensors.numpy.load_file(path)
  assert sorted(read) == sorted(arrays)
  for name, x in arrays.items():
    np.testing.assert_array_equal(read[name], x, name)


def test_equal_weights_are_equal_files(tmp_path):
  metadata = {letter: letter for letter in 'abcdefgh'}
  backwards = dict(reversed(metadata.items()))
  turned = dict(reversed(some().items()))
  files.write_safetensors(tmp_path / '1', some(), metadata)
  files.write_safetensors(tmp_path / '2', turned, backwards)
  assert (tmp_path / '1').read_bytes() == (tmp_path / '2').read_bytes()
  files.write_npz(tmp_path / '3', some())
  files.write_npz(tmp_path / '4', turned)
  assert (tmp_path / '3').read_bytes() == (tmp_path / '4').read_bytes()
  assert sorted(p.name for p in tmp_path.iterdir()) == ['1', '2', '3', '4']


@pytest.mark.parametrize('save', [files.write_npz, None, np.savez_compressed])
def test_npz_comes_back(save, tmp_path):
  path = tmp_path / 'weights.npz'
  arrays = some() | {'by_column': np.asfortranarray(np.eye(3, 4))}
  if save is files.write_npz:
    save(path, arrays)
  else:  # text beside the numbers is left out
    (save or np.savez)(path, **arrays, text=np.array('vit'))
  assert_same(files.open_weights(path).tensors, arrays)
  with np.load(path) as file:
    assert sorted(set(file) - {'text'}) == sorted(arrays)


def test_nothing_half_written_stays(tmp_path):
  path = tmp_path / 'weights'
  path.write_bytes(b'before')
  with pytest.raises(WeightsError, match="'bad': npz has no bfloat16"):
    files.write_npz(path, {'bad': np.zeros(2, ml_dtypes.bfloat16)})
  with pytest.raises(WeightsError, match="no place for 'bad', <U1"):
    files.write_safetensors(path, {'bad': np.array('x')}, {})
  with pytest.raises(WeightsError, match='strings'):
    files.write_safetensors(path, {'x': np.zeros(1)}, {'epoch': 3})
  assert [p.name for p in tmp_path.iterdir()] == ['weights']
  assert path.read_bytes() == b'before'


@pytest.mark.parametrize(
  'name, kind',
  [
    ('model.safetensors', 'safetensors'),
    ('open_clip_model.safetensors', 'safetensors'),
    ('pytorch_model.bin', 'torch'),
    ('pytorch_model.bin', 'safetensors'),  # the contents decide
    ('model.safetensors', 'torch'),
  ],
)
def test_a_folder_of_the_hub(name, kind, tmp_path):
  assert not files.is_weights(tmp_path)
  if kind == 'torch':
    shutil.copy(RECORDED / 'torch_zip.pth', tmp_path / 'blob')
  else:
    files.write_safetensors(tmp_path / 'blob', some(), {})
  (tmp_path / name).symlink_to('blob')  # as in the hub's cache
  (tmp_path / 'config.json').write_text('{"hidden_size": 384}')
  (tmp_path / 'preprocessor_config.json').write_text('{"size": 224}')
  assert files.is_weights(tmp_path)
  assert files.is_weights(tmp_path / name)
  for path in (tmp_path, str(tmp_path / name)):
    weights = files.open_weights(path)
    assert len(weights.tensors) > 10
    assert weights.config == {'hidden_size': 384}
    assert weights.preprocessor == {'size': 224}


def sharded(folder, index, shards):
  arrays = list(some().items())
  where = {}
  for i, shard in enumerate(shards):
    part = dict(arrays[i :: len(shards)])
    files.write_safetensors(folder / shard, part, {'part': shard})
    where |= dict.fromkeys(part, shard)
  (folder / index).write_text(json.dumps({'weight_map': where}))
  return where


def test_several_files_with_an_index(tmp_path):
  index, shards = 'model.safetensors.index.json', ['1-of-2', '2-of-2']
  where = sharded(tmp_path, index, shards)
  for path in (tmp_path, tmp_path / index):
    assert files.is_weights(path)
    weights = files.open_weights(path)
    assert_same(weights.tensors, some())
    assert list(weights.tensors) == list(where)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'empty': '../outside'}, "refused: '../outside' is not beside it"),
    ({'empty': '/etc/passwd'}, 'refused'),
    ({'empty': '..'}, "it names '..', which is missing"),
    ({'empty': 3}, "refused: '3'"),
    ({'empty': '3-of-3'}, "it names '3-of-3', which is missing: download"),
    ({'lost': '1-of-2'}, "1 tensors are not in the files it names, as 'lost'"),
    ({'empty': 'text'}, 'text: a text file'),
  ],
)
def test_an_index_that_lies(change, message, tmp_path):
  folder = tmp_path / 'folder'
  folder.mkdir()
  where = sharded(folder, 'a.index.json', ['1-of-2', '2-of-2'])
  shutil.copy(folder / '1-of-2', tmp_path / 'outside')
  (folder / 'text').write_text('nothing')
  (folder / 'a.index.json').write_text(
    json.dumps({'weight_map': where | change})
  )
  with pytest.raises(WeightsError, match=message):
    files.open_weights(folder / 'a.index.json')


@pytest.mark.parametrize('text', ['', '{', '[]', '{}', '[' * 100_000, '\xff'])
def test_json_that_is_none(text, tmp_path):
  path = tmp_path / 'model.safetensors.index.json'
  path.write_text(text, encoding='latin-1')
  with pytest.raises(WeightsError, match='index.json'):
    files.open_weights(path)
  files.write_safetensors(tmp_path / 'x.pth', some(), {})
  (tmp_path / 'config.json').write_text(text, encoding='latin-1')
  if text == '{}':
    assert files.open_weights(tmp_path / 'x.pth').config == {}
    return
  with pytest.raises(WeightsError, match=r'x\.pth: config\.json'):
    files.open_weights(tmp_path / 'x.pth')


def test_a_place_without_weights(tmp_path):
  for path in (tmp_path / 'none.pth', tmp_path / 'none'):
    assert not files.is_weights(path)
    with pytest.raises(FileNotFoundError, match='no such file'):
      files.open_weights(path)
  (tmp_path / 'readme.txt').write_text('')
  with pytest.raises(WeightsError, match='1 files, none of weights'):
    files.open_weights(tmp_path)
  (tmp_path / 'vit.pth').write_bytes(b'')
  with pytest.raises(WeightsError, match='name one of its files: vit.pth'):
    files.open_weights(tmp_path)
  (tmp_path / 'folder.pth').mkdir()
  assert not files.is_weights(tmp_path / 'folder.pth')


def test_a_path_from_home(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  files.write_npz('~/one.npz', {'x': np.ones(2)})
  assert files.is_weights('~/one.npz')
  assert list(files.open_weights('~/one.npz').tensors) == ['x']


def test_an_object_store(monkeypatch):
  from buckets import Bucket
  from etils import epath

  backend = epath.backend.fsspec_backend
  monkeypatch.setenv('EPATH_USE_TF', 'false')
  monkeypatch.setattr(epath.gpath, '_is_tf_installed', lambda: False)
  monkeypatch.setattr(backend, '_get_filesystem', lambda _: Bucket())
  Bucket.store.clear()
  files.write_safetensors('gs://bucket/run/model.safetensors', some(), {})
  files.write_npz('gs://bucket/run/model.npz', some())
  epath.Path('gs://bucket/run/config.json').write_text('{"a": 1}')
  for name in ('run', 'run/model.safetensors', 'run/model.npz'):
    assert files.is_weights(f'gs://bucket/{name}')
    weights = files.open_weights(f'gs://bucket/{name}')
    assert_same(weights.tensors, some())
    assert weights.config == {'a': 1}


MEMORY = """
import sys, tracemalloc
import numpy as np
from interop import files
def resident(kind):
  for line in open('/proc/self/status'):
    if line.startswith(kind):
      return 1024 * int(line.split()[1])
tracemalloc.start()
before = resident('VmRSS')
weights = files.open_weights(sys.argv[1])
kept = {k: t.read().astype(np.float32, copy=False)
        for k, t in weights.tensors.items()}
sums = [float(x.sum()) for x in kept.values()]
print(sum(x.nbytes for x in kept.values()), tracemalloc.get_traced_memory()[1],
      resident('VmHWM') - before)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='asks /proc')
@pytest.mark.parametrize('kind', ['safetensors', 'npz', 'torch'])
def test_peak_memory(kind, tmp_path):
  """60 MB, every tensor kept as float32: one and a half times the file."""
  path, count = tmp_path / 'weights', 2_500_000
  arrays = {f'{i}': np.full(count, i, np.float32) for i in range(6)}
  if kind == 'safetensors':
    files.write_safetensors(path, arrays, {})
  elif kind == 'npz':
    files.write_npz(path, arrays)
  else:
    views = [
      made_files.tensor(0, (count,), (1,), made_files.storage(count, key=name))
      for name in arrays
    ]
    entries = {f'a/data/{name}': x.tobytes() for name, x in arrays.items()}
    pickle = made_files.pickled(*views)
    path.write_bytes(made_files.zipped({'a/data.pkl': pickle} | entries))
  del arrays
  done = subprocess.run(
    [sys.executable, '-c', MEMORY, path],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=os.environ,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr
  kept, python, resident = map(int, done.stdout.split())
  assert kept == 4 * 6 * count
  assert python < 0.1 * kept
  assert resident < 1.5 * kept
