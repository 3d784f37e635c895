"""Two real processes over Gloo: they agree, stop, go on and fail together."""

import signal

import pytest
import tiny_run
from jobs import Job
from PIL import Image


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """Workdir of two processes that nobody disturbs, and what they said."""
  folder = tmp_path_factory.mktemp('whole')
  job = Job(folder, [tiny_run.command(folder / 'run')] * 2)
  assert job.wait() == [0, 0], job.err()
  return folder / 'run', [path.read_text() for path in job.logs]


@pytest.fixture(scope='module')
def stopped(whole, tmp_path_factory):
  """Workdir of two processes of which the second got a signal."""
  del whole  # it has compiled what this runs
  folder = tmp_path_factory.mktemp('stopped')
  command = tiny_run.dying('slowly', 300, tiny_run.command(folder / 'run'))
  job = Job(folder, [command] * 2)
  job.wait_for('step 2/')  # of which there is a checkpoint
  job.processes[1].send_signal(signal.SIGTERM)
  assert job.wait() == [75, 75], job.err()
  return folder / 'run', [path.read_text() for path in job.logs]


def assert_close(workdir, reference, rel):
  found, wanted = tiny_run.losses(workdir), tiny_run.losses(reference)
  assert found.keys() == wanted.keys()
  for step, row in wanted.items():
    assert found[step]['loss'] == pytest.approx(row['loss'], rel=rel), step


def test_two_processes_are_one_run(whole):
  workdir, said = whole
  assert tiny_run.saved_steps(workdir) == [2, 4, 6]
  assert sorted(tiny_run.measured(workdir)) == [0, 3, 6]
  assert len(list((workdir / 'images').glob('*.png'))) == 3
  assert (workdir / 'summary.json').exists()
  assert not list(workdir.glob('.shared*'))
  assert len(list((workdir / 'tensorboard').iterdir())) == 1
  # One table of both, and one voice.
  lines = said[0].splitlines()
  table = next(i for i, x in enumerate(lines) if x.startswith('process  host'))
  assert [x.split()[0] for x in lines[table + 1 : table + 3]] == ['0', '1']
  assert 'step 6/6' in said[0]
  assert 'step ' not in said[1]


def test_two_processes_learn_what_one_learns(whole):
  assert_close(whole[0], tiny_run.finished(), 1e-5)


def test_a_signal_to_one_stops_both_at_the_same_step(stopped):
  workdir, said = stopped
  last = tiny_run.saved_steps(workdir)[-1]
  assert last == max(tiny_run.losses(workdir)) < tiny_run.STEPS
  assert 'SIGTERM: saving at the end of this step' in said[1]
  assert f'SIGTERM: saved in {workdir}' in said[1]
  assert f'a signal to another process: saved in {workdir}' in said[0]
  assert not any('Traceback' in text for text in said)


def test_continued_by_two_it_ends_bit_for_bit_the_same(
  whole, stopped, tmp_path
):
  """Even from the checkpoint before the last, which is set aside once."""
  workdir = tiny_run.copy(stopped[0], tmp_path / 'run')
  last = str(tiny_run.saved_steps(workdir)[-1])
  (workdir / 'checkpoints' / last / 'meta' / 'metadata').write_text('{')
  job = Job(tmp_path, [tiny_run.command(workdir)] * 2)
  assert job.wait() == [0, 0], job.err()
  assert 'continuing at step 2' in job.logs[0].read_text()
  assert job.err().count(f'Checkpoint {last} is moved') == 1
  assert [path.name for path in (workdir / 'damaged').iterdir()] == [last]
  assert tiny_run.checksums(workdir) == tiny_run.checksums(whole[0])
  assert tiny_run.losses(workdir) == tiny_run.losses(whole[0])
  assert tiny_run.measured(workdir) == tiny_run.measured(whole[0])


def test_continued_by_one_with_two_devices_it_ends_the_same(
  whole, stopped, tmp_path
):
  workdir = tiny_run.copy(stopped[0], tmp_path / 'run')
  done = tiny_run.call(tiny_run.command(workdir), JAX_NUM_CPU_DEVICES='2')
  assert done.returncode == 0, done.stderr
  assert_close(workdir, whole[0], 1e-5)


def test_an_error_in_one_ends_both(whole, tmp_path):
  del whole
  # Process 1 alone fails: its data are not there.
  good = tiny_run.command(tmp_path / 'run')
  bad = [*good, '--config.data.data_dir=/nowhere.npz']
  job = Job(tmp_path, [good, bad])
  codes = job.wait()
  assert 0 not in codes and 75 not in codes, job.err()
  assert 'error: ' in job.logs[1].read_text()


def test_two_processes_stream(tmp_path):
  """Images of several sizes in folders, one of them broken."""
  images = tmp_path / 'images'
  for i in range(16):
    path = images / f'class {i % 2}' / f'{i}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels, _ = tiny_run.images(1, seed=i)
    Image.fromarray(pixels[0]).resize((20 + i % 3, 18)).save(path)
  (images / 'class 0' / '4.png').write_bytes(b'broken')
  options = [f'--config.data.data_dir={images}', '--config.steps=2']
  options += ['--config.eval_every=0', '--config.data.max_unreadable=1.0']
  command = tiny_run.command(tmp_path / 'run', *options, words='folder')
  job = Job(tmp_path, [command] * 2)
  assert job.wait() == [0, 0], job.err()
  # An epoch is one batch of all images.
  rows = tiny_run.losses(tmp_path / 'run')
  assert [row['replaced'] for row in rows.values()] == [1, 1]
  shown = ' '.join(job.logs[0].read_text().split())  # lines are wrapped
  assert 'stream: images have several sizes' in shown
