"""Methods over two real processes learn what they learn in one.

What is everyone's crosses the processes: BatchNorm's statistics, SimCLR's
negatives with their gradients, MoCo's keys, queues, DINO's centre.
"""

import pathlib
import sys

import jax
import numpy as np
import pytest
import two_steps
from jobs import Job
from tiny import LEARNED, fixed, follow, start

# One of every kind: the others share what crosses, and compiling takes half a
# minute each, for the second process even with a cache.
NAMES = ('simclr', 'moby', 'dino')
SCRIPT = pathlib.Path(two_steps.__file__)
COLD = 600  # seconds, on a machine that does other things
KEPT = dict(
  moby={'queue1', 'queue2', 'pointer'},
  dino={'centre'},
)
WEIGHTING = {f'weighting/{n}' for n in ('count', 'contrast', 'pixels')}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """What two processes of two devices each wrote."""
  path = tmp_path_factory.mktemp('two_processes')
  for name in NAMES:
    state = start(method=name, repre=fixed(LEARNED))
    two_steps.write_start(path, name, state)
  command = [sys.executable, str(SCRIPT), str(path), *NAMES]
  variables = dict(
    JAX_NUM_CPU_DEVICES=str(two_steps.DEVICES // 2),
    # On CPUs the second process finds nothing in the cache, ever.
    JAX_DISABLE_MOST_OPTIMIZATIONS='1',
  )
  job = Job(path, [command] * 2, **variables)
  assert job.wait(COLD) == [0, 0], job.err()
  return path


@pytest.mark.parametrize('name', NAMES)
def test_two_processes_take_the_steps_of_one(name, folder):
  assert jax.device_count() == two_steps.DEVICES and jax.process_count() == 1
  # Of a batch in two chunks, which `test_methods` has compiled.
  found = follow(two_steps.STEPS, **two_steps.kind_of(name), chunks=2)
  want = two_steps.summary(found)
  with np.load(folder / f'{name}.npz') as file:
    got = dict(file)
  assert got.keys() == want.keys()
  kept = {n for n in want if not n.startswith(('loss', 'grad_norm'))}
  states = KEPT.get(name, set()) | WEIGHTING
  assert kept == {f'{n} {i}' for n in states for i in range(2)}
  for path, leaf in want.items():
    most = np.abs(leaf).max()
    assert most > 0 or path.startswith('pointer'), path
    np.testing.assert_allclose(
      got[path], leaf, rtol=0, atol=1e-5 * most, err_msg=path
    )
