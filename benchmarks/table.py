r"""RePre's tables 1, 4 and 5: base against +RePre with equal seeds, probed.

  python -m benchmarks.table --preset=photos --seeds=3 --out=runs/table
  python -m benchmarks.table --preset=imagenet2012 --data_dir=TFDS_FOLDER \
    --rows=table1/moby --seeds=2 --out=runs/moby

Every run is `python main.py` in a workdir of its own under `--out`, so that
calling this again continues where it stopped, adds seeds or rows, and repeats
nothing; runs that tables share are made once. `table.md` and `table.json` are
written after every run: accuracy (mean and standard deviation over seeds), the
gain over the base with the same seed, seconds per step and their ratio, beside
the paper's numbers. The accuracy is that of the runs' own k-NN or, with
`--probe=linear`, the best of a sweep of linear probes after each run. A preset
stands for data, encoders and length; what it changes is in
`benchmarks/paper_tables.py` and in the configs.
"""

import json
import pathlib
import signal
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from benchmarks import machine
from benchmarks.paper_tables import PRESETS, ROWS, Preset, Row
from benchmarks.table_runs import EXIT_STOPPED, Runs, job, remaining

FLAGS = flags.FlagValues()  # of its own, as in `benchmarks.step`
OWN = dict(flag_values=FLAGS)
PRESET = flags.DEFINE_enum('preset', 'photos', list(PRESETS), 'Where.', **OWN)
SEEDS = flags.DEFINE_integer(
  'seeds', 2, 'Seeds 0, 1, ... of each run.', lower_bound=1, **OWN
)
ROWS_FLAG = flags.DEFINE_list(
  'rows', None, 'Only rows whose names begin so: table1,table5/moco_v3.', **OWN
)
DATA_DIR = flags.DEFINE_string(
  'data_dir', None, "The config's data.data_dir.", **OWN
)
SET = flags.DEFINE_multi_string(
  'set', [], 'field=value of the config, for every run.', **OWN
)
PROBE = flags.DEFINE_enum(
  'probe', 'knn', ['knn', 'linear'], 'What is tabulated.', **OWN
)
LIST = flags.DEFINE_bool('list', False, 'Tell the runs and end.', **OWN)
OUT = flags.DEFINE_string('out', 'runs/table', 'Folder of all runs.', **OWN)

COLUMNS = dict(
  name='row',
  variant='',
  encoder='encoder here',
  accuracy='top-1, %',
  gain='gain',
  seconds='s/step',
  overhead='time / base',
  paper='paper',
  paper_gain='paper, gain',
  seeds='seeds',
)


def select(words: Sequence[str] | None, preset: Preset) -> list[Row]:
  """The rows whose names begin with one of the words.

  Raises:
    ValueError: a word that selects nothing.
  """
  rows = [row for row in ROWS if row.encoder in preset.encoders]
  for word in words or ():
    if not any(row.name.startswith(word) for row in rows):
      known = '\n  '.join(row.name for row in rows)
      raise ValueError(f'--rows={word} selects nothing; rows:\n  {known}')
  return [row for row in rows if not words or row.name.startswith(tuple(words))]


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
  seconds, reference = (_seconds(found[v]) for v in (variant, base))
  paper = row.paper[variant]
  out = dict(
    name=row.name,
    variant=variant,
    values=values,
    gains=gains,
    seeds=len(values),
    seconds_per_step=seconds,
    accuracy=_spread(list(values.values())),
    seconds=seconds and f'{seconds:.3g}',
    paper=paper,
  )
  if variant != base:
    out['gain'] = _spread(gains, sign='+')
    out['paper_gain'] = f'{paper - row.paper[base]:+.1f}'
    if seconds and reference:
      out['overhead'] = round(seconds / reference, 3)
  return out


def _values(summaries: Sequence[Any], metric: str) -> dict[int, float]:
  return {
    seed: summary[metric]
    for seed, summary in enumerate(summaries)
    if summary and metric in summary
  }


def _seconds(summaries: Sequence[Any]) -> float | None:
  """Seconds per step: the median over seeds."""
  speeds = [
    summary['batch_size'] / summary['images_per_second']
    for summary in summaries
    if summary and 'images_per_second' in summary
  ]
  return statistics.median(speeds) if speeds else None


def _spread(values: Sequence[float], sign: str = '') -> str | None:
  if not values:
    return None
  mean = f'{statistics.mean(values):{sign}.2f}'
  if len(values) == 1:
    return mean
  return f'{mean} ± {statistics.stdev(values):.2f}'


