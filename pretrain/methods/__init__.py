"""Methods by name."""

from collections.abc import Callable, Mapping
from typing import Any

from models import make_encoder
from pretrain import joint
from pretrain.joint import Joint
from pretrain.masked_modeling import VIEW, MaskedModeling
from pretrain.methods.byol import byol
from pretrain.methods.dino import dino
from pretrain.methods.local_mim import local_mim
from pretrain.methods.mae import mae
from pretrain.methods.moby import moby
from pretrain.methods.moco_v2 import moco_v2
from pretrain.methods.moco_v3 import moco_v3
from pretrain.methods.mr_mae import mr_mae
from pretrain.methods.repre import repre
from pretrain.methods.simclr import simclr
from pretrain.methods.simmim import simmim
from pretrain.methods.simsiam import simsiam
from pretrain.view_sizes import check_view_sizes
from pretrain.weighting import make_weighting
from training.fields import unknown
from training.protocols import Method
from training.recipe import Recipe, make_recipe

CONTRASTIVE: Mapping[str, Callable[..., Method]] = {
  'simclr': simclr,
  'byol': byol,
  'simsiam': simsiam,
  'moco_v2': moco_v2,
  'moco_v3': moco_v3,
  'moby': moby,
  'dino': dino,
}
MASKED: Mapping[str, Callable[..., MaskedModeling]] = {
  'mae': mae,
  'simmim': simmim,
  'local_mim': local_mim,
  'mr_mae': mr_mae,
}
METHODS: Mapping[str, Callable[..., Method]] = {**CONTRASTIVE, **MASKED}


def make_method(
  encoder: Any,
  config: Mapping[str, Any],
  recipe: Recipe,
  *,
  dtype: str,
  chunks: int,
) -> Method:
  """The method of a config, with RePre or masked branches where it says so.

  Args:
    encoder: an encoder of `models`.
    config: `config.method` as a plain dict: `name`, `repre` and `masked` (None
      or a dict; a contrastive method has them) and the arguments of the method.
    recipe: rates, decay, clipping.
    dtype: compute dtype of heads and decoder.
    chunks: into how many parts per-example work is cut.

  Returns:
    The method.

  Raises:
    ValueError: an unknown method, or `masked` where it does not belong.
    TypeError: an argument that the method does not have.
  """
  fields = dict(config)
  added, beside = fields.pop('repre', None), fields.pop('masked', None)
  common = dict(recipe=recipe, dtype=dtype, chunks=chunks)
  masked = None
  if beside:
    beside = dict(beside)
    how = dict(
      weighting=make_weighting(
        'method.masked',
        # Runs from before there was a choice had fixed weights.
        beside.pop('weighting', 'fixed'),
        joint.WEIGHTINGS,
        joint.LOSSES,
        weights=(
          beside.pop('contrast_weight', 1.0),
          beside.pop('weight', 1.0),
        ),
        window=beside.pop('weighting_window', 10),
      ),
      view=beside.pop('view', 'view1'),
    )
    masked = _named('method.masked.name', MASKED, encoder, beside, **common)
    encoder = masked.encoder  # which may have a mask token
  method = _named('method', METHODS, encoder, fields, **common)
  if added:
    method = repre(method, **common, **added)
  return Joint(base=method, masked=masked, **how) if masked else method


def _named(
  what: str,
  known: Mapping[str, Callable[..., Method]],
  encoder: Any,
  config: Mapping[str, Any],
  **common: Any,
) -> Method:
  """One of the known methods, by the name in its config."""
  fields = dict(config)
  name = fields.pop('name')
  if name not in known:
    raise unknown(what, name, known)
  return known[name](encoder, **common, **fields)


def from_config(
  config: Any,
  *,
  channels: int,
  steps_per_epoch: int,
  total: int,
  **fields: Any,
) -> Method:
  """Encoder and method of a whole config, with their schedules in steps.

  Args:
    config: see `configs/common.py`.
    channels: of the images.
    steps_per_epoch: length of an epoch.
    total: length of the run.
    **fields: fields of the encoder that differ from the config's.

  Returns:
    The method.

  Raises:
    ValueError: sizes of views that patches or cells of masks do not tile, or
      see `make_method`.
  """
  encoder = dict(config.encoder)
  name = encoder.pop('name')
  encoder = dict(in_channels=channels, dtype=config.dtype) | encoder | fields
  encoder = make_encoder(name, **encoder)
  check_view_sizes(config, encoder.patch_size)
  method = make_method(
    encoder,
    config.method.to_dict(),
    make_recipe(
      config.optim.to_dict(),
      batch_size=config.batch_size,
      steps_per_epoch=steps_per_epoch,
      total=total,
    ),
    dtype=config.dtype,
    chunks=config.chunks,
  )
  masked = method.masked if isinstance(method, Joint) else method
  if isinstance(masked, MaskedModeling):
    view = method.view if isinstance(method, Joint) else VIEW
    cell = masked.encoder.cell
    check_view_sizes(config, cell, "a mask's cell", view=view)
  return method
