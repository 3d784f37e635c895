"""A probe that learns beside a method leaves it as it was."""

import json
import math
import os

import jax
import numpy as np
import pytest
import tiny_run
from tiny import make_run

import main
from input_pipeline.arrays import Arrays
from pretrain.online_probe import OnlineProbe
from training.state import named_leaves

# As users compile, and the suite does not: otherwise a product may be rounded
# by what else is in the program.
USERS = {}
if 'xla_cpu_use_fusion_emitters' in os.environ['XLA_FLAGS']:
  USERS = dict(xla_cpu_use_fusion_emitters=True)


def test_the_base_follows_itself_bit_for_bit(monkeypatch):
  """Parameters, teacher and queues after two steps, with and without."""
  states = {}
  for probed in (False, True):
    run = make_run(method='moby', devices=1, repre=None)
    method = run.method
    if probed:
      method = OnlineProbe(base=run.method, classes=3)
    rng = jax.random.key(0)
    views = run.data.render(run.data.batch(0), rng)
    views['label'] = jax.numpy.arange(16) % 3
    params, state = jax.jit(method.init)(rng, views)
    grad = jax.jit(
      jax.value_and_grad(method.loss, has_aux=True), compiler_options=USERS
    )
    (_, aux), grads = grad(params, state, views, rng, 0)
    states[probed] = named_leaves((params, state)), named_leaves(grads), aux
  for i in range(2):
    plain, probed = states[False][i], states[True][i]
    added = [n for n in probed if 'online_probe' in n]
    assert len(added) == len(probed) - len(plain) == 2
    for name, leaf in plain.items():
      np.testing.assert_array_equal(leaf, probed[name], err_msg=name)
  aux = states[True][2]
  assert math.log(3) * 0.8 < aux.metrics['loss_probe'] < math.log(3) * 1.2


def test_it_learns_and_is_measured(tmp_path):
  summary = tiny_run.pretrain(tmp_path / 'run', online_probe_lr=0.05)
  plain = tiny_run.losses(tiny_run.finished())
  probed = tiny_run.losses(tmp_path / 'run')
  for step, row in plain.items():
    assert probed[step]['loss_contrast'] == row['loss_contrast']
  first, last = probed[1], probed[tiny_run.STEPS]
  assert last['loss_probe'] < first['loss_probe']
  assert {'probe_top1', 'probe_top5'} <= summary.keys()
  assert (
    summary['knn_top1'] == tiny_run.measured(tiny_run.finished())[6]['knn_top1']
  )
  written = json.loads((tmp_path / 'run' / 'summary.json').read_text())
  assert written['probe_top5'] == 100  # of four classes


def test_it_needs_labels(tmp_path):
  path = tiny_run.write_data(tmp_path / 'data.npz', labelled=False)
  with pytest.raises(ValueError, match='online_probe_lr needs labels'):
    tiny_run.pretrain(
      tmp_path / 'run', online_probe_lr=0.1, data__data_dir=path
    )


def test_it_needs_the_same_classes(caplog):
  """Refused; k-NN, which nobody asked for, is left out with a warning."""
  pixels, labels = tiny_run.images(8, seed=0)
  train, test = (
    Arrays(name=name, images=pixels, labels=labels, classes=tuple(classes))
    for name, classes in (('train', 'abcd'), ('test', 'abce'))
  )
  config = tiny_run.config(online_probe_lr=0.1)
  told = 'train and test have not the same classes: d, e'
  with pytest.raises(ValueError, match=told):
    main.evaluators(config, None, train, test, mesh=None, channels=3)
  assert f'{told}: training without k-NN' in caplog.text
