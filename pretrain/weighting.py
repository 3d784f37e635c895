"""How contrast and reconstruction are added up."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Fixed:
  """Σ λᵢ Lᵢ with given λ.

  Attributes:
    weights: λ by loss name.
  """

  weights: Mapping[str, float]

  def init(self) -> dict[str, jax.Array]:
    """No parameters."""
    return {}

  def __call__(
    self, params: Any, losses: Mapping[str, jax.Array]
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted sum; fixed weights are no metrics."""
    del params
    total = sum(self.weights[name] * loss for name, loss in losses.items())
    return total, {}


@dataclasses.dataclass(frozen=True)
class Uncertainty:
  """Learned weights: Σ ½ e^(−sᵢ) Lᵢ + ½ sᵢ (Kendall et al., 2018, §3.2).

  RePre's Eq. 4 names learnable λ. Without the ½ s term their gradient, L > 0,
  would push them below any bound; with it s has the unique minimum e^(−s) =
  1 / L. That needs L > 0: a loss that can be negative (−cosine) must be shifted
  first.

  Attributes:
    names: of the losses.
    start: value of every s at the beginning.
  """

  names: tuple[str, ...]
  start: float = 0.0

  def init(self) -> dict[str, jax.Array]:
    """One float32 scalar s per loss."""
    return {name: jnp.full((), self.start, jnp.float32) for name in self.names}

  def __call__(
    self, params: Any, losses: Mapping[str, jax.Array]
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted sum with its penalty, and e^(−s) as metrics."""
    total, metrics = jnp.zeros((), jnp.float32), {}
    for name, loss in losses.items():
      s = params[name]
      total += 0.5 * (jnp.exp(-s) * loss + s)
      metrics[f'weight_{name}'] = jnp.exp(-s)
    return total, metrics
