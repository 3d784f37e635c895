"""The one loop: state -> jitted step -> report, save, evaluate, leave."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath

from training import (
  distributed,
  lock,
  metrics,
  nonfinite,
  recipe,
  screen,
  signals,
  watchdog,
)
from training import workdir as workdirs
from training.checkpoint import Checkpoints
from training.evaluation import Drawing, Evaluation
from training.nonfinite import NonFiniteError
from training.protocols import Evaluator
from training.state import Figure
from training.step import Run


def count_steps(config: Any, steps_per_epoch: int) -> int:
  """Length of the run: `config.steps`, or else `config.epochs`.

  Raises:
    ValueError: neither gives at least one step.
  """
  total = config.steps
  if total is None:
    total = round((config.epochs or 0) * steps_per_epoch)
  if total < 1:
    raise ValueError(
      f'nothing to do: config.steps={config.steps} and config.epochs='
      f'{config.epochs} of {steps_per_epoch} steps; set one above zero'
    )
  return total


@lock.releasing()
def train(
  run: Run,
  workdir: epath.PathLike,
  *,
  total: int,
  evaluators: Sequence[Evaluator] = (),
  figures: Callable[..., dict[str, Figure]] | None = None,
  figure_batch: Any = None,
  watch: Callable[[Mapping[str, float]], list[str]] = lambda _: [],
  data_fingerprint: str | None = None,
) -> dict[str, float]:
  """Trains to the end, from wherever the workdir stands.

  Args:
    run: method, data and optimiser.
    workdir: the folder of the run.
    total: number of steps.
    evaluators: run first, every `config.eval_every` steps and at the end.
    figures: (params, method_state, figure_batch) -> figures by name, or None.
    figure_batch: views by name.
    watch: turns a report into warnings in words; may raise to end the run.
    data_fingerprint: kept in checkpoints; other data do not continue a run.

  Returns:
    The summary, as written to summary.json.

  Raises:
    signals.Stopped: a signal came; everything is saved.
    NonFiniteError: too many non-finite steps in a row.
    WorkdirError, LockedError, CheckpointError: see there.
  """
  began, config = time.time(), run.config
  workdir = workdirs.open_workdir(workdir)
  with contextlib.ExitStack() as cleanup:
    stop = cleanup.enter_context(signals.listening())
    leave = distributed.Agreement(run.mesh, lambda: bool(stop.received))
    guard = watchdog.Watchdog(config.watchdog, limit=config.hang_limit)
    cleanup.enter_context(guard)
    saved = Checkpoints(workdir, keep=config.keep_checkpoints)
    cleanup.callback(saved.close)  # whatever happens: waits for what is written
    state, meta = _where_it_stands(run, workdir, saved, data_fingerprint)
    start, began = meta['step'], began - meta['seconds']
    if not workdirs.record(workdir, config, finished=start == total):
      return _kept(workdir)
    reporter = metrics.Reporter(
      workdir, start=start, total=total, batch_size=config.batch_size
    )
    cleanup.callback(reporter.close)
    _introduce(run, reporter, start, total, workdir)
    draw = Drawing(workdir, reporter, figures, figure_batch, run.mesh)
    evaluation = Evaluation(config, reporter, evaluators, draw, leave, guard)
    history = meta['pending']

    def save(step, state):
      guard.working(f'saving at step {step}')
      with reporter.paused():
        reporter.flush()  # a checkpoint vouches for the reports before it
        meta = dict(seconds=time.time() - began, pending=_plain(history))
        saved.save(state, step=step, meta=meta | dict(data=data_fingerprint))

    stop.begin()
    stopping = evaluation.due(start, total) and evaluation.run(start, state)
    steps = _steps(run, state, start, total, reporter, history, guard, stop)
    for done, state in () if stopping else steps:
      last = done == total
      # Asked once: it is the same for this whole step, on every process.
      stopping = leave.after_step()
      if done % config.log_every == 0 or last:
        _report(run, workdir, reporter, done, history, watch)
      due = _every(config.checkpoint_every, done) or last
      if due or stopping:
        save(done, state)
      if not stopping and evaluation.due(done, total):
        with reporter.paused():
          stopping = evaluation.run(done, state)
        if stopping and not due:  # measured when the run continues here
          save(done, state)
      if stopping:
        break
    guard.working('last checkpoint')
    saved.wait()
    if stopping:
      raise signals.Stopped(_why(stop.received, workdir, saved))
    return _finish(workdir, reporter, time.time() - began, total)


def _introduce(run, reporter, start, total, workdir) -> None:
  """Says what begins, and warns of warm-ups that are longer than the run."""
  reporter.say(f'{_where(start, total, workdir)}\n{run.overview()}')
  if jax.process_index() == 0:
    for line in recipe.warnings_of_length(
      run.config, steps_per_epoch=run.data.steps_per_epoch, total=total
    ):
      logging.warning(line)


def _where_it_stands(run, workdir, saved, data):
  """(state, meta) of the newest checkpoint, or of step 0."""
  if saved.steps():
    workdirs.check_config(workdir, run.config)
  fresh = dict(step=0, seconds=0.0, pending=[])
  found = saved.restore(run.like)
  if found is None:
    screen.say('compiling the initial parameters ...')
    found = run.init(), fresh
  workdirs.check_data(workdir, run.config, found[1].get('data'), data)
  return found


def _why(received, workdir, saved) -> str:
  what = f'saved in {workdir}' if saved.steps() else 'nothing new to save'
  who = received or 'a signal to another process'
  return f'{who}: {what}; {signals.AGAIN}'


def _plain(history) -> list[dict[str, float]]:
  """Reports that are not written yet, for JSON."""
  rows = jax.device_get(history)
  return [{k: float(v) for k, v in row.items()} for row in rows]


def _steps(run, state, start, total, reporter, history, guard, stop):
  """Yields (steps done, state); adds each step's metrics to `history`."""
  alone = jax.process_count() == 1  # others would wait for the first step
  began = time.time()
  if start < total:
    reporter.say('compiling the training step: seconds to minutes ...')
  for step in range(start, total):
    first = step == start  # compiles
    guard.working(
      f'step {step + 1}', allowance=watchdog.COMPILING if first else 1
    )
    with stop.nothing_new() if first and alone else contextlib.nullcontext():
      batch = run.data.batch(step)
      with jax.transfer_guard('disallow'):
        state, report = run.step(state, batch)
    history.append(report)
    # At most two steps are in flight: a signal is answered soon. On CPUs none:
    # there is nothing to gain, and programs over several fake devices could
    # starve each other of threads.
    ahead = 1 if jax.default_backend() == 'cpu' else 3
    ready = history[max(0, len(history) - ahead)]['loss']
    jax.block_until_ready(ready)
    if first:  # compilation is not speed
      jax.block_until_ready(report)
      reporter.say(f'first step after {time.time() - began:.1f} s')
      reporter.restart(step + 1)
    reporter.step(step + 1, ready)
    yield step + 1, state


