"""Checks of the command line that name the option, the reason and a remedy."""

import ast
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import config_flags

from input_pipeline.known import nearest
from input_pipeline.paths import expand
from training.ranges import leaves

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIGS = ROOT / 'configs'
USAGE = 'give both --config=FILE.py:words and --workdir=FOLDER'
# Names that other programs have for fields.
ALIASES = {
  'lr': 'base_lr',
  'learning_rate': 'base_lr',
  'weight_decay': 'decay',
  'wd': 'decay',
  'warmup': 'warmup_epochs',
  'bs': 'batch_size',
  'img_size': 'image_size',
  'data_path': 'data_dir',
  'num_workers': 'workers',
}
OPTION = re.compile(r'--?(?P<no>no)?(?P<name>config(\.[^=]+)?|workdir)(=|$)')


class Option(NamedTuple):
  """One option of a command line.

  Attributes:
    name: without dashes, such as 'config.seed'.
    value: as written; None where a flag stands alone.
    written: the whole option.
  """

  name: str
  value: str | None
  written: str


def options(argv: Sequence[str]) -> Iterator[Option]:
  """The options that concern configs and workdirs.

  Args:
    argv: a command line, its program first.

  Yields:
    Each option in its order.
  """
  for i, word in enumerate(argv[1:], 1):
    if word == '--':
      return
    if found := OPTION.match(word):
      name, equals, value = word.lstrip('-').partition('=')
      if found['no']:
        yield Option(found['name'], None, word)
      elif equals:
        yield Option(name, value, word)
      else:
        following = next(iter(argv[i + 1 : i + 2]), '--')
        value = None if following.startswith('--') else following
        yield Option(name, value, word)


def expanded(argv: Sequence[str]) -> list[str]:
  """A command line with `~` filled in in `--config=~/FILE.py`."""
  head = '--config='
  return [
    head + expand(word.removeprefix(head))
    if word.startswith(f'{head}~')
    else word
    for word in argv
  ]


def config_option(argv: Sequence[str]) -> Option | None:
  """The option `--config=FILE.py:words`, or None.

  Raises:
    ValueError: several of them.
  """
  found = [option for option in options(argv) if option.name == 'config']
  if len(found) > 1:
    both = ' and '.join(str(option.value) for option in found)
    raise ValueError(f'--config is given more than once ({both}): give one')
  return found[0] if found else None


def read(argv: Sequence[str]) -> Any:
  """The config of a command line, with its overrides.

  Raises:
    ValueError: see `check`.
    Exception: what the config file raises.
  """
  check(argv)
  return _parse([argv[0], *_config_words(argv)])


def check(argv: Sequence[str]) -> None:
  """Raises ValueError for options that no config has.

  Args:
    argv: a command line, its program first. What a config file itself raises is
      left to the parser of flags.
  """
  if any(word.lstrip('-').startswith('flagfile') for word in argv[1:]):
    return  # the options are in a file
  config = config_option(argv)
  overrides = [o for o in options(argv) if o.name.startswith('config.')]
  if config is None or not config.value:
    if overrides:
      first = overrides[0].written
      raise ValueError(f'{first} without a config: {USAGE}. {files_line()}')
    raise ValueError(f'{USAGE}. {files_line()}. Try --help')
  path = config.value.partition(':')[0]
  if not os.path.isfile(path):
    raise _missing(path)
  given = [option.name for option in options(argv)]
  if overrides and given.index(overrides[0].name) < given.index('config'):
    raise ValueError(
      f'{overrides[0].written} stands before --config={config.value}: give '
      '--config first'
    )
  try:
    found = _parse([argv[0], f'--config={config.value}'])
  except Exception:
    return  # the parser of flags raises it again
  for option in overrides:
    check_override(found, option)


def _parse(argv: Sequence[str]) -> Any:
  values = flags.FlagValues()
  config_flags.DEFINE_config_file(
    'config', None, lock_config=True, flag_values=values, sys_argv=list(argv)
  )
  values(argv)
  return values.config


def _config_words(argv: Sequence[str]) -> list[str]:
  """The options of a command line that make its config."""
  words = []
  for option in options(argv):
    if option.name != 'workdir':
      alone = '=' in option.written or option.value is None
      words += [option.written] if alone else [option.written, option.value]
  return words


def config_files() -> list[pathlib.Path]:
  """The config files of this project that make a config, by name."""
  paths = sorted(CONFIGS.glob('*.py'))
  return [p for p in paths if '\ndef get_config(' in p.read_text()]


def shown(path: pathlib.Path) -> str:
  """A path as it may be written in the current folder."""
  near = os.path.relpath(path)
  return str(path) if near.startswith('..') else near


