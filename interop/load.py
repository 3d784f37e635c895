"""An encoder out of somebody else's file."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from interop import own
from interop.files import Weights, WeightsError, open_weights
from interop.recognise import SHOWN, Fit, build, is_teacher, recognise, shapes
from models.patches import IMAGENET_MEAN, IMAGENET_STD, per_channel
from models.posemb import interpolation_matrix
from models.vit import ViT

PATCHES = 'encoder/patch_embed/kernel'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
  """An encoder of a file.

  Attributes:
    spec: its word and fields, as `config.encoder` of a run holds them.
    params: {path: float32 array}, paths begin with `encoder/`.
    layout: name of the layout.
    which: 'student' or 'teacher', what was read.
    said: what a person should know, in a line or two.
    metadata: of the file: what an export of this project says of itself.
  """

  spec: Mapping[str, Any]
  params: Mapping[str, np.ndarray]
  layout: str
  which: str
  said: str
  metadata: Mapping[str, str]


def load_encoder(path: Any, *, which: str = 'auto', **given: Any) -> Loaded:
  """Reads an encoder that others trained, or that this project exported.

  The layout is recognised by names and shapes, and the architecture derived
  from them; what they do not tell comes from `config.json` and
  `preprocessor_config.json` beside the file, if they are there.

  Args:
    path: .safetensors (also an index of several), .pth, .pt, .bin or .npz, or
      the folder of a model as Hugging Face's hub keeps it.
    which: 'auto', 'student' or 'teacher', see `recognise`.
    **given: fields of `interop.hints.Hints` that are not to be guessed.
      `in_channels` other than the file's inflates or reduces the first layer as
      timm does; another `window` resamples Swin's tables.

  Returns:
    The encoder; parameters are float32 whatever the file's precision.

  Raises:
    WeightsError: a file that cannot be read or holds no such encoder.
  """
  weights = open_weights(path)
  given = {k: v for k, v in given.items() if v is not None}
  if own.is_own(weights):
    if told := given.keys() - {'in_channels', 'window'}:
      raise WeightsError(
        f'{weights.path} says itself what config.weights.{min(told)} is for'
      )
    return _adapted(_own(weights), given)
  fit = recognise(weights, which=which, given=given)
  params = {
    path: part
    for pair in fit.layout.pairs(fit.encoder)
    for path, part in zip(
      pair.ours,
      pair.take(_read(weights, fit.root + pair.theirs)),
      strict=True,
    )
  }
  loaded = Loaded(
    spec=fit.spec,
    params={f'encoder/{name}': leaf for name, leaf in params.items()},
    layout=fit.layout.name,
    which='teacher' if is_teacher(fit.root) else 'student',
    said=_said(weights, fit),
    metadata=weights.metadata,
  )
  return _adapted(loaded, given)


def _own(weights: Weights) -> Loaded:
  """A file with our names; nothing is to be derived."""
  spec = own.read_spec(weights)
  if spec is None:
    raise WeightsError(
      f'{weights.path} has the names of this project but does not say which '
      'encoder they are of: write it with configs/export.py'
    )
  names = [n for n in weights.tensors if n.startswith('encoder/')]
  try:
    wanted = shapes(build(spec))
  except (TypeError, ValueError) as error:
    raise WeightsError(
      f'{weights.path}: no encoder can be made of what it says: {error}'
    ) from error
  found = {n.removeprefix('encoder/'): weights.tensors[n].shape for n in names}
  if found != wanted:
    strange = sorted(k for k in found | wanted if found.get(k) != wanted.get(k))
    raise WeightsError(
      f'{weights.path} is not the encoder that it says it is: '
      f'{", ".join(strange[:SHOWN])} are missing, unexpected or of other shapes'
    )
  return Loaded(
    spec=spec,
    params={name: _read(weights, name) for name in names},
    layout='RePre-JAX',
    which='student',
    said=f'{weights.path}: an export of this project; {_size(build(spec))}',
    metadata=weights.metadata,
  )


def _adapted(loaded: Loaded, given: Mapping[str, Any]) -> Loaded:
  """For other channels and other windows, where they are asked for."""
  spec, params = dict(loaded.spec), dict(loaded.params)
  changes = []
  if (channels := given.get('in_channels')) and channels != spec['in_channels']:
    changes.append(f'{spec["in_channels"]} channels turned into {channels}')
    spec |= _statistics(spec, channels)
    params[PATCHES] = adapt_channels(params[PATCHES], channels)
  window = given.get('window')
  if window and 'window' not in spec:
    raise WeightsError(
      f'config.weights.window={window} is for a Swin: {loaded.said}'
    )
  if window and window != spec['window']:
    changes.append(f'windows of {spec["window"]} turned into {window}')
    for name in [n for n in params if n.endswith('/position_bias')]:
      params[name] = adapt_table(params[name], spec['window'], window)
    spec |= dict(window=window, native_size=None)
  said = '; '.join([loaded.said, *changes])
  return dataclasses.replace(loaded, spec=spec, params=params, said=said)


def _read(weights: Weights, name: str) -> np.ndarray:
  """A tensor in float32; not copied where it is."""
  x = weights.tensors[name].read()
  if x.dtype.kind not in 'fV' and x.dtype.name not in ('bfloat16', 'float16'):
    raise WeightsError(f'{weights.path}: {name} holds {x.dtype}, not weights')
  if not np.isfinite(x).all():
    raise WeightsError(f'{weights.path}: {name} holds NaN or infinity')
  return x.astype(np.float32, copy=False)


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
  """A patch kernel for images of another number of channels, as timm does.

  For one channel the sum over those that there were, so that a grey image
  gives what it gave as RGB; for more they are repeated and scaled so that the
  sum over equal channels stays.

  Args:
    kernel: [p, p, c, d].
    channels: wanted.

  Returns:
    [p, p, channels, d].
  """
  old = kernel.shape[2]
  if channels == 1:
    return kernel.sum(axis=2, keepdims=True)
  repeated = np.tile(kernel, (1, 1, -(-channels // old), 1))
  return repeated[:, :, :channels] * np.float32(old / channels)


def adapt_table(table: np.ndarray, old: int, new: int) -> np.ndarray:
  """A Swin's biases by relative position for other windows.

  PyTorch's bicubic over the table as a map, as Swin's authors do.

  Args:
    table: [(2 * old - 1)**2, heads].
    old: side of the windows that it is for.
    new: side of those wanted.

  Returns:
    [(2 * new - 1)**2, heads] float32.
  """
  sides = [(2 * side - 1,) * 2 for side in (old, new)]
  return interpolation_matrix(*sides, offset=0.0) @ table


def _statistics(spec: Mapping[str, Any], channels: int) -> dict[str, Any]:
  """Mean and standard deviation of other channels."""
  out = dict(in_channels=channels)
  for name, usual in (('mean', IMAGENET_MEAN), ('std', IMAGENET_STD)):
    old = per_channel(name, spec.get(name), usual, spec['in_channels'])
    new = old * -(-channels // len(old))
    out[name] = (sum(old) / len(old),) if channels == 1 else new[:channels]
  return out


def _size(encoder: Any) -> str:
  blocks = '+'.join(map(str, encoder.depths))
  text = (
    f'{type(encoder).__name__} of width {encoder.width}, {blocks} blocks, '
    f'{encoder.num_heads} heads'
  )
  if isinstance(encoder, ViT) and encoder.positions == 'learned':
    text += ', positions of {}x{} patches'.format(*encoder.native_grid)
  return text


def _said(weights: Weights, fit: Fit) -> str:
  where = f', below {fit.root!r}' if fit.root else ''
  text = f'{weights.path}: {fit.layout.name}{where}; {_size(fit.encoder)}'
  if fit.unused:
    more = len(fit.unused) - SHOWN
    text += f'; not used: {", ".join(fit.unused[:SHOWN])}'
    text += f' and {more} more' if more > 0 else ''
  return text
