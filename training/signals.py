"""Signals that stop a run: finish the step, save, leave.

The standard library only, and little of it: `main.py` listens before it imports
the rest, which takes seconds.
"""

import contextlib
import os
import signal
import stat
import threading
import time
from collections.abc import Iterator

from training import exits

EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: start me again
# Launchers and schedulers deliver one stop request by several signals.
BURST_SECONDS = 1.0
# What people, terminals and schedulers (SLURM, LSF, Grid Engine) stop a run
# with; not every system has all of them.
NAMES = ('SIGTERM', 'SIGINT', 'SIGHUP', 'SIGUSR1', 'SIGUSR2', 'SIGXCPU')
AGAIN = 'run the same command again to continue'


class Stopped(Exception):
  """The run was stopped by a signal after saving."""


class StopSignals:
  """Listens while it is entered.

  The first signal is remembered, so that the loop can save and leave; until
  `begin` there is nothing to save, and the process exits at once. A second one
  exits at once, without saving; the same one again within a second does not
  count, nor does SIGHUP beside another: service managers send both. SIGHUP
  stays ignored where it is ignored at the start, as under `nohup`.

  A thread listens, not only Python's handlers: those wait for the main thread,
  which may be compiling for minutes.

  Args:
    begun: whether there is something to save already.

  Attributes:
    received: the name of the signal that came, or None.
  """

  received: str | None = None

  def __init__(self, *, begun: bool = True):
    self._begun = begun
    self._first = None
    self._thread = None
    self._result = None

  def begin(self) -> None:
    """From now on there is something to save."""
    self._begun = True

  def end(self, code: int) -> None:
    """From now on all is done: a signal hastens the exit with this code."""
    self._result = code

  @contextlib.contextmanager
  def nothing_new(self) -> Iterator[None]:
    """Inside, there is nothing new to save: a signal ends the process at once.

    For what may take minutes before anything is learned, such as compiling.
    """
    begun, self._begun = self._begun, False
    try:
      yield
    finally:
      self._begun = begun

  def _on_signal(self, number, frame):
    del frame
    # What follows from it is the thread's; the loop may ask at once.
    self.received = self.received or signal.Signals(number).name
    if self.received == 'SIGHUP':
      _outlive_terminal()

  def _listen(self) -> None:
    while numbers := os.read(self._inbox, 64):
      for number in numbers:
        if number in self._old:
          self._note(number)

  def _note(self, number: int) -> None:
    now, name = time.monotonic(), signal.Signals(number).name
    if self._result is not None:
      exits.leave(self._result)
    if name == 'SIGHUP':
      _outlive_terminal()
    if self._first is None:
      self._first = number, now
      self.received = self.received or name
      if not self._begun:
        exits.say(f'{name}: nothing new to save; {AGAIN}')
        exits.leave(EXIT_STOPPED)
      exits.say(
        f'{name}: saving at the end of this step; once more to leave at once'
      )
    elif not self._burst(name, now):
      exits.say(f'{name} again: leaving without saving; {AGAIN}')
      exits.leave(128 + number)

  def _burst(self, name: str, now: float) -> bool:
    number, began = self._first
    first = signal.Signals(number).name
    return now - began <= BURST_SECONDS and (
      name == first or 'SIGHUP' in (name, first)
    )

  def __enter__(self):
    self._old = {}
    # Python lets only the main thread listen; elsewhere there is nothing to do.
    if threading.current_thread() is threading.main_thread():
      self._inbox, self._outbox = os.pipe()
      os.set_blocking(self._outbox, False)
      self._old_fd = signal.set_wakeup_fd(
        self._outbox, warn_on_full_buffer=False
      )
      for name in NAMES:
        number = signal.Signals.__members__.get(name)
        if number is None or (
          name == 'SIGHUP' and signal.getsignal(number) == signal.SIG_IGN
        ):
          continue
        self._old[number] = signal.signal(number, self._on_signal)
      self._thread = threading.Thread(target=self._listen, daemon=True)
      self._thread.start()
    return self

  def __exit__(self, *unused):
    if self._thread is not None:
      for number, handler in self._old.items():
        signal.signal(number, handler)
      signal.set_wakeup_fd(self._old_fd)
      os.close(self._outbox)  # ends the thread
      self._thread.join()
      os.close(self._inbox)


def _outlive_terminal() -> None:
  """Keeps later lines on the screen from failing where the terminal is gone."""
  for descriptor in (1, 2):
    try:
      status = os.fstat(descriptor)
      nowhere = status.st_rdev == os.stat(os.devnull).st_rdev
      terminal = stat.S_ISCHR(status.st_mode) and not nowhere
      if terminal and not os.isatty(descriptor):
        exits.detach(descriptor)
    except OSError:  # closed
      exits.detach(descriptor)


# Signals belong to the process, and so does the one who listens.
_listeners: list[StopSignals] = []


def listen() -> StopSignals:
  """Listens from now until the process ends; nothing is to be saved yet."""
  _listeners.append(StopSignals(begun=False).__enter__())
  return _listeners[-1]


@contextlib.contextmanager
def listening(*, begun: bool = True) -> Iterator[StopSignals]:
  """The listener of this process: a new one where nobody listens yet.

  Args:
    begun: of a new one: whether there is something to save already.

  Yields:
    The listener.
  """
  if _listeners:
    yield _listeners[-1]
    return
  with StopSignals(begun=begun) as listener:
    _listeners.append(listener)
    try:
      yield listener
    finally:
      _listeners.remove(listener)
