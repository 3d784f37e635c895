"""Runs of `main.py` that a table is made of, each in a workdir of its own."""

import json
import pathlib
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.table_jobs import PROBES, Job

ROOT = pathlib.Path(__file__).resolve().parent.parent
EXIT_STOPPED = 75
POLL = 1.0  # seconds between two looks at a run


class Runs:
  """A folder of runs.

  Args:
    folder: holds a workdir per run, and beside it what the run said (`.log`)
      and with which options it was made (`.options.json`).
  """

  def __init__(self, folder: pathlib.Path):
    self._folder = folder

  def _beside(self, task: Job, ending: str) -> pathlib.Path:
    return self._folder / f'{task.name}{ending}'

  def trained(self, task: Job) -> bool:
    """Whether a run has ended, whatever follows it."""
    return (self._folder / task.name / 'summary.json').exists()

  def finished(self, task: Job) -> dict[str, Any] | None:
    """The summary of a run, its `batch_size` and what its probe found.

    `seconds` are those of both, `training_seconds` those of all steps.

    None while there is something to do.

    Raises:
      ValueError: the run was made with other options.
    """
    made = self._beside(task, '.options.json')
    if made.exists():
      options = tuple(json.loads(made.read_text()))
      if changed := sorted(set(options) ^ set(task.options)):
        raise ValueError(
          f'{self._folder / task.name} was made with other options '
          f'({", ".join(changed)}); choose another --out'
        )
    summary = self._folder / task.name / 'summary.json'
    if not summary.exists():
      return None
    config = json.loads(summary.with_name('config.json').read_text())
    found = json.loads(summary.read_text())
    found['batch_size'] = config['batch_size']
    if speed := found.get('images_per_second'):
      found['seconds_per_step'] = found['batch_size'] / speed
      if 'steps' in found:
        found['training_seconds'] = found['seconds_per_step'] * found['steps']
    if task.probe:
      probe = self._beside(task, f'-{PROBES[task.probe]}') / 'summary.json'
      if not probe.exists():
        return None
      probed = json.loads(probe.read_text())
      found[f'{task.probe}_top1'] = probed['top1']
      found['seconds'] += probed['seconds']
    return found

  def execute(self, task: Job, watch: Callable[[str], None]) -> int:
    """Runs what is missing, to its end or on from where it was stopped.

    Args:
      task: the run.
      watch: gets the newest report of the run from time to time.

    Returns:
      The exit code.

    Raises:
      KeyboardInterrupt: of this process; the run has saved by then.
    """
    options = self._beside(task, '.options.json')
    options.parent.mkdir(parents=True, exist_ok=True)
    options.write_text(json.dumps(task.options, indent=2) + '\n')
    workdir = (self._folder / task.name).resolve()
    code = 0
    if not self.trained(task):
      needs = (
        f'--config.{field}={(self._folder / one.name).resolve()}'
        for field, one in task.needs
      )
      code = self._call(task, (*task.options, *needs), workdir, watch)
    if task.probe and not code:
      probe = (*task.probe_options, f'--config.checkpoint={workdir}')
      beside = workdir.with_name(f'{workdir.name}-{PROBES[task.probe]}')
      code = self._call(task, probe, beside, watch)
    return code

  def _call(self, task, options, workdir, watch) -> int:
    log = self._beside(task, '.log')
    command = [sys.executable, 'main.py', *options, f'--workdir={workdir}']
    with log.open('a') as file:
      # A session of its own: a second signal would make it leave unsaved.
      child = subprocess.Popen(
        command, cwd=ROOT, stdout=file, stderr=file, start_new_session=True
      )
      try:
        while child.poll() is None:
          time.sleep(POLL)
          watch(_last_report(log))
      except KeyboardInterrupt:
        child.send_signal(signal.SIGTERM)
        child.wait()
        raise
    return child.returncode

  def missing(self, task: Job) -> str | None:
    """What a run that has not ended needs and does not find."""
    if self.trained(task):
      return None
    for _, needed in task.needs:
      if not self.trained(needed):
        return f'{task.name}: not run, since {needed.name} failed'
    return None

  def error(self, task: Job) -> str:
    """The line in which a run told what went wrong."""
    log = self._beside(task, '.log')
    lines = log.read_text(errors='replace').splitlines()
    told = [line for line in lines if line.startswith('error: ')]
    return f'{task.name}: {told[-1] if told else f"failed, see {log}"}'


def _last_report(log: pathlib.Path) -> str:
  lines = log.read_text(errors='replace').splitlines()
  steps = [line for line in lines if line.startswith('step ')]
  return ' | '.join(steps[-1].split(' | ')[:3]) if steps else 'starting'


def remaining(done: Sequence[tuple[Job, float]], left: Sequence[Job]) -> str:
  """What is left, by the runs of the same row or else of all: '1:05 h'.

  Args:
    done: finished runs and the seconds that they took.
    left: runs to come.
  """
  if not done:
    return 'not known yet'
  rows: dict[str, list[float]] = {}
  for task, seconds in done:
    rows.setdefault(task.name.split('/')[0], []).append(seconds)
  overall = [seconds for _, seconds in done]
  total = sum(
    statistics.mean(rows.get(task.name.split('/')[0], overall)) for task in left
  )
  minutes = round(total / 60)
  return f'{minutes // 60}:{minutes % 60:02} h'
