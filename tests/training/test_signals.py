"""Signals at moments that a run in this process cannot show."""

import signal
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
  assert done.stderr == 'SIGTERM: nothing to save yet\n'


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
