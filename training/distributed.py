"""Several processes of one run: how they find each other and agree.

Every helper here is a collective: all processes call it, in the same order.
With one process it does nothing but pass its argument on.
"""

import collections
import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from training import sharding


def agree_any(flag: bool) -> bool:
  """Whether the flag is set on any process."""
  if jax.process_count() == 1:
    return flag
  flags = multihost_utils.process_allgather(np.array(flag))
  return bool(np.any(flags))


def gather(value: Any) -> list[Any]:
  """A plain value of every process, in their order, on every process."""
  if jax.process_count() == 1:
    return [value]
  data = pickle.dumps(value)
  sizes = multihost_utils.process_allgather(np.array(len(data), np.int32))
  padded = data.ljust(_round_up(int(sizes.max())), b'\0')
  rows = multihost_utils.process_allgather(np.frombuffer(padded, np.uint8))
  return [
    pickle.loads(row.tobytes()[:size])
    for row, size in zip(rows, sizes, strict=True)
  ]


def check_equal(value: Any, what: str) -> None:
  """Whether all processes have the same plain value.

  Args:
    value: what this process has.
    what: names it in the message.

  Raises:
    ValueError: on every process, where one differs from process 0.
  """
  values = gather(value)
  other = [i for i, there in enumerate(values) if there != values[0]]
  if other:
    raise ValueError(
      f'{what} differs between processes: {values[0]} on process 0, '
      f'{values[other[0]]} on process {other[0]}'
    )


def _round_up(size: int) -> int:
  """To a power of two: every other length would compile another program."""
  return 1 << max(10, (size - 1).bit_length())


def on_lead(fn: Callable[[], Any]) -> Any:
  """Runs a function on process 0; broadcasts its result or exception.

  For whatever is read and decided on shared storage: other processes may see
  an older state of it, and an error on one of them alone would leave the
  others waiting.

  Args:
    fn: returns plain data.

  Returns:
    What it returned, on every process.

  Raises:
    Exception: what it raised, on every process.
  """
  if jax.process_count() == 1:
    return fn()
  found = error = None
  if jax.process_index() == 0:
    try:
      found = fn()
    except Exception as raised:  # raised on every process, not only here
      error = raised
      outcome = pickle.dumps(_portable(raised))
    else:
      outcome = pickle.dumps(found)
  else:
    outcome = b''
  message = broadcast(outcome, error is not None)
  if error is not None:
    raise error
  if message[1]:
    raise pickle.loads(message[0])
  return pickle.loads(message[0])


def broadcast(data: bytes, flag: bool) -> tuple[bytes, bool]:
  """Process 0's bytes and flag, on every process."""
  head = np.array([len(data), flag], np.int32)
  size, flag = multihost_utils.broadcast_one_to_all(head)
  padded = data.ljust(_round_up(int(size)), b'\0')[: _round_up(int(size))]
  row = multihost_utils.broadcast_one_to_all(np.frombuffer(padded, np.uint8))
  return row.astype(np.uint8).tobytes()[:size], bool(flag)


def _portable(error: Exception) -> Exception:
  """An error that can be sent: itself, or its text."""
  try:
    pickle.loads(pickle.dumps(error))
  except Exception:  # of any kind: its constructor wants what is not known here
    return RuntimeError(f'{type(error).__name__}: {error}')
  return error


class Agreement:
  """Whether any process wants to leave: the same answer on all of them.

  Args:
    mesh: of the run.
    wanted: whether this process wants to.
  """

  def __init__(self, mesh: Mesh, wanted: Callable[[], bool]):
    self._wanted = wanted
    if jax.process_count() == 1:
      return
    rows, count = sharding.over_batch(mesh), jax.local_device_count()
    # On the devices already, so that a vote is nothing but a small program.
    self._ballots = {
      flag: jax.make_array_from_process_local_data(
        rows, np.full(count, flag), (mesh.size,)
      )
      for flag in (False, True)
    }
    self._any = jax.jit(jnp.any, out_shardings=sharding.replicated(mesh))
    # On CPUs every step is waited for; elsewhere two are in flight (loop.py).
    self._lag = 1 if jax.default_backend() == 'cpu' else 3
    self._votes = collections.deque()

  def after_step(self) -> bool:
    """Asked once per step, never waits for the steps that are in flight.

    The answer is that of two steps ago: a vote is a program on the devices
    behind the step, whose result is looked at when it is there anyway.
    """
    if jax.process_count() == 1:
      return self._wanted()
    self._votes.append(self._any(self._ballots[self._wanted()]))
    if len(self._votes) < self._lag:
      return False
    return bool(jax.device_get(self._votes.popleft()))

  def now(self) -> bool:
    """Asked between steps: waits for every process."""
    if jax.process_count() == 1:
      return self._wanted()
    return bool(jax.device_get(self._any(self._ballots[self._wanted()])))
