"""The house rules of the code: who may import whom, and how long things are."""

import ast
import functools
import pathlib
import re
import shlex
import sys

import pytest
from absl import flags
from ml_collections import config_flags
from tiny_run import SHARED_CONFIGS

ROOT = pathlib.Path(__file__).resolve().parent.parent
# What each package may import of ours, besides itself.
ALLOWED = {
  'configs': (),
  'input_pipeline': (),
  'models': (),
  'training': ('input_pipeline',),
  'pretrain': (
    'models',
    'training',
    'input_pipeline.augment',
    'input_pipeline.machine',
    'input_pipeline.order',
    'input_pipeline.source',
    'input_pipeline.views',
  ),
  'transfer': (
    'models',
    'training',
    'input_pipeline',
    'pretrain.losses',
    'interop',
  ),
  'interop': ('models',),
}
ENTRIES = ('main', 'benchmarks')  # they may import everything
# Slow or optional: only here, and only inside functions.
LAZY = {
  'tensorflow': ('input_pipeline/stream.py',),
  'tensorflow_datasets': (
    'input_pipeline/stream.py',
    'input_pipeline/tfds_source.py',
  ),
  'torch': ('interop/',),
  'safetensors': ('interop/',),
  'pyarrow': ('transfer/embed/files.py',),
  'matplotlib': ('transfer/visualize/',),
}
MAX_FILE, MAX_FUNCTION = 320, 85


def sources(*folders):
  found = [ROOT / 'main.py'] if 'main' in folders else []
  for folder in folders:
    found += sorted((ROOT / folder).rglob('*.py'))
  return found


PRODUCT = sources('main', 'benchmarks', *ALLOWED)
EVERYTHING = PRODUCT + sources('tests')
NAMES = [str(path.relative_to(ROOT)) for path in PRODUCT]


@functools.cache
def tree(path):
  return ast.parse(path.read_text(), str(path))


def imports(path):
  """(full name, whether at the top level) of everything imported."""
  top = set(tree(path).body)
  for node in ast.walk(tree(path)):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{path}: relative import'
      names = [f'{node.module}.{alias.name}' for alias in node.names]
    else:
      continue
    for name in names:
      yield name, node in top


def inside(name, packages):
  return any(name == p or name.startswith(f'{p}.') for p in packages)


each_file = pytest.mark.parametrize('path', PRODUCT, ids=NAMES)


def test_every_folder_of_code_has_a_rule():
  folders = {p.parent.name for p in ROOT.glob('*/__init__.py')}
  assert folders <= {*ALLOWED, *ENTRIES, 'tests', 'colab'}


@each_file
def test_imports_point_one_way(path):
  package = path.relative_to(ROOT).parts[0].removesuffix('.py')
  if package in ENTRIES:
    return
  ours = [n for n, _ in imports(path) if inside(n, (*ALLOWED, *ENTRIES))]
  allowed = (package, *ALLOWED[package])
  wrong = [name for name in ours if not inside(name, allowed)]
  assert not wrong, f'{package} may import of ours only {allowed}'


@each_file
def test_nothing_imports_main_or_tests(path):
  assert not [n for n, _ in imports(path) if inside(n, ('main', 'tests'))]


@each_file
def test_linen_stays_in_models(path):
  if path.is_relative_to(ROOT / 'models'):
    return
  assert not [n for n, _ in imports(path) if inside(n, ('flax.linen',))]


@each_file
def test_heavy_packages_are_lazy_and_in_their_place(path):
  name = str(path.relative_to(ROOT))
  for imported, top in imports(path):
    package = imported.partition('.')[0]
    if package in LAZY:
      assert name.startswith(LAZY[package]), f'{package} in {name}'
      assert not top, f'{name} imports {package} when it is imported'


@each_file
def test_no_lookup_by_string(path):
  """`getattr(module, name)` hides who calls what; tables show it."""
  for node in ast.walk(tree(path)):
    called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    if called and node.func.id == 'getattr':
      assert isinstance(node.args[1], ast.Constant), f'line {node.lineno}'


