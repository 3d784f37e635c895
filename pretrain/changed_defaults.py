"""Fields whose default has changed since a run began.

The same command must continue a run: where its config.json is from before a
change, the value of then is taken, with a notice.
"""

import json
from typing import Any

import ml_collections

from training import distributed, screen, storage
from training.checkpoint import Checkpoints
from training.fields import get_field, set_field

# Field: the default now, the one before, and a field that came with the change.
CHANGED = {
  'method.repre.weighting': ('balanced', 'uncertainty', 'weighting_window'),
  'method.masked.weighting': ('balanced', 'fixed', 'weighting_window'),
}


def as_begun(config: Any, workdir: str) -> Any:
  """The config, with defaults as they were when the workdir's run began.

  Args:
    config: of a run that may continue.
    workdir: its folder.

  Returns:
    The config itself where the run is new or from after the changes.
  """
  if not Checkpoints(workdir).steps():  # which all processes ask together
    return config
  old = distributed.on_lead(lambda: _recorded(workdir))
  for name, (now, before, came) in CHANGED.items():
    group, _, field = name.rpartition('.')
    recorded = get_field(old, group)
    if not recorded or came in recorded or get_field(config, name) != now:
      continue
    if recorded.get(field, before) != before:
      continue
    config = ml_collections.ConfigDict(config.copy_and_resolve_references())
    with config.unlocked():
      set_field(config, name, before)
      # Recorded without it, so that the next start finds the same.
      del get_field(config, group)[came]
    screen.note(
      f'config.{name}={before}, as this run began; a run in a new workdir '
      f'takes {now!r}'
    )
  return config


def _recorded(workdir: str) -> dict[str, Any]:
  """config.json of a run that has checkpoints; {} where it cannot be read."""
  try:
    old = json.loads((storage.resolve(workdir) / 'config.json').read_text())
  except (OSError, ValueError):
    return {}  # `workdir.check_config` reports it
  return old if isinstance(old, dict) else {}
