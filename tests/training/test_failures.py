"""An error is one line, the last and alone on the screen."""

import pathlib
import sys

import pytest
import tiny_run

from training import failures

RAISE = """
import atexit, sys, threading, time
import tqdm
from training import failures
def late():
  time.sleep(0.2)
  print('noise of a thread', file=sys.stderr)
def batches():
  with tqdm.tqdm(total=3) as bar:
    for _ in range(3):
      bar.update()
      yield
atexit.register(print, 'noise at the end', file=sys.stderr)
failures.install()
def work():
  rows = batches()
  next(rows)
  threading.Thread(target=late).start()
  {body}
try:
  work()
finally:
  print('result so far')
"""


def run(body, *options, **variables):
  script = RAISE.format(body=body)
  return tiny_run.call([sys.executable, '-c', script, *options], **variables)


def test_the_last_line_is_the_error_and_a_file_has_the_rest(tmp_path):
  done = run('raise ValueError("bad\\nnumber")', TMPDIR=str(tmp_path))
  assert (done.returncode, done.stdout) == (1, 'result so far\n')
  *_, where, last = done.stderr.splitlines()
  assert last == 'error: ValueError: bad number'
  (kept,) = tmp_path.iterdir()
  assert where == f'traceback: {kept} (--traceback shows it here)'
  text = kept.read_text()
  assert 'in work' in text and 'ValueError: bad\nnumber' in text
  assert 'Traceback' not in done.stderr and 'noise' not in done.stderr


def test_the_screen_has_the_rest_where_it_is_wanted(tmp_path):
  done = run('1 / 0', '--traceback', TMPDIR=str(tmp_path))
  lines = done.stderr.splitlines()
  assert lines[-1] == 'error: ZeroDivisionError: division by zero'
  assert 'Traceback (most recent call last):' in lines
  assert list(tmp_path.iterdir()) == []


def test_a_missing_package_names_the_way_out(tmp_path):
  done = run('import no_such_package', TMPDIR=str(tmp_path))
  last = done.stderr.splitlines()[-1]
  assert last.startswith("error: No module named 'no_such_package': ")
  assert 'make setup' in last and sys.executable in last


def test_nowhere_to_keep_it(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(failures, '_folder', None)  # of an earlier run
  monkeypatch.setattr('tempfile.tempdir', str(tmp_path / 'none'))
  failures.report(ValueError('x'), 'x')
  assert capsys.readouterr().err == 'error: x\n'


def test_a_run_that_began_keeps_it_in_its_workdir(
  tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(failures, '_folder', None)
  failures.keep_in(tmp_path)
  failures.report(ValueError('x'), 'x', note='and others')
  path = tmp_path / 'traceback.txt'
  assert capsys.readouterr().err.splitlines() == [
    'and others',
    f'traceback: {path} (--traceback shows it here)',
    'error: x',
  ]
  assert path.read_text().endswith('ValueError: x\n')


class TestMain:
  """Every way in which `main.py` can fail, by its last line."""

  @pytest.fixture
  def last(self, monkeypatch, tmp_path):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))

    def call(*options):
      code, out, err = tiny_run.main_in_process(monkeypatch, *options)
      assert (code, out) == (1, '')
      assert err.count('error: ') == 1 and 'Traceback' not in err
      return err.splitlines()[-1]

    return call

  @pytest.mark.parametrize(
    'body, words',
    [
      ('import no_such_package', 'no_such_package'),
      ('def get_config(:', 'syntax'),
      ('raise KeyboardInterrupt', 'KeyboardInterrupt'),
      ('raise MemoryError', 'MemoryError'),
      ('raise SystemExit("I give up")', 'I give up'),
      ('def get_config(): 1 / 0', 'division by zero'),
      ('class Odd(BaseException): pass\nraise Odd("odd")', 'Odd: odd'),
    ],
    ids=['import', 'syntax', 'interrupt', 'memory', 'exit', 'zero', 'odd'],
  )
  def test_a_config_file_that_fails(self, last, tmp_path, body, words):
    path = pathlib.Path(tmp_path) / 'mine.py'
    path.write_text(f'{body}\n')
    line = last(f'--config={path}', f'--workdir={tmp_path}/run')
    assert line.startswith('error: ') and words in line

  @pytest.mark.parametrize(
    'options, words',
    [
      ((), '--config'),
      (('--config=configs/quickstart.py', '--wrkdir=x'), 'wrkdir'),
      (('--config=configs/quickstart.py', 'stray'), 'stray'),
      (('--config=configs/moco_v3.py:nope',), 'nope'),
    ],
  )
  def test_options(self, last, options, words):
    line = last(*options)
    assert line.startswith('error: ') and words in line
