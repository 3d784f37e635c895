"""The tables' rows are the papers', their runs real, and nothing runs twice."""

import json
import shutil
import statistics

import pytest

from benchmarks import (
  table,
  table_jobs,
  table_lines,
  table_runs,
)
from benchmarks.rows import PRESETS, Row, Variant
from tests import tiny_run

PHOTOS = PRESETS['photos']
ROW, TEACHERS = 'table1/moby-vit_s-300', 'mrmae/vit-teacher'
# Seconds, not minutes.
TINY = ('steps=2', 'batch_size=16', 'eval_every=0', 'data.tile=128')
TINY += ('method.decoder.depth=1', 'method.decoder.width=16')


def one(name=ROW):
  return next(row for row in table.ROWS if row.name == name)


def finish(folder, **summary):
  """What a finished run leaves, as far as a table reads it."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(dict(batch_size=16)))
  summary = dict(images_per_second=8.0, seconds=60) | summary
  (folder / 'summary.json').write_text(json.dumps(summary))


@pytest.fixture
def fake(monkeypatch):
  """Runs that end at once; {folder: exit code} may be changed."""
  codes, made = {}, []

  def execute(self, task, watch):
    made.append(task.name)
    folder = self._folder / task.name
    folder.mkdir(parents=True)
    folder.with_name(f'{folder.name}.log').write_text('error: it broke\n')
    if code := codes.get(task.name.split('/')[1], 0):
      return code
    assert all(self.trained(needed) for _, needed in task.needs)
    seed = int(task.name[-1])
    gain = 2.0 + seed if 'repre' in task.name else 0.0
    summary = dict(
      knn_top1=50.0 + seed + gain,
      seconds=60,
      images_per_second=16 / (2.2 if gain else 2.0),
    )
    finish(folder, **summary)
    return 0

  monkeypatch.setattr(table_runs.Runs, 'execute', execute)
  return codes, made


def make(out, seeds=2, row=ROW, **options):
  return table.Table([one(row)], PHOTOS, seeds=seeds, out=out, **options)


class TestTable:
  def test_means_gains_and_overhead(self, fake, tmp_path):
    assert make(tmp_path).run() == []
    written = json.loads((tmp_path / 'table.json').read_text())
    base, repre = written['lines']
    assert base['values'] == {'0': 50.0, '1': 51.0}
    assert base['accuracy'] == f'50.50 ± {statistics.stdev([50, 51]):.2f}'
    assert repre['gains'] == [2.0, 3.0]  # against the base of the same seed
    assert repre['gain'] == '+2.50 ± 0.71'
    assert repre['overhead'] == pytest.approx(1.1)
    assert (repre['paper'], repre['paper_gain']) == (73.9, '+1.1')
    text = (tmp_path / 'table.md').read_text()
    assert '+2.50 ± 0.71' in text and ROW in text

  def test_seeds_are_added_and_nothing_runs_twice(self, fake, tmp_path):
    _, made = fake
    make(tmp_path, seeds=1).run()
    assert [name[-5:] for name in made] == ['seed0', 'seed0']
    make(tmp_path, seeds=2).run()
    assert [name[-5:] for name in made] == ['seed0'] * 2 + ['seed1'] * 2

  def test_a_failed_run_is_told_and_the_others_go_on(self, fake, tmp_path):
    codes, made = fake
    codes['base'] = 1
    errors = make(tmp_path, seeds=1).run()
    assert len(made) == 2
    assert errors == ['moby-vit_mini4-300/base/seed0: error: it broke']
    base, repre = json.loads((tmp_path / 'table.json').read_text())['lines']
    assert base['seeds'] == 0 and base['accuracy'] is None
    assert repre['accuracy'] == '52.00' and repre['gain'] is None

  def test_a_stopped_run_stops_all(self, fake, tmp_path):
    codes, made = fake
    codes['base'] = table_runs.EXIT_STOPPED
    with pytest.raises(KeyboardInterrupt):
      make(tmp_path).run()
    assert len(made) == 1

  def test_what_is_left(self):
    jobs = [table_jobs.Job(f'{row}/base/seed0', ()) for row in 'abc']
    assert table_runs.remaining([], jobs) == 'not known yet'
    done = [(jobs[0], 3600.0), (jobs[1], 60.0)]
    # Another seed of a takes as long as a; c as long as the mean.
    left = [table_jobs.Job('a/base/seed1', ()), jobs[2]]
    assert table_runs.remaining(done, left) == '1:30 h'


class TestNeeds:
  """MR-MAE's teachers are runs."""

  NAMES = [
    'mae-vit_mini4-100/base/seed0',
    'mae-vit_mini4-1/steps_1-base_lr_0.0/seed0',
    'mr_mae-vit_mini4-100/first_untrained/seed0',
    'dino-vit_mini4-300/crops6/seed0',
    'mr_mae-vit_mini4-100/first_dino/seed0',
    'moco_v3-vit_mini4-300/base/seed0',
    'mr_mae-vit_mini4-100/first_moco_v3/seed0',
  ]

  def test_they_come_first_and_once(self, fake, tmp_path):
    _, made = fake
    both = [one(TEACHERS), one('mrmae/vit-two-teachers')]
    assert table.Table(both, PHOTOS, seeds=1, out=tmp_path).run() == []
    last = 'mr_mae-vit_mini4-100/first_dino-second_moco_v3/seed0'
    assert made == [*self.NAMES, last]
    lines = json.loads((tmp_path / 'table.json').read_text())['lines']
    assert [line['variant'] for line in lines[:4]] == [
      *('MAE', 'untrained', 'DINO', 'MoCo v3')
    ]
    assert len(lines) == 7  # the file's variant is left out

  def test_seeds_have_teachers_of_their_own(self, tmp_path):
    jobs = make(tmp_path, row=TEACHERS).jobs
    assert [task.name for task in jobs[: len(self.NAMES)]] == self.NAMES
    for task in jobs:
      assert all(needed.seed == task.seed for _, needed in task.needs)

  def test_a_teacher_that_failed_is_told(self, fake, tmp_path):
    codes, made = fake
    codes['crops6'] = 1
    errors = make(tmp_path, seeds=1, row=TEACHERS).run()
    assert errors == [
      'dino-vit_mini4-300/crops6/seed0: error: it broke',
      'mr_mae-vit_mini4-100/first_dino/seed0: not run, since '
      'dino-vit_mini4-300/crops6/seed0 failed',
    ]
    assert made == [name for name in self.NAMES if 'first_dino' not in name]

  def test_a_teacher_that_is_gone_is_not_made_again(self, fake, tmp_path):
    _, made = fake
    make(tmp_path, seeds=1, row=TEACHERS).run()
    shutil.rmtree(tmp_path / 'dino-vit_mini4-300')
    made.clear()
    assert make(tmp_path, seeds=1, row=TEACHERS).run() == []
    assert made == []

  def test_a_file_may_teach(self, tmp_path):
    given = make(tmp_path, seeds=1, row=TEACHERS, teacher='a/clip.pt').jobs
    (task,) = [t for t in given if t.name.endswith('/first_clip/seed0')]
    option = '--config.method.teachers.first.checkpoint=a/clip.pt'
    assert option in task.options and not task.needs
    # Teachers that a row names stay; the default one is the file.
    assert len(given) == len(self.NAMES) + 1
    row = 'mrmae/vit-error'
    for task in make(tmp_path, row=row, teacher='a/clip.pt').jobs:
      assert option in task.options
    (dino,) = {
      n for t in make(tmp_path, seeds=1, row=row).jobs for n in t.needs
    }
    assert dino[1].name == 'dino-vit_mini4-300/crops6/seed0'


