"""The benchmarks measure what they say, on the smallest step there is."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from benchmarks import build, costs, machine, peer, startup, step, timing
from configs import moco_v3
from pretrain.methods import METHODS
from tests import tiny_run


@pytest.fixture(scope='module')
def config():
  config = tiny_run.get_config('arrays,repre')
  config.batch_size = 16
  return config


@pytest.fixture(scope='module')
def rows(config):
  return timing.measure(config, steps=3)


def test_base_and_repre_are_measured_in_turn(rows):
  base, repre = rows
  assert (base['name'], repre['name']) == ('base', '+RePre')
  assert base['steps'] == repre['steps'] == 3
  assert base['overhead'] == base['flops_overhead'] == 1
  assert repre['overhead_min'] <= repre['overhead'] <= repre['overhead_max']
  assert repre['parameters'] > base['parameters']
  assert repre['flops'] > base['flops']


def test_figures_agree_with_each_other(rows):
  for row in rows:
    assert 0 < row['seconds_min'] <= row['seconds'] <= row['seconds_max']
    speed = row['batch_size'] / row['seconds']
    assert row['images_per_second'] == pytest.approx(speed, rel=0.01)
    assert row['trace_seconds'] > 0 and row['compile_seconds'] > 0
    assert row['temp_bytes'] > 0 and row['rss_peak_bytes'] > 1e7
    assert row['mfu'] == 'unknown peak'  # of a CPU
    assert row['disturbed'] == (row['other_cores'] > machine.QUIET)
    assert row['versions']['jax'] == jax.__version__
    assert json.loads(json.dumps(row))['loss'] == row['loss']


def test_ready_views_leave_the_augmentation_out(config, rows):
  (base,) = timing.measure(
    build.variants(config)['base'], given='views', steps=1
  )
  assert base['input'] == 'views'
  assert base['parameters'] == rows[0]['parameters']
  assert 0 < base['flops'] < rows[0]['flops']


def vit_products(*, tokens, width, depth, patch, channels=3):
  """FLOPs of the products of one pass over one image, by hand."""
  embed = (tokens - 1) * patch**2 * channels * width
  block = tokens * 12 * width**2 + 2 * tokens**2 * width
  return 2 * (embed + depth * block)


def test_flops_agree_with_a_count_by_hand():
  """Student and its gradient are three passes, the teacher is a fourth."""
  config = moco_v3.get_config('vit_ti8,arrays,paper')
  config.batch_size, config.dtype = 4, 'float32'
  config.data.image_size = 64
  config.method.update(hidden=256, out=64)
  with config.encoder.unlocked():
    config.encoder.update(width=384, depth=2, num_heads=6)
  found = costs.cost(config, compiled=False)
  one = vit_products(tokens=65, width=384, depth=2, patch=8)
  projector = 2 * (384 * 256 + 256 * 256 + 256 * 64)
  predictor = 2 * (64 * 256 + 256 * 64)
  want = 4 * 2 * (4 * (one + projector) + 3 * predictor)
  assert found['flops'] == pytest.approx(want, rel=0.05)
  # Parameters, two moments and the teacher (without the predictor).
  heads = found['parameters'] - found['encoder_parameters']
  state = 4 * (4 * found['parameters'])
  assert state - 4 * heads < found['state_bytes'] < state


def test_flops_of_one_product_are_two_per_multiply_add():
  x = jax.ShapeDtypeStruct((8, 16), jnp.float32)
  y = jax.ShapeDtypeStruct((16, 4), jnp.float32)
  assert costs.flops(jax.jit(jnp.dot).lower(x, y)) == 2 * 8 * 16 * 4


def test_what_is_kept_for_the_backward_pass_grows_with_the_batch(config):
  def saved(batch_size):
    one = build.variants(config)['base'].copy_and_resolve_references()
    one.batch_size = batch_size
    return costs.saved_bytes(costs.abstract(one))

  assert saved(32) == pytest.approx(2 * saved(16), rel=0.05)


def test_the_table_has_every_method_and_encoder():
  (row,) = costs.tabulate(methods=['moco_v3'], encoders=['vit_mini4'])
  assert row['method'] == 'moco_v3' and row['encoder'] == 'vit_mini4'
  # 4 % holds for Ti, S and B (tests/pretrain/test_cost.py), not for mini.
  assert 1 < row['overhead'] < 1.08
  assert row['gflops_repre'] > row['gflops'] > 0
  line = machine.table([row], costs.COLUMNS).splitlines()[-1]
  assert line.startswith('| moco_v3 | vit_mini4 |')
  for method in METHODS:  # each has a config of its name
    assert costs.load(method, 'vit_s16').method.name == method
  assert {'vit_ti16', 'vit_s16', 'vit_b16'} <= set(costs.encoder_words())


def test_what_an_encoder_cannot_learn_is_told():
  (refused,) = costs.tabulate(
    methods=['simmim'], encoders=['convvit_s'], batch_size=2
  )
  assert 'no mask token' in refused['error'] and 'gflops' not in refused


def test_mae_is_in_the_table_and_needs_no_repre():
  (row,) = costs.tabulate(methods=['mae'], encoders=['vit_s16'], batch_size=2)
  assert 'gflops_repre' not in row
  # Three passes of the encoder over 50 tokens and of the decoder over 197; the
  # products of ViT-S by hand, its patches counted whole.
  encoder = vit_products(tokens=50, width=384, depth=12, patch=16)
  decoder = vit_products(tokens=197, width=512, depth=8, patch=16)
  assert row['gflops'] == pytest.approx(3e-9 * (encoder + decoder), rel=0.06)


def test_methods_without_repre_are_timed_too(monkeypatch):
  found = [dict(seconds=1.0, overhead=1), dict(seconds=2.0, overhead=2)]

  def measure(config):
    return found[: 2 if config.method.get('repre') else 1]

  monkeypatch.setattr(step.timing, 'measure', measure)
  monkeypatch.setattr(step.machine, 'write', lambda out, rows: None)
  rows = step.clock(
    methods=['moco_v3', 'mae'], encoders=None, batch_size=8, dtype='float32'
  )
  # Two encoders of each.
  assert rows == [*found, *found, found[0], found[0]]


@pytest.mark.parametrize(
  ('kind', 'dtype', 'tera'),
  [
    ('TPU v5 lite', 'bfloat16', 197),
    ('TPU v5', 'bfloat16', 459),
    ('TPU v6 lite', 'bfloat16', 918),
    ('NVIDIA A100-SXM4-80GB', 'bfloat16', 312),
    ('NVIDIA H200', 'float32', 494.5),
  ],
)
def test_peaks(kind, dtype, tera):
  assert machine.peak_flops(kind, dtype) == pytest.approx(tera * 1e12)


@pytest.mark.parametrize(
  'kind', ['cpu', 'NVIDIA H100 80GB HBM3 MIG 1g.10gb', 'TPU v99']
)
def test_unknown_peaks_are_unknown(kind):
  assert machine.peak_flops(kind, 'bfloat16') is None


def test_a_peer_runs_in_turn_with_ours(monkeypatch, tmp_path):
  """Two seconds of theirs against one of ours: twice the speed."""
  script = tmp_path / 'peer.py'
  script.write_text(
    'import json, sys\n'
    'print("a log line")\n'
    'print(json.dumps(dict(median_s=2.0, params_m=3.1, other_cores=0.0,\n'
    '                      argv=sys.argv[1:])))\n'
  )
  order = []

  def ours(arch, *, dtype, steps):
    order.append((arch, dtype, steps))
    return dict(median_s=1.0, params_m=3.1, other_cores=0.3)

  monkeypatch.setattr(peer, 'run_ours', ours)
  mine, theirs = peer.compare(
    'vit_tiny_test',
    dtype='bfloat16',
    python=sys.executable,
    script=str(script),
    rounds=2,
    steps=5,
  )
  assert order == [('vit_tiny_test', 'bfloat16', 5)] * 2
  assert mine['speed'] == 2 and mine['disturbed'] and not theirs['disturbed']
  words = ' '.join(theirs['runs'][0]['argv'])
  assert 'step --method moco_v3 --arch vit_tiny_test --size 32' in words
  assert '--batch 64 --steps 5' in words
  assert words.endswith('--bf16')


def test_a_peer_that_fails_is_told(tmp_path):
  script = tmp_path / 'peer.py'
  script.write_text('raise SystemExit("no such peer")')
  with pytest.raises(RuntimeError, match='no such peer'):
    peer.run_peer(
      'vit_s16',
      dtype='float32',
      python=sys.executable,
      script=str(script),
      steps=1,
    )
  with pytest.raises(ValueError, match='peer_python'):
    peer.compare(
      'vit_s16', dtype='float32', python=None, script=None, rounds=1, steps=1
    )


@pytest.mark.parametrize('arch', sorted(peer.SIZES))
def test_ours_has_the_sizes_of_the_peer(arch):
  """Parameters in millions as PyTorch counts them, less fixed positions."""
  parts = costs.abstract(peer.config(arch, 'float32'))
  count = sum(leaf.size for leaf in jax.tree.leaves(parts['params']))
  # lightly's MAE does not train its positions, which are not counted then.
  positions = {'vit_tiny_test': 65 * 192, 'vit_s16': 197 * 384}.get(arch, 0)
  published = dict(vit_tiny_test=3.154, vit_s16=43.187, mae_vit_b16=111.656)
  assert (count + positions) / 1e6 == pytest.approx(published[arch], abs=0.002)


def test_stages_are_read_from_the_log_of_jax():
  lines = [
    'WARNING:jax._src.dispatch:Finished tracing train_step for jit in 1.5 sec',
    'Finished jaxpr to MLIR module conversion jit(train_step) in 0.25 sec',
    'Finished XLA compilation of jit(train_step) in 6.0 sec',
    'Finished XLA compilation of jit(init) in 2e-1 sec',
  ]
  stages = startup._stages(lines)
  assert stages['trace'] == 1.5 and stages['lower'] == 0.25
  assert stages['compile'] == 6.2 and stages['programs'] == 2
  assert stages['longest'][0] == ['compile', 'jit(train_step)', 6.0]


def test_every_method_is_timed_on_small_encoders(
  config, monkeypatch, capsys, tmp_path
):
  monkeypatch.setattr(costs, 'load', lambda method, word: config)
  rows = step.clock(
    methods=['moco_v3'],
    encoders=['vit_mini4'],
    out=str(tmp_path / 'rows.jsonl'),
    batch_size=16,
    dtype='float32',
    steps=1,
  )
  lines = (tmp_path / 'rows.jsonl').read_text().splitlines()
  assert [json.loads(line)['name'] for line in lines] == ['base', '+RePre']
  assert [row['name'] for row in rows] == ['base', '+RePre']
  assert rows[1]['overhead'] == pytest.approx(
    rows[1]['seconds'] / rows[0]['seconds'], rel=0.01
  )
  assert 'moco_v3 vit_mini4: ' in capsys.readouterr().err


def test_the_command_needs_something_to_do():
  done = subprocess.run(
    [sys.executable, '-m', 'benchmarks.step'],
    capture_output=True,
    text=True,
    cwd=tiny_run.ROOT,
  )
  assert done.returncode == 1
  assert 'give --config' in done.stdout + done.stderr
