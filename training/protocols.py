"""The seams of the loop: what learns, what feeds it, what measures it."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import jax

from training.optim import Rules
from training.state import Aux, Figure


class Method(Protocol):
  """What is learned: pure functions over explicit state.

  Methods that evaluators ask for predictions also have
  `predict(params, method_state, batch)`.

  Attributes:
    encoder: the module that `params['encoder']` belongs to.
  """

  encoder: Any

  def init(self, rng, batch, initial=None) -> tuple[Any, Any]:
    """(params, method_state); `initial` {path: array} replaces parameters."""

  def loss(self, params, method_state, batch, rng, step) -> tuple[Any, Aux]:
    """The only thing that is differentiated, in `params`."""

  def after_update(self, params, method_state, aux, step) -> Any:
    """The next method_state; sees the new params."""

  def rules(self) -> Rules:
    """Optimiser groups by parameter path."""

  def encoder_params(self, params, method_state, which='student') -> Any:
    """What probes, export and figures read."""

  def figures(self, params, method_state, batch) -> dict[str, Figure]:
    """Pictures by name."""


class Data(Protocol):
  """Where batches come from; everything is a function of (seed, step).

  Attributes:
    spec: what `batch` returns, as `jax.ShapeDtypeStruct`s with shardings.
    steps_per_epoch: whole batches in an epoch.
  """

  spec: Any
  steps_per_epoch: int

  def batch(self, step: int) -> Any:
    """A pytree of device arrays for one step."""

  def render(self, batch: Any, rng: jax.Array) -> dict[str, jax.Array]:
    """Inside the step: [0, 1] views by name, labels and indices."""

  def indices(self, step: int) -> Sequence[int]:
    """Which examples a step sees, for reports."""


class Evaluator(Protocol):
  """A measurement on data of its own, on the host."""

  def start(self, step: int) -> None:
    """Forgets the last measurement."""

  def batches(self) -> Iterable[Any]:
    """Its data."""

  def update(self, params: Any, method_state: Any, batch: Any) -> None:
    """One batch."""

  def finish(self) -> dict[str, float]:
    """The measurement, by metric name."""

  def names(self) -> Sequence[str]:
    """Metrics that `finish` always returns."""
