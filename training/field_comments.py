"""What each field of a config means, read from the sources of the configs.

A comment stands once: beside the field in `configs/`, or in the docstring of
the code that takes the field. Nothing is imported to read it.
"""

import ast
import functools
import inspect
import io
import pathlib
import re
import tokenize
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from training.command_line import CONFIGS, ROOT
from training.ranges import pattern

# The group of fields that a function of `configs/` returns, '' for the
# whole config: what these say of a field holds for every config.
GROUPS = {
  'automatic.automatic': '',
  'common.base': '',
  'common.downstream': '',
  'beside.add': '',
  'common.weights': 'weights',
  'common.encoder': 'encoder',
  'common.deit': 'encoder',
  'beside.repre': 'method.repre',
  'data._data': 'data',
  'data.photos': 'data',
  'data.tfds': 'data',
  'optim.optim': 'optim',
  'optim.adamw': 'optim.hyper',
  'optim.lars': 'optim.hyper',
  'views.two_views': 'views.*',
  'views.crop': 'views.*',
  'mae.method': 'method',
  'local_mim.method': 'method',
  'mr_mae._teaching': 'method',
  'mr_mae._teacher': 'method.teachers.*',
}
# The code whose docstring explains a group; {} is the name in the config.
ENCODERS = dict(vit='ViT', swin='Swin', convvit='ConvViT')
EXPLAINED = {
  'views.*': ('input_pipeline/views.py', 'View'),
  'data': ('input_pipeline/{}.py', 'from_{}'),
  'optim': ('configs/optim.py', 'optim'),
  'method': ('pretrain/methods/{}.py', '{}'),
  'method.repre': ('pretrain/methods/repre.py', 'repre'),
  'method.decoder': ('models/masked_decoders.py', 'MaskedDecoder'),
  'method.mimic': ('pretrain/mimic.py', 'Mimicry'),
  'weights': ('interop/hints.py', 'Hints'),
  'probe': ('transfer/probe/heads.py', 'LinearProbes'),
  'augment': ('input_pipeline/mixing.py', 'mix'),
}


def comment(name: str, config: Mapping[str, Any], file: pathlib.Path) -> str:
  """What a field means, in one line; '' where nothing says it.

  Args:
    name: of the field, without `config.`.
    config: the config that it belongs to.
    file: the source of the config, whose comments come first.
  """
  key = pattern(name)
  places = [(file, True), *((p, False) for p in sorted(CONFIGS.glob('*.py')))]
  beside = (comments_in(path, own).beside.get(key) for path, own in places)
  above = (comments_in(path, own).above.get(key) for path, own in places)
  texts = (*beside, _from_docstring(key, name, config), *above)
  return next(filter(None, texts), '')


def _from_docstring(key: str, name: str, config: Mapping[str, Any]) -> str:
  """What the code that takes a field says of it."""
  group, _, field = key.rpartition('.')
  word = _name_of(name, config)
  if group == 'encoder':
    family = word.partition('_')[0]
    place = f'models/{family}.py', ENCODERS.get(family, '')
  else:
    place = EXPLAINED.get(group, ('', ''))
  path, code = (part.format(word) for part in place)
  return explained(path, code).get(field, '') if path else ''


def _name_of(name: str, config: Mapping[str, Any]) -> str:
  """The method or encoder whose group a field is in."""
  group = config
  for part in name.split('.')[:-1]:
    group = group[part]
  return str(group.get('name') or '') if hasattr(group, 'get') else ''


class Comments(NamedTuple):
  """{field: comment} of a file.

  Attributes:
    beside: at the end of the field's line: what it means.
    above: on lines of their own before it.
  """

  beside: Mapping[str, str]
  above: Mapping[str, str]


