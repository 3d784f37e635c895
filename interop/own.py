"""What this project writes beside an encoder's weights, and reads again."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from interop.files import Weights, WeightsError
from models import BARE

ABOUT = 'about'  # of the .npz: the same as the metadata of safetensors
SPEC = 'encoder'
# How an encoder computes, not what; and Flax's own.
NOT_TOLD = ('dtype', 'remat', 'drop_path', 'attention_impl', 'parent', 'name')


def spec_of(encoder: Any) -> dict[str, Any]:
  """An encoder's word and all of its fields, as `config.encoder`."""
  fields = {
    field.name: value
    for field in dataclasses.fields(encoder)
    if field.name not in NOT_TOLD
    and (value := encoder.__dict__[field.name]) is not None
  }
  (name,) = (k for k, kind in BARE.items() if type(encoder) is kind)
  return dict(name=name, **fields)


def about(spec: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, str]:
  """Metadata of a file: strings by name, as safetensors has them.

  Args:
    spec: of the encoder.
    told: what else is to be said; kept as JSON where it is no string.
  """
  rest = {
    name: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    for name, value in told.items()
    if value is not None
  }
  # transformers wants to know whose tensors they are.
  return {'format': 'pt', SPEC: json.dumps(spec, sort_keys=True), **rest}


def own_names(
  params: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> dict[str, np.ndarray]:
  """The arrays of an .npz: our paths, and `about` as the bytes of JSON."""
  text = json.dumps(dict(metadata), sort_keys=True).encode()
  return dict(params) | {ABOUT: np.frombuffer(text, np.uint8)}


def read_spec(weights: Weights) -> dict[str, Any] | None:
  """The encoder that a file of this project tells of, or None.

  Raises:
    WeightsError: what it tells is no such thing.
  """
  metadata = weights.metadata
  try:
    if ABOUT in weights.tensors and is_own(weights):
      metadata = json.loads(bytes(weights.tensors[ABOUT].read()))
    if SPEC not in metadata:
      return None
    spec = json.loads(metadata[SPEC])
    return {k: tuple(v) if isinstance(v, list) else v for k, v in spec.items()}
  except (ValueError, TypeError, AttributeError) as error:
    raise WeightsError(
      f'{weights.path}: what it says of its encoder cannot be read ({error})'
    ) from error


def is_own(weights: Weights) -> bool:
  """Whether the tensors have our names."""
  return any(name.startswith('encoder/') for name in weights.tensors)
