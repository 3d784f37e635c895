"""What a user gets for bad input: a message that helps, and no debris."""

import contextlib
import json
import logging
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

import main
from input_pipeline import order
from training import checkpoint, lock
from training.checkpoint import CheckpointError
from training.loop import NonFiniteError
from training.step import Run
from training.workdir import WorkdirError

MOCO = f'--config={tiny_run.ROOT / "configs" / "moco_v3.py"}'
TINY = f'--config={tiny_run.__file__}'


@pytest.fixture
def cli(monkeypatch, tmp_path):
  """Runs `main.py` and returns its one line about the error.

  It checks what holds for every error: exit code 1, the line last and alone,
  before it the file of the traceback, nothing on standard output and nothing in
  the workdir.
  """
  workdir = tmp_path / 'run'
  cache = str(main.jax.config.jax_compilation_cache_dir)
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', cache)
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))

  def call(config, *options):
    code, out, err = tiny_run.main_in_process(
      monkeypatch, config, f'--workdir={workdir}', *options
    )
    assert code == 1, err[-500:]
    assert out == ''
    *rest, last = err.splitlines()
    assert last.startswith('error: ')
    assert not [line for line in rest if 'Traceback' in line]
    kept = re.fullmatch(r'traceback: (\S+) .*', rest[-1])
    assert '\nTraceback' in pathlib.Path(kept[1]).read_text()
    assert not workdir.exists()
    return last

  return call


def tiny(cli, *options, words='repre', data=True):
  path = [f'--config.data.data_dir={tiny_run.data()}'] if data else []
  return cli(f'{TINY}:{words}', *path, *options)


class TestWords:
  @pytest.mark.parametrize(
    'word, nearest',
    [
      ('vit_q16', 'vit_s16'),
      ('vit_s', 'vit_s16'),
      ('vit_s0', 'vit_s16'),
      ('photo', 'photos'),
      ('CIFAR10', 'cifar10'),
      ('repree', 'repre'),
    ],
  )
  def test_config_word(self, cli, word, nearest):
    line = cli(f'{MOCO}:vit_s16,{word}')
    assert f'unknown config word {word!r}' in line
    assert nearest in line
    for known in ('photos', 'cifar10', 'arrays', 'vit_mini', 'vit_l', 'repre'):
      assert known in line

  def test_config_word_is_told_in_one_line(self, cli):
    line = cli(f'{MOCO}:vit_q16')
    assert line.startswith('error: unknown config word')
    assert 'Traceback' not in line

  @pytest.mark.parametrize(
    'field, nearest',
    [
      ('optim.base_lrr', 'base_lr'),
      ('optm.base_lr', 'optim'),
      ('stepss', 'steps'),
      ('data.data_dri', 'data_dir'),
      ('method.repre.widht', 'width'),
    ],
  )
  def test_config_field(self, cli, field, nearest):
    line = cli(f'{TINY}:repre', f'--config.{field}=1')
    wrong = next(f for f in field.split('.') if f not in ('optim', 'data'))
    assert nearest in line
    assert wrong in line or 'widht' in line
    assert '\\n' not in line and "\\'" not in line, 'a repr, not a sentence'

  def test_value_of_another_type(self, cli):
    line = cli(TINY, '--config.steps=many')
    assert 'config.steps' in line and 'many' in line

  def test_missing_config_file(self, cli):
    line = cli('--config=configs/moco_v4.py')
    assert 'configs/moco_v4.py' in line

  def test_misspelt_option(self, cli):
    assert 'workdir' in cli(TINY, '--workdri=x')

  def test_stray_word(self, cli):
    assert "'steps=3'" in cli(TINY, 'steps=3')

  def test_no_config_no_workdir(self, monkeypatch):
    code, _, err = tiny_run.main_in_process(monkeypatch)
    assert code == 1
    assert '--config' in err and '--workdir' in err.splitlines()[-1]

  def test_task(self, cli):
    line = tiny(cli, '--config.task=pretrian')
    assert "'pretrian'" in line and "did you mean 'pretrain'?" in line