@pytest.mark.parametrize(
  'path', EVERYTHING, ids=[str(p.relative_to(ROOT)) for p in EVERYTHING]
)
def test_files_and_functions_are_short(path):
  long = []
  functions = ast.FunctionDef | ast.AsyncFunctionDef
  for node in ast.walk(tree(path)):
    if isinstance(node, functions):
      lines = node.end_lineno - node.lineno + 1
      if lines > MAX_FUNCTION:
        long.append(f'{node.name}: {lines} lines')
  assert not long
  if path in PRODUCT:
    assert len(path.read_text().splitlines()) <= MAX_FILE


def test_no_drawer_for_odds_and_ends():
  stems = [path.stem for path in EVERYTHING]
  assert not {'utils', 'util', 'helpers', 'misc'} & set(stems)


def undocumented(body, prefix=''):
  definitions = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
  for node in body:
    if not isinstance(node, definitions) or node.name.startswith('_'):
      continue
    if not ast.get_docstring(node):
      yield prefix + node.name
    if isinstance(node, ast.ClassDef):
      yield from undocumented(node.body, f'{node.name}.')


@each_file
def test_everything_public_is_documented(path):
  assert ast.get_docstring(tree(path)) or path.name == '__init__.py'
  assert list(undocumented(tree(path).body)) == []


def commands():
  """Every `python main.py ...` in the README and in config docstrings."""
  texts = {
    str(path.relative_to(ROOT)): ast.get_docstring(tree(path)) or ''
    for path in sources('configs')
  }
  readme = ROOT / 'README.md'
  if readme.exists():
    texts['README.md'] = readme.read_text()
  for name, text in texts.items():
    for line in text.replace('\\\n', ' ').splitlines():
      found = re.search(r'\bpython3? main\.py (.*)', line)
      if found:
        command = ' '.join(found[1].split())
        yield pytest.param(command, id=f'{name}: {command[:60]}')


def parse(command, monkeypatch):
  """The config of a command, read as `main.py` reads it."""
  monkeypatch.chdir(ROOT)
  argv = ['main.py', *shlex.split(command, comments=True)]
  monkeypatch.setattr(sys, 'argv', argv)  # where overrides are looked for
  values = flags.FlagValues()
  config_flags.DEFINE_config_file(
    'config', None, lock_config=True, flag_values=values
  )
  flags.DEFINE_string('workdir', None, '', flag_values=values)
  assert values(argv) == ['main.py']
  assert values.workdir
  return values.config


@pytest.mark.parametrize('command', list(commands()))
def test_documented_commands_parse(command, monkeypatch):
  assert parse(command, monkeypatch).task


def variations():
  """Options that config docstrings mention outside of commands."""
  for path in sources('configs'):
    text = (ast.get_docstring(tree(path)) or '').replace('\\\n', ' ')
    for line in text.splitlines():
      options = re.findall(r'--config\.[\w.]+=[^\s;,)]\S*', line)
      if options and 'main.py' not in line:
        command = f'--config=configs/{path.name} {" ".join(options)}'
        yield pytest.param(command, id=f'{path.name}: {options[0]}')


@pytest.mark.parametrize('command', list(variations()))
def test_documented_options_parse(command, monkeypatch):
  assert parse(f'{command} --workdir=x', monkeypatch).task


def test_config_docstrings_show_a_command():
  for path in sources('configs'):
    if path.stem not in SHARED_CONFIGS:
      text = ast.get_docstring(tree(path))
      assert f'--config=configs/{path.name}' in text, path.name


def test_an_unknown_override_in_a_command_is_noticed(monkeypatch):
  """The parser above is as strict as the entry point."""
  command = '--config=configs/moco_v3.py --config.optm.decay=1 --workdir=x'
  with pytest.raises((AttributeError, KeyError), match='optim'):
    parse(command, monkeypatch)


@pytest.mark.skipif(
  not (ROOT / 'README.md').exists(), reason='there is no README yet'
)
def test_the_readme_shows_commands():
  assert 'main.py' in (ROOT / 'README.md').read_text()
