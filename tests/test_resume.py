"""Whatever kills a run, the same command ends where it would have ended."""

import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import tiny_run

import main  # noqa: F401, so that its flags exist before any test parses some
from input_pipeline.resident import Resident
from training.signals import Stopped
from transfer.knn.online import Knn


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
  """The run of a process of its own that nobody disturbs."""
  workdir = tmp_path_factory.mktemp('uninterrupted')
  done = tiny_run.call(tiny_run.command(workdir))
  assert done.returncode == 0, done.stderr
  return workdir


def assert_same_run(workdir, reference):
  """Bit for bit: parameters, optimiser, teacher, and what was reported."""
  assert tiny_run.checksums(workdir) == tiny_run.checksums(reference)
  assert tiny_run.losses(workdir) == tiny_run.losses(reference)
  assert tiny_run.measured(workdir) == tiny_run.measured(reference)
  rows = [(row['step'], 'loss' in row) for row in tiny_run.rows(workdir)]
  assert len(set(rows)) == len(rows)
  assert (workdir / 'summary.json').exists()
  assert not (workdir / 'damaged').exists()


def test_killed_at_the_worst_moments(uninterrupted, tmp_path):
  command = tiny_run.command(tmp_path)
  moments = (
    ('evaluation', 0, set()),
    ('training', 3, {2}),
    ('saving', 4, {2}),
    ('evaluation', 6, {2, 4, 6}),
  )
  for moment, number, saved in moments:
    done = tiny_run.call(tiny_run.dying(moment, number, command))
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / 'summary.json').exists()
    # The last one may still have been on its way.
    assert set(tiny_run.saved_steps(tmp_path)) <= saved
    if moment == 'saving':
      assert list(tmp_path.glob('checkpoints/4.orbax-checkpoint-tmp/*'))
  done = tiny_run.call(command)
  assert done.returncode == 0, done.stderr
  assert 'continuing' in done.stderr or 'already' in done.stderr
  assert_same_run(tmp_path, uninterrupted)


def test_killed_at_any_moment(uninterrupted, tmp_path):
  """Shot from outside while it trains, saves and measures."""
  command = tiny_run.dying('slowly', 200, tiny_run.command(tmp_path))
  rng = random.Random(0)
  for _ in range(2):
    child = subprocess.Popen(
      command,
      cwd=tiny_run.ROOT,
      env=tiny_run.environment(),
      stderr=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
      text=True,
    )
    for line in child.stderr:
      if line.startswith('step '):  # it is at work
        time.sleep(rng.uniform(0, 1.5))
        break
    child.kill()
    child.communicate()
  done = tiny_run.call(tiny_run.command(tmp_path))
  assert done.returncode == 0, done.stderr
  assert_same_run(tmp_path, uninterrupted)


def test_reports_over_several_steps_come_out_the_same(tmp_path):
  """A report that spans a checkpoint averages all its steps, not the rest."""
  fields = dict(log_every=3, checkpoint_every=2, eval_every=0)
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  tiny_run.pretrain(whole, **fields)
  shutil.copytree(whole, killed)
  shutil.rmtree(killed / 'checkpoints' / '6')  # as if it had died before
  tiny_run.pretrain(killed, **fields)
  assert tiny_run.checksums(killed) == tiny_run.checksums(whole)
  assert tiny_run.losses(killed) == tiny_run.losses(whole)


class TestSignals:
  """In this process: four devices, and the signal comes when the test says."""

  def interrupt(self, monkeypatch, workdir, number, owner, name, when):
    """Runs until a signal that is sent from inside a method."""
    old, sent = owner.__dict__[name], []

    def new(self, *args):
      if not sent and when(self, *args):
        sent.append(number)
        signal.raise_signal(number)
      return old(self, *args)

    with monkeypatch.context() as patch:
      patch.setattr(owner, name, new)
      with pytest.raises(Stopped, match=signal.Signals(number).name):
        tiny_run.pretrain(workdir)
    assert sent

  def test_in_training(self, tmp_path, monkeypatch, capsys):
    number = signal.SIGINT  # SIGTERM: see TestExitCodes
    before = signal.getsignal(number)
    self.interrupt(
      monkeypatch,
      tmp_path,
      number,
      Resident,
      'batch',
      lambda _, step: step == 4,
    )
    assert signal.getsignal(number) == before
    assert tiny_run.saved_steps(tmp_path)[-1] == 5  # no multiple of 2
    assert list(tiny_run.losses(tmp_path)) == [1, 2, 3, 4, 5]
    assert not (tmp_path / 'summary.json').exists()
    assert 'saving at the end of this step' in capsys.readouterr().err
    tiny_run.pretrain(tmp_path)
    assert_same_run(tmp_path, tiny_run.finished())

  @pytest.mark.parametrize('step', [0, 3, 6])
  def test_in_an_evaluation(self, tmp_path, monkeypatch, step):
    """What was cut short is measured by the run that continues."""
    self.interrupt(
      monkeypatch,
      tmp_path,
      signal.SIGTERM,
      Knn,
      'update',
      lambda knn, *_: knn._step == step,
    )
    assert step not in tiny_run.measured(tmp_path)
    tiny_run.pretrain(tmp_path)
    assert_same_run(tmp_path, tiny_run.finished())


class TestExitCodes:
  def start(self, workdir):
    return subprocess.Popen(
      tiny_run.dying('slowly', 300, tiny_run.command(workdir)),
      cwd=tiny_run.ROOT,
      env=tiny_run.environment(),
      stderr=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  def wait_for(self, child, text):
    seen = []
    for line in child.stderr:
      seen.append(line)
      if line.startswith(text):
        return
    raise AssertionError(''.join(seen))

  def test_stopped_is_75(self, uninterrupted, tmp_path):
    child = self.start(tmp_path)
    self.wait_for(child, 'step 1/')
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 75, err
    assert f'SIGTERM: saved in {tmp_path}' in err
    assert 'Traceback' not in err
    assert out == ''
    (last,) = tiny_run.saved_steps(tmp_path)[-1:]
    assert last == max(tiny_run.losses(tmp_path)) < tiny_run.STEPS
    done = tiny_run.call(tiny_run.command(tmp_path))
    assert done.returncode == 0, done.stderr
    assert f'continuing at step {last}' in done.stderr
    assert_same_run(tmp_path, uninterrupted)

  def test_the_second_signal_exits_at_once(self, tmp_path):
    script = (
      'import os, signal, time\n'
      'from training.signals import StopSignals\n'
      'with StopSignals() as stop:\n'
      '  os.kill(os.getpid(), signal.SIGTERM)\n'
      '  assert stop.received == "SIGTERM"\n'
      '  os.kill(os.getpid(), signal.SIGINT)\n'
      '  time.sleep(60)\n'
    )
    done = tiny_run.call([sys.executable, '-c', script])
    assert done.returncode == 128 + signal.SIGINT
    assert 'once more to leave' in done.stderr
