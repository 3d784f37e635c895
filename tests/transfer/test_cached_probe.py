"""Linear probes on features that are computed once, wherever they lie."""

import numpy as np
import pytest
import tiny_run
from test_linear_probe import config

import main
from input_pipeline import mode
from training.warm_start import load_params
from transfer.extract import Extractor
from transfer.parts import Parts
from transfer.probe import job, kept
from transfer.probe.cached import Columns

BATCHES = 3  # of the training images; the test images are one


def probe(workdir, *words, **fields):
  fields = dict(probe__blocks=(1, 2)) | fields
  words = ','.join(('arrays', 'cached', *words))
  return main.TASKS['linear_probe'](config(words, **fields), str(workdir))


def test_columns_of_parts_are_those_of_the_table(tmp_path):
  table = np.random.default_rng(0).normal(size=(11, 6)).astype(np.float32)
  parts = Parts(tmp_path / 'parts')
  parts.open({})
  for rows in (slice(0, 4), slice(4, 4), slice(4, 11)):  # one is empty
    parts.add(np.arange(11)[rows], table[rows])
  index, tables = parts.copy(tmp_path).mapped()
  np.testing.assert_array_equal(index, np.arange(11))
  assert isinstance(tables[0], np.memmap)
  columns = Columns(tables, slice(2, 5))
  rows = np.array([10, 0, 3, 4, 4])
  np.testing.assert_array_equal(columns[rows], table[rows, 2:5])
  np.testing.assert_array_equal(columns.whole(), table[:, 2:5])
  assert len(columns) == 11


def test_features_on_the_device_probe_as_well(tmp_path):
  summary = probe(
    tmp_path / 'run',
    'mae',
    epochs=20.0,
    optim__warmup_epochs=0.0,
    optim__base_lr=100.0,
    probe__blocks=(1,),
  )
  assert summary['top1'] > 40  # of four classes
  assert 'best' not in summary  # one classifier is no grid
  assert not any(n.startswith('encoder') for n in load_params(tmp_path / 'run'))


def test_read_from_the_host_they_train_the_same(tmp_path, monkeypatch, capfd):
  """Bit for bit, in several parts, and from the middle of an epoch on."""
  whole, parted = tmp_path / 'whole', tmp_path / 'parted'
  want = probe(whole, 'mae', 'sweep')
  assert 'on the device' in capfd.readouterr().err
  monkeypatch.setattr(mode, 'device_room', lambda: 1000)
  monkeypatch.setattr(kept, 'PART_BYTES', 1)
  found = probe(parted, 'mae', 'sweep')
  assert 'read from the host' in capfd.readouterr().err
  assert len(list((parted / 'features' / 'train').glob('*.npz'))) == BATCHES
  last = tiny_run.saved_steps(whole)[-1]
  assert tiny_run.checksums(parted, last) == tiny_run.checksums(whole, last)
  assert (found['top1'], found['best']) == (want['top1'], want['best'])
  tiny_run.shutil.rmtree(parted / 'checkpoints' / str(last))
  probe(parted, 'mae', 'sweep')
  assert tiny_run.checksums(parted, last) == tiny_run.checksums(whole, last)


def test_a_stopped_job_encodes_nothing_twice(tmp_path, monkeypatch):
  """Neither in the middle of the features nor behind them."""
  monkeypatch.setattr(kept, 'PART_BYTES', 1)
  encode, calls, limit = Extractor.__call__, [], [BATCHES - 1]

  def counted(self, *args):
    if len(calls) == limit[0]:
      raise KeyboardInterrupt
    calls.append(args)
    return encode(self, *args)

  monkeypatch.setattr(Extractor, '__call__', counted)
  with pytest.raises(KeyboardInterrupt):
    probe(tmp_path / 'run')
  limit[0] = None

  def stop(*args, **kwargs):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(job, 'train_job', stop)
    with pytest.raises(KeyboardInterrupt):
      probe(tmp_path / 'run')
  assert len(calls) == BATCHES + 1
  probe(tmp_path / 'run')
  assert len(calls) == BATCHES + 1
