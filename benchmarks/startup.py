r"""From the command to the first step: with an empty and with a warm cache.

  python -m benchmarks.startup --config=configs/quickstart.py
  python -m benchmarks.startup --config=configs/quickstart.py --imports

Starts `python main.py` twice in new workdirs that share a new compilation
cache, until it reports its first step, and stops it with SIGTERM. Tells when
each stage was over, from the JAX log what was traced and compiled for how long,
and with `--imports` which packages take how long to import. Options that this
program does not know go to `main.py`.
"""

import collections
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from absl import flags

from benchmarks import machine
from input_pipeline.paths import expand

FLAGS = flags.FlagValues()  # of its own, as in `benchmarks.step`
OWN = dict(flag_values=FLAGS)
CONFIG = flags.DEFINE_string(
  'config', 'configs/quickstart.py', 'For main.py.', **OWN
)
IMPORTS = flags.DEFINE_bool('imports', False, 'Time the imports.', **OWN)
OUT = flags.DEFINE_string(
  'out', 'startup.jsonl', 'JSON lines are added here.', **OWN
)

MAIN = pathlib.Path(__file__).resolve().parent.parent / 'main.py'
FIRST_STEP = re.compile(r'first step after ([\d.]+) s')
# What JAX logs of a function; XLA compilation includes reading the cache.
STAGES = dict(
  trace=re.compile(r'Finished tracing (\S+) for jit in ([\d.e-]+)'),
  lower=re.compile(r'Finished jaxpr to MLIR .* (\S+) in ([\d.e-]+)'),
  compile=re.compile(r'Finished XLA compilation of (\S+) in ([\d.e-]+)'),
)
COLUMNS = dict(
  cache='cache',
  seconds='command to first step, s',
  start='until the first log line',
  trace='tracing',
  lower='lowering',
  compile='compiling or reading the cache',
  programs='programs',
  other_cores='other cores',
)


def start(
  config: str, folder: pathlib.Path, cache: pathlib.Path, words: Sequence[str]
) -> dict[str, Any]:
  """Runs `main.py` until its first step.

  Args:
    config: of the run.
    folder: its workdir.
    cache: of compiled programs.
    words: further options of `main.py`.

  Returns:
    `seconds` in total, `start` until anything was logged, the sums of JAX's
    stages, `programs`, and `longest`, [stage, name, seconds].

  Raises:
    RuntimeError: it ended before the first step; with what it said last.
  """
  command = [sys.executable, str(MAIN), f'--config={config}', *words]
  command.append(f'--workdir={folder}')
  environ = dict(
    os.environ, JAX_COMPILATION_CACHE_DIR=str(cache), JAX_LOG_COMPILES='1'
  )
  began, lines, first = time.perf_counter(), [], None
  with subprocess.Popen(
    command,
    env=environ,
    stderr=subprocess.PIPE,
    stdout=subprocess.DEVNULL,
    text=True,
  ) as process:
    for line in process.stderr:
      lines.append((time.perf_counter() - began, line.rstrip()))
      if FIRST_STEP.search(line):
        first = lines[-1][0]
        process.terminate()
        break
    process.stderr.read()  # it saves before it leaves
  if first is None:
    raise RuntimeError('\n'.join(line for _, line in lines[-5:]))
  return dict(seconds=round(first, 2), start=round(lines[0][0], 2)) | _stages(
    [line for _, line in lines]
  )


def _stages(lines: Sequence[str]) -> dict[str, Any]:
  """Sums of what JAX logged, the number of programs and the longest items."""
  items = []
  for line in lines:
    for stage, pattern in STAGES.items():
      if found := pattern.search(line):
        items.append((stage, found[1], float(found[2])))
  sums = {
    stage: round(sum(s for kind, _, s in items if kind == stage), 2)
    for stage in STAGES
  }
  longest = sorted(items, key=lambda item: -item[2])[:12]
  return dict(
    sums,
    programs=sum(kind == 'compile' for kind, _, _ in items),
    longest=[[kind, name, round(s, 2)] for kind, name, s in longest],
  )


def imports() -> dict[str, float]:
  """Seconds that the imports of `main.py` take, by top-level package.

  Each module's own time, without what it imports in turn.
  """
  command = [sys.executable, '-X', 'importtime', '-c', 'import main']
  done = subprocess.run(
    command, capture_output=True, text=True, check=True, cwd=MAIN.parent
  )
  packages = collections.Counter()
  for own, name in re.findall(
    r'import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)', done.stderr
  ):
    packages[name.partition('.')[0]] += int(own) / 1e6
  return {name: round(s, 2) for name, s in packages.most_common() if s >= 0.02}


def main(argv: Sequence[str]) -> None:
  """Cold, then warm."""
  shared = dict(kind='startup', config=CONFIG.value)
  rows = []
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    for cache in ('cold', 'warm'):
      others = machine.Others()
      row = start(CONFIG.value, folder / cache, folder / 'cache', argv[1:])
      load = others.cores()
      rows.append(
        dict(
          row,
          cache=cache,
          other_cores=load,
          disturbed=machine.disturbed(load),
        )
      )
  shared |= machine.device() | machine.software()
  print(machine.table(rows, COLUMNS))
  for row in rows:
    print(f'\n{row["cache"]}, the longest:')
    print('\n'.join(f'  {s:6.2f} s {k} {n}' for k, n, s in row['longest']))
  if IMPORTS.value:
    shared['imports'] = imports()
    print('\nimports, s:', json.dumps(shared['imports']))
  with pathlib.Path(expand(OUT.value)).open('a') as file:
    file.writelines(json.dumps(shared | row) + '\n' for row in rows)


if __name__ == '__main__':
  if '--help' in sys.argv:
    sys.exit(f'{__doc__}\n{FLAGS.get_help()}')
  main(FLAGS(sys.argv, known_only=True))
