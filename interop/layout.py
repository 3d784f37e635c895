"""What a layout of somebody's weights is."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from interop.files import Tensor
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
