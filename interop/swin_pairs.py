"""Tensors of Swins that are more than renamed."""

import dataclasses
import math

import numpy as np

from interop.pairs import Pair, same


def table(theirs: str, ours: str, small: tuple[int, int], large: int) -> Pair:
  """A table for windows of `small`; ours is always for `large`, squared.

  Offsets that windows of this size do not have are 0 and never read.
  """
  if small == (large, large):
    return same(theirs, ours)
  sides = tuple(2 * side - 1 for side in small)
  edges = tuple((large - side, large - side) for side in small)

  def take(x):
    if x.ndim != 2 or len(x) != math.prod(sides):
      return (x,)  # the shapes will be told
    x = np.pad(x.reshape(*sides, -1), (*edges, (0, 0)))
    return (x.reshape((2 * large - 1) ** 2, -1),)

  def give(x):
    x = x.reshape(2 * large - 1, 2 * large - 1, -1)
    for axis, (edge, _) in enumerate(edges):
      x = x.take(range(edge, edge + sides[axis]), axis)
    return x.reshape(math.prod(sides), -1)

  return Pair(theirs, (ours,), take, give)


def unfolded(pair: Pair) -> Pair:
  """The same with the inputs of patch merging in the order of `unfold`.

  Ours, the authors' too: columns of the four before rows, channels innermost.
  """

  def exchanged(x, inner, outer):
    x = x.reshape(*x.shape[:-1], *inner)
    return np.swapaxes(x, -1, -3).reshape(*x.shape[:-3], outer)

  def take(x):
    if x.shape[-1] % 4:
      return pair.take(x)  # the shapes will be told
    n = x.shape[-1]
    return pair.take(exchanged(x, (n // 4, 2, 2), n))

  def give(x):
    x = pair.give(x)
    n = x.shape[-1]
    return exchanged(x, (2, 2, n // 4), n)

  return dataclasses.replace(pair, take=take, give=give)
