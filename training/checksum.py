"""A checksum per array, computed where the array lives."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np


def checksum(x: jax.Array) -> jax.Array:
  """uint32 of an array's bits; any change of one 32-bit word changes it.

  Each element's bits are mixed with its position by a bijection of 32-bit
  words (the finaliser of MurmurHash3) and all words are added modulo 2^32:
  exact integer arithmetic, so the value does not depend on sharding.
  """
  bits = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
  bits = jnp.atleast_1d(bits).reshape(-1)
  if bits.dtype.itemsize > 4:  # 64-bit words become pairs of 32-bit ones
    bits = jax.lax.bitcast_convert_type(bits, jnp.uint32).reshape(-1)
  words = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[bits.dtype.itemsize]
  h = jax.lax.bitcast_convert_type(bits, words).astype(jnp.uint32)
  place = jax.lax.iota(jnp.uint32, h.shape[0])
  h = h ^ (place * jnp.uint32(0x9E3779B9))
  h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
  h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
  return jnp.sum(h ^ (h >> 16), dtype=jnp.uint32)


@jax.jit
def _all(leaves):
  return {name: checksum(x) for name, x in leaves.items()}


def checksums(leaves: Mapping[str, jax.Array]) -> dict[str, int]:
  """{name: checksum} of many arrays in one program."""
  sums = jax.device_get(_all(dict(leaves)))
  return {name: int(np.uint32(value)) for name, value in sums.items()}
