"""The tables' rows are the paper's, their runs real, and nothing runs twice."""

import json
import statistics

import pytest

from benchmarks import paper_tables, table, table_runs
from benchmarks.paper_tables import PRESETS, ROWS
from tests import tiny_run

PHOTOS = PRESETS['photos']
ROW = 'table1/moby-vit_s-300'
# Seconds, not minutes.
TINY = (
  'steps=2',
  'batch_size=16',
  'eval_every=0',
  'method.queue=32',
  'data.tile=128',
)


def one(name=ROW):
  return next(row for row in ROWS if row.name == name)


class TestRows:
  def test_names_are_unique(self):
    assert len({row.name for row in ROWS}) == len(ROWS) == 23

  @pytest.mark.parametrize('row', ROWS, ids=lambda row: row.name)
  def test_gains_are_the_printed_ones(self, row):
    """Table 1 prints gains too; the last of DINO as 1.1, by a slip."""
    printed = {
      'simclr-vit_s-300': 0.7,
      'byol-vit_s-300': 0.8,
      'moco_v2-vit_s-300': 0.5,
      'moco_v2-vit_s-800': 0.7,
      'moco_v3-vit_s-300': 0.7,
      'moco_v3-vit_s-600': 0.5,
      'moby-vit_s-300': 1.1,
      'dino-vit_s-300': 0.8,
      'dino-vit_s-800': 0.9,
      'simclr-vit_b-300': 0.5,
      'byol-vit_b-300': 0.9,
      'moco_v3-vit_b-300': 0.7,
      'moco_v3-vit_b-600': 0.8,
      'dino-vit_b-800': 1.0,
      'moco_v3-swin_t-300': 1.0,
      'moby-swin_t-100': 0.9,
      'moby-swin_t-300': 1.1,
    }
    base, *others = row.paper.values()
    if row.table == 1:
      gain = others[0] - base
      assert gain == pytest.approx(printed[row.name.split('/')[1]])
    assert list(row.paper) == list(row.variants)
    assert len(others) == {1: 1, 4: 2, 5: 6}[row.table]

  @pytest.mark.parametrize('preset', PRESETS)
  def test_every_run_is_a_config_that_builds(self, preset):
    """Words and fields are known to the config files."""
    preset = PRESETS[preset]
    for row in table.select(None, preset):
      for variant in row.variants:
        task = table_runs.job(row, variant, 0, preset)
        path, _, words = task.options[0].partition('=')[2].partition(':')
        config = tiny_run.load_file(path).get_config(words)
        for option in task.options[1:]:
          name, _, value = option.removeprefix('--config.').partition('=')
          kind = type(tiny_run.field(config, name))
          config.update_from_flattened_dict({name: kind(value)})
        assert bool(config.method.repre) == (variant != 'base')

  def test_tables_share_runs(self):
    def names(name, variant):
      return table_runs.job(one(name), variant, 0, PHOTOS)

    plain = names('table1/moco_v3-vit_s-300', '+RePre')
    assert names('table4/moco_v3-vit_s-300', 'Multi') == plain
    assert names('table5/moco_v3-vit_s-300', 'conv 2') == plain
    assert names('table5/moco_v3-vit_s-300', 'conv 1').name != plain.name

  def test_longer_rows_are_longer_runs(self):
    for epochs in (300, 600):
      task = table_runs.job(
        one(f'table1/moco_v3-vit_s-{epochs}'), 'base', 0, PHOTOS
      )
      assert f'--config.epochs={5.45 * epochs / 300:g}' in task.options

  def test_unknown_rows_are_told(self):
    with pytest.raises(ValueError, match=r'tabel selects nothing.*\n  table1/'):
      table.select(['tabel'], PHOTOS)


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


def make(out, seeds=2, **options):
  return table.Table([one()], PHOTOS, seeds=seeds, out=out, **options)


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
    jobs = [table_runs.Job(f'{row}/base/seed0', ()) for row in 'abc']
    assert table_runs.remaining([], jobs) == 'not known yet'
    done = [(jobs[0], 3600.0), (jobs[1], 60.0)]
    # Another seed of a takes as long as a; c as long as the mean.
    left = [table_runs.Job('a/base/seed1', ()), jobs[2]]
    assert table_runs.remaining(done, left) == '1:30 h'


def test_a_real_run(tmp_path):
  """Beside one that was there; then nothing is repeated, others are refused."""
  repre = tmp_path / 'moby-vit_mini4-300/repre/seed0'
  finish(repre, knn_top1=1.0)
  finish(repre.with_name('seed0-probe'), top1=90.0)
  options = [f'--set={one}' for one in TINY]
  command = [tiny_run.sys.executable, '-m', 'benchmarks.table']
  command += ['--preset=photos', f'--rows={ROW}', '--seeds=1', *options]
  command += [f'--out={tmp_path}', '--probe=linear']
  done = tiny_run.call(command)
  assert done.returncode == 0, done.stderr
  assert '2/2 moby-vit_mini4-300/base/seed0 (left: 0:02 h)' in done.stderr
  base, repre = json.loads((tmp_path / 'table.json').read_text())['lines']
  summary = tmp_path / 'moby-vit_mini4-300/base/seed0/summary.json'
  probe = json.loads(
    (summary.parent.parent / 'seed0-probe/summary.json').read_text()
  )
  assert probe['top1'] == base['values']['0'] > 100 / 17
  assert repre['gains'] == [90 - probe['top1']]
  assert base['seconds_per_step'] > 0
  before = summary.stat().st_mtime_ns

  again = tiny_run.call(command)
  assert again.returncode == 0 and again.stdout == done.stdout
  other = tiny_run.call([*command, '--set=optim.base_lr=1.0'])
  assert other.returncode == 1
  assert 'made with other options (--config.optim.base_lr=1.0)' in other.stderr
  assert summary.stat().st_mtime_ns == before


def test_list_and_wrong_words(capsys):
  assert table.main(['table', f'--rows={ROW}', '--list', '--seeds=1']) == 0
  base, repre = capsys.readouterr().out.splitlines()
  assert base.startswith('moby-vit_mini4-300/base/seed0 --config=configs/moby')
  assert 'repre' in repre
  assert set(paper_tables.PRESETS) == {
    *('photos', 'cifar10', 'imagenette', 'imagenet2012', 'folder')
  }