def files_line() -> str:
  """The config files in a few words."""
  names = ', '.join(path.stem for path in config_files())
  return f'Config files in {shown(CONFIGS)}: {names}'


def _missing(path: str) -> ValueError:
  """The error for a config file that is not there."""
  folder = pathlib.Path(path).parent
  known = {shown(p): p.stem for p in (*folder.glob('*.py'), *config_files())}
  near = nearest(pathlib.Path(path).stem, known.values())
  place = next((p for p, stem in known.items() if stem == near), None)
  suggestion = f'; did you mean {place}?' if place else '.'
  kind = 'is a folder' if os.path.isdir(path) else 'no such file'
  return ValueError(f'--config={path}: {kind}{suggestion} {files_line()}')


def check_override(config: Any, option: Option) -> None:
  """Raises ValueError for an override of no field, or of another type.

  Args:
    config: the config that it overrides a field of.
    option: the override.
  """
  parts = option.name.split('.')
  if any('[' in part for part in parts):
    raise ValueError(
      f'{option.written}: a number within a tuple cannot be set; set the whole '
      f'tuple, --{option.name.partition("[")[0]}="(..., ...)"'
    )
  group, place = config, 'config'
  for i, part in enumerate(parts[1:], 1):
    if group is None:
      raise ValueError(
        f'{place} is not set here, so there is no {option.name}: a word after '
        'the colon of --config sets it (see --config=FILE --help)'
      )
    if not hasattr(group, 'keys'):
      raise ValueError(
        f'unknown field {option.name}: {place}={group!r} is no group of fields'
      )
    if part not in group:
      raise _unknown_field(config, group, place, option.name, part)
    if i == len(parts) - 1:
      check_type(group, part, option)
    group, place = group[part], f'{place}.{part}'


def _unknown_field(
  config: Any, group: Mapping, place: str, name: str, part: str
) -> ValueError:
  """The error for a field that a group does not have."""
  last = name.rpartition('.')[2]
  elsewhere = [field for field, _ in leaves(config)]
  same = [
    field
    for field in elsewhere
    if field.rpartition('.')[2] in (last, ALIASES.get(last))
  ]
  alike = [key for key in group if part in key.split('_')]
  if near := nearest(part, group):
    whole = name.replace(f'{place}.{part}', f'{place}.{near}', 1)
    exists = whole.removeprefix('config.') in elsewhere
    meant = whole if exists else f'{place}.{near}'
  elif same:
    meant = f'config.{same[0]}'
  else:
    meant = f'{place}.{alike[0]}' if alike else None
  text = f'; did you mean {meant}?' if meant else '.'
  fields = ', '.join(group)
  return ValueError(f'unknown field {name}{text} Fields of {place}: {fields}')


def check_type(group: Any, field: str, option: Option) -> None:
  """Raises ValueError for a value of another type than its field has."""
  current, value = group[field], option.value
  if hasattr(current, 'keys'):
    _check_group(current, option)
    return
  kind = group.get_type(field) if hasattr(group, 'get_type') else type(current)
  if kind is type(None):
    raise ValueError(
      f'{option.name} is not set here: a word after the colon of --config sets '
      'it (see --config=FILE --help)'
    )
  if option.written.startswith(('--no', '-no')) and kind is not bool:
    raise ValueError(f'{option.written}: {option.name} is no true or false')
  if value is None:
    if kind is not bool:
      raise ValueError(f'{option.written} needs a value: {option.name}=VALUE')
    return
  parser, words = PARSERS.get(kind, (None, ''))
  if parser is None or (kind is bool and '=' not in option.written):
    return
  try:
    parser.parse(value)
  except (ValueError, TypeError) as error:
    whole = _whole(value) if kind is int else None
    remedy = f': write {whole}' if whole is not None else _example(current)
    raise ValueError(
      f'{option.name}={value} must be {words}{remedy}'
    ) from error


PARSERS = {
  int: (flags.IntegerParser(), 'a whole number'),
  float: (flags.FloatParser(), 'a number'),
  bool: (flags.BooleanParser(), 'true or false'),
}


def _example(current: Any) -> str:
  return '' if current is None else f', such as {current}'


def _whole(value: str) -> int | None:
  """The integer that a text such as '1e3' means."""
  try:
    number = float(value)
    return int(number) if number.is_integer() else None
  except (ValueError, OverflowError):
    return None


def _check_group(group: Any, option: Option) -> None:
  try:
    given = ast.literal_eval(option.value or '')
  except (SyntaxError, ValueError):
    given = None
  if not isinstance(given, dict):
    first = next(iter(group), None)
    raise ValueError(
      f'{option.name}={option.value}: {option.name} is a group of fields; set '
      f'one of them, such as --{option.name}.{first}=...; fields: '
      f'{", ".join(group)}'
    )
