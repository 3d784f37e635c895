"""Jobs on a trained encoder in two real processes: what one alone finds."""

import json
import sys

import numpy as np
import pytest
import tiny_run
from jobs import Job

# argv: the run, the data, the folder of the results.
CHILD = """
import sys
import main
from configs import embed, export, fewshot, knn, linear_probe
from training import cluster, process

run, data, out = sys.argv[1:]
JOBS = dict(
  embed=(embed, 'arrays', {}),
  knn=(knn, 'arrays', {'neighbors.k': (1, 5)}),
  fewshot=(fewshot, 'arrays', {'fewshot.shots': (2,), 'fewshot.shares': ()}),
  linear_probe=(linear_probe, 'arrays,cached', {'epochs': 4.0}),
  export=(export, 'npz', {}),
)
cluster.initialize()
process.compilation_cache()
for name, (module, words, fields) in JOBS.items():
  config = module.get_config(words)
  fields = dict(fields, checkpoint=run, batch_size=8)
  if name != 'export':
    fields |= {
      'data.data_dir': data,
      'data.image_size': 16,
      'data.eval_crop': 1.0,
      'data.test_split': '' if name == 'embed' else 'test',
    }
  config.update_from_flattened_dict(fields)
  main.TASKS[name](config.lock(), f'{out}/{name}')
"""


@pytest.fixture(scope='module')
def found(tmp_path_factory):
  """{number of processes: folder of the results}."""
  folders = {}
  for count in (2, 1):
    folder = tmp_path_factory.mktemp(f'by{count}')
    words = [tiny_run.finished(), tiny_run.data(), folder / 'out']
    command = [sys.executable, '-c', CHILD, *map(str, words)]
    if count == 1:
      done = tiny_run.call(command, JAX_NUM_CPU_DEVICES='2')
      assert done.returncode == 0, done.stderr[-2000:]
    else:
      job = Job(folder, [command] * count)
      assert job.wait() == [0] * count, job.err()
    folders[count] = folder / 'out'
  return folders


def both(found, name):
  return [
    json.loads((found[count] / name / 'summary.json').read_text())
    for count in (2, 1)
  ]


@pytest.mark.parametrize(
  'name, fields',
  [
    ('knn', ('knn_top1_k1', 'knn_top1_k5', 'query_images')),
    ('embed', ('images', 'width', 'unreadable')),
    ('linear_probe', ('top1', 'steps')),
  ],
)
def test_the_summaries_are_the_same(found, name, fields):
  two, one = both(found, name)
  for field in fields:
    assert two[field] == one[field], field


def test_features_are_whole_and_in_order(found):
  two, one = (
    np.load(found[count] / 'embed' / 'features.npz') for count in (2, 1)
  )
  assert len(two['features']) == tiny_run.TRAIN
  np.testing.assert_array_equal(two['label'], one['label'])
  np.testing.assert_allclose(two['features'], one['features'], atol=1e-5)


def test_few_shots_are_the_same_and_score_the_same(found):
  two, one = (x['fewshot']['2 per class'] for x in both(found, 'fewshot'))
  assert two['images'] == one['images'] == 2 * tiny_run.CLASSES
  for solver in ('logistic', 'ridge'):
    assert two[solver] == one[solver]


def test_one_file_is_exported(found):
  files = [
    (found[count] / 'export' / 'npz' / 'model.npz').read_bytes()
    for count in (2, 1)
  ]
  assert files[0] == files[1]
