"""Every method, stopped and continued, ends with the same bits."""

import jax
import numpy as np
import pytest
from tiny import (
  LEARNED,
  METHODS,
  assert_same_bits,
  cached_run,
  fixed,
  follow,
  make_run,
  moments,
  start,
)

from training.checkpoint import Checkpoints
from training.state import named_leaves

# The queues are half full by then, and DINO's last layer is about to move.
STOP, END = 3, 5
NOT_YET = 'teacher/projector/last/'
KEPT = dict(
  simclr=set(),
  byol={'teacher'},
  simsiam=set(),
  moco_v2={'teacher', 'queue', 'pointer'},
  moco_v3={'teacher'},
  moby={'teacher', 'queue1', 'queue2', 'pointer'},
  dino={'teacher', 'centre'},
)


def kind_of(name):
  """With RePre; every second method on Swin."""
  kind = dict(method=name, repre=fixed(LEARNED), devices=1)
  swin = sorted(METHODS).index(name) % 2
  return kind | (dict(encoder='swin') if swin else {})


@pytest.mark.parametrize('name', METHODS)
def test_continued_from_a_checkpoint_it_takes_the_same_steps(name, tmp_path):
  kind = kind_of(name)
  whole = follow(END, **kind)
  stopped = whole[STOP - 1][0]
  run = cached_run(**kind)
  saved = Checkpoints(tmp_path)
  saved.save(jax.device_put(stopped, run.shardings), step=STOP, meta={})
  saved.close()

  fresh = make_run(**kind | dict(repre=LEARNED))
  assert fresh.method is not run.method
  saved = Checkpoints(tmp_path)
  state, meta = saved.restore(fresh.like)
  saved.close()
  assert meta['step'] == STOP
  assert_same_bits(state, stopped)
  for step in range(STOP, END):
    state, report = fresh.step(state, fresh.data.batch(step))
    assert_same_bits(report, whole[step][1])
  assert_same_bits(state, whole[END - 1][0])


@pytest.mark.parametrize('name', METHODS)
def test_whatever_is_lost_would_be_noticed(name):
  """At the stop nothing that is kept is what a new run begins with."""
  kind = kind_of(name)
  stopped = follow(END, **kind)[STOP - 1][0]
  kind.pop('devices')  # of which the first state is independent
  first = start(**kind)
  assert set(stopped.method_state) == KEPT[name]
  kept = dict(weighting=stopped.params['weighting'], **stopped.method_state)
  old = dict(weighting=first.params['weighting'], **first.method_state)
  for path, leaf in named_leaves(kept).items():
    moved = np.any(leaf != named_leaves(old)[path])
    assert moved != path.startswith(NOT_YET), path
  for path, leaf in moments(stopped).items():
    assert np.any(leaf) != path.startswith('projector/last/'), path
