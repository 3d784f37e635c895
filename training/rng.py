"""Randomness as a function of (seed, step), split by name."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp


def step_key(seed: int, step: jax.Array) -> jax.Array:
  """The key of one training step; nothing random is ever stored.

  Args:
    seed: the run's seed.
    step: int32 scalar, may be traced.

  Returns:
    A typed PRNG key.
  """
  return jax.random.fold_in(jax.random.key(seed), step)


def named_key(key: jax.Array, name: str) -> jax.Array:
  """An independent key per name, so that a new consumer moves no other."""
  return jax.random.fold_in(key, zlib.crc32(name.encode()))


def drop_path_noise(
  encoder: Any, rng: jax.Array, rows: int
) -> jax.Array | None:
  """What stochastic depth decides by, [rows, 2 · depth]; None where it is off.

  Drawn for the whole batch at once, so that neither chunks nor devices change
  what is dropped.
  """
  if not encoder.drop_path:
    return None
  key = named_key(rng, 'drop_path')
  return jax.random.uniform(key, (rows, 2 * encoder.depth), jnp.float32)