def _every(interval: int, step: int) -> bool:
  return bool(interval) and step % interval == 0


def _where(start: int, total: int, workdir: epath.Path) -> str:
  if start == total:
    return f'{workdir}: already at its last step {total}'
  if start:
    return f'{workdir}: continuing at step {start} of {total}'
  devices = jax.device_count()
  plural = '' if devices == 1 else 's'
  return f'{workdir}: {total} steps on {devices} device{plural}'


def _report(run, workdir, reporter, done, history, watch) -> None:
  """One line of metrics; notes bad steps and stops after too many."""
  rows = jax.device_get(history)
  history.clear()
  first = done - len(rows)
  bad = [i for i, row in enumerate(rows) if row['bad_steps'] > 0]
  limit = run.config.nonfinite_limit
  for i in bad:
    note = dict(
      step=first + i,
      lr=run.rate(first + i),
      loss=str(rows[i]['loss']),
      indices=[int(n) for n in run.data.indices(first + i)],
    )
    reporter.note(note)
  scalars = metrics.average(rows)
  scalars['bad_steps'] = float(len(bad))
  scalars |= dict(lr=run.rate(done - 1), **reporter.speed(done))
  reporter.write(done, scalars)
  for warning in watch(scalars):
    reporter.say(f'WARNING: step {done}: {warning}')
  worst = max(int(row['bad_steps']) for row in rows)
  if limit and worst >= limit:
    why = nonfinite.advice(_bad_steps(run, rows, first))
    raise NonFiniteError(
      f'{worst} steps in a row gave a non-finite loss or gradient, the last at '
      f'step {first + bad[-1]}; see {workdir / "nonfinite.jsonl"}; {why}'
    )
  if bad:
    reporter.say(f'WARNING: step {done}: {len(bad)} non-finite steps skipped')


def _kept(workdir) -> dict[str, Any]:
  """The summary of a finished run where nothing can be written."""

  def read():
    found = workdirs.read_summary(workdir)
    if found is None:
      raise workdirs.unwritable(workdir)
    screen.say(f'{workdir}: already finished, read-only')
    return found

  return distributed.on_lead(read)


def _bad_steps(run, rows, first: int) -> nonfinite.BadSteps:
  """The longest row of bad steps that a report ends, from step `first` on."""
  counts = [int(row['bad_steps']) for row in rows]
  last = counts.index(max(counts))
  begin = max(last - counts[last] + 1, 0)  # the earliest that is known here
  step = first + last - counts[last] + 1
  optim = run.config.optim
  lr = run.rate(max(step - 1, 0))
  return nonfinite.BadSteps(
    first=step,
    last=first + last,
    loss=float(rows[begin]['loss']),
    lr=lr,
    dtype=run.config.dtype,
    warmup_epochs=optim.get('warmup_epochs', 0.0),
    rising=run.rate(step + 1) > lr,
    clip=optim.get('clip', 0.0),
    started_from=run.config.init_from or run.config.checkpoint,
  )


def _finish(workdir, reporter, seconds: float, total) -> dict[str, float]:
  """Writes summary.json: the last value of everything, and how fast it was."""

  def write():
    rows, out = reporter.rows(), {}
    for row in rows:
      out |= {k: v for k, v in row.items() if v is not None and k != 'step'}
    speeds = [row.get('images_per_second') for row in rows]
    speeds = sorted(speed for speed in speeds if speed)
    if speeds:
      out['images_per_second'] = speeds[len(speeds) // 2]
    out |= dict(steps=total, seconds=round(seconds, 1))
    metrics.write_json(workdir / 'summary.json', out)
    return out

  return distributed.on_lead(write)
