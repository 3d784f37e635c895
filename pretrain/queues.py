"""A queue of earlier keys as plain arrays (MoCo, arXiv:1911.05722)."""

import jax
import jax.numpy as jnp

from pretrain.losses import normalize


def check_queue(length: int, batch: int) -> None:
  """Checks that whole batches fill a queue.

  Args:
    length: rows of the queue.
    batch: keys per step, over all devices.

  Raises:
    ValueError: if they do not, with the nearest lengths that work.
  """
  if batch > 0 and length > 0 and length % batch == 0:
    return
  if batch < 1:
    raise ValueError(f'a queue takes at least 1 key per step, not {batch}')
  lower = max(length // batch, 0) * batch
  options = [str(n) for n in (lower, lower + batch) if n]
  raise ValueError(
    f'a queue of {length} keys is not filled by whole batches of {batch}; '
    f'nearest lengths that work: {", ".join(options)}'
  )


def init_queue(rng: jax.Array, length: int, dim: int) -> jax.Array:
  """Random directions, as in the authors' code.

  Args:
    rng: a key.
    length: rows k.
    dim: width d of the keys.

  Returns:
    [k, d] float32 with rows of norm 1.
  """
  return normalize(jax.random.normal(rng, (length, dim), jnp.float32))


def enqueue(
  queue: jax.Array, pointer: jax.Array, keys: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Puts the keys of a step in the place of the oldest.

  Args:
    queue: [k, d] float32.
    pointer: the row where to write first, int32 scalar.
    keys: [b, d] with b <= k, normalised here; row by row from the pointer
      on, past the end from row 0.

  Returns:
    The queue and the pointer of the next step.
  """
  length, b = queue.shape[0], keys.shape[0]
  # Rows one by one and not a slice: a slice that does not fit is moved, and a
  # run may be continued with a batch that the pointer is no multiple of.
  rows = (pointer + jnp.arange(b, dtype=jnp.int32)) % length
  keys = normalize(jax.lax.stop_gradient(keys)).astype(queue.dtype)
  queue = queue.at[rows].set(keys, unique_indices=True)
  return queue, ((pointer + b) % length).astype(jnp.int32)
