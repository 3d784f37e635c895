"""One tensor of somebody else's file and the parameters of ours it holds.

Every pair goes both ways, and back and forth gives the same bytes: what is done
to the numbers is reordering only.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

# PyTorch keeps [out, in] and [out, in, height, width].
CONVOLUTION = (2, 3, 1, 0)


@dataclasses.dataclass(frozen=True)
class Pair:
  """A tensor by its name, and parameters by their paths.

  Attributes:
    theirs: name of the tensor, below the root of the encoder.
    ours: paths of the parameters, below `encoder/`.
    take: the tensor -> the parameters, in the order of `ours`.
    give: the parameters -> the tensor.
  """

  theirs: str
  ours: tuple[str, ...]
  take: Callable[[np.ndarray], tuple[np.ndarray, ...]]
  give: Callable[..., np.ndarray]


def same(theirs: str, ours: str) -> Pair:
  """Taken as it is: biases, scales, tables."""
  return Pair(theirs, (ours,), lambda x: (x,), lambda x: x)


def flat(theirs: str, ours: str, leading: int) -> Pair:
  """A tensor that lacks the first `leading` axes, all of size 1, of ours."""
  ones = (1,) * leading

  def give(x):
    return x.reshape(x.shape[leading:])

  return Pair(theirs, (ours,), lambda x: (x.reshape(ones + x.shape),), give)


def linear(theirs: str, ours: str) -> Pair:
  """Kernel of a linear layer, [out, in] of theirs."""
  return Pair(theirs, (ours,), lambda x: (x.T,), lambda x: x.T)


def convolution(theirs: str, ours: str) -> Pair:
  """Kernel of a convolution, OIHW of theirs and HWIO of ours."""

  def give(x):
    return x.transpose(tuple(np.argsort(CONVOLUTION)))

  return Pair(theirs, (ours,), lambda x: (x.transpose(CONVOLUTION),), give)


def pointwise(theirs: str, ours: str) -> Pair:
  """A convolution of 1x1, [out, in, 1, 1] of theirs, a linear layer of ours."""
  return Pair(
    theirs,
    (ours,),
    lambda x: (x[:, :, 0, 0].T if x.shape[2:] == (1, 1) else x,),
    lambda x: x.T[:, :, None, None],
  )


def fixed(theirs: str, value: np.ndarray) -> Pair:
  """What is no parameter of ours, but computed; theirs must be the same."""
  return Pair(theirs, (), lambda x: (), lambda: value)


def fused(theirs: str, ours: tuple[str, ...], *, kernel: bool) -> Pair:
  """Kernels or biases of several linear layers, one after another in theirs."""

  def take(x):
    if x.shape[0] % len(ours):
      return (x,) * len(ours)  # the shapes will be told
    return tuple(p.T if kernel else p for p in np.split(x, len(ours)))

  def give(*parts):
    return np.concatenate([p.T if kernel else p for p in parts])

  return Pair(theirs, ours, take, give)


def layer(theirs: str, ours: str, *, bias: bool = True) -> list[Pair]:
  """A linear layer: `weight` and `bias` of theirs."""
  pairs = [linear(f'{theirs}.weight', f'{ours}/kernel')]
  return pairs + [same(f'{theirs}.bias', f'{ours}/bias')] * bias


def norm(theirs: str, ours: str) -> list[Pair]:
  """A normalisation: `weight` and `bias` of theirs."""
  return [
    same(f'{theirs}.weight', f'{ours}/scale'),
    same(f'{theirs}.bias', f'{ours}/bias'),
  ]
