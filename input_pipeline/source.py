"""Random access to images, wherever they come from."""

import dataclasses
import unicodedata
from typing import Protocol

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stamps:
  """What changes when files do, found out without reading them.

  Attributes:
    content: int64 [...] sizes, checksums.
    times: int64 [...] of the last changes, nanoseconds.
    size: bytes of all files, where it is known.
    whole: whether `content` has a checksum of everything.
  """

  content: np.ndarray = dataclasses.field(
    default_factory=lambda: np.zeros(0, np.int64)
  )
  times: np.ndarray = dataclasses.field(
    default_factory=lambda: np.zeros(0, np.int64)
  )
  size: int | None = None
  whole: bool = False


class Source(Protocol):
  """A data set whose images can be asked for by number, in any order.

  Reading must be safe from several threads at once.

  Attributes:
    name: for messages.
    labels: int32 [n] within 0..len(classes)-1, or None.
    classes: names of the labels; empty without labels.
    channels: of the images, where the source fixes it; None where the decoder
      chooses (files).
    cache_key: identifies the content for good, or None where it may change
      unnoticed. What is derived from such content may be kept on disk.
  """

  name: str
  labels: np.ndarray | None
  classes: tuple[str, ...]
  channels: int | None
  cache_key: str | None

  def __len__(self) -> int:
    """Number of images."""

  def read(self, index: int) -> bytes | np.ndarray:
    """One image: the bytes of a file, or uint8 [h, w, c].

    Raises:
      OSError: it cannot be read.
    """

  def where(self, index: int) -> str:
    """What to call one image in a message, such as its path."""

  # A source of files may have `stamps() -> Stamps`, see `fingerprint`.


def check_classes(train: Source, test: Source) -> None:
  """Whether labels mean the same in both.

  Raises:
    ValueError: other classes in the test split.
  """
  known, found = (
    tuple(unicodedata.normalize('NFC', str(name)) for name in source.classes)
    for source in (train, test)
  )
  # Names of an array are counted up to its highest label: the last ones may be
  # missing in a small test split, and numbers mean the same.
  if known[: len(found)] != found:
    strange = sorted(map(str, set(known) ^ set(found)))
    raise ValueError(
      f'{train.name} and {test.name} have not the same classes: '
      f'{", ".join(strange[:8]) or "the order differs"}'
    )
