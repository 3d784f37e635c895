"""Lines of a table: what the runs of one variant came to, beside its base."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.rows import Row

COLUMNS = dict(
  name='row',
  variant='',
  encoder='encoder here',
  accuracy='top-1, %',
  gain='gain',
  seconds='s/step',
  overhead='time / base',
  training='s, all steps',
  paper='paper',
  paper_gain='paper, gain',
  seeds='seeds',
)


def line(
  row: Row, variant: str, found: Mapping[str, Sequence[Any]], metric: str
) -> dict[str, Any]:
  """One line of the result.

  Args:
    row: of a table.
    variant: of the row.
    found: {variant: summary by seed, None where a run is missing}.
    metric: what is tabulated.

  Returns:
    See `COLUMNS`, and the numbers behind them.
  """
  base = next(iter(row.variants))
  values, bases = (_values(found[v], metric) for v in (variant, base))
  gains = [a - bases[seed] for seed, a in values.items() if seed in bases]
  seconds, reference = (
    _median(found[v], 'seconds_per_step') for v in (variant, base)
  )
  paper, paper_base = row.paper.get(variant), row.paper.get(base)
  training = _median(found[variant], 'training_seconds')
  out = dict(
    name=row.name,
    variant=variant,
    values=values,
    gains=gains,
    seeds=len(values),
    seconds_per_step=seconds,
    accuracy=_spread(list(values.values())),
    seconds=seconds and f'{seconds:.3g}',
    training=training and round(training),
    paper=paper,
  )
  if variant != base:
    out['gain'] = _spread(gains, sign='+')
    if paper is not None and paper_base is not None:
      out['paper_gain'] = f'{paper - paper_base:+.1f}'
    if seconds and reference:
      out['overhead'] = round(seconds / reference, 3)
  return out


def _values(summaries: Sequence[Any], metric: str) -> dict[int, float]:
  return {
    seed: summary[metric]
    for seed, summary in enumerate(summaries)
    if summary and metric in summary
  }


def _median(summaries: Sequence[Any], field: str) -> float | None:
  """The median over seeds."""
  found = [one[field] for one in summaries if one and field in one]
  return statistics.median(found) if found else None


def _spread(values: Sequence[float], sign: str = '') -> str | None:
  if not values:
    return None
  mean = f'{statistics.mean(values):{sign}.2f}'
  if len(values) == 1:
    return mean
  return f'{mean} ± {statistics.stdev(values):.2f}'