@functools.cache
def comments_in(path: pathlib.Path, own: bool) -> Comments:
  """The comments of a file of configs.

  Args:
    path: of the file.
    own: whether it is the config's own, or else only what holds for every
      config counts.
  """
  try:
    source = path.read_text()
    tree = ast.parse(source)
  except (OSError, SyntaxError, ValueError):
    return Comments({}, {})
  comments, found = _comments(source), Comments({}, {})
  for node in tree.body:
    if not isinstance(node, ast.FunctionDef):
      continue
    name = f'{path.stem}.{node.name}'
    if own or name in GROUPS:
      for field, first, last in _fields(node, GROUPS.get(name, '')):
        if last in comments:
          found.beside.setdefault(pattern(field), comments[last])
        if -first in comments:
          found.above.setdefault(pattern(field), comments[-first])
  return found


def _comments(source: str) -> dict[int, str]:
  """{line: the comment at its end; -line: comments of their own above it}."""
  found: dict[int, str] = {}
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type == tokenize.COMMENT:
      text, line = token.string.lstrip('# '), token.start[0]
      if token.line[: token.start[1]].strip():
        found[line] = text
      else:  # joined with the one above it
        found[-line - 1] = ' '.join(filter(None, (found.pop(-line, ''), text)))
  return found


def _fields(node: ast.AST, group: str) -> Iterator[tuple[str, int, int]]:
  """(field, first line, last line) of all fields that a piece of code sets."""
  for child in ast.iter_child_nodes(node):
    inner = group
    if isinstance(child, ast.Assign):
      inner = _join(group, _target(child.targets[0]))
      yield inner, child.lineno, child.end_lineno
    elif isinstance(child, ast.keyword) and child.arg:
      inner = _join(group, child.arg)
      yield inner, child.lineno, child.value.end_lineno
    elif isinstance(child, ast.Call) and isinstance(child.func, ast.Attribute):
      if child.func.attr == 'update':
        inner = _join(group, _target(child.func.value))
    yield from _fields(child, inner)


def _target(node: ast.AST) -> str:
  """The field that `config.a.b` names: 'a.b'."""
  if isinstance(node, ast.Attribute):
    return _join(_target(node.value), node.attr)
  if isinstance(node, ast.Name) and node.id not in ('config', 'out'):
    return node.id
  return ''


def _join(*parts: str) -> str:
  return '.'.join(filter(None, parts))


@functools.cache
def explained(path: str, code: str) -> Mapping[str, str]:
  """{argument or attribute: its line in the docstring of a class or function}.

  Args:
    path: of the source, below the project's folder.
    code: name of the class or function.
  """
  try:
    tree = ast.parse((ROOT / path).read_text())
  except (OSError, SyntaxError, ValueError):
    return {}
  kinds = ast.ClassDef | ast.FunctionDef
  for node in tree.body:
    if isinstance(node, kinds) and node.name == code:
      return _arguments(ast.get_docstring(node) or '')
  return {}


def _arguments(docstring: str) -> dict[str, str]:
  """The entries below 'Args:' or 'Attributes:'."""
  found = re.search(
    r'^(?:Args|Attributes):\n((?:[ ].*\n?|\n)*)', docstring + '\n', re.M
  )
  section = inspect.cleandoc(found[1]) if found else ''
  entries: dict[str, str] = {}
  name = None
  for line in section.splitlines():
    if start := re.match(r'\**(\w+): (.*)', line):
      name = start[1]
      entries[name] = start[2]
    elif name:
      entries[name] += ' ' + line.strip()
  return {key: text.strip().removesuffix('.') for key, text in entries.items()}


def docstring(path: pathlib.Path) -> str:
  """The docstring of a source file; '' where it has none."""
  try:
    return ast.get_docstring(ast.parse(path.read_text())) or ''
  except (OSError, SyntaxError, ValueError):
    return ''


def table_of(path: pathlib.Path, name: str) -> dict[str, str]:
  """{word: first line of its function's docstring} of a table in a source."""
  tree = ast.parse(path.read_text())
  lines = {
    node.name: (ast.get_docstring(node) or '').partition('\n')[0]
    for node in tree.body
    if isinstance(node, ast.FunctionDef)
  }
  for node in tree.body:
    if isinstance(node, ast.Assign) and _target(node.targets[0]) == name:
      return {k.arg: lines.get(k.value.id, '') for k in node.value.keywords}
  return {}
