"""What the command line answers before a run, and what it refuses."""

import ast
import functools
import pathlib
import re
import shlex
import subprocess
import sys
import textwrap
import tokenize

import pytest
from every_config import CONFIGS, FILES, every_config

import main
import models
from configs.data import DATA
from pretrain.methods import METHODS
from training import command_line, describe, field_comments, words
from training.ranges import leaves, pattern

ROOT = pathlib.Path(main.__file__).parent
MOCO = f'--config={ROOT}/configs/moco_v3.py:repre,paper'
WORKDIR = '--workdir=none'
GROUP = re.compile(r'=\w+\.\w+\(\),')  # weights=common.weights(),
FIELD = re.compile(r'\s*(\w+=.*,|\w+=)\s*#')


def refusal(*argv):
  """The error of a command line."""
  with pytest.raises(ValueError) as error:
    command_line.check(['main.py', *argv])
  line = str(error.value)
  assert '\n' not in line
  return line


@pytest.mark.parametrize(
  'option, told',
  [
    ('optim.lr=1', 'unknown field config.optim.lr; did you mean config.optim.'),
    ('optim.lr=1', 'config.optim.base_lr? Fields of config.optim: base_lr, '),
    ('optim.base_lrr=1', 'did you mean config.optim.base_lr? Fields of config'),
    ('optm.base_lr=1', 'did you mean config.optim.base_lr? Fields of config:'),
    ('base_lr=1', 'did you mean config.optim.base_lr?'),
    ('lr=1', 'did you mean config.optim.base_lr?'),
    ('stepss=1', 'did you mean config.steps?'),
    ('qqqq=1', 'unknown field config.qqqq. Fields of config: batch_size,'),
    ('method.repre.widht=1', 'config.method.repre.widht; did you mean config'),
    ('data.mode.x=1', "config.data.mode='auto' is no group of fields"),
    ('method.masked.weight=1', 'config.method.masked is not set here'),
    ('method.masked=1', 'config.method.masked is not set here'),
    (
      'batch_size=1e3',
      'config.batch_size=1e3 must be a whole number: write 10',
    ),
    ('batch_size=abc', 'batch_size=abc must be a whole number, such as 4096'),
    ('steps=many', 'config.steps=many must be a whole number'),
    ('epochs=long', 'config.epochs=long must be a number, such as 300.0'),
    ('encoder.remat=perhaps', 'must be true or false'),
    ('data=5', 'config.data is a group of fields; set one of them'),
    ('views.view1.scale[0]=1', 'set the whole tuple'),
    ('seed', '--config.seed needs a value'),
  ],
)
def test_overrides_that_fit_no_field(option, told):
  assert told in refusal(MOCO, f'--config.{option}', WORKDIR)


def test_overrides_that_fit():
  command_line.check(
    [
      'main.py',
      WORKDIR,
      '--config',
      f'{ROOT}/configs/moco_v3.py:repre',
      '--config.seed',
      '3',
      '--config.encoder.remat',
      '--noconfig.encoder.remat',
      '--config.views.view1.scale=(0.1, 1)',
      "--config.data={'mode': 'stream'}",
    ]
  )


@pytest.mark.parametrize('folder', ['.', 'elsewhere'])
def test_a_missing_config_file(folder, tmp_path, monkeypatch):
  """The path suggested is one that works from the current folder."""
  monkeypatch.chdir(ROOT if folder == '.' else tmp_path)
  line = refusal('--config=configs/mocov3.py', WORKDIR)
  suggestion = line.partition('did you mean ')[2].partition('?')[0]
  assert pathlib.Path(suggestion).resolve() == ROOT / 'configs/moco_v3.py'
  assert '--config=configs/mocov3.py: no such file' in line
  assert all(name in line for name in FILES)


def test_other_wrong_command_lines(tmp_path):
  assert 'give both --config' in refusal()
  assert 'give both --config' in refusal(WORKDIR)
  assert '--config.seed=3 without a config' in refusal('--config.seed=3')
  assert 'stands before --config=' in refusal('--config.seed=3', MOCO)
  assert 'more than once' in refusal(MOCO, MOCO)
  assert 'is a folder' in refusal(f'--config={tmp_path}')
  far = refusal('--config=qqqqqqqq.py')
  assert 'did you mean' not in far and 'moco_v3' in far


def test_a_config_of_another_project(tmp_path, capsys):
  path = tmp_path / 'mine.py'
  path.write_text(
    textwrap.dedent('''
      """Mine."""
      from ml_collections import ConfigDict
      def get_config():
        return ConfigDict(dict(
          task='knn',
          own=dict(number=1e400),  # my number
          size=3,  # of mine
        ))
    ''')
  )
  argv = ['main.py', f'--config={path}', '--config.size=4']
  command_line.check(argv)
  assert describe.answer([*argv, '--print_config'])
  assert '--config.size=4  # of mine\n' in capsys.readouterr().out
  assert describe.answer([*argv, '--help'])
  assert 'Mine.' in capsys.readouterr().out


@pytest.mark.parametrize('name', FILES)
def test_a_printed_config_makes_itself(name):
  """Its lines, in a shell, are the options that lead to the same config."""
  option = f'--config={ROOT}/configs/{name}.py'
  argv = ['main.py', option, '--config.seed=7']
  printed = '\n'.join(describe.config_lines(argv))
  options = shlex.split(printed, comments=True)
  assert '--config.seed=7' in options
  again = command_line.read(['main.py', option, *options])
  assert again.to_json_best_effort() == (
    command_line.read(argv).to_json_best_effort()
  )
  every = {field for field, _ in leaves(again)}
  assert all(f'--config.{field}' in printed for field in every)


