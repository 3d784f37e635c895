"""What processes tell each other."""

import sys

import pytest
from jobs import Job

from training import distributed, sharding

TOGETHER = """
from training import cluster
cluster.initialize()

import jax
from training import distributed, sharding

me, count = jax.process_index(), jax.process_count()
assert count == 3
last = me == count - 1
assert distributed.agree_any(last)
assert not distributed.agree_any(False)
long = {'text': 'x' * 5000 * me, 'me': me}
assert distributed.gather(long) == [
  {'text': 'x' * 5000 * i, 'me': i} for i in range(3)
]

called = []
def call():
  called.append(me)
  return [me, 'yes']

assert distributed.on_lead(call) == [0, 'yes']
assert called == ([0] if me == 0 else [])

class OddError(Exception):
  def __init__(self, one, two):
    super().__init__(one + two)

def fail(error):
  raise error

for error in (ValueError('one line'), OddError('one ', 'line')):
  try:
    distributed.on_lead(lambda: fail(error))
  except Exception as raised:
    assert 'one line' in str(raised), raised
  else:
    raise AssertionError('nothing was raised')

distributed.check_equal([1, 'a'], 'nothing')
try:
  distributed.check_equal([1, 'b' if last else 'a'], 'the list')
except ValueError as error:
  assert "the list differs between processes: [1, 'a'] on process 0" in str(
    error
  )
  assert "[1, 'b'] on process 2" in str(error)
else:
  raise AssertionError('nothing was raised')

wanted = False
leave = distributed.Agreement(sharding.make_mesh(), lambda: wanted)
assert not leave.now() and not leave.after_step()
wanted = last
assert leave.now() and leave.after_step()
leave._lag, wanted = 3, False  # as on accelerators
found = []
for step in range(6):
  wanted = last and step == 2
  found.append(leave.after_step())
assert found == [False] * 4 + [True, False], found
assert len(cluster.describe().splitlines()) == 4
"""


def test_alone_everything_is_as_it_is():
  assert distributed.agree_any(True) is True
  assert distributed.agree_any(False) is False
  assert distributed.gather('me') == ['me']
  assert distributed.on_lead(lambda: [1]) == [1]
  with pytest.raises(KeyError, match='gone'):
    distributed.on_lead(lambda: {}['gone'])
  wanted = [False]
  leave = distributed.Agreement(sharding.make_mesh(), lambda: wanted[0])
  assert not leave.now() and not leave.after_step()
  wanted[0] = True
  assert leave.now() and leave.after_step()


def test_three_processes_agree(tmp_path):
  job = Job(tmp_path, [[sys.executable, '-c', TOGETHER]] * 3)
  assert job.wait() == [0, 0, 0], job.err()
