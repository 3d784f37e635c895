"""Signals at moments that a run in this process cannot show."""

import os
import signal
import subprocess
import sys
import time

import pytest
import tiny_run

from training import signals

HEAD = """
import os, signal, sys, time
from training import signals
def send(number):
  os.kill(os.getpid(), number)
"""


def run(body):
  return tiny_run.call([sys.executable, '-c', HEAD + body])


def test_before_training_it_leaves_at_once():
  done = run(
    'with signals.listening(begun=False):\n'
    '  send(signal.SIGTERM)\n'
    '  time.sleep(60)\n'
  )
  assert done.returncode == signals.EXIT_STOPPED, done.stderr
  assert done.stderr == (
    'SIGTERM: nothing new to save; run the same command again to continue\n'
  )


def start_main(workdir, *before):
  """`main.py` as a process that says when its handlers are there."""
  command = tiny_run.command(workdir)
  listening = (
    'import runpy, signal, sys\n'
    'signal.signal(signal.SIGHUP, signal.SIG_DFL)\n'  # also under nohup
    'from training import signals\n'
    'old = signals.listen\n'
    'def listen():\n'
    '  listener = old()\n'
    '  print("listening", flush=True)\n'
    '  return listener\n'
    'signals.listen = listen\n'
    'sys.argv = sys.argv[1:]\n'
    'runpy.run_path(sys.argv[0], run_name="__main__")\n'
  )
  return subprocess.Popen(
    [*before, command[0], '-c', listening, *command[1:]],
    cwd=tiny_run.ROOT,
    env=tiny_run.environment(),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


@pytest.mark.parametrize('name', signals.NAMES)
def test_while_it_imports(tmp_path, name):
  """Of four seconds before anything but the standard library is there."""
  child = start_main(tmp_path / 'run')
  assert child.stdout.readline() == 'listening\n'
  time.sleep(0.3 * signals.NAMES.index(name))
  child.send_signal(getattr(signal, name))
  _, err = child.communicate(timeout=60)
  assert child.returncode == signals.EXIT_STOPPED, err
  assert err.splitlines()[-1] == (
    f'{name}: nothing new to save; run the same command again to continue'
  )
  assert not (tmp_path / 'run').exists()


def test_hangups_stay_ignored_under_nohup():
  done = run(
    'signal.signal(signal.SIGHUP, signal.SIG_IGN)\n'
    'with signals.listening(begun=False) as stop:\n'
    '  send(signal.SIGHUP)\n'
    '  time.sleep(0.3)\n'
    '  print(stop.received)\n'
  )
  assert (done.returncode, done.stdout) == (0, 'None\n'), done.stderr


def test_a_hangup_beside_another_signal_is_one_wish():
  """Service managers send SIGTERM and SIGHUP, one right after the other."""
  done = run(
    'with signals.listening() as stop:\n'
    '  send(signal.SIGTERM)\n'
    '  send(signal.SIGHUP)\n'
    '  time.sleep(0.5)\n'
    '  print(stop.received)\n'
  )
  assert (done.returncode, done.stdout) == (0, 'SIGTERM\n'), done.stderr


def test_a_lost_terminal_does_not_keep_it_from_saving():
  """After the hangup every write to the screen fails."""
  main_end, terminal = os.openpty()
  child = subprocess.Popen(
    [
      sys.executable,
      '-c',
      HEAD
      + (
        'signal.signal(signal.SIGHUP, signal.SIG_DFL)\n'  # also under nohup
        'with signals.listening() as stop:\n'
        '  print("ready", file=sys.stderr, flush=True)\n'
        '  while not stop.received:\n'
        '    time.sleep(0.01)\n'
        '  print("saved", file=sys.stderr, flush=True)\n'
        'sys.exit(75)\n'
      ),
    ],
    cwd=tiny_run.ROOT,
    stdin=terminal,
    stdout=terminal,
    stderr=terminal,
    start_new_session=True,
  )
  os.close(terminal)
  assert b'ready' in os.read(main_end, 100)
  os.close(main_end)
  child.send_signal(signal.SIGHUP)
  assert child.wait(timeout=30) == 75


def test_after_the_end_a_signal_changes_no_exit_code():
  done = run(
    'stop = signals.listen()\n'
    'stop.begin()\n'
    'send(signal.SIGTERM)\n'
    'stop.end(75)\n'
    'time.sleep(1.2)\n'
    'send(signal.SIGTERM)\n'
    'time.sleep(60)\n'
  )
  assert done.returncode == 75, done.stderr
  assert 'leaving without saving' not in done.stderr


def test_nothing_new_leaves_at_once_and_only_inside():
  done = run(
    'with signals.listening() as stop:\n'
    '  with stop.nothing_new():\n'
    '    send(signal.SIGUSR1)\n'
    '    time.sleep(60)\n'
  )
  assert done.returncode == signals.EXIT_STOPPED, done.stderr
  assert 'SIGUSR1: nothing new to save' in done.stderr


@pytest.mark.parametrize(
  'begun, wait, code',
  [
    (False, 0, signals.EXIT_STOPPED),  # of the first signal
    (True, 1.2, 128 + signal.SIGTERM),  # of the second
  ],
)
def test_while_the_main_thread_is_in_a_library(begun, wait, code):
  """No handler of Python's runs before this returns, a minute later."""
  began = time.monotonic()
  done = run(
    'import hashlib, threading\n'
    'def two():\n'
    '  for _ in range(2):\n'
    f'    time.sleep(0.3 + {wait})\n'
    '    send(signal.SIGTERM)\n'
    f'with signals.listening(begun={begun}):\n'
    '  threading.Thread(target=two, daemon=True).start()\n'
    '  hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)\n'
  )
  assert done.returncode == code, done.stderr
  assert time.monotonic() - began < 30
  if begun:
    assert 'SIGTERM: saving at the end of this step' in done.stderr
    assert 'SIGTERM again: leaving without saving' in done.stderr


def test_the_same_signal_in_a_burst_is_one():
  done = run(
    'with signals.listening() as stop:\n'
    '  for _ in range(5):\n'
    '    send(signal.SIGINT)\n'
    '  time.sleep(0.5)\n'
    '  print(stop.received)\n'
  )
  assert (done.returncode, done.stdout) == (0, 'SIGINT\n'), done.stderr
  assert done.stderr.count('SIGINT') == 1


def test_one_listener_per_process_and_nothing_left_behind():
  before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
  with signals.listening() as outer, signals.listening() as inner:
    assert inner is outer
    signal.raise_signal(signal.SIGTERM)
    assert inner.received == 'SIGTERM'
  after = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
  assert after == before
  assert signal.set_wakeup_fd(-1) == -1
  with signals.listening() as fresh:
    assert fresh.received is None