def declared_comments():
  """(file, comment) beside fields, in functions that declare fields."""
  for path in sorted(CONFIGS.glob('*.py')):
    functions = [
      node
      for node in ast.parse(path.read_text()).body
      if isinstance(node, ast.FunctionDef)
      and f'{path.stem}.{node.name}' in field_comments.GROUPS
    ]
    with path.open() as file:
      for token in tokenize.generate_tokens(file.readline):
        beside = FIELD.match(token.line)
        group = GROUP.search(token.line)
        if token.type == tokenize.COMMENT and beside and not group:
          for node in functions:
            if node.lineno <= token.start[0] <= node.end_lineno:
              yield path.stem, token.string.lstrip('# ')


@functools.cache
def meanings():
  """{(field, config file): its comment}, of every config."""
  found = {}
  for name, config in every_config().items():
    file = CONFIGS / f'{name.partition(":")[0]}.py'
    for field, _ in leaves(config):
      if (pattern(field), file.name) not in found:
        text = field_comments.comment(field, config, file)
        found[pattern(field), file.name] = text
  return found


def test_every_field_has_a_meaning():
  missing = sorted(
    {field for (field, _), text in meanings().items() if not text}
  )
  assert len(meanings()) > 1000
  assert not missing


def test_every_meaning_is_whole():
  """A comment that goes on in the next line would be cut off."""
  cut = {
    field: text
    for (field, _), text in meanings().items()
    if text.endswith((':', ',', ';')) or 'as the next' in text
  }
  assert not cut


def test_every_comment_of_a_field_is_printed():
  """Those of functions that declare fields, with some config or another."""
  shown = set(meanings().values())
  wanted = {text for _, text in declared_comments()}
  assert len(wanted) > 40
  assert not wanted - shown


def test_meanings_of_some_fields():
  config, file = every_config()['moco_v3:repre'], CONFIGS / 'moco_v3.py'

  def meaning(name):
    return field_comments.comment(name, config, file)

  assert meaning('batch_size') == 'over all devices'
  assert meaning('data.workers') == 'threads that decode; None: all'
  assert meaning('views.view2.blur') == 'probability of a Gaussian blur'
  assert meaning('method.repre.fusion') == "or 'transformer'"
  assert meaning('optim.decay') == 'weight decay'
  assert meaning('encoder.drop_path').startswith('rate of stochastic depth')
  assert meaning('optim.warmup_epochs') == 'length of the warm-up'
  assert meaning('seed') == 'of weights, order of images and augmentations'
  assert meaning('encoder.mean').endswith("None: ImageNet's if RGB or 0.5")
  assert meaning('method.repre.fusion_layers').startswith('layers per fusion')
  assert meaning('method.masked') == "a masked branch's fields; None: none"
  assert meaning('optim.hyper.b1') == 'decay rate of the mean of gradients'
  assert meaning('paper').startswith("The paper's numbers for fields that the")

  photos = every_config()['moco_v3:photos']
  assert field_comments.comment('data.tile', photos, file) == (
    'side of a tile in the photograph, pixels'
  )


def test_lists_are_the_tables_of_the_program():
  def listed(kind):
    return describe.listing(kind).splitlines()

  assert listed('methods') == list(METHODS)
  assert listed('tasks') == list(main.TASKS)
  assert listed('data') == list(DATA)
  encoders = [name.removesuffix('{patch}') for name in listed('encoders')]
  assert encoders == list(models.ENCODERS)
  assert [pathlib.Path(p).stem for p in listed('configs')] == FILES
  everything = describe.listing('')
  assert all(f'{kind}: ' in everything for kind in describe.LISTS)
  with pytest.raises(ValueError, match="did you mean 'methods'"):
    describe.listing('method')


def test_help_names_everything():
  text = describe.help_text(['main.py', '--help'])
  assert text.startswith('RePre-JAX') and '--workdir=FOLDER' in text
  for word in (*main.TASKS, *DATA, *models.ENCODERS, *describe.MOST_USED):
    assert f'  {word}' in text
  for name in FILES:
    path = CONFIGS / f'{name}.py'
    assert field_comments.docstring(path).splitlines()[0] in text
  assert describe.TASKS.keys() == set(words.TASKS)


@pytest.mark.parametrize('name', FILES)
def test_help_of_a_config_file(name):
  path = f'{ROOT}/configs/{name}.py'
  text = describe.help_text(['main.py', f'--config={path}', '--help'])
  assert field_comments.docstring(pathlib.Path(path)) in text
  assert 'All words: data photos, cifar10,' in text


@pytest.mark.parametrize(
  'options, code, told',
  [
    (['--help'], 0, 'Config files:'),
    (['--list=tasks'], 0, 'pretrain\n'),
    ([MOCO, '--print_config'], 0, '--config.method.name=moco_v3'),
    ([f'{MOCO},vit_q16', '--print_config'], 1, 'error: unknown config word'),
  ],
)
def test_answers_come_without_heavy_imports(options, code, told):
  """As the entry point asks for them, before its own imports."""
  program = (
    'import sys\n'
    'from training import describe\n'
    'import atexit\n'
    'heavy = {"jax", "tensorflow", "flax", "numpy"}\n'
    'atexit.register(lambda: print(heavy & set(sys.modules)))\n'
    'describe.leave_if_asked(["main.py", *sys.argv[1:]])\n'
    'print("goes on")\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', program, *options],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == code, done.stderr
  assert told in (done.stderr if code else done.stdout)
  assert done.stdout.endswith('set()\n') and 'goes on' not in done.stdout
  assert 'Traceback' not in done.stderr
