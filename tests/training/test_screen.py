"""Lines on the screen: which fields, how wide, in which letters."""

import io
import logging
import subprocess
import sys

import numpy as np
import pytest
import tiny_run
from etils import epath

from training import metrics, screen
from training.metric_names import metric, value_text
from training.optim import NEVER, Clip, Rule
from training.overview import label, overview

# What a step of RePre on MoCo v3 reports.
REPRE = dict(
  bad_steps=0.0,
  contrast_accuracy=0.1003,
  effective_rank=2.558,
  feature_std=0.6,
  grad_norm=1.25,
  images_per_second=81.2,
  loss=1.505,
  loss_contrast=2.806,
  loss_pixels=0.02812,
  lr=0.001,
  mean_cosine=0.7,
  seconds_per_step=0.79,
  weight_contrast=1.0,
  weight_pixels=1.0,
)


class TestReport:
  def test_loss_first_and_the_time_left_last(self):
    assert screen.report_line(25, 300, REPRE, left=217.4) == (
      'step 25/300 | loss 1.505 | contrast 2.806 | pixels 0.02812 | lr 0.001 | '
      '81 images/s | 0:03:37 left'
    )

  @pytest.mark.parametrize('step', [5, 99_999_999])
  def test_at_most_eight_fields_of_100_columns(self, step):
    many = REPRE | {f'loss_level_{i}': 0.123456 for i in range(6)}
    line = screen.report_line(step, 100_000_000, many, left=9e5)
    assert len(line.split(' | ')) <= 8 and len(line) <= 100
    assert line.split(' | ')[1] == 'loss 1.505'
    assert line.endswith('250:00:00 left')

  def test_a_bad_step_is_shown_and_no_other_zero(self):
    line = screen.report_line(1, 9, REPRE | dict(bad_steps=3.0, replaced=0.0))
    assert line.startswith('step 1/9 | loss 1.505 | bad_steps 3 | ')
    assert 'unreadable' not in line

  def test_a_narrow_terminal(self, monkeypatch):
    monkeypatch.setattr(screen, 'columns', lambda: 40)
    line = screen.report_line(25, 300, REPRE, left=217.4)
    assert line == 'step 25/300 | loss 1.505 | 0:03:37 left'
    monkeypatch.setattr(screen, 'columns', lambda: 5)
    assert screen.report_line(25, 300, REPRE) == 'step 25/300 | loss 1.505'

  def test_an_evaluation_with_its_baselines(self):
    scores = dict(knn_top1=34.901, knn_top5=68.89, knn_untrained=34.901)
    scores |= {'knn_raw_pixels': 24.05, 'top1/last/mean/lr1': 3.0}
    assert screen.report_line(0, 300, scores) == (
      'step 0/300 | knn top-1 34.9 % | untrained 34.9 % | raw pixels 24.1 % | '
      'knn top-5 68.9 %'
    )


def test_names_and_units():
  assert metric('knn_top1').axis == 'accuracy (%)'
  assert metric('loss_mimic').title == 'Loss of the mimic'
  assert metric('weight_pixels').short == 'weight pixels'
  assert metric('something_new').title == 'Something new'
  assert (value_text('top1', 47.84), value_text('lr', 3e-4)) == (
    '47.8 %',
    '0.0003',
  )


class TestTime:
  @pytest.fixture
  def clock(self, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metrics.time, 'time', lambda: now[0])
    return now

  @pytest.mark.parametrize('start', [0, 60])
  def test_neither_compilation_nor_evaluation_counts(
    self, clock, tmp_path, start
  ):
    """Also where a run continues."""
    reports = metrics.Reporter(
      epath.Path(tmp_path), start=start, total=100, batch_size=4
    )
    clock[0] += 80  # the first step compiles
    assert reports.left(start) is None
    reports.restart(start + 1)
    assert reports.left(start + 1) is None
    clock[0] += 6
    assert reports.left(start + 4) == pytest.approx(2 * (96 - start))
    assert reports.speed(start + 4)['seconds_per_step'] == 2
    with reports.paused():
      clock[0] += 1000
    clock[0] += 2
    assert reports.left(start + 5) == pytest.approx(2 * (95 - start))
    reports.speed(start + 5)
    assert reports.left(start + 5) == pytest.approx(2 * (95 - start))

  def test_the_bar_counts_steps_and_shows_the_loss(
    self, clock, tmp_path, monkeypatch
  ):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    reports = metrics.Reporter(
      epath.Path(tmp_path), start=0, total=100, batch_size=64
    )
    reports.restart(1)
    clock[0] += 10
    reports.step(6, np.float32(1.505))
    text = str(reports._bar)
    reports.close()
    assert '6/100 steps, loss 1.505, 0:03:08 left' in text


