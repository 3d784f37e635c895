"""Work ahead of who needs it, on a thread."""

import queue
import threading
from collections.abc import Iterator
from typing import Any


class Background:
  """An iterator that a thread runs ahead of.

  Args:
    items: what to iterate over; an error of it is raised by `next`.
    ahead: how many items wait at most.
  """

  def __init__(self, items: Iterator, ahead: int):
    self._queue = queue.Queue(maxsize=ahead)
    self._stop, self._error = threading.Event(), None
    self._thread = threading.Thread(
      target=self._run, args=(items,), name='input', daemon=True
    )
    self._thread.start()

  def _run(self, items):
    try:
      for item in items:
        if not self._offer((item, None)):
          return
      self._offer((None, StopIteration()))
    except BaseException as error:  # it is the caller's
      self._offer((None, error))

  def _offer(self, entry) -> bool:
    while not self._stop.is_set():
      try:
        self._queue.put(entry, timeout=0.1)
        return True
      except queue.Full:
        pass
    return False

  def __next__(self) -> Any:
    if self._error is None:
      item, self._error = self._queue.get()
    if self._error is not None:
      raise self._error
    return item

  def close(self) -> None:
    """Ends the thread, after the item it is making."""
    self._stop.set()
    self._thread.join(timeout=10)  # storage may not answer for long
