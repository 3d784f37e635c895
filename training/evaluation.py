"""What happens beside training: evaluators and pictures."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath

from training.figures import to_png
from training.metrics import Reporter
from training.protocols import Evaluator
from training.signals import StopSignals
from training.state import Figure, TrainState


class Drawing:
  """Writes a method's figures to `images/` and to TensorBoard.

  Args:
    workdir: the folder of the run.
    reporter: takes the pictures.
    figures: (params, method_state, batch) -> figures by name, or None.
    batch: views by name.
  """

  def __init__(
    self,
    workdir: epath.Path,
    reporter: Reporter,
    figures: Callable[..., dict[str, Figure]] | None,
    batch: Any,
  ):
    self._folder, self._reporter = workdir / 'images', reporter
    self._figures = jax.jit(figures) if figures else None
    self._batch = batch

  def __call__(self, step: int, state: TrainState) -> None:
    """Draws one PNG per figure."""
    if self._figures is None:
      return
    drawn = self._figures(state.params, state.method_state, self._batch)
    if jax.process_index() == 0:
      self._folder.mkdir(parents=True, exist_ok=True)
      for name, figure in jax.device_get(drawn).items():
        png = to_png(figure)
        (self._folder / f'{name}_{step:07}.png').write_bytes(png)
        self._reporter.figure(step, name, png)


class Evaluation:
  """Runs evaluators and draws figures between steps.

  Args:
    config: read here: `eval_every`.
    reporter: takes the measurements.
    evaluators: what is measured.
    draw: what is drawn.
    stop: polled between batches.
  """

  def __init__(
    self,
    config: Any,
    reporter: Reporter,
    evaluators: Sequence[Evaluator],
    draw: Drawing,
    stop: StopSignals,
  ):
    self._every, self._reporter, self._stop = config.eval_every, reporter, stop
    self._evaluators, self._draw = evaluators, draw

  def due(self, step: int, total: int) -> bool:
    """At step 0, every `eval_every` steps and at the end, once each."""
    if not self._every or (step % self._every and step != total):
      return False
    names = [n for e in self._evaluators for n in e.names()]
    # Rows with a rate are the training's own; names may be the same.
    rows = [
      row
      for row in self._reporter.rows()
      if row['step'] == step and 'lr' not in row
    ]
    return not names or not all(any(n in row for row in rows) for n in names)

  def run(self, step: int, state: TrainState) -> None:
    """Measures and draws; leaves early, without a report, on a signal."""
    found = {}
    for evaluator in self._evaluators:
      evaluator.start(step)
      for batch in evaluator.batches():
        if self._stop.received:
          return
        evaluator.update(state.params, state.method_state, batch)
      found |= evaluator.finish()
    self._draw(step, state)
    if found:
      self._reporter.write(step, found)
