"""k-NN of a checkpoint: what scikit-learn finds, in bounded memory."""

import functools
import gc
import pathlib
import weakref

import frozen_jobs
import numpy as np
import pytest
import tiny_run
from sklearn.neighbors import KNeighborsClassifier

from transfer.knn import job as knn_job
from transfer.knn.vote import raw_pixels

KS = '--config.neighbors.k=(1, 5, 20)'


@pytest.fixture
def run(monkeypatch, tmp_path):
  return functools.partial(
    frozen_jobs.run, monkeypatch, 'knn.py:arrays', tmp_path / 'knn'
  )


@pytest.fixture
def refused(monkeypatch, tmp_path):
  return functools.partial(frozen_jobs.refused, monkeypatch)


def twin(bank, bank_labels, queries, labels, k):
  model = KNeighborsClassifier(
    k,
    metric='cosine',
    algorithm='brute',
    weights=lambda distance: np.exp((1 - distance) / 0.07),
  )
  return 100 * (model.fit(bank, bank_labels).predict(queries) == labels).mean()


def test_equals_scikit_learn(run, monkeypatch, tmp_path):
  summary = run(*frozen_jobs.arrays(), KS, '--config.neighbors.raw_pixels')
  bank, queries = (
    frozen_jobs.embedded(monkeypatch, tmp_path, split)
    for split in ('train', 'test')
  )
  for k in (1, 5, 20):
    want = twin(*bank, *queries, k)
    np.testing.assert_allclose(summary[f'knn_top1_k{k}'], want)
    assert summary[f'knn_top5_k{k}'] >= want
  scores = {k: summary[f'knn_top1_k{k}'] for k in (1, 5, 20)}
  assert summary['knn_top1'] == max(scores.values())
  assert scores[summary['knn_k']] == summary['knn_top1']
  with np.load(tiny_run.data()) as data:
    pixels = [
      part
      for split in ('train', 'test')
      for part in (raw_pixels(data[f'{split}_images']), data[f'{split}_labels'])
    ]
  best = max(twin(*pixels, k) for k in (1, 5, 20))
  np.testing.assert_allclose(summary['knn_raw_pixels'], best)
  assert (summary['bank_images'], summary['query_images']) == (48, 16)
  assert summary['which'] == 'student'


def test_it_is_the_k_nn_of_the_run_itself(run):
  """One code path: what the training reported at its end."""
  ks = '--config.neighbors.k=(5,)'
  crop = tiny_run.config().data.eval_crop
  summary = run(*frozen_jobs.arrays(), ks, f'--config.data.eval_crop={crop}')
  last = tiny_run.measured(tiny_run.finished())[tiny_run.STEPS]
  assert summary['knn_top1'] == last['knn_top1']
  assert summary['knn_top5'] == last['knn_top5']


def test_the_bank_is_forgotten_batch_by_batch(run, monkeypatch):
  alive, most = [], []
  features = knn_job.features

  def watched(*args, what, **options):
    for values, rows in features(*args, what=what, **options):
      if what == 'bank':
        gc.collect()
        most.append(sum(ref() is not None for ref in alive))
        values = values.copy()
        alive.append(weakref.ref(values))
      yield values, rows

  monkeypatch.setattr(knn_job, 'features', watched)
  small = functools.partial(knn_job.Neighbors, block=16)
  monkeypatch.setattr(knn_job, 'Neighbors', small)
  run(*frozen_jobs.arrays(), KS)
  assert len(most) == 6  # of 8 images
  assert max(most) <= 2  # a block of 16 and no more


def test_k_beyond_the_bank(run, caplog):
  summary = run(*frozen_jobs.arrays(), '--config.neighbors.k=(10, 100, 200)')
  assert 'k=100, 200 is more than the 48 images of the bank' in caplog.text
  names = {name for name in summary if '_k' in name and 'top1' in name}
  assert names == {'knn_top1_k10', 'knn_top1_k48'}


def test_a_folder_of_files_one_of_them_broken(monkeypatch, tmp_path):
  for split in ('train', 'test'):
    folder = tmp_path / 'data' / split
    frozen_jobs.write_folder(folder, broken=(4,))
  summary = frozen_jobs.run(
    monkeypatch,
    'knn.py:folder',
    tmp_path / 'knn',
    f'--config.data.data_dir={tmp_path / "data"}',
    '--config.neighbors.k=(1,)',
    '--config.features.blocks=2',
    '--config.features.pooling=cls_mean',
  )
  assert summary['unreadable'] == 2
  assert (summary['bank_images'], summary['query_images']) == (10, 10)
  assert summary['knn_top1'] == 100  # both splits are the same images


@pytest.mark.parametrize(
  'options, told',
  [
    (['--config.neighbors.k=(0,)'], 'config.neighbors.k=(0,) must be at le'),
    (['--config.neighbors.temperature=0.0'], 'temperature=0.0 must be above 0'),
    (['--config.data.test_split='], 'knn needs test images: set config.data'),
    (
      ['--config.features.pooling=max'],
      "unknown config.features.pooling 'max'",
    ),
    (['--config.features.blocks=3'], 'blocks=3 must be within 1..2'),
    (['--config.checkpoint=/nowhere'], '/nowhere is neither a workdir nor'),
  ],
)
def test_what_is_refused(refused, tmp_path, options, told):
  line = refused(
    'knn.py:arrays', tmp_path / 'knn', *frozen_jobs.arrays(), *options
  )
  assert told in line
  assert not (tmp_path / 'knn' / 'summary.json').exists()


def test_no_labels(refused, tmp_path):
  path = tiny_run.write_data(tmp_path / 'data.npz', labelled=False)
  options = [f'--config.data.data_dir={path}', '--config.data.test_split=test']
  line = refused('knn.py:arrays', tmp_path / 'knn', *options)
  assert f'knn needs labels; {path} has none' in line


def test_an_encoder_that_diverged(refused, tmp_path, monkeypatch):
  real = knn_job.Job.weights

  def weights(job):
    found = real(job)
    found['params']['norm']['bias'] = found['params']['norm']['bias'] * np.nan
    return found

  monkeypatch.setattr(knn_job.Job, 'weights', weights)
  line = refused('knn.py:arrays', tmp_path / 'knn', *frozen_jobs.arrays())
  assert 'are not finite: that training diverged' in line


@pytest.mark.parametrize('name', ['knn', 'fewshot', 'embed'])
def test_words_of_the_configs(refused, tmp_path, name):
  line = refused(f'{name}.py:fodler', tmp_path / 'x')
  assert "unknown config word 'fodler'; did you mean 'folder'?" in line
  line = refused(f'{name}.py:vit_s16', tmp_path / 'x')
  assert 'the encoder is that of config.checkpoint' in line
  line = refused(f'{name}.py:folder,photos', tmp_path / 'x')
  assert 'several data words: folder, photos' in line
  assert not pathlib.Path(tmp_path / 'x').exists()
