"""The encoder of a finished or running pre-training, ready to be used."""

import dataclasses
import json
import sys
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from flax import traverse_util

from input_pipeline.paths import expand
from interop.files import is_weights
from interop.load import load_encoder
from models import make_encoder
from training import distributed, storage, verified
from training.checkpoint import CheckpointError
from training.missing import check_folder
from training.warm_start import TASKS_OWN, load_params

ENCODER = 'encoder/'
WHICH = ('auto', 'student', 'teacher')
# Fields of a config's encoder that say how it computes, not what.
FREE = ('drop_path', 'remat', 'attention_impl')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backbone:
  """An encoder with its weights.

  Attributes:
    encoder: the module.
    params: {path: array} with paths that begin with `encoder/`.
    where: the checkpoint, for messages.
    which: 'student' or 'teacher'.
    config: `config.json` of the run that trained it.
  """

  encoder: Any
  params: Mapping[str, Any]
  where: str
  which: str
  config: Mapping[str, Any]

  def variables(self) -> dict[str, Any]:
    """What `encoder.apply` takes: {'params': nested arrays}."""
    flat = {k.removeprefix(ENCODER): v for k, v in self.params.items()}
    return {'params': traverse_util.unflatten_dict(flat, sep='/')}


def load_backbone(
  path: epath.PathLike | None,
  *,
  which: str = 'auto',
  dtype: str = 'float32',
  weights: Mapping[str, Any] | None = None,
  **fields: Any,
) -> Backbone:
  """Reads a trained encoder: of a run, whatever its method, or of others.

  Args:
    path: a workdir (its newest intact checkpoint), one `checkpoints/STEP`, or a
      file (or folder of a hub) of somebody else's weights, see
      `interop.load.load_encoder`.
    which: 'student', 'teacher', or 'auto': the one that the run's own k-NN
      reads (DINO's teacher, else the student).
    dtype: compute dtype of the encoder.
    weights: `config.weights`, what a file of others does not tell.
    **fields: fields of the encoder that differ from the run's.

  Returns:
    The encoder, paths never dropped unless `fields` say so.

  Raises:
    CheckpointError: no path, no checkpoint there, no such encoder in it, or a
      damaged one.
    ValueError: an unknown `which`, or `weights` of a run of this project.
    WeightsError: a file without an encoder of a known layout.
  """
  if which not in WHICH:
    raise ValueError(f'which={which!r} must be one of {", ".join(WHICH)}')
  if not path:
    raise CheckpointError(
      'nothing to evaluate: set config.checkpoint to the workdir of a run, to '
      "one of its checkpoints/STEP, or to a file of others' weights"
    )
  path = expand(path)
  told = {k: v for k, v in (weights or {}).items() if v is not None}
  if is_weights(path):
    return _foreign(path, which, told, dict(dtype=dtype) | fields)
  if told:
    raise ValueError(
      f"config.weights.{min(told)} is for files of others' weights; the config "
      f'of {path}, a run of this project, says it'
    )
  path = storage.resolve(path)
  check_folder(path)
  config = _config_of(path)
  if 'encoder' not in config:
    read = config.get('checkpoint')
    raise CheckpointError(
      f'{path} has no encoder of its own: it belongs to a job '
      f'{config.get("task")!r}'
      + (f' that read {read}: set config.checkpoint to that' if read else '')
    )
  if which == 'auto':
    # A fine-tuned encoder has no teacher and no k-NN.
    which = config.get('knn', {}).get('which', 'student')
  params = {
    name: leaf
    for name, leaf in load_params(path, which=which).items()
    if name.startswith(ENCODER) and not name.startswith(TASKS_OWN)
  }
  if not params:
    raise CheckpointError(f'{path} has no encoder of a {which}')
  kernel = params[f'{ENCODER}patch_embed/kernel']
  fields = dict(in_channels=kernel.shape[2], dtype=dtype) | fields
  return Backbone(
    encoder=_make(config['encoder'], fields),
    params=params,
    where=str(path),
    which=which,
    config=config,
  )


def _foreign(
  path: epath.PathLike,
  which: str,
  told: Mapping[str, Any],
  fields: Mapping[str, Any],
) -> Backbone:
  """The encoder of a file; says what was recognised."""
  loaded = load_encoder(path, which=which, **told)
  if jax.process_index() == 0:
    print(loaded.said, file=sys.stderr)
  return Backbone(
    encoder=_make(loaded.spec, fields),
    params=loaded.params,
    where=str(path),
    which=loaded.which,
    config=dict(encoder=dict(loaded.spec)),
  )


def fresh_backbone(config: Any, **fields: Any) -> Backbone:
  """The encoder of a config, not trained: `params` is empty.

  Args:
    config: with `encoder`.
    **fields: fields of the encoder that differ from the config's.
  """
  plain = json.loads(config.to_json_best_effort())
  return Backbone(
    encoder=_make(plain['encoder'], fields),
    params={},
    where='a fresh draw',
    which='student',
    config=plain,
  )


def _make(config: Mapping[str, Any], fields: Mapping[str, Any]) -> Any:
  """An encoder from the `encoder` of a config."""
  made = {k: _tuples(v) for k, v in config.items() if v is not None}
  name = made.pop('name')
  computed = {k: v for k, v in made.items() if k not in FREE}
  return make_encoder(name, **computed | fields)


def _config_of(path: epath.Path) -> dict[str, Any]:
  """The config of the run that a workdir or checkpoint belongs to."""
  folders = (path, path.parent.parent)

  def read():
    for folder in folders:
      if (file := folder / 'config.json').exists():
        try:
          found = json.loads(file.read_bytes())
          return dict(found.items())
        except (OSError, ValueError, AttributeError, RecursionError) as error:
          raise CheckpointError(
            f'{file} is not readable JSON ({verified.one_line(error)}); '
            'restore it: it says which encoder the checkpoints hold'
          ) from error
    return None

  config = distributed.on_lead(read)
  if config is None:
    raise CheckpointError(
      f'{path} is neither a workdir nor one of its checkpoints/STEP: there is '
      f'no config.json in {folders[0]} or {folders[1]}'
    )
  return config


def _tuples(value: Any) -> Any:
  """JSON has no tuples, and modules cannot hold lists."""
  return tuple(value) if isinstance(value, list) else value
