"""What happens beside training: evaluators and pictures."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from training import distributed, sharding
from training.distributed import Agreement
from training.figures import to_png
from training.metrics import Reporter
from training.protocols import Evaluator
from training.state import Figure, TrainState
from training.watchdog import COMPILING, Watchdog


class Drawing:
  """Writes a method's figures to `images/` and to TensorBoard.

  Args:
    workdir: the folder of the run.
    reporter: takes the pictures.
    figures: (params, method_state, batch) -> figures by name, or None.
    batch: views by name.
    mesh: of the run.
  """

  def __init__(
    self,
    workdir: epath.Path,
    reporter: Reporter,
    figures: Callable[..., dict[str, Figure]] | None,
    batch: Any,
    mesh: Mesh,
  ):
    self._folder, self._reporter = workdir / 'images', reporter
    # Whole on every device: process 0 could not fetch what others hold.
    whole = sharding.replicated(mesh)
    self._figures = jax.jit(figures, out_shardings=whole) if figures else None
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
    leave: polled between batches.
    watchdog: hears of every batch.
  """

  def __init__(
    self,
    config: Any,
    reporter: Reporter,
    evaluators: Sequence[Evaluator],
    draw: Drawing,
    leave: Agreement,
    watchdog: Watchdog,
  ):
    self._every, self._reporter = config.eval_every, reporter
    self._leave, self._watchdog = leave, watchdog
    self._evaluators, self._draw = evaluators, draw
    self._begun = False  # the first one compiles

  def due(self, step: int, total: int) -> bool:
    """At step 0, every `eval_every` steps and at the end, once each."""
    if not self._every or (step % self._every and step != total):
      return False
    return distributed.on_lead(lambda: not self._measured(step))

  def _measured(self, step: int) -> bool:
    names = [n for e in self._evaluators for n in e.names()]
    # Rows with a rate are the training's own; names may be the same.
    rows = [
      row
      for row in self._reporter.rows()
      if row['step'] == step and 'lr' not in row
    ]
    return bool(names) and all(any(n in row for row in rows) for n in names)

  def run(self, step: int, state: TrainState) -> bool:
    """Measures and draws.

    Args:
      step: of the report.
      state: of the run.

    Returns:
      Whether a signal cut it short; then nothing is reported.
    """
    found = {}
    on, first = f'evaluation at step {step}', COMPILING
    if not self._begun:
      self._reporter.say(f'{on}: compiling and measuring ...')
      self._begun = True
    for evaluator in self._evaluators:
      evaluator.start(step)
      for batch in evaluator.batches():
        if self._leave.now():
          return True
        self._watchdog.working(on, allowance=first)
        evaluator.update(state.params, state.method_state, batch)
        first = 1
      self._watchdog.working(f'result of the {on}', allowance=COMPILING)
      found |= evaluator.finish()
    self._watchdog.working(f'figures at step {step}', allowance=COMPILING)
    self._draw(step, state)
    if found:
      self._reporter.write(step, found)
    return False
