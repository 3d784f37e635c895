"""Answers to --help, --print_config and --list, without a run.

They need no workdir, read no data and import neither JAX nor TensorFlow.
"""

import json
import pathlib
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from input_pipeline.known import unknown
from training import command_line, words
from training.field_comments import comment, docstring, table_of
from training.ranges import leaves

PROGRAM = 'python main.py'
SUMMARY = (
  'RePre-JAX: self-supervised pre-training of vision transformers in JAX'
)
TASKS = {
  'pretrain': 'trains an encoder without labels',
  'check_data': 'reads the images and labels and reports what is wrong',
  'linear_probe': 'trains linear classifiers on a frozen encoder',
  'finetune': 'trains an encoder and a classifier on labels',
  'knn': 'classifies by the nearest neighbours of a frozen encoder',
  'fewshot': 'classifies from few labels on a frozen encoder',
  'embed': 'writes the features of images to a file',
  'visualize': 'draws attention, projections, reconstructions and curves',
  'export': 'writes an encoder for timm, transformers and detection code',
}
MOST_USED = (
  'data.data_dir',
  'batch_size',
  'epochs',
  'steps',
  'optim.base_lr',
  'optim.warmup_epochs',
  'data.image_size',
  'dtype',
  'chunks',
  'encoder.remat',
  'init_from',
  'log_every',
  'eval_every',
  'checkpoint_every',
  'resume',
  'seed',
)


def answer(argv: Sequence[str]) -> bool:
  """Prints what one of the options asks for.

  Args:
    argv: a command line, its program first.

  Returns:
    Whether there was such an option.

  Raises:
    ValueError: the rest of the command line is wrong.
  """
  for word in argv[1:]:
    option, _, value = word.lstrip('-').partition('=')
    if word == '--':
      break
    if word in ('-h', '--help', '-help', '--helpshort'):
      print(help_text(argv))
    elif word.startswith('-') and option == 'print_config':
      print('\n'.join(config_lines(argv)))
    elif word.startswith('-') and option == 'list':
      print(listing(value))
    else:
      continue
    return True
  return False


def leave_if_asked(argv: Sequence[str]) -> None:
  """Ends the process with exit code 0 after an answer, or 1 after an error.

  To be called before anything is imported that takes seconds; returns where
  there is nothing to answer.
  """
  try:
    answered = answer(argv)
  except BrokenPipeError:
    sys.stderr.close()  # `... --print_config | head`
    sys.exit(0)
  except Exception as error:
    cause: BaseException = error
    while 'Traceback' in str(cause) and cause.__context__:
      cause = cause.__context__  # of an error in the config file
    text = ' '.join(str(cause).split())
    sys.exit(f'error: {text or type(cause).__name__}')
  if answered:
    sys.exit(0)


def help_text(argv: Sequence[str]) -> str:
  """What --help prints, of the program or of one config file."""
  option = command_line.config_option(argv)
  if option is None or not option.value:
    return '\n'.join(_program_help())
  path, _, _ = option.value.partition(':')
  if not pathlib.Path(path).is_file():
    command_line.check([argv[0], f'--config={path}'])
  text = docstring(pathlib.Path(path)) or f'{path} has no docstring.'
  lines = [f'{path}: {text}', '']
  if known := _words_of(argv[0], path):
    lines.append(f'All words: {known}')
  lines += [
    'Every field can be set with --config.FIELD=VALUE; the fields, their',
    'values and what they mean:',
    f'  {PROGRAM} --config={option.value} --print_config',
  ]
  return '\n'.join(lines)


def _words_of(program: str, path: str) -> str:
  """The words that a config file takes, as it lists them for an unknown one."""
  try:
    command_line.read([program, f'--config={path}:?'])
  except Exception as error:
    lines = [line for line in str(error).splitlines() if ' Known: ' in line]
    return lines[-1].partition(' Known: ')[2] if lines else ''
  return ''


