"""Frozen teachers of a pre-training: runs, or weights of others."""

import json
import sys
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from input_pipeline.paths import expand
from interop.files import is_weights
from training import distributed, storage
from training.checkpoint import Checkpoints
from training.fields import teachers_in
from transfer.backbone import ENCODER, FREE, load_backbone


def load_teachers(
  config: Any, workdir: epath.PathLike, *, channels: int
) -> tuple[Any, Mapping[str, Any] | None]:
  """The config with its teachers' encoders, and their parameters.

  Every `config.method.teachers.NAME.checkpoint` that is set is read: a workdir,
  one of its checkpoints, or a file of others' weights; beside a contrastive
  method the teachers are in `config.method.masked`. They become part of the
  run's own checkpoints, so that a run that continues no longer needs them, and
  says so where the config now names another one.

  Args:
    config: of the run.
    workdir: its folder.
    channels: of the images; weights of others are adapted to them.

  Returns:
    The config, a copy where there are teachers, whose `encoder` is filled in,
    and {path in the method's state: array}; None where there is nothing to
    read.

  Raises:
    CheckpointError, WeightsError: nothing to read there.
    ValueError: a run on images of other channels, or no teacher at all.
  """
  at, teachers = teachers_in(config.method)
  if not teachers:
    return config, None
  wanted = {k: t for k, t in teachers.items() if t.checkpoint}
  if not wanted:
    raise ValueError(
      f'MR-MAE needs a teacher: set {at}.{min(teachers)}.checkpoint to the '
      "workdir of a run or to a file of others' weights (DINO, CLIP, timm, "
      'Hugging Face)'
    )
  continues = bool(Checkpoints(workdir).steps())
  recorded = _recorded(workdir) if continues else {}
  specs, params = {}, {}
  for name, teacher in wanted.items():
    before = recorded.get(name, {})
    specs[name] = before.get('encoder')
    if specs[name]:
      _tell_what_stays(f'{at}.{name}', before['checkpoint'], teacher.checkpoint)
      continue
    specs[name], arrays = _load(f'{at}.{name}', teacher, channels=channels)
    for path, leaf in arrays.items():
      params[f'teachers/{name}/{path}'] = leaf
  if continues:
    params = {}  # the checkpoint has them, or this is not its config
  config = config.copy_and_resolve_references()
  with config.unlocked():
    for name, spec in specs.items():
      _, teachers = teachers_in(config.method)
      teachers[name].encoder = spec and type(config)(spec)
  return config, params or None


def _tell_what_stays(field: str, before: str, now: str) -> None:
  """Says that a run keeps its teacher (with resume='force')."""
  if before != now and jax.process_index() == 0:
    print(
      f'teacher: {field} stays what the checkpoint has, {before}; {now} is not '
      'read: begin in another workdir',
      file=sys.stderr,
    )


def _load(
  field: str, teacher: Any, *, channels: int
) -> tuple[dict[str, Any], Any]:
  """Word and fields of one teacher's encoder, and its parameters."""
  told = {
    k: v for k, v in (teacher.get('weights') or {}).items() if v is not None
  }
  if is_weights(expand(teacher.checkpoint)):
    told.setdefault('in_channels', channels)
  try:
    backbone = load_backbone(
      teacher.checkpoint, which=teacher.which, weights=told
    )
  except ValueError as error:
    message, elsewhere = str(error), 'config.weights.'
    if elsewhere not in message:
      raise
    here = f'{field}.weights.'
    raise ValueError(message.replace(elsewhere, here)) from error
  if backbone.encoder.in_channels != channels:
    raise ValueError(
      f'{field}: {teacher.checkpoint} takes images of '
      f'{backbone.encoder.in_channels} channels, these have {channels}; image '
      'files can be read with other channels by config.data.channels='
      f'{backbone.encoder.in_channels}'
    )
  if jax.process_index() == 0:
    print(f'teacher: {backbone.where} ({backbone.which})', file=sys.stderr)
  spec = {
    k: v
    for k, v in backbone.config['encoder'].items()
    if v is not None and k not in FREE
  }
  arrays = {
    path.removeprefix(ENCODER): leaf for path, leaf in backbone.params.items()
  }
  return dict(spec, in_channels=channels), arrays


def _recorded(workdir: epath.PathLike) -> Mapping[str, Any]:
  """The teachers that a run began with."""
  path = storage.resolve(workdir) / 'config.json'

  def read():
    try:
      return teachers_in(json.loads(path.read_bytes())['method'])[1]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
      return {}  # `workdir.check_config` will tell

  return distributed.on_lead(read)
