"""SIGTERM and SIGINT: finish the step, save, leave."""

import os
import signal
import sys
import threading

EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: start me again


class Stopped(Exception):
  """The run was stopped by a signal after saving."""


class StopSignals:
  """Listens while it is entered; the second signal exits at once.

  Attributes:
    received: the name of the signal that came, or None.
  """

  received: str | None = None

  def _on_signal(self, number, frame):
    del frame
    if self.received:
      os._exit(128 + number)
    self.received = signal.Signals(number).name
    print(
      f'{self.received}: saving at the end of this step; once more to leave '
      'at once',
      file=sys.stderr,
      flush=True,
    )

  def __enter__(self):
    self._old = {}
    # Python lets only the main thread listen; elsewhere there is nothing to do.
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._old[number] = signal.signal(number, self._on_signal)
    return self

  def __exit__(self, *unused):
    for number, handler in self._old.items():
      signal.signal(number, handler)