class TestNames:
  """Unknown names in fields; checked before anything is written."""

  @pytest.mark.parametrize(
    'option, nearest',
    [
      ('encoder.name=vit_minni8', 'vit_mini8'),
      ('data.name=array', 'arrays'),
      ('data.mode=residnt', 'resident'),
      ('method.name=moco_v4', 'moco_v3'),
      ('optim.name=adam', 'adamw'),
      ('method.repre.weighting=fix', 'fixed'),
      ('encoder.pool=max', 'mean'),
      ('dtype=float17', 'float32'),
      ('knn.which=techer', 'teacher'),
      ('resume=forse', 'force'),
    ],
  )
  def test_unknown(self, cli, option, nearest):
    line = tiny(cli, f'--config.{option}')
    assert option.partition('=')[2] in line
    assert nearest in line

  def test_checkpoint_is_not_init_from(self, cli):
    line = tiny(cli, '--config.checkpoint=somewhere')
    assert 'config.init_from' in line


class TestSizes:
  def test_batch_and_devices(self, cli):
    line = tiny(cli, '--config.batch_size=18')
    assert '18' in line and '4 devices' in line and '16 or 20' in line

  def test_batch_and_chunks(self, cli):
    line = tiny(cli, '--config.batch_size=20', '--config.chunks=2')
    assert '8 (4 devices x 2 chunks)' in line and '16 or 24' in line

  @pytest.mark.parametrize('size', [0, -16])
  def test_no_batch(self, cli, size):
    assert f'{size} must be' in tiny(cli, f'--config.batch_size={size}')

  def test_fsdp(self, cli):
    assert '[1, 2, 4]' in tiny(cli, '--config.fsdp=3')

  def test_batch_larger_than_the_data(self, cli):
    line = tiny(cli, '--config.batch_size=64')
    assert '64' in line and str(tiny_run.TRAIN) in line

  @pytest.mark.parametrize('steps', [0, -3])
  def test_no_steps(self, cli, steps):
    line = tiny(cli, f'--config.steps={steps}')
    assert f'config.steps={steps} must be at least 1' in line

  @pytest.mark.parametrize('epochs', [0, 0.1, -1.0])
  def test_no_epochs(self, tmp_path, epochs):
    with pytest.raises(ValueError, match=f'epochs={epochs}.* of 3 steps'):
      tiny_run.pretrain(tmp_path / 'run', steps=None, epochs=float(epochs))
    assert not (tmp_path / 'run').exists()

  @pytest.mark.parametrize(
    'field', ['keep_checkpoints', 'nonfinite_limit', 'knn.k', 'knn.batch_size']
  )
  def test_numbers_that_must_be_positive(self, cli, field):
    """Keeping no checkpoint, say, would throw away each as it is written."""
    line = tiny(cli, f'--config.{field}=0')
    assert field in line and '0' in line

  @pytest.mark.parametrize(
    'option, told',
    [
      ('optim.base_lr=-1.0', 'must be at least 0'),
      ('optim.hyper.b2=1.0', 'must be at least 0 and below 1'),
      ('optim.clip=nan', 'must be at least 0'),
      ('data.eval_crop=1.5', 'must be above 0 and at most 1'),
      ('data.max_unreadable=2.0', 'must be within 0..1'),
      ('knn.temperature=0.0', 'must be above 0'),
      ('eval_every=-1', 'must be at least 0'),
    ],
  )
  def test_numbers_out_of_range(self, cli, option, told):
    assert f'config.{option} {told}' in tiny(cli, f'--config.{option}')

  def test_fields_of_pre_training_are_no_others(self, cli):
    line = cli('--config=configs/fewshot.py:arrays', '--config.knn.k=5')
    assert 'knn' in line

  def test_image_and_patch(self, cli):
    line = tiny(cli, '--config.data.image_size=20')
    assert 'config.data.image_size=20' in line and 'patch size 8' in line
    assert 'nearest sizes that work: 16, 24' in line

  def test_image_smaller_than_a_patch(self, cli):
    line = tiny(cli, '--config.data.image_size=4')
    assert 'config.data.image_size=4' in line
    assert 'nearest sizes that work: 8' in line

  def test_no_image(self, cli):
    assert 'must be at least 1' in tiny(cli, '--config.data.image_size=0')

  def test_crop_below_a_pixel(self, cli):
    line = tiny(cli, '--config.views.view1.scale=(0.001, 1.0)')
    assert "'view1'" in line and '0.0039' in line

  def test_more_levels_than_blocks(self, cli):
    line = tiny(cli, '--config.method.repre.levels=3')
    assert '3 levels of 2 blocks' in line