class TestLines:
  def test_what_is_not_published_is_a_dash(self):
    variants = dict(a=Variant(), b=Variant(), c=Variant())
    row = Row('t', 'mae', 'vit', 100, variants, dict(a=80.0, c=81.5))
    found = dict.fromkeys(variants, [None])
    lines = {v: table_lines.line(row, v, found, 'knn_top1') for v in variants}
    assert lines['b']['paper'] is None and 'paper_gain' not in lines['b']
    assert lines['c']['paper_gain'] == '+1.5'
    assert lines['b']['accuracy'] is None and lines['b']['gain'] is None

  def test_the_time_of_all_steps_is_told(self, tmp_path):
    finish(tmp_path / 'run', steps=10)  # of 16 images at 8 a second
    found = table_runs.Runs(tmp_path).finished(table_jobs.Job('run', ()))
    assert found['training_seconds'] == 20
    line = table_lines.line(
      one('localmim/vit-time'), 'MAE 25', {'MAE 25': [found]}, 'knn_top1'
    )
    assert line['training'] == 20 and line['seconds_per_step'] == 2

  def test_what_follows_a_run_is_read(self, tmp_path):
    finish(tmp_path / 'run')
    finish(tmp_path / 'run-finetune', top1=70.0)
    task = table_jobs.Job('run', (), probe='finetune')
    assert table_runs.Runs(tmp_path).finished(task)['finetune_top1'] == 70
    other = table_jobs.Job('run', (), probe='linear')
    assert table_runs.Runs(tmp_path).finished(other) is None