class TestGroups:
  SIZES = {
    'encoder/patch_embed/kernel': 10,
    'encoder/block_0/bias': 2,
    'encoder/block_0/kernel': 30,
    'encoder/block_1/bias': 3,
    'encoder/block_1/kernel': 40,
    'head/bias': 1,
    'head/kernel': 20,
  }

  def test_words_instead_of_patterns(self):
    names = list(self.SIZES)
    assert label(names, names) == 'encoder, head'
    assert label(names[:1], names) == 'encoder/patch_embed'
    assert label(names[1:], names) == 'encoder without patch_embed, head'
    tokens = [*names, 'encoder/cls']
    assert label(names[:1], tokens) == 'encoder/patch_embed'
    assert label(names, tokens) == 'encoder without cls, head'
    assert label(tokens[-1:], tokens) == 'encoder/cls'
    biases = [name for name in names if name.endswith('bias')]
    assert label(biases, names) == 'encoder, head (bias)'

  def test_layers_share_a_line(self):
    def schedule(step):
      return 0.1 * step

    clip = Clip(norm=1.0)
    rules, groups = [], {}
    for name in self.SIZES:
      depth = dict(patch_embed=0, block_0=1, block_1=2).get(
        name.split('/')[1], 3
      )
      decay = 0.0 if name.endswith('bias') else 0.05
      groups[name] = len(rules)
      rule = Rule(lr=schedule, scale=0.5 ** (3 - depth), decay=decay, clip=clip)
      rules.append((f'({name})', rule))
    assert overview(self.SIZES, groups, tuple(rules)).splitlines() == [
      '  encoder, head (kernel): 100 parameters, trained, rate x 0.12 to 1 by '
      'depth',
      '  encoder, head (bias): 6 parameters, trained, no decay, rate x 0.25 to '
      '1 by depth',
    ]

  def test_frozen_and_narrow(self, monkeypatch):
    groups = dict.fromkeys(self.SIZES, 1) | {'encoder/patch_embed/kernel': 0}
    rules = (
      ('', Rule(lr=0.0, trainable_from=NEVER)),
      ('', Rule(lr=1.0, trainable_from=7, optimizer='adamw')),
    )
    assert overview(self.SIZES, groups, rules).splitlines() == [
      '  encoder/patch_embed: 10 parameters, frozen',
      '  encoder without patch_embed, head: 96 parameters, trained from step '
      '7, by adamw',
    ]
    monkeypatch.setattr('training.overview.columns', lambda: 50)
    lines = overview(self.SIZES, groups, rules).splitlines()
    assert lines[1].startswith('  encoder w...: 96 parameters')
    assert max(map(len, lines)) <= 50


class TestLetters:
  @pytest.mark.parametrize('encoding', ['ascii', 'cp1252', 'utf-8'])
  def test_no_encoding_stops_a_job(self, encoding):
    text = '5 ± 1 × 2, λ → Zoë 猫'
    code = (
      'import sys; sys.path.insert(0, "."); from training import screen; '
      f'screen.set_up(); print({text!r}); screen.say({text!r})'
    )
    done = subprocess.run(
      [sys.executable, '-c', code],
      cwd=tiny_run.ROOT,
      env=tiny_run.environment(PYTHONIOENCODING=encoding),
      capture_output=True,
      check=True,
    )
    want = {
      'ascii': '5 +- 1 x 2, lambda \\u2192 Zo\\xeb \\u732b',
      'cp1252': '5 ± 1 × 2, lambda \\u2192 Zoë \\u732b',
      'utf-8': text,
    }[encoding]
    for stream in (done.stdout, done.stderr):
      assert stream.decode(encoding).splitlines()[-1] == want

  def test_the_fields_of_a_config_in_ascii(self):
    done = subprocess.run(
      [sys.executable, 'main.py', '--config=configs/fewshot.py']
      + ['--print_config'],
      cwd=tiny_run.ROOT,
      env=tiny_run.environment(PYTHONIOENCODING='ascii'),
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == 0, done.stderr
    assert 'penalties lambda' in done.stdout

  def test_warnings_are_lines_without_the_logger(self, capsys):
    root = logging.getLogger()
    before = list(root.handlers)
    try:
      root.addHandler(logging.StreamHandler(io.StringIO()))
      screen.set_up()
      screen.set_up()
      logging.getLogger('absl').warning('two images of %d', 7)
    finally:
      root.handlers[:] = before
    assert capsys.readouterr().err == 'WARNING: two images of 7\n'