class TestData:
  def test_no_file(self, cli, tmp_path):
    path = str(tmp_path / 'none.npz')
    assert path in tiny(cli, f'--config.data.data_dir={path}', data=False)

  def test_not_an_npz(self, cli, tmp_path):
    path = tmp_path / 'data.npz'
    path.write_bytes(b'PK\x03\x04 half a file')
    line = tiny(cli, f'--config.data.data_dir={path}', data=False)
    assert str(path) in line and 'not a readable .npz' in line

  def test_no_such_split(self, cli):
    line = tiny(cli, '--config.data.test_split=val')
    assert "'val_images'" in line and 'test_images' in line

  def test_floats(self, cli, tmp_path):
    path = tmp_path / 'data.npz'
    np.savez(path, images=np.zeros((48, 16, 16, 3), np.float32))
    line = tiny(
      cli,
      f'--config.data.data_dir={path}',
      '--config.data.test_split=',
      data=False,
    )
    assert 'uint8' in line and 'float32' in line

  def test_not_prepared(self, cli, tmp_path):
    line = cli(f'{MOCO}:cifar10', f'--config.data.data_dir={tmp_path}')
    assert 'cifar10 is not prepared' in line and str(tmp_path) in line

  def test_tile_larger_than_a_photograph(self, cli):
    line = tiny(cli, '--config.data.tile=999', words='photos', data=False)
    assert '999' in line and 'at most' in line

  def test_splits_of_different_channels(self, cli, tmp_path):
    """Told at once: not a crash in the middle of a measurement."""
    images, labels = tiny_run.images(48, seed=0)
    path = tmp_path / 'data.npz'
    np.savez(
      path,
      train_images=images,
      train_labels=labels,
      test_images=images[:16, :12, :12, :1],
      test_labels=labels[:16],
    )
    options = (f'--config.data.data_dir={path}', '--config.steps=6')
    line = tiny(cli, *options, data=False)
    assert '3 channels' in line and '1' in line