def _program_help() -> Iterator[str]:
  yield SUMMARY
  yield ''
  yield f'  {PROGRAM} --config=FILE.py:word,word --workdir=FOLDER'
  yield f'  {PROGRAM} --config=FILE.py:word,word --workdir=FOLDER \\'
  yield '    --config.FIELD=VALUE ...'
  yield ''
  yield 'The same command, run again, continues. Exit 0: finished; 75: stopped'
  yield 'by a signal after saving, start it again; anything else: an error.'
  yield ''
  yield '  --config=FILE.py --help           what a config file is for'
  yield '  --config=FILE.py --print_config   its fields and what they mean'
  yield '  --list                            methods, encoders, data, tasks'
  yield '  --traceback                       an error with its traceback'
  yield ''
  yield 'Config files:'
  for path in command_line.config_files():
    name = command_line.shown(path)
    yield f'  {name:26} {docstring(path).partition(chr(10))[0]}'
  yield ''
  yield 'Tasks, the field config.task, which config files set:'
  for name in words.TASKS:
    yield f'  {name:14} {TASKS[name]}'
  yield ''
  yield 'Data words:'
  for name, line in _data_words().items():
    yield f'  {name:14} {line}'
  yield ''
  yield 'Encoder words:'
  for line in _encoder_words():
    yield f'  {line}'
  yield ''
  yield 'Most used fields, all as --config.FIELD=VALUE:'
  file = command_line.CONFIGS / 'moco_v3.py'
  config = command_line.read([PROGRAM, f'--config={file}'])
  for name in MOST_USED:
    yield f'  {name:20} {comment(name, config, file)}'.rstrip()


def _data_words() -> Mapping[str, str]:
  return table_of(command_line.CONFIGS / 'data.py', 'DATA')


def _encoder_words() -> list[str]:
  """A patch size follows a ViT's."""
  return [*(f'{name}{{patch}}' for name in words.PATCHED), *words.COMPLETE]


LISTS: Mapping[str, Callable[[], Sequence[str]]] = {
  'methods': lambda: (*words.CONTRASTIVE, *words.MASKED),
  'encoders': _encoder_words,
  'data': lambda: tuple(_data_words()),
  'tasks': lambda: words.TASKS,
  'configs': lambda: [
    command_line.shown(path) for path in command_line.config_files()
  ],
}


def listing(kind: str) -> str:
  """What --list prints: all lists, or one of them a name a line.

  Args:
    kind: '', or a key of `LISTS`.

  Raises:
    ValueError: an unknown list.
  """
  if kind:
    if kind not in LISTS:
      raise unknown('--list', kind, LISTS)
    return '\n'.join(LISTS[kind]())
  lines = [f'{name}: {", ".join(LISTS[name]())}' for name in LISTS]
  return '\n'.join([*lines, 'one name a line: --list=methods'])


def config_lines(argv: Sequence[str]) -> Iterator[str]:
  """The resolved config, a line for each field.

  Every line is an option of the command line in the shell's notation, with the
  meaning of the field behind it; a field that is not set is commented out, with
  the paper's number where the first start chooses one.
  """
  config = command_line.read(argv)
  left_open = json.loads(config.get('paper') or '{}').get('open', {})
  file = command_line.config_option(argv).value.partition(':')[0]
  yield f'# {command_line.config_option(argv).written}'
  for name, value in sorted(leaves(config), key=_order):
    text = comment(name, config, pathlib.Path(file))
    if value is None:
      state = 'not set'
      if name in left_open:
        state = f'chosen at the first start; in the paper {left_open[name]}'
      yield f'# --config.{name} ({state}){f": {text}" if text else ""}'
    else:
      option = shlex.quote(f'--config.{name}={value}')
      yield f'{option}  # {text}' if text else option


def _order(field: tuple[str, Any]) -> tuple[bool, str]:
  """Fields of the config itself before those of groups."""
  return '.' in field[0], field[0]
