"""Big batches in small memory: per-example work in chunks, exactly."""

from collections.abc import Callable
from typing import Any

import jax


def split_rows(x: jax.Array, parts: int) -> jax.Array:
  """[b, ...] -> [parts, b / parts, ...]; chunk i holds rows i, i + parts, ...

  Rows are dealt out in turn, so that a batch that is split over devices stays
  where it is: every device cuts up its own rows. (`reshape(parts, b // parts)`
  would gather the whole batch on every device.)
  """
  return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)


def merge_rows(x: jax.Array) -> jax.Array:
  """[parts, n, ...] -> [parts · n, ...], the inverse of `split_rows`."""
  x = x.swapaxes(0, 1)
  return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def in_chunks(fn: Callable[..., Any], chunks: int, *examples: Any) -> Any:
  """`fn(*examples)`, computed chunk by chunk.

  Only for work in which no example sees another. The chunks run one after the
  other and their activations are recomputed in the backward pass, so memory is
  that of one chunk, and values and gradients are those of the whole batch.

  Args:
    fn: maps pytrees with leading axis b to a pytree with leading axis b.
    chunks: how many; 1 calls `fn` as it is.
    *examples: pytrees of [b, ...], b a multiple of `chunks`.

  Returns:
    What `fn` returns for the whole batch.
  """
  if chunks == 1:
    return fn(*examples)
  body = jax.checkpoint(fn, prevent_cse=False)
  pieces = jax.tree.map(lambda x: split_rows(x, chunks), examples)
  return jax.tree.map(merge_rows, jax.lax.map(lambda x: body(*x), pieces))
