"""What happens beside training: evaluators and pictures."""

import jax

from training import figures
from training.state import TrainState


class Side:
  """Runs evaluators and draws figures between steps.

  Args:
    run: the `step.Run`.
    workdir: the folder of the run; pictures go to `images/`.
    reporter: takes the measurements.
    evaluators: what is measured.
    figure_batch: views for `method.figures`, or None.
    stop: a `StopSignals`, polled between batches.
  """

  def __init__(self, run, workdir, reporter, evaluators, figure_batch, stop):
    self._run, self._reporter, self._stop = run, reporter, stop
    self._evaluators, self._figure_batch = evaluators, figure_batch
    self._folder = workdir / 'images'
    self._figures = jax.jit(run.method.figures)

  def due(self, step: int, total: int) -> bool:
    """At every multiple of `eval_every` and at the end, once."""
    every = self._run.config.eval_every
    if not every or (step % every and step != total):
      return False
    names = [n for e in self._evaluators for n in e.names()]
    rows = [row for row in self._reporter.rows() if row['step'] == step]
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
    if self._figure_batch is not None:
      self._draw(step, state)
    if found:
      self._reporter.write(step, found)

  def _draw(self, step, state):
    drawn = self._figures(state.params, state.method_state, self._figure_batch)
    if jax.process_index() == 0:
      self._folder.mkdir(parents=True, exist_ok=True)
      for name, figure in jax.device_get(drawn).items():
        png = figures.to_png(figure)
        (self._folder / f'{name}_{step:07}.png').write_bytes(png)
        self._reporter.figure(step, name, png)
