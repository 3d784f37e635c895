"""What a layout of somebody's weights is."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from interop.files import Tensor, WeightsError
from interop.hints import Hints
from interop.pairs import Pair

Found = Mapping[str, Tensor]  # below the root of an encoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """One way to name the tensors of an encoder.

  Attributes:
    name: what to call it.
    anchors: names that are there in every file of it, below the root.
    spec: (tensors, hints) -> the encoder's word and fields, `config.encoder`.
      Raises WeightsError where the file does not tell enough.
    pairs: encoder -> how its parameters are named.
    computed: tensors -> those of them that are no parameters of ours, but must
      be what ours computes in their place.
    ignored: patterns of what is no part of an encoder: heads, decoders, masks,
      buffers.
  """

  name: str
  anchors: tuple[str, ...]
  spec: Callable[[Found, Hints], dict[str, Any]]
  pairs: Callable[[Any], list[Pair]]
  computed: Callable[[Found], list[Pair]] = lambda found: []
  ignored: tuple[str, ...] = ()


class Names(Protocol):
  """How a layout calls the parts of an encoder."""

  title: str

  @property
  def anchors(self) -> tuple[str, ...]:
    """See `Layout`."""

  def pairs(self, encoder: Any) -> list[Pair]:
    """How the parameters are named."""


def layouts_of(
  tables: Iterable[Names],
  spec: Callable[[Any, Found, Hints], dict[str, Any]],
  **fields: Any,
) -> tuple[Layout, ...]:
  """A layout for each table of names; of those that fit the first is meant.

  Args:
    tables: the names.
    spec: (names, tensors, hints) -> `config.encoder`.
    **fields: of `Layout`, the same for all.
  """
  return tuple(
    Layout(
      name=names.title,
      anchors=names.anchors,
      spec=functools.partial(spec, names),
      pairs=names.pairs,
      **fields,
    )
    for names in tables
  )


def shape_of(found: Found, name: str, axes: int) -> tuple[int, ...]:
  """Sizes of a tensor.

  Raises:
    WeightsError: it has another number of axes, or no elements.
  """
  shape = found[name].shape
  if len(shape) != axes or 0 in shape:
    raise WeightsError(f'{name} is {list(shape)}: {axes} axes were expected')
  return shape


def square_kernel(found: Found, name: str) -> tuple[int, int, int]:
  """(out, in, side) of a convolution of patches.

  Raises:
    WeightsError: it is none, or its patches are not square.
  """
  width, channels, side, other = shape_of(found, name, 4)
  if side != other:
    raise WeightsError(f'patches of {side}x{other} pixels: they must be square')
  return width, channels, side
