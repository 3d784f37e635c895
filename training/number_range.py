"""Ranges of numbers: what a field of a config may hold, and in words."""

import dataclasses
import math
import numbers
from collections.abc import Sequence
from typing import Any

LARGEST = 2.0**127  # float32 holds it, and twice as much is infinite
SMALLEST = 2.0**-126  # float32 flushes what is smaller to 0
WHOLE_LIMIT = 2**31
# How many numbers a field has; None is a number that is not in a tuple.
ONE = (None,)
PAIR = (2,)
SOME = range(1, 1024)
ANY = range(1024)
ONE_OR_SOME = (None, *SOME)
ONE_OR_PAIR = (None, 2)


@dataclasses.dataclass(frozen=True)
class Range:
  """What a number of a config must be, or each of several.

  Attributes:
    low: the smallest.
    high: the largest.
    above: whether `low` itself is excluded.
    below: whether `high` itself is excluded.
    whole: whether it is an integer.
    counts: how many numbers the field holds, see `ONE`.
    rising: whether each is at least the one before it.
    words: words that the field may hold in place of numbers.
  """

  low: float = -math.inf
  high: float = math.inf
  above: bool = False
  below: bool = False
  whole: bool = False
  counts: Sequence[int | None] = ONE
  rising: bool = False
  words: tuple[str, ...] = ()

  def __str__(self) -> str:
    """The range in words, to stand after 'must be'."""
    digits = '.10g'  # 2**32 - 1 in full
    low, high = f'{self.low:{digits}}', f'{self.high:{digits}}'
    bounds = []
    if math.isfinite(self.low):
      bounds.append(f'{"above" if self.above else "at least"} {low}')
    if math.isfinite(self.high):
      bounds.append(f'{"below" if self.below else "at most"} {high}')
    if len(bounds) == 2 and not self.above and not self.below:
      bounds = [f'within {low}..{high}']
    if not self.whole and math.isinf(self.high):
      bounds.append('finite in float32')
    text = ' and '.join(bounds)
    if self.whole:
      limit = ' below 2**31' if math.isinf(self.high) else ''
      kind = f'a whole number{limit}'
      text = f'{text} ({kind})' if text else kind
    return text + self._how_many()

  def _how_many(self) -> str:
    text = ''
    if None not in self.counts:
      exact = f'of {self.counts[0]} numbers' if len(self.counts) == 1 else ''
      text = f', each {exact or "number of a tuple"}'
    elif len(self.counts) == 2:
      text = ', one number or two'
    if self.rising:
      text += ', none below the one before it'
    if self.words:
      text += f', or {" or ".join(map(repr, self.words))}'
    return text

  def holds(self, value: Any) -> bool:
    """Whether the value of a field is within the range; None is."""
    if value is None or (isinstance(value, str) and value in self.words):
      return True
    if isinstance(value, tuple | list):
      if len(value) not in self.counts or not all(map(self._has, value)):
        return False
      return not self.rising or list(value) == sorted(value)
    return None in self.counts and self._has(value)

  def _has(self, x: Any) -> bool:
    kind = numbers.Integral if self.whole else numbers.Real
    if isinstance(x, bool) or not isinstance(x, kind):
      return False
    if self.whole and self.high == math.inf and not abs(x) < WHOLE_LIMIT:
      return False
    if not self.whole and not abs(x) <= LARGEST:  # nan and infinities too
      return False
    if self.above and self.low == 0 and x < SMALLEST:
      return False
    low = self.low < x if self.above else self.low <= x
    high = x < self.high if self.below else x <= self.high
    return low and high


# Numbers, and whole ones: how many there are of something.
FINITE = Range()
AT_LEAST_0 = Range(0)
ABOVE_0 = Range(0, above=True)
SHARE = Range(0, 1)
PART = Range(0, 1, above=True)
BELOW_1 = Range(0, 1, below=True)
INSIDE = Range(0, 1, above=True, below=True)
COUNT = Range(1, whole=True)
COUNT_OR_0 = Range(0, whole=True)
SIDES = dataclasses.replace(COUNT, counts=ONE_OR_PAIR)
COUNTS = dataclasses.replace(COUNT, counts=ONE_OR_SOME)
LIST_OF_COUNTS = dataclasses.replace(COUNT, counts=SOME)


def several(each: Range, counts: Sequence, *, rising: bool = False) -> Range:
  """As `each`, of several numbers; see `Range.counts` and `Range.rising`."""
  return dataclasses.replace(each, counts=counts, rising=rising)


MEAN = several(SHARE, ONE_OR_SOME)  # of images in [0, 1], by channel
STD = several(PART, ONE_OR_SOME)
