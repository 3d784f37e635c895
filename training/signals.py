"""SIGTERM and SIGINT: finish the step, save, leave."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: start me again
# Launchers and schedulers pass one wish on several ways at once.
BURST_SECONDS = 1.0


class Stopped(Exception):
  """The run was stopped by a signal after saving."""


class StopSignals:
  """Listens while it is entered.

  The first signal is remembered, so that the loop can save and leave; until
  `begin` there is nothing to save, and the process exits at once. A second one
  exits at once, without saving; the same one again within a second does not
  count.

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

  def begin(self) -> None:
    """From now on there is something to save."""
    self._begun = True

  def _on_signal(self, number, frame):
    del frame
    # What follows from it is the thread's; the loop may ask at once.
    self.received = self.received or signal.Signals(number).name

  def _listen(self) -> None:
    while numbers := self._inbox.recv(64):
      for number in numbers:
        if number in self._old:
          self._note(number)

  def _note(self, number: int) -> None:
    now, name = time.monotonic(), signal.Signals(number).name
    if self._first is None:
      self._first = number, now
      self.received = self.received or name
      if not self._begun:
        _leave(f'{name}: nothing to save yet', EXIT_STOPPED)
      _tell(
        f'{name}: saving at the end of this step; once more to leave at once'
      )
    elif number != self._first[0] or now - self._first[1] > BURST_SECONDS:
      _leave(f'{name} again: leaving without saving', 128 + number)

  def __enter__(self):
    self._old = {}
    # Python lets only the main thread listen; elsewhere there is nothing to do.
    if threading.current_thread() is threading.main_thread():
      self._inbox, self._outbox = socket.socketpair()
      self._outbox.setblocking(False)
      self._old_fd = signal.set_wakeup_fd(
        self._outbox.fileno(), warn_on_full_buffer=False
      )
      for number in (signal.SIGTERM, signal.SIGINT):
        self._old[number] = signal.signal(number, self._on_signal)
      self._thread = threading.Thread(target=self._listen, daemon=True)
      self._thread.start()
    return self

  def __exit__(self, *unused):
    if self._thread is not None:
      for number, handler in self._old.items():
        signal.signal(number, handler)
      signal.set_wakeup_fd(self._old_fd)
      self._outbox.close()  # ends the thread
      self._thread.join()
      self._inbox.close()


def _tell(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def _leave(text: str, code: int) -> None:
  # The main thread may be far inside a library: nothing else ends it surely.
  _tell(text)
  sys.stdout.flush()
  os._exit(code)


# Signals belong to the process, and so does the one who listens.
_listeners: list[StopSignals] = []


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
