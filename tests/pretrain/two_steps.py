"""Two steps of tiny methods, in a process that may be one of several.

  python tests/pretrain/two_steps.py FOLDER METHOD ...

Begins with the states FOLDER/METHOD_start.npz, whose draw would take as long to
compile as a step; process 0 writes FOLDER/METHOD.npz.
"""

import pathlib
import sys
import time
import traceback

import jax
import numpy as np
from tiny import LEARNED, fixed, make_run

from training import cluster
from training.state import named_leaves

STEPS, DEVICES = 2, 4


def kind_of(name):
  """What is run, here and in one process."""
  return dict(method=name, repre=fixed(LEARNED), devices=DEVICES)


def summary(found):
  """{name: array} of what every step reports and keeps for later ones."""
  out = {}
  for step, (state, report) in enumerate(found):
    for which in ('loss', 'loss_contrast', 'loss_pixels', 'grad_norm'):
      out[f'{which} {step}'] = np.asarray(report[which])
    for path, leaf in named_leaves(state.method_state).items():
      if not path.startswith('teacher/'):
        out[f'{path} {step}'] = np.asarray(leaf)
  return out


def write_start(folder, name, state):
  """A state for the processes to begin with."""
  np.savez(folder / f'{name}_start.npz', *jax.tree.leaves(state))


def compiled(run, state, folder):
  """The step; compiled by every process before any of them goes on.

  Who comes half a minute late to the first collective finds that Gloo has given
  up, and one process may have the step in its cache where another compiles.
  """
  step = run.step.lower(state, run.data.batch(0)).compile()
  folder.mkdir(exist_ok=True)
  (folder / str(jax.process_index())).touch()
  while len(list(folder.iterdir())) < jax.process_count():
    time.sleep(0.05)
  return step


def main(folder, names):
  cluster.initialize()
  assert jax.device_count() == DEVICES
  for name in names:
    run = make_run(**kind_of(name) | dict(repre=LEARNED))
    with np.load(folder / f'{name}_start.npz') as file:
      leaves = [file[f'arr_{i}'] for i in range(len(file.files))]
    state = jax.tree.unflatten(jax.tree.structure(run.like), leaves)
    state, found = jax.device_put(state, run.shardings), []
    take = compiled(run, state, folder / f'{name}_compiled_by')
    for step in range(STEPS):
      state, report = take(state, run.data.batch(step))
      found.append((jax.tree.map(np.array, state), report))
    if jax.process_index() == 0:
      np.savez(folder / f'{name}.npz', **summary(found))
      print(name, file=sys.stderr, flush=True)


if __name__ == '__main__':
  try:
    main(pathlib.Path(sys.argv[1]), sys.argv[2:])
  except Exception:
    traceback.print_exc()
    cluster.abandon(1)
    raise
