"""A workdir in an object store: one in memory, which cannot append either."""

import json
import sys

import fsspec
import pytest
import tiny_run
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from training import checkpoint, loop, storage
from training.metrics import Rows, read_rows


class Bucket(MemoryFileSystem):
  """gs:// in memory; objects are written whole, and writes are counted."""

  protocol = ('gcs', 'gs')
  store = {}
  pseudo_dirs = ['']
  written = []

  @classmethod
  def _strip_protocol(cls, path):
    for name in cls.protocol:
      path = path.removeprefix(f'{name}://')
    return '/' + path.strip('/') if path.strip('/') else ''

  def _open(self, path, mode='rb', **kwargs):
    if 'a' in mode:
      raise NotImplementedError('objects cannot be appended to')
    if 'w' in mode:
      self.written.append(path)
    return super()._open(path, mode, **kwargs)


@pytest.fixture
def bucket(monkeypatch):
  monkeypatch.setenv('EPATH_USE_TF', 'false')
  fsspec.register_implementation('gcs', Bucket, clobber=True)
  for held in (Bucket.store, Bucket.written):
    held.clear()
  # What etils once found it keeps.
  backend = epath.backend.fsspec_backend
  monkeypatch.setattr(backend, '_get_filesystem', lambda _: Bucket())
  return Bucket


def test_what_is_written_is_there(bucket):
  path = storage.resolve('gs://bucket/run/file')
  storage.write_whole(path, b'one')
  assert path.read_bytes() == b'one'
  assert bucket.written == ['/bucket/run/file']  # no copy, no rename


def test_growing_objects_are_rewritten_now_and_then(bucket, monkeypatch):
  now = [0.0]
  monkeypatch.setattr(storage.time, 'monotonic', lambda: now[0])
  path = storage.resolve('gs://bucket/run/file')
  file = storage.Growing(path)
  for _ in range(100):  # a second each
    now[0] += 1
    file.write(b'x')
  assert 5 < len(bucket.written) < 10
  file.flush()
  assert path.read_bytes() == b'x' * 100
  count = len(bucket.written)
  file.flush()
  assert len(bucket.written) == count


@pytest.mark.parametrize('where', ['gs://bucket', 'local'])
def test_rows_are_cut_back_and_go_on(bucket, tmp_path, where):
  folder = tmp_path if where == 'local' else where
  path = storage.resolve(folder) / 'rows.jsonl'
  first = Rows(path, lambda row: True)
  for step in range(4):
    first.add(dict(step=step))
  first.flush()
  second = Rows(path, lambda row: row['step'] < 2)
  assert read_rows(path) == second.all() == [dict(step=0), dict(step=1)]
  second.add(dict(step=9))
  second.flush()
  assert [row['step'] for row in read_rows(path)] == [0, 1, 9]


def test_a_whole_run(bucket, tmp_path, monkeypatch):
  """Checkpoints alone stay on disk: Orbax would ask the real gs://."""
  finished = tiny_run.finished()

  def on_disk(workdir, **fields):
    assert str(workdir) == 'gs://bucket/run'
    return checkpoint.Checkpoints(tmp_path, **fields)

  monkeypatch.setattr(loop, 'Checkpoints', on_disk)
  workdir = epath.Path('gs://bucket/run')
  tiny_run.pretrain(workdir)
  whole = (workdir / 'metrics.jsonl').read_text()
  events = list((workdir / 'tensorboard').iterdir())
  assert len(events) == 1 and events[0].stat().length > 1000
  pictures = list((workdir / 'images').iterdir())
  assert len(pictures) == 3
  assert pictures[0].read_bytes().startswith(b'\x89PNG')
  summary = json.loads((workdir / 'summary.json').read_text())
  assert summary['steps'] == tiny_run.STEPS
  reference = tiny_run.losses(finished)
  rows = [json.loads(line) for line in whole.splitlines()]
  losses = {row['step']: row['loss'] for row in rows if 'loss' in row}
  assert losses == {step: row['loss'] for step, row in reference.items()}
  assert tiny_run.checksums(tmp_path) == tiny_run.checksums(finished)
  # Once more: nothing left to do, and nothing is lost.
  tiny_run.pretrain(workdir)
  assert (workdir / 'metrics.jsonl').read_text() == whole


class TestWhatIsMissing:
  def test_unknown_storage(self):
    with pytest.raises(storage.StorageError, match='known: gs://, s3://'):
      storage.resolve('ftp://host/run')

  @pytest.mark.parametrize('kind, package', storage.PACKAGES.items())
  def test_package(self, kind, package, monkeypatch):
    monkeypatch.setattr(storage.importlib.util, 'find_spec', lambda _: None)
    with pytest.raises(storage.StorageError, match=f'pip install {package}'):
      storage.resolve(f'{kind}://bucket/run')

  def test_folders_become_absolute(self, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.resolve('run') == epath.Path(tmp_path / 'run')

  def test_tensorflow_is_not_imported_where_there_is_another(self):
    done = tiny_run.call(
      [
        sys.executable,
        '-c',
        'import sys, importlib.util, os\n'
        'importlib.util.find_spec = lambda name: name\n'
        'from training import storage\n'
        'storage.resolve("gs://bucket/run")\n'
        'assert os.environ["EPATH_USE_TF"] == "false"\n'
        'assert "tensorflow" not in sys.modules\n',
      ]
    )
    assert done.returncode == 0, done.stderr
