"""Images that cannot be read: named once, a few of them, and counted."""

import weakref
from collections.abc import Mapping
from typing import Any

from absl import logging

from input_pipeline.source import Source

NAMED = 50  # of a source
WINDOW = 1000  # images before the share of unreadable ones means something
_told = weakref.WeakKeyDictionary()


def tell(source: Source, index: int, error: Exception) -> None:
  """Says in the log what cannot be read, once for each image.

  Args:
    source: the data set.
    index: of the image.
    error: why.
  """
  told = _told.setdefault(source, set())
  if index in told or len(told) > NAMED:
    return
  told.add(index)
  if len(told) > NAMED:
    logging.warning('%s: more images cannot be read', source.name)
  else:
    logging.warning('%r cannot be read: %s', source.where(index), error)


class Unreadable:
  """Ends a run of which too many images cannot be read.

  Args:
    config: read here: `batch_size`, `log_every`, `data.max_unreadable`.
    size: number of training images.
  """

  def __init__(self, config: Any, size: int):
    self._allowed = config.data.max_unreadable
    self._batch_size = config.batch_size
    self._per_report = config.log_every * config.batch_size
    self._needed = min(size // config.batch_size * config.batch_size, WINDOW)
    self._seen = self._replaced = 0.0

  def check(self, scalars: Mapping[str, float]) -> None:
    """Looks at a report.

    One image may not end a run, so nothing is said before some images, or all
    of them, have been seen.

    Args:
      scalars: of a report: 'replaced' is the mean per step.

    Raises:
      ValueError: more than the config allows, of all images since the start.
    """
    share = scalars.get('replaced', 0.0) / self._batch_size
    self._seen += self._per_report
    self._replaced += share * self._per_report
    share = self._replaced / self._seen
    if self._seen >= self._needed and share > self._allowed:
      raise ValueError(
        f'{share:.1%} of {self._seen:,.0f} images could not be read, more than '
        f'config.data.max_unreadable={self._allowed:.1%}; run '
        '--config.task=check_data to see which'
      )
