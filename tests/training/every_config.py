"""Every config that a file and one word of it make."""

import functools
import importlib
import pathlib
from unittest import mock

from configs import common
from configs.data import DATA
from tests.tiny_run import SHARED_CONFIGS

CONFIGS = pathlib.Path(common.__file__).parent
FILES = sorted(
  path.stem for path in CONFIGS.glob('*.py') if path.stem not in SHARED_CONFIGS
)
ENCODERS = (
  *(f'{name}16' for name in common.VITS),
  'vit_mini4',
  *common.COMPLETE,
)


def _own_flags(module):
  """The flags that a config file hands to `common.parse`."""
  seen, parse = [], common.parse

  def record(arg, **fields):
    seen.extend(fields.get('flags', ()))
    return parse(arg, **fields)

  with mock.patch.object(common, 'parse', record):
    module.get_config()
  return seen


@functools.cache
def every_config():
  """{'FILE:word': config}; words that a file refuses are left out."""
  found = {}
  for name in FILES:
    module = importlib.import_module(f'configs.{name}')
    for word in ('', *DATA, *ENCODERS, *_own_flags(module)):
      try:
        found[f'{name}:{word}'] = module.get_config(word)
      except ValueError:
        assert word, f'configs/{name}.py has no default'
  return found
