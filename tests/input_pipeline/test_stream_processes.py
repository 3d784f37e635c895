"""Real processes stream the rows of one global batch."""

import sys

import image_files
import jax
import numpy as np
import pytest
from jobs import Job

from input_pipeline.folder import from_folder
from input_pipeline.stream import Stream
from input_pipeline.views import View

VIEWS = dict(
  one=View(size=6, scale=(0.2, 1.0)),
  two=View(size=4, scale=(0.1, 0.3)),
)
STEPS = (0, 3)  # another epoch, and a start in the middle of one
SCRIPT = """
import sys
import jax
import numpy as np
from training import cluster, sharding
cluster.initialize()
from test_stream_processes import STEPS, open_stream
folder, out = sys.argv[1:]
rows = sharding.over_batch(sharding.make_mesh())
feed = open_stream(folder, sharding=rows)
for step in STEPS:
  for name, array in feed.batch(step).items():
    assert array.shape == feed.spec[name].shape
    for shard in array.addressable_shards:
      place = shard.index[0].indices(8)[0]
      np.save(f'{out}/{step}-{name}-{place}', np.asarray(shard.data))
feed.close()
"""


def open_stream(folder, **options):
  source = from_folder(data_dir=folder)
  return Stream(source, VIEWS, batch_size=8, seed=1, **options)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Seventeen images of two classes, one of which cannot be read."""
  folder = tmp_path_factory.mktemp('images')
  image_files.write(folder, *(f'{"ab"[i % 2]}/{i}.png' for i in range(17)))
  (folder / 'a' / '8.png').write_bytes(b'broken')
  return folder


@pytest.fixture(scope='module')
def batches(folder):
  feed = open_stream(folder)
  out = {step: jax.device_get(feed.batch(step)) for step in STEPS}
  feed.close()
  return out


@pytest.mark.parametrize('processes', [2, 4])
def test_processes_share_a_batch(processes, folder, batches, tmp_path):
  out = tmp_path / 'rows'
  out.mkdir()
  command = [sys.executable, '-c', SCRIPT, str(folder), str(out)]
  path = ':'.join(sys.path)  # this test's helpers too
  job = Job(tmp_path, [command] * processes, PYTHONPATH=path)
  assert job.wait() == [0] * processes, job.err()
  for step, batch in batches.items():
    for name, whole in batch.items():
      places = range(0, 8, 8 // processes)
      parts = [np.load(out / f'{step}-{name}-{i}.npy') for i in places]
      assert {len(part) for part in parts} == {8 // processes}
      np.testing.assert_array_equal(np.concatenate(parts), whole)
