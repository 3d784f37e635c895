import subprocess
import sys
import time

import tiny_run

from training.watchdog import EXIT_HUNG, Watchdog


def slow_step(seconds):
  time.sleep(seconds)


def test_it_tells_what_hangs_where_and_less_and_less_often(capsys):
  with Watchdog(0.1) as guard:
    guard.working('step 7')
    slow_step(1.0)  # told after 0.1, 0.2, 0.4 and 0.8 s
  err = capsys.readouterr().err
  assert err.count('watchdog: step 7 has not ended') == 4
  assert 'process 0' in err
  assert 'slow_step(1.0)' in err  # the main thread's stack


def test_it_is_silent_while_work_ends(capsys):
  with Watchdog(0.4) as guard:
    for step in range(8):
      guard.working(f'step {step}')
      slow_step(0.1)
    guard.working('first step', allowance=6)
    slow_step(0.8)
  assert capsys.readouterr().err == ''


def test_it_notices_work_shorter_than_what_it_waited_for(capsys):
  with Watchdog(0.1) as guard:
    guard.working('compiling', allowance=100)
    slow_step(0.2)
    guard.working('step 1')
    slow_step(0.35)
  assert 'step 1 has not ended' in capsys.readouterr().err


def test_off(capsys):
  with Watchdog(0):
    slow_step(0.2)
  assert capsys.readouterr().err == ''


def test_the_limit_ends_the_process():
  script = (
    'import time\n'
    'from training.watchdog import Watchdog\n'
    'with Watchdog(0, limit=0.2) as guard:\n'
    '  guard.working("step 3")\n'
    '  time.sleep(60)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', script],
    cwd=tiny_run.ROOT,
    env=tiny_run.environment(),
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == EXIT_HUNG, done.stderr
  assert 'config.hang_limit=0.2' in done.stderr
