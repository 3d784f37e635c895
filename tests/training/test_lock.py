"""Two runs never work in one workdir, and a dead one is in nobody's way."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import tiny_run
from etils import epath

from training import holder, lock, workdir

HOLD = """
import sys, time
from etils import epath
from training import lock
folder = epath.Path(sys.argv[1])
try:
  lock.take(folder)
except lock.LockedError as error:
  print(f'refused {error}', flush=True)
  sys.exit(1)
print('held', flush=True)
sys.stdin.read()
lock.release()
"""


def start(folder):
  return subprocess.Popen(
    [sys.executable, '-c', HOLD, str(folder)],
    cwd=tiny_run.ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )


@pytest.fixture
def folder(tmp_path):
  yield epath.Path(tmp_path)
  lock.release()


def leave(folder, **changes):
  """A lock file that a process left, this one's but for some fields."""
  record = holder.record_of(str(folder)) | dict(flock=True) | changes
  (folder / lock.NAME).write_text(json.dumps(record))


def test_a_second_process_is_refused_until_the_first_ends(folder):
  first = start(folder)
  assert first.stdout.readline() == 'held\n'
  with pytest.raises(lock.LockedError) as error:
    lock.take(folder)
  message = str(error.value)
  assert f'process {first.pid} on {os.uname().nodename}' in message
  assert str(folder) in message and f'kill {first.pid}' in message
  assert '--workdir' in message and '\n' not in message
  first.communicate('')
  assert os.listdir(folder) == []
  lock.take(folder)
  lock.take(folder)  # this process has it already
  assert os.listdir(folder) == [lock.NAME]
  lock.release()
  assert os.listdir(folder) == []


def test_what_a_killed_process_left_is_taken_over(folder, capsys):
  first = start(folder)
  first.stdout.readline()
  first.send_signal(signal.SIGSTOP)  # lives, and may go on
  with pytest.raises(lock.LockedError):
    lock.take(folder)
  first.kill()
  first.wait()
  lock.take(folder)
  assert f'process {first.pid} on' in capsys.readouterr().err
  record = json.loads((folder / lock.NAME).read_text())
  assert record['pid'] == os.getpid()
  assert os.listdir(folder) == [lock.NAME]


def test_of_several_at_the_same_moment_one_wins(folder):
  leave(folder, pid=2**22 + 1)  # and there is one to be taken over
  children = [start(folder) for _ in range(4)]
  answers = [child.stdout.readline().split()[0] for child in children]
  assert sorted(answers) == ['held', 'refused', 'refused', 'refused']
  for child in children:
    child.communicate('')
  assert os.listdir(folder) == []


@pytest.mark.parametrize(
  'changes',
  [
    dict(pid=2**22 + 1),  # no such process
    dict(pid=1, began='1234567890'),  # another one with its number
    dict(pid=1, boot='of last week'),
    dict(pid=1, host='its name before', began='1234567890'),
    dict(pid=7, numbering=1),  # of a container that ended
  ],
  ids=['dead', 'reused', 'reboot', 'renamed', 'container'],
)
def test_a_stale_lock_is_taken_over(folder, changes):
  leave(folder, **changes)
  lock.take(folder)
  assert json.loads((folder / lock.NAME).read_text())['pid'] == os.getpid()


def test_another_machine_is_believed_until_it_is_silent(folder, capsys):
  elsewhere = dict(host='far', boot='another', pid=1)
  leave(folder, **elsewhere)
  with pytest.raises(lock.LockedError) as error:
    lock.take(folder)
  assert 'process 1 on far' in str(error.value)
  assert 'on far: kill 1' in str(error.value)
  assert 'lapses 300 s after' in str(error.value)
  assert str(folder / lock.NAME) in str(error.value)
  old = time.time() - holder.LAPSE_SECONDS - 60
  os.utime(folder / lock.NAME, (old, old))
  lock.take(folder)
  assert 'far' in capsys.readouterr().err


