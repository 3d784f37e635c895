"""A workdir in an object store: one in memory, which cannot append either."""

import json
import os
import sys
import time

import buckets
import pytest
import tiny_run
from buckets import Bucket
from etils import epath

from training import holder, lock, process, storage
from training.json_lines import Rows, read_rows


def call_main(folder):
  """main.py, gs:// taken from a folder and left there."""
  folder.mkdir(exist_ok=True)
  command = tiny_run.command('gs://bucket/run')
  command[1:2] = [buckets.__file__, str(folder)]
  return tiny_run.call(command)


@pytest.fixture
def bucket(monkeypatch):
  monkeypatch.setenv('EPATH_USE_TF', 'false')
  # Asked once per process, maybe by another test.
  monkeypatch.setattr(epath.gpath, '_is_tf_installed', lambda: False)
  monkeypatch.setattr(process, 'installed', lambda _: True)
  backend = epath.backend.fsspec_backend
  monkeypatch.setattr(backend, '_get_filesystem', lambda _: Bucket())
  for held in (Bucket.store, Bucket.written):
    held.clear()
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


def test_a_lock_in_an_object_store(bucket, monkeypatch):
  monkeypatch.setattr(lock, 'SETTLE_SECONDS', 0)
  folder = storage.resolve('gs://bucket/run')
  elsewhere = holder.record_of(str(folder)) | dict(host='far', boot='b', pid=1)
  path = folder / lock.NAME
  path.write_bytes(json.dumps(dict(elsewhere, beat=time.time())).encode())
  with pytest.raises(lock.LockedError, match='process 1 on far'):
    lock.take(folder)
  path.write_bytes(json.dumps(dict(elsewhere, beat=0)).encode())
  lock.take(folder)
  assert json.loads(path.read_bytes())['pid'] == os.getpid()
  lock.release()
  assert not path.exists()


def test_a_whole_run_and_one_that_was_killed(tmp_path):
  """Reports, pictures and checkpoints, as two processes leave them."""
  whole = tmp_path / 'whole'
  done = call_main(whole)
  assert done.returncode == 0, done.stderr
  run = whole / 'bucket' / 'run'
  assert tiny_run.saved_steps(run) == [2, 4, 6]
  assert sorted(tiny_run.losses(run)) == [1, 2, 3, 4, 5, 6]
  assert len(list((run / 'images').glob('*.png'))) == 3
  (events,) = (run / 'tensorboard').iterdir()
  assert events.stat().st_size > 1000
  summary = json.loads((run / 'summary.json').read_text())
  assert summary['steps'] == tiny_run.STEPS

  # The last checkpoint is half written, the one before it damaged.
  killed = tiny_run.copy(whole, tmp_path / 'killed')
  again = killed / 'bucket' / 'run'
  (again / 'checkpoints/6/commit_success.txt').unlink()
  (again / 'checkpoints/4/meta/metadata').write_text('{')
  (again / 'summary.json').unlink()
  done = call_main(killed)
  assert done.returncode == 0, done.stderr
  assert 'gs://bucket/run: continuing at step 2' in done.stderr
  assert list((again / 'damaged/4/state').iterdir())
  assert tiny_run.saved_steps(again) == [2, 4, 6]
  assert tiny_run.checksums(again) == tiny_run.checksums(run)
  assert tiny_run.losses(again) == tiny_run.losses(run)
  assert tiny_run.measured(again) == tiny_run.measured(run)
  assert (again / 'summary.json').exists()


class TestWhatIsMissing:
  def test_unknown_storage(self):
    with pytest.raises(storage.StorageError, match='known: gs://, s3://'):
      storage.resolve('ftp://host/run')

  @pytest.mark.parametrize('kind, package', storage.PACKAGES.items())
  def test_package(self, kind, package, monkeypatch):
    monkeypatch.setattr(process, 'installed', lambda _: False)
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
        'import os, sys\n'
        'from training import process, storage\n'
        'process.installed = lambda _: True\n'
        'storage.resolve("gs://bucket/run")\n'
        'assert os.environ["EPATH_USE_TF"] == "false"\n'
        'assert "tensorflow" not in sys.modules\n',
      ]
    )
    assert done.returncode == 0, done.stderr