class TestWorkdir:
  @pytest.fixture
  def workdir(self, tmp_path):
    return pathlib.Path(shutil.copytree(tiny_run.finished(), tmp_path / 'run'))

  def state(self, workdir):
    """Contents of all files but what tells when and where it ran."""
    return {
      path: path.read_bytes()
      for path in sorted(workdir.rglob('*'))
      if path.is_file() and 'environment.json' not in path.name
    }

  def test_another_config(self, workdir):
    before = self.state(workdir)
    with pytest.raises(WorkdirError) as error:
      tiny_run.pretrain(workdir, seed=7, optim__decay=0.3)
    message = str(error.value)
    assert 'optim.decay: 0.1 there, 0.3 now' in message
    assert 'seed: 0 there, 7 now' in message
    assert "--config.resume='force'" in message
    assert str(workdir) in message
    assert 'epochs' not in message
    assert self.state(workdir) == before

  def test_force_continues(self, workdir, caplog):
    with caplog.at_level(logging.WARNING):
      tiny_run.pretrain(workdir, resume='force', optim__decay=0.3)
    assert 'optim.decay: 0.1 there, 0.3 now' in caplog.text
    config = json.loads((workdir / 'config.json').read_text())
    assert config['optim']['decay'] == 0.3
    assert tiny_run.losses(workdir) == tiny_run.losses(tiny_run.finished())
    # And from now on without force.
    tiny_run.pretrain(workdir, optim__decay=0.3)

  def test_what_trains_nothing_may_change(self, workdir, capsys, caplog):
    fields = dict(log_every=2, eval_every=2, checkpoint_every=3)
    fields |= dict(keep_checkpoints=1, watchdog=5, nonfinite_limit=7)
    nested = dict(knn__k=3, knn__temperature=0.1, data__workers=1)
    config = json.loads((workdir / 'config.json').read_text())
    del config['method']['repre']['weighting_window']  # older runs lack it
    (workdir / 'config.json').write_text(json.dumps(config))
    tiny_run.pretrain(workdir, **fields, **nested)
    config = json.loads((workdir / 'config.json').read_text())
    assert {name: config[name] for name in fields} == fields
    assert (config['knn']['k'], config['data']['workers']) == (3, 1)
    assert tiny_run.checksums(workdir) == tiny_run.checksums(
      tiny_run.finished()
    )
    assert 'config.checkpoint_every: 2 until now' in capsys.readouterr().err
    assert not [r for r in caplog.records if 'another config' in r.message]

  def test_another_encoder(self, workdir):
    with pytest.raises(WorkdirError, match='encoder.depth: 2 there, 3 now'):
      tiny_run.pretrain(workdir, encoder__depth=3)

  def test_another_encoder_by_force(self, workdir):
    """Even then it cannot work; the old run stays as it was."""
    before = self.state(workdir)
    with pytest.raises(CheckpointError) as error:
      tiny_run.pretrain(workdir, encoder__depth=3, resume='force')
    message = str(error.value)
    assert str(workdir / 'checkpoints' / '6') in message
    assert 'params/encoder/block_2/' in message or 'block_2' in message
    assert 'missing: ' in message and 'unexpected: none' in message
    assert not (workdir / 'damaged').exists()
    assert self.state(workdir) == before
    tiny_run.pretrain(workdir)

  def test_a_finished_run_that_cannot_be_written(self, workdir, monkeypatch):
    """It shows its summary; one that is not finished names the folder."""
    before = self.state(workdir)

    def refuse(path):
      raise OSError(30, 'Read-only file system', str(path))

    monkeypatch.setattr(lock, 'take', refuse)
    summary = json.loads((workdir / 'summary.json').read_text())
    assert tiny_run.pretrain(workdir) == summary
    assert self.state(workdir) == before
    (workdir / 'summary.json').unlink()
    with pytest.raises(WorkdirError, match='Read-only file system'):
      tiny_run.pretrain(workdir)

  def test_a_broken_config_file_is_named(self, workdir):
    (workdir / 'config.json').write_text('{"seed": ')
    with pytest.raises(WorkdirError, match='config.json'):
      tiny_run.pretrain(workdir)

  @pytest.mark.parametrize('below', ['', 'deep/run'])
  def test_a_file_is_in_the_way(self, tmp_path, below):
    blocked = tmp_path / 'file'
    blocked.write_text('mine')
    with pytest.raises(WorkdirError) as error:
      tiny_run.pretrain(blocked / below)
    assert f'cannot write to the workdir {blocked / below}' in str(error.value)
    assert blocked.read_text() == 'mine'


def data_files(folder):
  """The arrays; some of these files hold copies that nobody reads."""
  return [path for path in folder.glob('state/**/d/*') if path.is_file()]


