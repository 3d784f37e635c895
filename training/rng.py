"""Randomness as a function of (seed, step), split by name."""

import zlib

import jax


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
