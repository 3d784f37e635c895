"""Working ahead changes when things are made, and nothing else."""

import threading
import time

import pytest

from input_pipeline.background import Background


def test_items_come_in_order_and_end():
  items = Background(iter(range(5)), ahead=2)
  assert [next(items) for _ in range(5)] == list(range(5))
  for _ in range(2):
    with pytest.raises(StopIteration):
      next(items)
  items.close()


def test_it_runs_ahead_but_not_far():
  made = []

  def make():
    for i in range(100):
      made.append(i)
      yield i

  items = Background(make(), ahead=2)
  deadline = time.monotonic() + 10
  while len(made) < 3 and time.monotonic() < deadline:
    time.sleep(0.01)
  time.sleep(0.05)
  assert len(made) == 3  # two wait, one cannot be put
  items.close()
  assert 'input' not in [thread.name for thread in threading.enumerate()]
  assert len(made) <= 4


def test_an_error_comes_where_it_happened_and_stays():
  def make():
    yield 1
    raise KeyError('broken')

  items = Background(make(), ahead=3)
  assert next(items) == 1
  for _ in range(2):
    with pytest.raises(KeyError, match='broken'):
      next(items)
  items.close()
