"""Ends the process at once, after undoing what others would wait for.

The standard library only: this is there before anything else is imported.
"""

import os
import sys
from collections.abc import Callable

_undo: list[Callable[[], None]] = []


def before(undo: Callable[[], None]) -> None:
  """Registers a function that `leave` calls first; it must not block."""
  if undo not in _undo:
    _undo.append(undo)


def leave(code: int) -> None:
  """Ends the process from any thread, whatever the main thread is doing.

  Neither `finally` blocks nor `atexit` functions run: they would wait for the
  main thread, which may be compiling for minutes.

  Args:
    code: the exit status.
  """
  for undo in _undo:
    try:
      undo()
    except Exception as error:  # nothing may keep the process from ending
      say(f'while leaving: {type(error).__name__}: {error}')
  for stream in (sys.stdout, sys.stderr):
    try:
      stream.flush()
    except (OSError, ValueError):
      pass
  os._exit(code)


def say(text: str) -> None:
  """A line on stderr, if anyone still listens there."""
  try:
    print(text, file=sys.stderr, flush=True)
  except (OSError, ValueError):  # the terminal is gone
    detach(2)


def detach(*descriptors: int) -> None:
  """Sends what is written to these file descriptors nowhere."""
  nowhere = os.open(os.devnull, os.O_WRONLY)
  for descriptor in descriptors:
    os.dup2(nowhere, descriptor)
  os.close(nowhere)
