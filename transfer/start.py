"""Where pre-training starts from: a run, or weights of others."""

import json
import sys
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from input_pipeline.paths import expand
from interop.files import is_weights
from interop.load import load_encoder
from models import BARE
from training import distributed, storage
from training.checkpoint import Checkpoints
from training.warm_start import load_params
from transfer.backbone import FREE


def starting_point(
  config: Any, workdir: epath.PathLike, *, channels: int
) -> tuple[Any, Mapping[str, Any] | None]:
  """The config that a run has, and the parameters that it begins with.

  An encoder of others brings its architecture along: it takes the place of
  `config.encoder`, whose `drop_path` and the like stay, and the heads begin
  afresh.

  Args:
    config: of the run; read here: `init_from`, `weights`, `encoder`.
    workdir: its folder; a run that continues no longer needs what it began
      with.
    channels: of the images; the first layer is inflated or reduced to them.

  Returns:
    The config, a copy where the encoder is another one, and {parameter path:
    array} or None.

  Raises:
    CheckpointError, WeightsError: nothing to read there.
    ValueError: an encoder of another family than the config's, or
      `config.weights` without such a file.
  """
  if Checkpoints(workdir).steps():
    encoder = _recorded(workdir)
    # Such a word comes with a file only, which may be gone by now.
    if config.init_from and encoder.get('name') in BARE:
      return _with_encoder(config, encoder), None
    return config, None
  told = {k: v for k, v in config.weights.items() if v is not None}
  path = config.init_from and expand(config.init_from)
  if not path or not is_weights(path):
    if told:
      raise ValueError(
        f"config.weights.{min(told)} is for files of others' weights, and "
        f'config.init_from={config.init_from} is none'
      )
    return config, load_params(path) if path else None
  loaded = load_encoder(path, **{'in_channels': channels} | told)
  _check_family(config.encoder.name, loaded.spec['name'], config.init_from)
  if jax.process_index() == 0:
    print(f'{loaded.said}; heads start fresh', file=sys.stderr)
  return _with_encoder(config, loaded.spec), loaded.params


def _recorded(workdir: epath.PathLike) -> Mapping[str, Any]:
  """The encoder that a run began with; only one of others has a bare name."""
  path = storage.resolve(workdir) / 'config.json'

  def read():
    try:
      return dict(json.loads(path.read_bytes())['encoder'])
    except (OSError, ValueError, KeyError, TypeError):
      return {}  # `workdir.check_config` will tell

  return distributed.on_lead(read)


def _with_encoder(config: Any, spec: Mapping[str, Any]) -> Any:
  """A config with another encoder, which computes as the old one would."""
  free = {k: v for k, v in config.encoder.items() if k in FREE}
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.encoder = type(config)(dict(spec) | free)
  return config


def _check_family(wanted: str, found: str, path: str) -> None:
  """RePre's decoders and the masks depend on it, and so do the recipes."""
  family = wanted.partition('_')[0]
  if family != found:
    raise ValueError(
      f'{path} holds a {found}, and the config word {wanted} means a {family}: '
      f'take a word that begins with {found}'
    )
