"""The layouts that encoders are exported in."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from interop import export_convvit, export_swin, export_vit
from interop.exported import Export, statistics
from interop.files import WeightsError
from models.convvit import ConvViT
from models.swin import Swin
from models.vit import ViT

# {format: {encoder: how}}
FORMATS: Mapping[str, Mapping[type, Callable[..., Export]]] = {
  'timm': {ViT: export_vit.to_timm, Swin: export_swin.to_timm},
  'huggingface': {
    ViT: export_vit.to_hugging_face,
    Swin: export_swin.to_hugging_face,
  },
  'convmae': {ConvViT: export_convvit.to_convmae},
  'detectron2': {ViT: export_vit.to_detectron2},
  'mmdet': {Swin: export_swin.to_mmdet},
  'microsoft': {Swin: export_swin.to_microsoft},
}


def export_to(
  name: str,
  encoder: Any,
  params: Mapping[str, np.ndarray],
  *,
  image_size: tuple[int, int],
) -> Export:
  """Renames and reorders the parameters of an encoder.

  Args:
    name: one of FORMATS.
    encoder: the module.
    params: {path: array}, paths begin with `encoder/`.
    image_size: (height, width) of the images it was trained on.

  Returns:
    What is to be written.

  Raises:
    WeightsError: an unknown format, or an encoder that has parts which that
      library's has not.
  """
  if name not in FORMATS:
    known = ', '.join(sorted(FORMATS))
    raise WeightsError(f'unknown format {name!r}; known: {known}')
  if type(encoder) not in FORMATS[name]:
    fit = [k for k, kinds in FORMATS.items() if type(encoder) in kinds]
    raise WeightsError(
      f'{name} has no {type(encoder).__name__}; formats that have: '
      f'{", ".join(fit) or "none"}'
    )
  bare = {k.removeprefix('encoder/'): np.asarray(v) for k, v in params.items()}
  return FORMATS[name][type(encoder)](encoder, bare, image_size)


def preprocessor(encoder: Any, image_size: tuple[int, int]) -> dict[str, Any]:
  """`preprocessor_config.json` of an encoder, as transformers reads it."""
  height, width = image_size
  numbers = statistics(encoder)
  return dict(
    image_processor_type='ViTImageProcessor',
    do_resize=True,
    do_rescale=True,
    do_normalize=True,
    rescale_factor=1 / 255,
    size=dict(height=height, width=width),
    resample=3,
    image_mean=numbers['mean'],
    image_std=numbers['std'],
  )
