"""The tables' rows are the papers', and every run of theirs builds."""

import sys

import jax
import pytest
from absl import flags
from ml_collections import config_flags

from benchmarks import build, paper_tables, table, table_jobs
from benchmarks.rows import PRESETS

PHOTOS = PRESETS['photos']
TEACHERS = 'mrmae/vit-teacher'


def one(name):
  return next(row for row in table.ROWS if row.name == name)


def parsed(options, monkeypatch):
  """The config that `main.py` would get."""
  values = flags.FlagValues()
  found = config_flags.DEFINE_config_file(
    'config', flag_values=values, lock_config=True
  )
  monkeypatch.setattr(sys, 'argv', ['main.py', *options])
  values(sys.argv)
  return found.value


def with_teachers(config, count):
  """`transfer.teachers` fills in what a checkpoint says."""
  if 'teachers' in config.method:
    channels = 1 if config.data.get('gray') else 3
    mini = 'mini' in config.encoder.name
    encoder = dict(
      name='vit_mini4' if mini else 'vit_b16', in_channels=channels
    )
    for slot in table_jobs.SLOTS[:count]:
      with config.unlocked():
        config.method.teachers[slot].encoder = encoder
  return config


def runs(preset):
  """Every row, variant and run of a preset, a file given as a teacher."""
  for row in table.select(None, preset):
    for variant in row.variants:
      yield row, variant, table_jobs.job(row, variant, 0, preset, teacher='F')


class TestRows:
  def test_names_are_unique(self):
    assert len({row.name for row in table.ROWS}) == len(table.ROWS)
    assert len(paper_tables.ROWS) == 23

  @pytest.mark.parametrize('row', paper_tables.ROWS, ids=lambda row: row.name)
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
    if row.table == 'table1':
      gain = others[0] - base
      assert gain == pytest.approx(printed[row.name.split('/')[1]])
    assert list(row.paper) == list(row.variants)
    assert len(others) == dict(table1=1, table4=2, table5=6)[row.table]

  @pytest.mark.parametrize('preset', PRESETS)
  def test_every_run_is_a_config_that_builds(self, preset, monkeypatch):
    """As `main.py` reads it, and what follows it too."""
    made = set()
    for row, variant, task in runs(PRESETS[preset]):
      if task.name in made:
        continue
      made.add(task.name)
      config = parsed(task.options, monkeypatch)
      teachers = len(row.variants[variant].teachers)
      method = build.make(with_teachers(config, teachers))
      if row.table.startswith('table'):
        assert bool(config.method.repre) == (variant != 'base')
      if config.method.name == 'mr_mae':
        assert len(method.teachers) == teachers > 0
      if row.table in ('localmim', 'mrmae'):
        epochs = row.variants[variant].epochs or row.epochs
        scaled = epochs * PRESETS[preset].masked_scale
        assert config.epochs == pytest.approx(scaled)
      for _, needed in task.needs:
        build.make(parsed(needed.options, monkeypatch))
      for probe in table_jobs.PROBES if len(made) < 8 else ():
        after = table_jobs.job(row, variant, 0, PRESETS[preset], probe=probe)
        config = parsed(after.probe_options, monkeypatch)
        assert config.task in ('linear_probe', 'finetune')

  @pytest.mark.parametrize(
    'name, variant',
    [
      ('localmim/vit-fusing', 'fused'),
      ('localmim/swin-levels', 'deep, fused'),
      ('localmim/swin-scales', 'single scale'),
      ('mrmae/vit-tricks', 'many blocks'),
      ('mrmae/vit-tricks', 'ConvViT, focus, sampled'),
      ('mrmae/vit-two-teachers', 'DINO and MoCo v3'),
    ],
  )
  def test_grids_fit(self, name, variant, monkeypatch):
    """Where grids of levels, scales and teachers have to: from shapes alone."""
    task = table_jobs.job(one(name), variant, 0, PHOTOS)
    config = parsed(task.options, monkeypatch)
    config = with_teachers(config, len(task.needs))
    config.batch_size = 2
    method = build.make(config)
    batch = build.view_shapes(config, method.encoder.in_channels)

    def loss(batch):
      params, state = method.init(jax.random.key(0), batch)
      return method.loss(params, state, batch, jax.random.key(0), 0)[0]

    assert jax.eval_shape(loss, batch).shape == ()

  def test_published_sizes_are_for_large_images(self):
    for preset, full in (('photos', False), ('imagenet2012', True)):
      found = table.select(None, PRESETS[preset])
      named = {row.name for row in found}
      assert ('localmim/published-vit' in named) == full
      assert {'localmim/vit-levels', 'mrmae/vit-tricks'} <= named

  def test_short_masked_runs_warm_up_for_a_tenth(self):
    def warmup(name, variant, preset='imagenet2012'):
      task = table_jobs.job(one(name), variant, 0, PRESETS[preset])
      return [o for o in task.options if 'warmup' in o]

    option = '--config.optim.warmup_epochs='
    assert warmup('localmim/vit-methods', 'MAE') == [f'{option}10']
    assert warmup('localmim/published-vit', 'MAE') == [f'{option}40']
    assert warmup('mrmae/published', 'MR-MAE') == [f'{option}20']
    assert warmup('table1/moby-vit_s-300', 'base') == []
    assert warmup('localmim/vit-methods', 'MAE', 'photos') == []

  def test_tables_share_runs(self):
    def names(name, variant):
      return table_jobs.job(one(name), variant, 0, PHOTOS)

    plain = names('table1/moco_v3-vit_s-300', '+RePre')
    assert names('table4/moco_v3-vit_s-300', 'Multi') == plain
    assert names('table5/moco_v3-vit_s-300', 'conv 2') == plain
    assert names('table5/moco_v3-vit_s-300', 'conv 1').name != plain.name
    local = names('localmim/vit-methods', 'LocalMIM')
    assert names('localmim/vit-targets', 'HOG') == local
    assert names('localmim/vit-time', 'LocalMIM 100') == local
    ((_, teacher),) = names(TEACHERS, 'DINO').needs
    assert teacher == names('table1/dino-vit_s-300', 'base')

  def test_longer_rows_are_longer_runs(self):
    for epochs in (300, 600):
      task = table_jobs.job(
        one(f'table1/moco_v3-vit_s-{epochs}'), 'base', 0, PHOTOS
      )
      assert f'--config.epochs={5.45 * epochs / 300:g}' in task.options

  def test_unknown_rows_are_told(self):
    with pytest.raises(ValueError, match=r'tabel selects nothing.*\n  table1/'):
      table.select(['tabel'], PHOTOS)