def flip_bits(folder):
  for path in data_files(folder):
    content = bytearray(path.read_bytes())
    content[len(content) // 10] ^= 16
    path.write_bytes(content)


def truncate(folder):
  for path in data_files(folder):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garble(folder):
  (folder / 'meta' / 'metadata').write_text('{"record": nonsense')


class TestDamagedCheckpoint:
  @pytest.fixture
  def workdir(self, tmp_path):
    """A run that was killed after its checkpoint 4 of 6."""
    workdir = shutil.copytree(tiny_run.finished(), tmp_path / 'run')
    shutil.rmtree(workdir / 'checkpoints' / '6')
    (workdir / 'summary.json').unlink()
    return pathlib.Path(workdir)

  @pytest.mark.parametrize('damage', [flip_bits, truncate, garble])
  def test_the_one_before_is_used(self, workdir, damage, caplog, capsys):
    damage(workdir / 'checkpoints' / '4')
    files = {p.name for p in (workdir / 'checkpoints' / '4').rglob('*')}
    with caplog.at_level(logging.WARNING):
      tiny_run.pretrain(workdir)
    assert 'Checkpoint 4 is damaged' in caplog.text
    assert 'continuing at step 2 of 6' in capsys.readouterr().err
    kept = {p.name for p in (workdir / 'damaged' / '4').rglob('*')}
    assert files == kept
    finished = tiny_run.finished()
    assert tiny_run.checksums(workdir) == tiny_run.checksums(finished)
    assert tiny_run.losses(workdir) == tiny_run.losses(finished)

  def test_it_takes_one_line_to_say_so(self, tmp_path):
    """The readers' threads have much to say about a damaged file."""
    workdir = tmp_path / 'run'
    command = tiny_run.command(workdir, '--config.eval_every=0')
    assert tiny_run.call(command).returncode == 0
    for step in (2, 4, 6):
      truncate(workdir / 'checkpoints' / str(step))
    done = tiny_run.call(command)
    assert done.returncode == 1
    line, *rest = [
      line for line in done.stderr.splitlines() if 'error: ' in line
    ]
    assert line.startswith('error: none of the checkpoints [2, 4, 6]')
    assert not rest
    assert done.stderr.count(' is damaged (') == 3
    assert 'Event loop is closed' not in done.stderr

  def test_none_is_left(self, workdir):
    for step in (2, 4):
      flip_bits(workdir / 'checkpoints' / str(step))
    rows = tiny_run.rows(workdir)
    with pytest.raises(CheckpointError, match=r'none .*\[2, 4\].* is intact'):
      tiny_run.pretrain(workdir)
    assert not (workdir / 'damaged').exists()
    with pytest.raises(CheckpointError, match='is intact'):
      tiny_run.pretrain(workdir)  # not from scratch the second time either
    assert tiny_run.rows(workdir) == rows

  def test_links_to_nowhere_and_files_among_the_steps(self, workdir, caplog):
    steps = workdir / 'checkpoints'
    (steps / '6').symlink_to('/nowhere')
    (steps / '5').write_text('mine')
    (steps / '8').mkdir()
    with caplog.at_level(logging.WARNING):
      tiny_run.pretrain(workdir)
    for words in (
      'Checkpoint 6 is damaged',
      'a link to /nowhere, which is not',
    ):
      assert words in caplog.text
    assert 'Checkpoint 5 is damaged' in caplog.text
    assert sorted(os.listdir(workdir / 'damaged')) == ['5', '6', '8']
    assert tiny_run.checksums(workdir) == tiny_run.checksums(
      tiny_run.finished()
    )

  def test_nothing_but_links_to_nowhere(self, workdir):
    steps = workdir / 'checkpoints'
    shutil.rmtree(steps)
    steps.mkdir()
    (steps / '6').symlink_to('/nowhere')
    with pytest.raises(CheckpointError, match=r'none .*\[6\].* is intact'):
      tiny_run.pretrain(workdir)
    shutil.rmtree(steps)
    steps.symlink_to('/nowhere')
    with pytest.raises(CheckpointError, match='a link to /nowhere'):
      tiny_run.pretrain(workdir)

  def test_half_written(self, workdir):
    half = workdir / 'checkpoints' / '6.orbax-checkpoint-tmp'
    shutil.copytree(workdir / 'checkpoints' / '4' / 'state', half / 'state')
    tiny_run.pretrain(workdir)
    assert tiny_run.checksums(workdir) == tiny_run.checksums(
      tiny_run.finished()
    )


@contextlib.contextmanager
def small_disk(path, megabytes):
  """A file system of a few megabytes; skips where mounting is not allowed."""
  path.mkdir()
  options = ['-o', f'size={megabytes}m', 'tmpfs', str(path)]
  try:
    subprocess.run(
      ['mount', '-t', 'tmpfs', *options], check=True, capture_output=True
    )
  except (OSError, subprocess.CalledProcessError):
    pytest.skip('mounting a small disk needs root')
  try:
    yield path
  finally:
    subprocess.run(['umount', '-l', str(path)], check=True)


def settle(workdir):
  """Another process would not meet the writers of the run that failed."""
  for _ in range(50):
    halves = list(workdir.glob('checkpoints/*-tmp'))
    if not halves:
      return
    for half in halves:
      shutil.rmtree(half, ignore_errors=True)
    time.sleep(0.1)


class TestDisk:
  @pytest.mark.parametrize('left', [400_000, 0], ids=['almost', 'full'])
  def test_full(self, tmp_path, left):
    """The message names the path; what was saved before is still there."""
    with small_disk(tmp_path / 'disk', 16) as disk:
      workdir = disk / 'run'
      shutil.copytree(tiny_run.finished(), workdir)
      for step in (4, 6):
        shutil.rmtree(workdir / 'checkpoints' / str(step))
      usage = os.statvfs(disk)
      fill = usage.f_bavail * usage.f_frsize - left
      (disk / 'filler').write_bytes(bytes(fill))
      with pytest.raises((CheckpointError, WorkdirError)) as error:
        tiny_run.pretrain(workdir)
      assert str(workdir) in str(error.value)
      assert 'space' in str(error.value)
      settle(workdir)
      (disk / 'filler').unlink()
      tiny_run.pretrain(workdir)
      finished = tiny_run.finished()
      assert tiny_run.checksums(workdir) == tiny_run.checksums(finished)
      assert tiny_run.losses(workdir) == tiny_run.losses(finished)

  def test_a_failing_write_is_told(self, tmp_path, monkeypatch):
    """Where no disk can be mounted: the writer itself fails."""

    def fail(*_, **__):
      raise OSError(28, 'No space left on device')

    saved = checkpoint.Checkpoints(tmp_path)
    monkeypatch.setattr(checkpoint.ocp.CheckpointManager, 'save', fail)
    with pytest.raises(CheckpointError, match='No space left') as error:
      saved.save({'x': jnp.ones(2)}, step=1, meta={})
    assert str(tmp_path) in str(error.value)
    assert 'the last good checkpoint stays' in str(error.value)


class TestNonFinite:
  def test_the_run_stops_and_says_why(self, tmp_path, monkeypatch):
    init = Run.init

    def spoilt(run):
      state = init(run)
      params = dict(state.params)
      params['predictor'] = main.jax.tree.map(
        lambda x: x * jnp.nan, params['predictor']
      )
      return state.replace(params=params)

    with monkeypatch.context() as patch:
      patch.setattr(Run, 'init', spoilt)
      with pytest.raises(NonFiniteError) as error:
        tiny_run.pretrain(tmp_path, nonfinite_limit=3)
    assert '3 steps in a row' in str(error.value)
    assert str(tmp_path / 'nonfinite.jsonl') in str(error.value)
    assert 'config.optim.base_lr' in str(error.value)
    text = (tmp_path / 'nonfinite.jsonl').read_text()
    notes = [json.loads(line) for line in text.splitlines()]
    assert [note['step'] for note in notes] == [0, 1, 2]
    rates = [row['lr'] for row in tiny_run.losses(tmp_path).values()]
    assert [note['lr'] for note in notes] == rates
    for note in notes:
      assert note['loss'] == 'nan'
      wanted = order.batch_indices(
        note['step'],
        size=tiny_run.TRAIN,
        batch_size=tiny_run.BATCH,
        seed=0,
      )
      assert note['indices'] == wanted.tolist()
    for row in tiny_run.losses(tmp_path).values():
      assert row['loss'] is None and row['bad_steps'] == 1
    assert not (tmp_path / 'summary.json').exists()
    # Starting again comes to the same end, and notes every step once.
    with pytest.raises(NonFiniteError):
      tiny_run.pretrain(tmp_path, nonfinite_limit=3)
    text = (tmp_path / 'nonfinite.jsonl').read_text()
    steps = [json.loads(line)['step'] for line in text.splitlines()]
    assert len(set(steps)) == len(steps)


def test_help_is_shown():
  done = tiny_run.call([sys.executable, 'main.py', '--help'])
  assert '--workdir' in done.stdout + done.stderr
  assert 'Traceback' not in done.stderr
