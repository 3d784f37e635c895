"""Tells when nothing moves any more, and where it stands."""

import os
import platform
import sys
import threading
import time
import traceback

import jax

from training import exits

EXIT_HUNG = 70  # EX_SOFTWARE of sysexits.h: not a wish, a failure
COMPILING = 6  # a first step may take so many times longer


class Watchdog:
  """A thread that speaks when no work has ended for too long.

  It speaks again after twice the time, four times, and so on. Other processes
  that died are noticed without it; one that lives and does nothing is not.

  Args:
    seconds: of silence until it speaks; 0 never.
    limit: seconds after which the process exits with `EXIT_HUNG`, for a
      scheduler to start it again; 0 never.
  """

  def __init__(self, seconds: float, *, limit: float = 0):
    self._seconds, self._limit = seconds, limit
    self._ended = threading.Event()
    self._main = threading.get_ident()
    self._thread = None
    self.working('start')

  def working(self, on: str, *, allowance: float = 1) -> None:
    """Something ended, and this begins.

    Args:
      on: names it, for example 'step 12'.
      allowance: how many times longer it may take.
    """
    self._work = on, time.monotonic(), allowance

  def _watch(self) -> None:
    told, factor, hung = None, 1, 0.0
    while True:
      work = self._work
      if work is not told:
        told, factor = work, 1
      on, began, allowance = work
      age = time.monotonic() - began
      due = self._seconds * allowance * factor
      hung = self._limit * allowance
      if self._seconds and age >= due:
        print(self._report(on, age), file=sys.stderr, flush=True)
        factor *= 2
        continue
      if hung and age >= hung:
        print(
          f'watchdog: leaving with exit code {EXIT_HUNG} after {age:.0f} s: '
          f'config.hang_limit={self._limit:g}',
          file=sys.stderr,
          flush=True,
        )
        exits.leave(EXIT_HUNG)
      waits = [due - age] * bool(self._seconds) + [hung - age] * bool(hung)
      # Work that begins meanwhile may be due sooner than what is waited for.
      soonest = [seconds for seconds in (self._seconds, self._limit) if seconds]
      if self._ended.wait(min(waits + soonest)):
        return

  def _report(self, on: str, age: float) -> str:
    frame = sys._current_frames().get(self._main)
    stack = ''.join(traceback.format_stack(frame)) if frame else ''
    others = 'another process that is stuck or slow, ' * (
      jax.process_count() > 1
    )
    return (
      f'watchdog: {on} has not ended for {age:.0f} s (process '
      f'{jax.process_index()}, {platform.node()}, pid {os.getpid()}); likely: '
      f'{others}storage that does not answer, a long compilation, a hung '
      f'device. The main thread is here:\n{stack}'
    )

  def __enter__(self):
    if self._seconds or self._limit:
      self._thread = threading.Thread(target=self._watch, daemon=True)
      self._thread.start()
    return self

  def __exit__(self, *unused):
    self._ended.set()
    if self._thread is not None:
      self._thread.join()
