r"""The papers' comparisons: RePre's tables 1, 4 and 5, LocalMIM, MR-MAE.

  python -m benchmarks.table --preset=photos --seeds=3 --out=runs/table
  python -m benchmarks.table --preset=imagenet2012 --data_dir=TFDS_FOLDER \
    --rows=table1/moby --seeds=2 --out=runs/moby

Every run is `python main.py` in a workdir of its own under `--out`, so that
calling this again continues where it stopped, adds seeds or rows, and repeats
nothing; runs that tables share are made once. `table.md` and `table.json` are
written after every run: accuracy (mean and standard deviation over seeds), the
gain over the row's first variant with the same seed, seconds per step and their
ratio, and the seconds of all steps, without start, compilation and evaluation:
what methods that take unequal steps are compared by. At equal seconds, not
epochs, rows named `time` have several lengths of each. Beside it the paper's
numbers where there are any: linear probes of RePre's, fine-tuned ones of the
masked methods'. The accuracy is that of the runs' own k-NN or, after each run,
the best of a sweep of linear probes (`--probe=linear`) or the fine-tuned
encoder's (`--probe=finetune`).

MR-MAE's teachers are runs too, with the same seed, made before the runs that
need them; `--teacher` names a run or a file of others' weights (CLIP, DINO) in
the place of the default one. A preset stands for data, encoders and length: see
`benchmarks/rows.py` and the configs; the rows are in
`benchmarks/paper_tables.py` and `benchmarks/masked_tables.py`.
"""

import json
import pathlib
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from benchmarks import machine, masked_tables, paper_tables
from benchmarks.rows import PRESETS, Preset, Row
from benchmarks.table_jobs import PROBES, Job, job
from benchmarks.table_lines import COLUMNS, line
from benchmarks.table_runs import EXIT_STOPPED, Runs, remaining
from input_pipeline.paths import expand
from training import letters

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
  'probe', 'knn', ['knn', *PROBES], 'What is tabulated.', **OWN
)
TEACHER = flags.DEFINE_string(
  'teacher', None, "MR-MAE's: a run, or a file of others' weights.", **OWN
)
LIST = flags.DEFINE_bool('list', False, 'Tell the runs and end.', **OWN)
OUT = flags.DEFINE_string('out', 'runs/table', 'Folder of all runs.', **OWN)

ROWS = (*paper_tables.ROWS, *masked_tables.ROWS)


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


class Table:
  """All runs of some rows, and what they came to.

  Args:
    rows: of the tables.
    preset: where they run.
    seeds: runs of each variant.
    out: folder of all runs.
    extra: 'field=value' of the config, for every run.
    probe: 'knn', measured by the run itself, or a key of PROBES.
    teacher: a run or a file; see `table_runs.job`.
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
    teacher: str | None = None,
  ):
    self._out, self._preset = out, preset
    self._metric = f'{probe}_top1'
    self._runs = Runs(out)
    more = dict(probe=probe if probe in PROBES else '', teacher=teacher)
    self._cells = {
      (row, variant): [
        job(row, variant, s, preset, extra, **more) for s in range(seeds)
      ]
      for row in rows
      for variant in _variants(row, teacher)
    }
    self._own = {one.name: one for cell in self._cells.values() for one in cell}

  @property
  def jobs(self) -> list[Job]:
    """All runs in their order: seed by seed, what a run needs before it.

    So a table that is cut short has all its rows. Runs that are needed and in
    no row are left out once those that need them have ended.
    """
    out: dict[str, Job] = {}
    for task in sorted(self._own.values(), key=lambda one: one.seed):
      for _, needed in () if self._runs.trained(task) else task.needs:
        out.setdefault(needed.name, self._own.get(needed.name, needed))
      out.setdefault(task.name, task)
    return list(out.values())

  def lines(self) -> list[dict[str, Any]]:
    """The table so far."""
    found = {
      cell: [self._runs.finished(task) for task in tasks]
      for cell, tasks in self._cells.items()
    }
    return [
      line(row, variant, self._of(row, found), self._metric)
      | dict(encoder=self._preset.encoders[_encoder(row, variant)])
      for row, variant in self._cells
    ]

  def _of(self, row: Row, found: Mapping[Any, Any]) -> dict[str, Any]:
    return {
      v: found[cell] for cell in found if cell[0] is row for v in cell[1:]
    }

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
      part.write_text(f'{text}\n', encoding='utf-8')
      part.rename(self._out / name)

  def run(self) -> list[str]:
    """Runs what is missing; returns what went wrong.

    Raises:
      KeyboardInterrupt: stopped, by the user or by a signal to a run.
    """
    self._out.mkdir(parents=True, exist_ok=True)
    jobs = self.jobs
    summaries = [(task, self._runs.finished(task)) for task in jobs]
    done = [(task, found['seconds']) for task, found in summaries if found]
    left = [task for task, found in summaries if not found]
    errors = []
    while left:
      task, number = left[0], len(jobs) - len(left) + 1
      where = f'{number}/{len(jobs)} {task.name}'
      print(f'{where} (left: {remaining(done, left)})', file=sys.stderr)
      missing = self._runs.missing(task)
      code = 1 if missing else self._runs.execute(task, Ticker())
      if code == EXIT_STOPPED:
        raise KeyboardInterrupt
      left.pop(0)
      if code:
        errors.append(missing or self._runs.error(task))
        print(errors[-1], file=sys.stderr)
      else:
        done.append((task, self._runs.finished(task)['seconds']))
      self.write()
    self.write()
    return errors


def _variants(row: Row, teacher: str | None) -> list[str]:
  """Those of a row, less what only a file that was named can teach."""
  return [
    name
    for name, variant in row.variants.items()
    if teacher or variant.teachers != masked_tables.GIVEN
  ]


def _encoder(row: Row, variant: str) -> str:
  return row.variants[variant].encoder or row.encoder


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
  out = pathlib.Path(expand(OUT.value))
  table = Table(
    select(ROWS_FLAG.value, preset),
    preset,
    seeds=SEEDS.value,
    out=out,
    extra=extra,
    probe=PROBE.value,
    teacher=TEACHER.value,
  )
  if LIST.value:
    for task in table.jobs:
      needs = (f'--config.{k}={out / one.name}' for k, one in task.needs)
      print(task.name, *task.options, *needs)
    return 0
  errors = table.run()
  print(f'\n{(out / "table.md").read_text(encoding="utf-8")}')
  for error in errors:
    print(error, file=sys.stderr)
  return 1 if errors else 0


def _interrupt(*_) -> None:
  raise KeyboardInterrupt


if __name__ == '__main__':
  signal.signal(signal.SIGTERM, _interrupt)
  letters.accept_any_encoding()
  try:
    sys.exit(main(sys.argv))
  except (flags.Error, ValueError) as error:
    sys.exit(f'error: {error}')
  except KeyboardInterrupt:
    print('stopped; the same command continues', file=sys.stderr)
    sys.exit(EXIT_STOPPED)
