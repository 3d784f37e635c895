"""A trained encoder written for other libraries."""

import functools
import json
import time
import tomllib
from collections.abc import Mapping
from typing import Any

from etils import epath

from interop import own
from interop.files import write_npz, write_safetensors
from interop.formats import FORMATS, export_to, preprocessor
from training import distributed, lock, storage
from training import workdir as workdirs
from training.checkpoint import Checkpoints
from training.metrics import write_json
from transfer.backbone import Backbone, load_backbone

NPZ = 'npz'
PROJECT = epath.Path(__file__).parent.parent / 'pyproject.toml'


@lock.releasing()
def export(config: Any, workdir: epath.PathLike) -> dict[str, Any]:
  """Writes the encoder of a run, or of others, in layouts of other libraries.

  Args:
    config: see `configs/export.py`.
    workdir: gets a folder for every format, that library's `config.json` in it
      where it reads one, and `summary.json`.

  Returns:
    The summary: `files`, and `notes` on what will be computed otherwise.

  Raises:
    CheckpointError, WeightsError: nothing to export, or an encoder that a
      format has no place for; then nothing is written.
    ValueError: unknown formats.
  """
  began = time.time()
  formats = _formats(config)
  backbone = load_backbone(
    config.checkpoint, which=config.which, weights=config.weights
  )
  size = _image_size(config, backbone)
  metadata = _metadata(backbone, size)
  # All before the first is written.
  ready = {
    name: export_to(name, backbone.encoder, backbone.params, image_size=size)
    for name in formats
    if name != NPZ
  }
  folder = workdirs.open_workdir(workdir)
  workdirs.check_config(folder, config)
  workdirs.record(folder, config)
  files, notes = [], []
  for name in formats:
    path = folder / name / f'model.{"npz" if name == NPZ else "safetensors"}'
    if name == NPZ:
      arrays = own.own_names(backbone.params, metadata)
      distributed.on_lead(functools.partial(_npz, path, arrays))
    else:
      made = ready[name]
      notes += [f'{name}: {note}' for note in made.notes]
      beside = {
        'preprocessor_config.json': preprocessor(backbone.encoder, size)
      }
      if made.config is not None:
        beside['config.json'] = made.config
      told = dict(metadata, layout=name)
      distributed.on_lead(
        functools.partial(_write, path, made.tensors, told, beside)
      )
    files.append(str(path))
  summary = dict(
    files=files,
    notes=notes,
    checkpoint=backbone.where,
    which=backbone.which,
    seconds=round(time.time() - began, 1),
  )
  distributed.on_lead(lambda: write_json(folder / 'summary.json', summary))
  return summary


def _formats(config: Any) -> tuple[str, ...]:
  known = (*FORMATS, NPZ)
  formats = tuple(dict.fromkeys(config.formats))
  if not formats or set(formats) - set(known):
    raise ValueError(
      f'config.formats={formats} must be some of {", ".join(known)}'
    )
  return formats


def _image_size(config: Any, backbone: Backbone) -> tuple[int, int]:
  """(height, width) of the images that the encoder knows best."""
  encoder = backbone.encoder
  if config.image_size:
    return (config.image_size,) * 2
  fields = encoder.__dict__
  if fields.get('native_size'):
    return tuple(fields['native_size'])
  if fields.get('positions') == 'learned':
    return tuple(side * encoder.patch_size for side in encoder.native_grid)
  if size := backbone.config.get('data', {}).get('image_size'):
    return size, size
  raise ValueError(
    'the images that this encoder was trained on are of an unknown size: set '
    'config.image_size'
  )


def _metadata(backbone: Backbone, size: tuple[int, int]) -> dict[str, str]:
  """Where the weights come from, for whoever finds the file."""
  run = backbone.config
  version = tomllib.loads(PROJECT.read_text())['project']['version']
  told = dict(
    producer=f'RePre-JAX {version}',
    commit=workdirs.environment()['commit'],
    source=backbone.where,
    which=backbone.which,
    step=_step(backbone),
    method=run.get('method', {}).get('name'),
    run=run if 'task' in run else None,
    image_size=list(size),
  )
  return own.about(own.spec_of(backbone.encoder), told)


def _step(backbone: Backbone) -> int | None:
  """Of the checkpoint that was read; None for files of others."""
  if 'task' not in backbone.config:
    return None
  path = storage.resolve(backbone.where)
  if path.name.isdigit():
    return int(path.name)
  return Checkpoints(path).steps()[-1]


def _npz(path: epath.Path, arrays: Mapping[str, Any]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  write_npz(path, arrays)


def _write(
  path: epath.Path,
  tensors: Mapping[str, Any],
  metadata: Mapping[str, str],
  beside: Mapping[str, Any],
) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  for name, content in beside.items():
    (path.parent / name).write_text(json.dumps(content, indent=2) + '\n')
  write_safetensors(path, tensors, metadata)
