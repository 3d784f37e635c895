"""How several losses are added up."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from training.fields import unknown
from training.state import Aux

# A loss below this counts as this: a mean absolute pixel error of a quarter of
# an 8-bit level holds nothing to learn, and a weight of 1 / 0 would be lost.
SMALLEST_LOSS = 1e-3
# A weight further from its optimum than this factor is warned of.
FAR = 2.0


class Weighed(NamedTuple):
  """The weights of one step.

  Attributes:
    factors: of the losses in the sum, by name.
    penalty: what is added to the sum.
    metrics: scalars by name.
    state: the next state of the weighting.
  """

  factors: Mapping[str, float | jax.Array]
  penalty: float | jax.Array
  metrics: dict[str, jax.Array]
  state: Any

  def total(self, losses: Mapping[str, jax.Array]) -> jax.Array:
    """Σ factorᵢ Lᵢ + penalty."""
    return sum(self.factors[n] * x for n, x in losses.items()) + self.penalty


@dataclasses.dataclass(frozen=True)
class Fixed:
  """Σ λᵢ Lᵢ with given λ.

  Attributes:
    weights: λ by loss name.
  """

  weights: Mapping[str, float]

  def init(self) -> dict[str, jax.Array]:
    """Returns no parameters."""
    return {}

  def init_state(self) -> dict[str, Any]:
    """Returns no state."""
    return {}

  def __call__(
    self, params: Any, state: Any, losses: Mapping[str, jax.Array]
  ) -> Weighed:
    """Returns the given weights; they are not reported as metrics."""
    del params, losses
    return Weighed(self.weights, 0.0, {}, state)


@dataclasses.dataclass(frozen=True)
class Uncertainty:
  """Learned weights: Σ ½ e^(−sᵢ) Lᵢ + ½ sᵢ (Kendall et al., 2018, §3.2).

  RePre's Eq. 4 names learnable λ. Without the ½ s term their gradient, L > 0,
  would push them below any bound; with it s has the unique minimum e^(−s) =
  1 / L. That needs L > 0: a loss that can be negative (−cosine) must be shifted
  first.

  Adam moves s by at most its rate at each step: from 0 to −log 0.028 = 3.6 in
  3600 steps at 1e-3. In shorter runs the weights do not reach their optimum;
  `Balanced` is at it from the first step.

  Attributes:
    names: of the losses.
    start: value of every s at the beginning.
  """

  names: tuple[str, ...]
  start: float = 0.0

  def init(self) -> dict[str, jax.Array]:
    """Returns one float32 scalar s per loss."""
    return {name: jnp.full((), self.start, jnp.float32) for name in self.names}

  def init_state(self) -> dict[str, Any]:
    """Returns no state."""
    return {}

  def __call__(
    self, params: Any, state: Any, losses: Mapping[str, jax.Array]
  ) -> Weighed:
    """Returns ½ e^(−s), the penalty Σ ½ s, and e^(−s) as metrics."""
    weights = {name: jnp.exp(-params[name]) for name in losses}
    penalty = sum(0.5 * params[name] for name in losses)
    factors = {name: 0.5 * weight for name, weight in weights.items()}
    return Weighed(factors, penalty, _metrics(weights, losses), state)


@dataclasses.dataclass(frozen=True)
class Balanced:
  """The optimum of `Uncertainty` in closed form: weights 1 / (mean of Lᵢ).

  The mean of each loss runs over the last steps, the current one included, and
  is not differentiated:

      m ← m + (L − m) · max(1 / n, 1 / window)    at the n-th step

  so that the weights are right at the first step, whatever the length of the
  run, and need no rate. The sum is divided by the weight of the first loss,
  L₀ + Σ (m₀ / mᵢ) Lᵢ: AdamW and LARS do not notice a common factor, and under
  SGD or clipping the gradient of the first loss keeps the size that it has
  alone. As metrics the weights are Kendall's, 1 / m.

  Attributes:
    names: of the losses, that of the base method first.
    window: steps that the mean runs over.
  """

  names: tuple[str, ...]
  window: int = 10

  def init(self) -> dict[str, jax.Array]:
    """Returns no parameters."""
    return {}

  def init_state(self) -> dict[str, jax.Array]:
    """Returns the number of steps and a mean per loss, float32 scalars."""
    zero = jnp.zeros((), jnp.float32)
    return dict(count=zero, **dict.fromkeys(self.names, zero))

  def __call__(
    self, params: Any, state: Any, losses: Mapping[str, jax.Array]
  ) -> Weighed:
    """Returns 1 for the first loss and m₀ / mᵢ for the others."""
    del params
    state, seen = jax.lax.stop_gradient((state, dict(losses)))
    count = state['count'] + 1
    share = jnp.maximum(1 / count, 1 / self.window)
    means = {n: state[n] + (x - state[n]) * share for n, x in seen.items()}
    weights = {n: 1 / jnp.maximum(m, SMALLEST_LOSS) for n, m in means.items()}
    first, *others = self.names
    factors = {name: weights[name] / weights[first] for name in others}
    return Weighed(
      {first: 1.0, **factors},
      0.0,
      _metrics(weights, losses),
      dict(count=count, **means),
    )


Weighting = Fixed | Uncertainty | Balanced


def make_weighting(
  field: str,
  kind: str,
  kinds: Sequence[str],
  names: tuple[str, ...],
  *,
  weights: Sequence[float],
  window: int,
) -> Weighting:
  """The weighting that a config asks for.

  Args:
    field: of the config, without its last part, such as 'method.repre'.
    kind: one of `kinds`.
    kinds: of 'balanced', 'uncertainty' and 'fixed' those that there are.
    names: of the losses, that of the base method first.
    weights: λ of each loss, for 'fixed'.
    window: steps of the mean, for 'balanced'.

  Raises:
    ValueError: another kind, another number of weights, or weights that would
      have no effect.
  """
  if kind not in kinds:
    raise unknown(f'{field}.weighting', kind, kinds)
  if len(weights) != len(names):
    raise ValueError(
      f'{field}.weights are those of {names}; got {tuple(weights)}'
    )
  if kind == 'fixed':
    return Fixed(dict(zip(names, weights, strict=True)))
  if any(weight != 1 for weight in weights):
    raise ValueError(
      f'{field} has the weights {tuple(weights)} of {names}, which '
      f'weighting={kind!r} replaces: set config.{field}.weighting=fixed'
    )
  return Balanced(names, window) if kind == 'balanced' else Uncertainty(names)


def _metrics(
  weights: Mapping[str, jax.Array], losses: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
  """Kendall's weights e^(−s), and their optimum for the losses of this step."""
  out = {f'weight_{name}': weight for name, weight in weights.items()}
  for name, loss in losses.items():
    loss = jax.lax.stop_gradient(loss)
    out[f'optimum_{name}'] = 1 / jnp.maximum(loss, SMALLEST_LOSS)
  return out