def test_real_runs(tmp_path, monkeypatch, capsys):
  """A teacher, a student of it, and what was there; then nothing again."""
  others = ['mae-vit_mini4-100/base', 'mr_mae-vit_mini4-100/first_dino']
  for name in (*others, 'mr_mae-vit_mini4-100/first_moco_v3'):
    finish(tmp_path / name / 'seed0', knn_top1=90.0)
  argv = ['--preset=photos', f'--rows={TEACHERS}', '--seeds=1']
  argv += [f'--out={tmp_path}', *(f'--set={option}' for option in TINY)]
  command = [tiny_run.sys.executable, '-m', 'benchmarks.table', *argv]
  done = tiny_run.call(command)
  assert done.returncode == 0, done.stderr
  student = 'mr_mae-vit_mini4-100/first_untrained/seed0'
  assert f'5/5 {student} (left: 0:01 h)' in done.stderr
  lines = json.loads((tmp_path / 'table.json').read_text())['lines']
  summary = tmp_path / student / 'summary.json'
  found = json.loads(summary.read_text())
  assert found['loss_mimic_first'] > 0 and found['steps'] == 2
  # Nothing was evaluated, to be quick.
  assert lines[1]['values'] == {} and lines[2]['values'] == {'0': 90.0}
  assert lines[1]['seconds_per_step'] > 0
  config = json.loads(summary.with_name('config.json').read_text())
  teacher = config['method']['teachers']['first']
  assert teacher['checkpoint'].endswith('steps_1-base_lr_0.0/seed0')
  assert teacher['encoder']['name'] == 'vit_mini4'
  before = summary.stat().st_mtime_ns

  table.FLAGS.unparse_flags()
  assert table.main(['table', *argv]) == 0
  assert capsys.readouterr().out == done.stdout
  with pytest.raises(ValueError, match='made with other options .*base_lr=1.0'):
    table.main(['table', *argv, '--set=optim.base_lr=1.0'])
  table.FLAGS.unparse_flags()
  assert summary.stat().st_mtime_ns == before


def test_list_and_wrong_words(capsys):
  assert table.main(['table', f'--rows={ROW}', '--list', '--seeds=1']) == 0
  base, repre = capsys.readouterr().out.splitlines()
  assert base.startswith('moby-vit_mini4-300/base/seed0 --config=configs/moby')
  assert 'repre' in repre
  assert set(PRESETS) == {
    *('photos', 'cifar10', 'imagenette', 'imagenet2012', 'folder')
  }
