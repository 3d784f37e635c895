"""What a weight file does not say, from the files beside it and the user."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from interop import own
from interop.files import Weights, WeightsError

ACTIVATIONS = {
  'gelu': 'gelu',
  'gelu_new': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'gelu_tanh': 'gelu_tanh',
  'quick_gelu': 'quick_gelu',
  'quickgelu': 'quick_gelu',
}
POOLS = {'token': 'cls', 'avg': 'mean'}  # of timm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hints:
  """None: not known.

  Attributes:
    num_heads: attention heads, of a ViT; Swin's tables tell.
    image_size: (height, width) of the images it was trained on.
    norm_epsilon: of LayerNorms.
    activation: of MLPs, a name of `models.layers.ACTIVATIONS`.
    mean: per-channel image mean.
    std: per-channel image standard deviation.
    positions_offset: see `models.vit.ViT`.
    window: side of the windows that a Swin should have.
    in_channels: channels that the encoder should take.
    pool: 'cls', 'mean' or 'norm_mean', see `models.vit.ViT`.
    positions: 'none' where a ViT was meant to have no positions.
    padding: see `models.swin.Swin`.
    positions_antialias: see `models.vit.ViT`.
  """

  num_heads: int | None = None
  image_size: tuple[int, int] | None = None
  norm_epsilon: float | None = None
  activation: str | None = None
  mean: tuple[float, ...] | None = None
  std: tuple[float, ...] | None = None
  positions_offset: float | None = None
  window: int | None = None
  in_channels: int | None = None
  pool: str | None = None
  positions: str | None = None
  padding: str | None = None
  positions_antialias: bool | None = None

  def told(self, *names: str) -> dict[str, Any]:
    """Those of these fields that are known."""
    fields = dataclasses.asdict(self)
    return {name: fields[name] for name in names if fields[name] is not None}


def read_hints(weights: Weights, given: Mapping[str, Any]) -> Hints:
  """Hints of the configs beside a file and of its metadata, then the user's.

  Args:
    weights: an opened file; Hugging Face's and timm's configs are understood.
    given: fields of `Hints` that the user set; None is not set.

  Raises:
    WeightsError: a config beside the file that cannot be meant.
  """
  found = {}
  config = weights.config
  try:
    found.update(_from_hugging_face(config.get('vision_config', config)))
    found.update(_from_timm(config))
    for ours, theirs in (('mean', 'image_mean'), ('std', 'image_std')):
      if values := weights.preprocessor.get(theirs):
        found[ours] = tuple(map(float, values))
  except (TypeError, ValueError, AttributeError, KeyError) as error:
    raise WeightsError(
      f'the config beside {weights.path} cannot be read ({error}): move it '
      'away, or mend it'
    ) from error
  found.update(_from_own(own.read_spec(weights) or {}))
  found.update({k: v for k, v in given.items() if v is not None})
  return Hints(**found)


def _from_hugging_face(config: Mapping[str, Any]) -> dict[str, Any]:
  found = {}
  heads = config.get('num_attention_heads')
  if isinstance(heads, int):
    found['num_heads'] = heads
  if size := config.get('image_size'):
    found['image_size'] = _pair(size)
  if epsilon := config.get('layer_norm_eps'):
    found['norm_epsilon'] = float(epsilon)
  if word := config.get('hidden_act'):
    if word not in ACTIVATIONS:
      known = ', '.join(ACTIVATIONS)
      raise ValueError(f'hidden_act {word!r} is none of {known}')
    found['activation'] = ACTIVATIONS[word]
  return found


def _from_timm(config: Mapping[str, Any]) -> dict[str, Any]:
  found = {}
  arguments = config.get('model_args') or {}
  if arguments.get('always_partition'):
    raise ValueError('always_partition: windows here shrink to small maps')
  if heads := arguments.get('num_heads'):
    found['num_heads'] = heads
  if size := arguments.get('img_size'):
    found['image_size'] = _pair(size)
  pretrained = config.get('pretrained_cfg') or {}
  for name in ('mean', 'std'):
    if values := pretrained.get(name):
      found[name] = tuple(map(float, values))
  if 'image_size' not in found and (size := pretrained.get('input_size')):
    found['image_size'] = _pair(size[1:])
  architecture = config.get('architecture') or ''
  pool = arguments.get('global_pool') or config.get('global_pool')
  if architecture and pool in POOLS:
    found['pool'] = POOLS[pool]
  if architecture:
    found['positions_antialias'] = True
  if arguments.get('pos_embed') == 'none':
    found['positions'] = 'none'
  if 'quickgelu' in architecture or arguments.get('act_layer') == 'quick_gelu':
    found['activation'] = 'quick_gelu'
  # swin_tiny_patch4_window7_224: what it was built for, whatever was run later.
  if match := re.search(r'_window\d+_(\d+)', architecture):
    found.setdefault('image_size', _pair(int(match[1])))
  return found


def _from_own(spec: Mapping[str, Any]) -> dict[str, Any]:
  """Of an export of this project, whatever its layout."""
  found = {
    name: spec[name]
    for name in (
      'norm_epsilon',
      'mean',
      'std',
      'positions_offset',
      'positions_antialias',
      'pool',
      'positions',
      'padding',
    )
    if spec.get(name) is not None
  }
  if isinstance(spec.get('num_heads'), int):
    found['num_heads'] = spec['num_heads']
  if spec.get('mlp') in ACTIVATIONS.values():
    found['activation'] = spec['mlp']
  if spec.get('native_size'):
    found['image_size'] = spec['native_size']
  elif spec.get('positions') == 'learned':
    sides = _pair(spec['positions_grid'])
    found['image_size'] = tuple(side * spec['patch_size'] for side in sides)
  return found


def _pair(size: Any) -> tuple[int, int]:
  if isinstance(size, int):
    return size, size
  if isinstance(size, Mapping):
    return int(size['height']), int(size['width'])
  height, width = size
  return int(height), int(width)