class Table:
  """All runs of some rows, and what they came to.

  Args:
    rows: of the tables.
    preset: where they run.
    seeds: runs of each variant.
    out: folder of all runs.
    extra: 'field=value' of the config, for every run.
    probe: 'knn', measured by the run itself, or 'linear', a sweep of linear
      probes after it.
  """

  def __init__(
    self,
    rows: Sequence[Row],
    preset: Preset,
    *,
    seeds: int,
    out: pathlib.Path,
    extra: Sequence[str] = (),
    probe: str = 'knn',
  ):
    self._out, self._preset = out, preset
    self._metric = f'{probe}_top1'
    self._runs = Runs(out)
    self._cells = {
      (row, variant): [
        job(row, variant, s, preset, extra, probed=probe == 'linear')
        for s in range(seeds)
      ]
      for row in rows
      for variant in row.variants
    }
    jobs = {one.name: one for cell in self._cells.values() for one in cell}
    # Seed by seed: a table that is cut short has all its rows.
    self.jobs = sorted(jobs.values(), key=lambda one: one.seed)

  def lines(self) -> list[dict[str, Any]]:
    """The table so far."""
    found = {
      cell: [self._runs.finished(task) for task in tasks]
      for cell, tasks in self._cells.items()
    }
    return [
      line(row, variant, {v: found[row, v] for v in row.variants}, self._metric)
      | dict(encoder=self._preset.encoders[row.encoder])
      for row, variant in self._cells
    ]

  def write(self) -> None:
    """`table.json` and `table.md`, each whole or not at all."""
    lines = self.lines()
    title = f'{self._preset.data}, {self._metric}'
    texts = {
      'table.json': json.dumps(dict(title=title, lines=lines), indent=2),
      'table.md': f'{title}\n\n{machine.table(lines, COLUMNS)}',
    }
    for name, text in texts.items():
      part = self._out / f'{name}.part'
      part.write_text(f'{text}\n')
      part.rename(self._out / name)

  def run(self) -> list[str]:
    """Runs what is missing; returns what went wrong.

    Raises:
      KeyboardInterrupt: stopped, by the user or by a signal to a run.
    """
    self._out.mkdir(parents=True, exist_ok=True)
    summaries = [(task, self._runs.finished(task)) for task in self.jobs]
    done = [(task, found['seconds']) for task, found in summaries if found]
    left = [task for task, found in summaries if not found]
    errors = []
    while left:
      task, number = left[0], len(self.jobs) - len(left) + 1
      where = f'{number}/{len(self.jobs)} {task.name}'
      print(f'{where} (left: {remaining(done, left)})', file=sys.stderr)
      code = self._runs.execute(task, Ticker())
      if code == EXIT_STOPPED:
        raise KeyboardInterrupt
      left.pop(0)
      if code:
        errors.append(self._runs.error(task))
        print(errors[-1], file=sys.stderr)
      else:
        done.append((task, self._runs.finished(task)['seconds']))
      self.write()
    self.write()
    return errors


class Ticker:
  """Shows how far a run is, in one line of the terminal."""

  def __init__(self):
    self._shown = ''

  def __call__(self, text: str) -> None:
    """Replaces the line if the text is new."""
    if text != self._shown and sys.stderr.isatty():
      print(f'\r\033[K  {text}', end='\r', file=sys.stderr, flush=True)
      self._shown = text


def main(argv: Sequence[str]) -> int:
  """Runs what the flags say.

  Args:
    argv: of the process.

  Returns:
    The exit code: 1 if a run failed.

  Raises:
    flags.Error: unknown flags.
    ValueError: rows that do not exist.
  """
  if '--help' in argv:
    print(__doc__, FLAGS.get_help(), sep='\n')
    return 0
  if words := FLAGS(argv)[1:]:
    raise flags.Error(f'unexpected words {words}: options begin with --')
  preset, extra = PRESETS[PRESET.value], list(SET.value)
  if DATA_DIR.value:
    extra.append(f'data.data_dir={DATA_DIR.value}')
  out = pathlib.Path(OUT.value)
  table = Table(
    select(ROWS_FLAG.value, preset),
    preset,
    seeds=SEEDS.value,
    out=out,
    extra=extra,
    probe=PROBE.value,
  )
  if LIST.value:
    for task in table.jobs:
      print(task.name, *task.options)
    return 0
  errors = table.run()
  print(f'\n{(out / "table.md").read_text()}')
  for error in errors:
    print(error, file=sys.stderr)
  return 1 if errors else 0


def _interrupt(*_) -> None:
  raise KeyboardInterrupt


if __name__ == '__main__':
  signal.signal(signal.SIGTERM, _interrupt)
  try:
    sys.exit(main(sys.argv))
  except (flags.Error, ValueError) as error:
    sys.exit(f'error: {error}')
  except KeyboardInterrupt:
    print('stopped; the same command continues', file=sys.stderr)
    sys.exit(EXIT_STOPPED)