def test_without_the_system_s_lock_the_process_is_looked_at(
  folder, monkeypatch
):
  monkeypatch.setattr(lock, '_flock', lambda file: None)
  child = subprocess.Popen(['sleep', '60'])
  try:
    leave(folder, pid=child.pid, began=holder._began(child.pid), flock=False)
    with pytest.raises(lock.LockedError, match=f'process {child.pid} on'):
      lock.take(folder)
  finally:
    child.kill()
    child.wait()
  lock.take(folder)


def test_a_copy_of_a_workdir_in_use_is_free(folder, tmp_path):
  first = start(folder)
  first.stdout.readline()
  copy = epath.Path(tiny_run.copy(folder, tmp_path / 'copy'))
  lock.take(copy)
  first.communicate('')


@pytest.mark.parametrize('content', [b'', b'\0\0', b'[1]', b'{"pid": "x"}'])
def test_a_damaged_lock_of_nobody_is_taken_over(folder, content):
  (folder / lock.NAME).write_bytes(content)
  lock.take(folder)
  assert json.loads((folder / lock.NAME).read_text())['pid'] == os.getpid()


def test_it_shows_that_it_lives(folder, monkeypatch):
  monkeypatch.setattr(lock, 'BEAT_SECONDS', 0.01)
  lock.take(folder)
  os.utime(folder / lock.NAME, (0, 0))
  until = time.monotonic() + 10
  while (folder / lock.NAME).stat().mtime < 1 and time.monotonic() < until:
    time.sleep(0.01)
  assert (folder / lock.NAME).stat().mtime > 1


def test_it_is_given_back_on_every_way_out(folder):
  """At a signal, too, which ends the process without `finally`."""
  script = (
    'import os, signal, sys, time\n'
    'from etils import epath\n'
    'from training import lock, signals\n'
    'with signals.listening(begun=False), lock.releasing():\n'
    '  lock.take(epath.Path(sys.argv[1]))\n'
    '  assert os.listdir(sys.argv[1]) == [lock.NAME]\n'
    '  os.kill(os.getpid(), signal.SIGTERM)\n'
    '  time.sleep(60)\n'
  )
  done = tiny_run.call([sys.executable, '-c', script, str(folder)])
  assert done.returncode == 75, done.stderr
  assert os.listdir(folder) == []
  with pytest.raises(KeyError), lock.releasing(), lock.releasing():
    lock.take(folder)
    raise KeyError
  assert os.listdir(folder) == []


def test_a_folder_that_cannot_be_written_needs_none(folder, monkeypatch):
  """The finished run in it can still be read; others are refused by name."""

  def refuse(path):
    raise OSError(30, 'Read-only file system', str(path))

  monkeypatch.setattr(lock, 'take', refuse)
  opened = workdir.open_workdir(folder)
  assert not workdir.writable(opened)
  with pytest.raises(workdir.WorkdirError, match='Read-only file system'):
    workdir.record(opened, None)


def test_a_run_whose_lock_was_taken_over_ends(folder):
  """As after a suspend that outlasted the lock: two would write."""
  hurried = HOLD.replace(
    'import lock\n', 'import lock\nlock.BEAT_SECONDS = 0.05\n'
  )
  child = subprocess.Popen(
    [sys.executable, '-c', hurried, str(folder)],
    cwd=tiny_run.ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert child.stdout.readline() == 'held\n'
  other = folder / 'other'
  other.write_text(json.dumps(holder.record_of(str(folder)) | dict(pid=1)))
  other.replace(folder / lock.NAME)
  assert child.wait(timeout=30) == 1
  last = child.stderr.read().splitlines()[-1]
  assert last.startswith(f'error: {folder / lock.NAME} is no longer the lock')
  assert (folder / lock.NAME).exists()  # it is the other's


def test_machines_of_one_name_are_told_apart_by_their_signs_of_life():
  """Without the system's lock, as on NFS and in object stores."""
  record = holder.record_of('w') | dict(boot='another', flock=False)
  assert holder.lives(record, age=3, free=False)
  assert not holder.lives(record, age=holder.REBOOT_SECONDS + 1, free=False)
  # On a disk with it, a machine that has started again is known at once.
  assert not holder.lives(record | dict(flock=True), age=3, free=True)
