"""What exports in every layout share."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from interop.pairs import Pair
from models.patches import IMAGENET_MEAN, IMAGENET_STD, per_channel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
  """An encoder in a layout of others.

  Attributes:
    tensors: {name: float32 array}.
    config: what stands in `config.json` beside them; None: no such file.
    notes: what that library will compute otherwise than this project.
  """

  tensors: Mapping[str, np.ndarray]
  config: Mapping[str, Any] | None
  notes: tuple[str, ...] = ()


def renamed(
  pairs: list[Pair], params: Mapping[str, np.ndarray], prefix: str = ''
) -> dict[str, np.ndarray]:
  """{prefix + their name: array} of all pairs."""
  return {
    prefix + pair.theirs: pair.give(*(params[path] for path in pair.ours))
    for pair in pairs
  }


def statistics(encoder: Any) -> dict[str, list[float]]:
  """Mean and standard deviation of every channel."""
  c = encoder.in_channels
  return dict(
    mean=list(per_channel('mean', encoder.mean, IMAGENET_MEAN, c)),
    std=list(per_channel('std', encoder.std, IMAGENET_STD, c)),
  )


def epsilon_note(encoder, theirs: float) -> tuple[str, ...]:
  """A note where LayerNorms differ."""
  if encoder.norm_epsilon == theirs:
    return ()
  return (
    f'its LayerNorms add {theirs:g} to the variance, ours '
    f'{encoder.norm_epsilon:g}',
  )


def timm_config(
  architecture: str,
  encoder: Any,
  arguments: Mapping[str, Any],
  size: Sequence[int],
) -> dict[str, Any]:
  """`config.json` of timm for a model of num_classes=0."""
  return dict(
    architecture=architecture,
    num_classes=0,
    num_features=encoder.width,
    global_pool=arguments.get('global_pool', 'avg'),
    model_args=dict(arguments, num_classes=0),
    pretrained_cfg=dict(
      num_classes=0,
      input_size=[encoder.in_channels, *size],
      interpolation='bicubic',
      crop_pct=0.875,
      **statistics(encoder),
    ),
  )