def keep_state(aux: Aux, name: str, weighed: Weighed) -> Aux:
  """Hands the next state of a weighting to `take_state`, if it has one."""
  if not weighed.state:
    return aux
  return aux.replace(means=aux.means | {name: weighed.state})


def take_state(method_state: Any, name: str, aux: Aux) -> Any:
  """The method_state with the weighting's next state, if it has one."""
  if name not in aux.means:
    return method_state
  return method_state | {name: aux.means[name]}


def far_from_optimum(scalars: Mapping[str, float | None]) -> list[str]:
  """Warnings for weights that a run did not bring to their optimum.

  Args:
    scalars: the last values of a run's metrics; None and what is not finite
      and positive does not count.

  Returns:
    One line for each weight that is further than `FAR` from 1 / L.
  """
  out = []
  for key, optimum in scalars.items():
    name = key.removeprefix('optimum_')
    weight = scalars.get(f'weight_{name}')
    if name == key or not (_positive(weight) and _positive(optimum)):
      continue
    if abs(math.log(weight / optimum)) > math.log(FAR):
      group = f'config.method.{"masked" if name == "masked" else "repre"}'
      out.append(
        f'weight_{name} ended at {weight:.3g}, its optimum is {optimum:.3g}: '
        f'set {group}.weighting=balanced, or, where it is, a smaller '
        f'{group}.weighting_window; learned weights need a longer run'
      )
  return out


def _positive(x: float | None) -> bool:
  return x is not None and math.isfinite(x) and x > 0
