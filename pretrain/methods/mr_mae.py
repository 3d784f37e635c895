"""MR-MAE: pixels of hidden patches, a teacher's features of visible ones.

Gao et al.: Mimic before Reconstruct: Enhancing Masked Autoencoders with Feature
Mimicking, 2023 (arXiv:2303.05475). No code of the authors is public: what the
paper leaves open is decided here, and said where.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from models import make_encoder
from models.convvit import ConvViT
from models.mimic import MimicHead, MixedHeads, SumOfLevels
from models.swin import Swin
from pretrain.branch import Branch
from pretrain.frozen import Frozen, Said
from pretrain.masked_modeling import MaskedModeling
from pretrain.masks import choose_masking
from pretrain.methods.mae import mae
from pretrain.mimic import ERRORS, Mimic, Mimicry
from training.recipe import Recipe

DEEP = 5  # levels of the teacher under fusion='multi' (MaskAlign)


def mr_mae(
  encoder: Any,
  recipe: Recipe,
  *,
  teachers: Mapping[str, Mapping[str, Any]],
  decoder: Mapping[str, Any],
  mask_ratio: float = 0.75,
  masking: str = 'random',
  normalize_pixels: bool = True,
  pixel_weight: float = 1.0,
  mimic: Mapping[str, Any] | None = None,
  focus: str = 'none',
  masks_per_image: int = 1,
  dtype: str = 'float32',
  chunks: int = 1,
) -> MaskedModeling:
  """MR-MAE on a ViT, a ConvViT (the paper's MR-MCMAE) or a Swin.

  The loss is MAE's on hidden patches plus, for every teacher, the distance
  between a linear map of the encoder's output at visible tokens and the
  teacher's features there: `Frozen` says which.

  Args:
    encoder: the student.
    recipe: rates and decay.
    teachers: by name, dicts with `encoder` (word and fields of an encoder of
      `models`; None: not used), `weight` (of its loss, beside the common one)
      and `size` (see `Frozen`). The first one in use guides masks.
    decoder: see `mae`.
    mask_ratio: share of hidden patches.
    masking: 'random', or 'blocks' (BEiT's).
    normalize_pixels: see `mae`.
    pixel_weight: of the pixel loss; 0 leaves it out, decoder and all.
    mimic: fields of `Mimicry`.
    focus: which patches are visible: 'none', random ones; 'sample', drawn by
      the teacher's attention; 'topk', those with most. Open in the paper.
    masks_per_image: see `mae`; the teachers see an image once.
    dtype: compute dtype of heads, decoders and teachers.
    chunks: into how many parts the batch is cut.

  Returns:
    The method; its branches are `decoder` and `mimic_NAME`.

  Raises:
    ValueError: no teacher, unknown words, or what does not go together.
  """
  how = Mimicry(**(mimic or {}))
  _check_decoder(decoder, how)
  base = mae(
    encoder,
    recipe,
    decoder=decoder,
    mask_ratio=mask_ratio,
    normalize_pixels=normalize_pixels,
    dtype=dtype,
    chunks=chunks,
  )
  used = _used(teachers)
  frozen = {name: _frozen(used[name], how, dtype) for name in used}
  branches = dict(base.branches) if pixel_weight else {}
  weights = dict(decoder=pixel_weight)
  for name, weight in _weights(used, how).items():
    weights[f'mimic_{name}'] = weight
    branches[f'mimic_{name}'] = _mimic(base, name, frozen[name], how, dtype)
  if not branches:
    raise ValueError(
      'nothing is learned: method.pixel_weight and all mimic weights are 0'
    )
  return dataclasses.replace(
    base,
    masking=choose_masking(
      encoder,
      kind=masking,
      ratio=mask_ratio,
      focus=focus,
      masks_per_image=masks_per_image,
    ),
    branches=branches,
    weights=weights,
    neck=_neck(encoder, how.fusion, dtype),
    teachers=frozen,
    guide=next(iter(frozen)) if focus != 'none' else None,
    copies=masks_per_image,
    drawn=('decoder',) if pixel_weight else (),
  )


def _check_decoder(decoder: Mapping[str, Any], how: Mimicry) -> None:
  """Raises ValueError for a decoder that cannot do what is asked for."""
  for field, word in (('at', 'decoder'), ('fusion', 'sum')):
    asked = dataclasses.asdict(how)[field] == word
    if asked and decoder.get('kind', 'blocks') != 'blocks':
      raise ValueError(
        f"method.mimic.{field}={word!r} needs method.decoder.kind='blocks'"
      )


def _used(teachers: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
  """The teachers that have an encoder.

  Raises:
    ValueError: none has.
  """
  used = {k: t for k, t in teachers.items() if t.get('encoder')}
  if not used:
    raise ValueError(
      'MR-MAE needs a teacher: set method.teachers.first.checkpoint to a run '
      "or to a file of others' weights"
    )
  return used


def _weights(
  teachers: Mapping[str, Mapping[str, Any]], how: Mimicry
) -> dict[str, float]:
  """Of the mimic losses, by teacher; those of weight 0 are left out."""
  each = {k: how.weight * t.get('weight', 1.0) for k, t in teachers.items()}
  return {name: weight for name, weight in each.items() if weight}


def _frozen(teacher: Mapping[str, Any], how: Mimicry, dtype: str) -> Frozen:
  """A teacher, with the levels that are mimicked."""
  # A config out of JSON has lists, which modules cannot hold.
  fields = {
    k: tuple(v) if isinstance(v, list) else v
    for k, v in teacher['encoder'].items()
    if v is not None
  }
  encoder = make_encoder(fields.pop('name'), **dict(fields, dtype=dtype))
  same = encoder.strides.count(encoder.strides[-1])
  depth = min(DEEP, same) if how.fusion == 'multi' else 1
  size = teacher.get('size')
  return Frozen(
    encoder=encoder,
    class_token=how.class_token,
    levels=tuple(range(-depth, 0)),
    size=size and (size, size),
  )


def _mimic(
  base: MaskedModeling, name: str, teacher: Frozen, how: Mimicry, dtype: str
) -> Mimic | Branch:
  """The branch of one teacher."""
  if how.at == 'encoder':
    return _at_encoder(base.encoder, name, teacher, how, dtype)
  return _at_decoder(base, name, teacher, how)


def _at_encoder(
  encoder: Any, name: str, teacher: Frozen, how: Mimicry, dtype: str
) -> Mimic:
  if how.class_token and not getattr(encoder, 'class_token', False):
    raise ValueError(
      f'this {type(encoder).__name__} has no CLS token: set '
      'method.mimic.class_token=False'
    )
  width, parts = _width(teacher.encoder), len(teacher.levels)
  fields = dict(
    source=name, error=ERRORS[how.error], class_token=how.class_token
  )
  if how.fusion != 'multi':
    head = MimicHead(width, dtype=dtype)
    return Mimic(levels=('final',), head=head, **fields)
  return Mimic(
    levels=_same_grid(encoder, how.fusion, least=parts),
    head=MixedHeads(width, parts, dtype=dtype),
    parts=parts,
    **fields,
  )


def _at_decoder(
  base: MaskedModeling, name: str, teacher: Frozen, how: Mimicry
) -> Branch:
  """MAE's branch with the teacher's features in the pixels' place."""
  branch = base.branches['decoder']
  return dataclasses.replace(
    branch,
    decoder=branch.decoder.clone(out_features=_width(teacher.encoder)),
    target=_places,
    error=ERRORS[how.error],
    on=how.on,
    source=name,
  )


def _places(said: Said) -> jax.Array:
  return said.places


def _width(encoder: Any) -> int:
  """Of the last level's tokens."""
  if isinstance(encoder, Swin):
    return encoder.width * 2 ** (len(encoder.depths) - 1)
  return encoder.width


def _same_grid(encoder: Any, fusion: str, *, least: int) -> tuple[int, ...]:
  """The levels on the last one's grid.

  Raises:
    ValueError: fewer than `least`.
  """
  last = encoder.strides[-1]
  found = tuple(i for i, s in enumerate(encoder.strides) if s == last)
  if len(found) < least:
    raise ValueError(
      f'method.mimic.fusion={fusion!r} needs {least} levels on one grid; this '
      f'{type(encoder).__name__} has {len(found)}'
    )
  return found


def _neck(encoder: Any, fusion: str, dtype: str) -> SumOfLevels | None:
  """Blocks N/4, N/2, 3N/4 and N, added up.

  Raises:
    ValueError: fewer than four, or a ConvViT that was told not to add.
  """
  if fusion != 'sum':
    return None
  if isinstance(encoder, ConvViT):
    if not encoder.fuse:
      raise ValueError(
        "method.mimic.fusion='sum' of a ConvViT is its own: set "
        'encoder.fuse=True'
      )
    return None
  levels = _same_grid(encoder, fusion, least=4)
  n = len(levels)
  return SumOfLevels(
    tuple(levels[n * i // 4 - 1] for i in (1, 2, 3, 4)), dtype=dtype
  )
