"""What a run tells: metrics.jsonl, TensorBoard, and lines on the screen."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from etils import epath

from training import screen, storage, tensorboard
from training.json_lines import Rows, is_note

REFRESH_SECONDS = 0.2  # between two values on the progress bar


def write_json(path: epath.Path, data: Any) -> None:
  """Writes a JSON file whole or not at all."""
  text = json.dumps(data, indent=2, sort_keys=True) + '\n'
  storage.write_whole(path, text.encode())


def average(steps: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """Means over the steps of one report; non-finite values do not count."""
  out = {}
  for name in steps[-1]:
    values = np.array([step[name] for step in steps], np.float64)
    finite = values[np.isfinite(values)]
    out[name] = float(finite.mean()) if finite.size else float('nan')
  return out


class Reporter:
  """Writes reports; on all processes but the first it is silent.

  Reports of steps after `start` are dropped from an older metrics.jsonl (and
  nonfinite.jsonl): those steps are about to run again, and come out the same.

  Args:
    workdir: the run's folder.
    start: the step the run starts from.
    total: the step it ends at.
    batch_size: images per step, for images/s and the ETA.
  """

  def __init__(
    self, workdir: epath.Path, *, start: int, total: int, batch_size: int
  ):
    self.lead = jax.process_index() == 0
    self._total = total
    self._batch_size = batch_size
    self._bar = self._events = None
    self._pace, self._shown_at = None, 0.0
    self.restart(start)
    if self.lead:
      self._events = tensorboard.Events(workdir, start=start)
      # A report of step s covers the steps before it, a note describes step s.
      self._rows = Rows(
        workdir / 'metrics.jsonl', lambda row: row['step'] <= start
      )
      self._notes = Rows(
        workdir / 'nonfinite.jsonl', lambda row: row['step'] < start, is_note
      )
      if sys.stderr.isatty():
        self._bar = tqdm.tqdm(
          initial=start,
          total=total,
          bar_format='{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps'
          '{postfix}',
          dynamic_ncols=True,
          file=sys.stderr,
        )

  def rows(self) -> list[dict[str, Any]]:
    """All reports so far, on process 0."""
    return self._rows.all()

  def step(self, step: int, loss: jax.Array | None = None) -> None:
    """Moves the progress bar.

    Args:
      step: steps done.
      loss: of a step that has ended, so that nothing waits for it.
    """
    if self._bar is None:
      return
    now = time.time()
    if now - self._shown_at > REFRESH_SECONDS or step == self._total:
      self._shown_at = now
      words = [] if loss is None else [f'loss {float(loss):.4g}']
      if (left := self.left(step)) is not None:
        words.append(f'{screen.duration(left)} left')
      self._bar.set_postfix_str(', '.join(words), refresh=False)
    self._bar.update(step - self._bar.n)

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Time that is not spent training does not count in images/s."""
    began = time.time()
    yield
    self._pause += time.time() - began

  def restart(self, step: int) -> None:
    """Times the steps after this one: those before it compiled."""
    self._timed_step, self._timed_at, self._pause = step, time.time(), 0.0

  def _pace_since(self, step: int) -> float | None:
    """Seconds per step since the last report or restart, without pauses."""
    steps = step - self._timed_step
    if steps < 1:
      return None
    return max(time.time() - self._timed_at - self._pause, 1e-9) / steps

  def left(self, step: int) -> float | None:
    """Seconds to the end by the pace of the last report.

    Neither compilation nor evaluations nor checkpoints count; None where no
    step was timed yet.
    """
    pace = self._pace or self._pace_since(step)
    return None if pace is None else (self._total - step) * pace

  def speed(self, step: int) -> dict[str, float]:
    """Images per second and seconds per step since the last call.

    Empty where no step was timed: right after the first, which compiles.
    """
    pace = self._pace_since(step)
    self.restart(step)
    if pace is None:
      return {}
    self._pace = pace
    return dict(
      images_per_second=self._batch_size / pace, seconds_per_step=pace
    )

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """One report: a line in metrics.jsonl, TensorBoard, a line to read.

    NaN and infinities become null, so that every line is JSON.
    """
    if not self.lead:
      return
    row = {k: v if np.isfinite(v) else None for k, v in scalars.items()}
    self._rows.add(dict(step=step, **row))
    self._events.scalars(step, scalars)
    left = self.left(step) if 'seconds_per_step' in scalars else None
    self.say(screen.report_line(step, self._total, scalars, left))

  def note(self, row: Mapping[str, Any]) -> None:
    """A line in nonfinite.jsonl."""
    if self.lead:
      self._notes.add(row)

  def flush(self) -> None:
    """What was reported is safe: before a checkpoint says it is done."""
    if self.lead:
      self._rows.flush()
      self._notes.flush()
      self._events.flush()

  def figure(self, step: int, name: str, png: bytes) -> None:
    """A picture for TensorBoard."""
    if self.lead:
      self._events.image(step, name, png)

  def say(self, text: str) -> None:
    """A line that does not tear the progress bar."""
    screen.say(text)

  def close(self) -> None:
    """Ends the bar and writes what is left."""
    if self._bar is not None:
      self._bar.close()
    self.flush()
