"""What a person reads while a job runs: lines on stderr that fit a terminal."""

import itertools
import logging
import shutil
import sys
import textwrap
from collections.abc import Mapping

import jax
import tqdm

from training import letters
from training.metric_names import metric, value_text

WIDTH = 100  # columns of a report, or those of a narrower terminal
FIELDS = 8  # of a report, the step included

# The fields of a training report, in the order of the screen; everything else
# is in metrics.jsonl and TensorBoard. A `*` stands for any ending, `left` for
# the time to the end of the run.
TRAINING = (
  'loss',
  'bad_steps',
  'replaced',
  'loss_*',
  'lr',
  'train_top1',
  'contrast_accuracy',
  'effective_rank',
  'images_per_second',
  'left',
)
# Which of them give way, the first ones first, where there are more than
# `FIELDS` or than the terminal has columns for.
GIVE_WAY = (
  'effective_rank',
  'contrast_accuracy',
  'loss_*',
  'train_top1',
  'images_per_second',
  'lr',
  'replaced',
  'bad_steps',
  'left',
)
ALARMS = ('bad_steps', 'replaced')  # shown where they are not zero
# The fields of an evaluation's report; other measurements follow, and the last
# ones give way.
EVALUATION = (
  'top1',
  'knn_top1',
  'knn_untrained',
  'knn_raw_pixels',
  'knn_histogram',
  'probe_top1',
  'top5',
  'knn_top5',
  'probe_top5',
)


def columns() -> int:
  """How wide a line may be: `WIDTH`, or a narrower terminal's columns."""
  if not sys.stderr.isatty():
    return WIDTH
  return min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns - 1)


def say(text: str) -> None:
  """A line on stderr, of process 0 alone, that does not tear a bar."""
  if jax.process_index() == 0:
    tqdm.tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()


def note(text: str) -> None:
  """As `say`; lines that are too wide are broken between words."""
  lines = (
    textwrap.wrap(
      line,
      columns(),
      subsequent_indent=' ' * (len(line) - len(line.lstrip()) + 2),
      break_long_words=False,  # paths and options are there to be copied
      break_on_hyphens=False,
    )
    or ['']
    for line in text.splitlines()
  )
  say('\n'.join(itertools.chain.from_iterable(lines)))


def duration(seconds: float) -> str:
  """'h:mm:ss'."""
  seconds = int(seconds)
  return f'{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}'


def report_line(
  step: int,
  total: int,
  scalars: Mapping[str, float],
  left: float | None = None,
) -> str:
  """One report as a line of at most `FIELDS` fields and `columns()` columns.

  Args:
    step: of the report.
    total: last step of the run.
    scalars: metrics by key; of a training step where `loss` is among them.
    left: seconds to the end of the run, if known.
  """
  training = 'loss' in scalars
  fields = _training(scalars, left) if training else _evaluation(scalars)
  head = f'step {step}/{total}'

  def line():
    return ' | '.join((head, *fields.values()))

  while len(fields) > 1 and (
    len(fields) + 1 > FIELDS or len(line()) > columns()
  ):
    del fields[_weakest(fields) if training else list(fields)[-1]]
  return line()


def _training(
  scalars: Mapping[str, float], left: float | None
) -> dict[str, str]:
  """{key: text} of `TRAINING`, in its order."""
  out = {}
  for pattern in TRAINING:
    for key in (key for key in scalars if _matches(key, pattern)):
      if key not in out and not (key in ALARMS and scalars[key] == 0):
        out[key] = _field(key, scalars[key])
    if pattern == 'left' and left is not None:
      out['left'] = f'{duration(left)} left'
  return out


def _evaluation(scalars: Mapping[str, float]) -> dict[str, str]:
  """{key: text} of `EVALUATION`, then all others but one of many of a kind."""
  others = (key for key in scalars if '/' not in key)
  keys = dict.fromkeys(
    (*(key for key in EVALUATION if key in scalars), *others)
  )
  return {key: _field(key, scalars[key]) for key in keys}


def _field(key: str, value: float) -> str:
  if key == 'images_per_second':
    return f'{value:,.{0 if value >= 10 else 1}f} images/s'
  return f'{metric(key).short} {value_text(key, value)}'


def _matches(key: str, pattern: str) -> bool:
  if pattern.endswith('*'):
    return key.startswith(pattern[:-1]) and '/' not in key
  return key == pattern


def _weakest(fields: Mapping[str, str]) -> str:
  for pattern in GIVE_WAY:
    for key in reversed(fields):
      if _matches(key, pattern):
        return key
  return list(fields)[-1]


class _Warnings(logging.Handler):
  """Log records as lines like all others: 'WARNING: message'."""

  def emit(self, record: logging.LogRecord) -> None:
    try:
      text = f'{record.levelname}: {record.getMessage()}'
      tqdm.tqdm.write(text, file=sys.stderr)
    except Exception:  # as `logging.StreamHandler` does
      self.handleError(record)


def set_up() -> None:
  """Prepares a process's output; a second call changes nothing.

  Warnings become lines as all others are, and letters that the encoding of a
  stream lacks (ASCII, Windows-1252) are written in ASCII instead of raising
  UnicodeEncodeError.
  """
  letters.accept_any_encoding()
  root = logging.getLogger()
  for handler in list(root.handlers):
    # Of `basicConfig`, which a library calls when it is imported: its lines
    # would be the same ones again. Others' handlers stay.
    if type(handler) is logging.StreamHandler or isinstance(handler, _Warnings):
      root.removeHandler(handler)
  root.addHandler(_Warnings())
