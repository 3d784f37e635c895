"""Whose weights a file holds: the layout and where in the file it begins."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from interop import convvit_layouts, swin_layouts, vit_layouts, vit_tables
from interop.files import Tensor, Weights, WeightsError
from interop.hints import Hints, read_hints
from interop.layout import Layout
from models import make_encoder

LAYOUTS = (
  *vit_layouts.layouts(),
  *swin_layouts.layouts(),
  *convvit_layouts.layouts(),
)
# Words in names, as momentum_encoder or state_dict_ema, that mean an average of
# another encoder's weights, or what a student learns from.
TEACHERS = frozenset(('teacher', 'momentum', 'ema', 'target', 'k'))
SHOWN = 6
MAX_DEPTH = 500  # blocks; names may count higher than there are tensors
MAX_TOLD = 2**28  # numbers that are made to tell a shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
  """A layout that was tried on a file.

  Attributes:
    layout: the layout.
    root: what begins the names of the encoder's tensors.
    spec: the encoder's word and fields.
    encoder: the module.
    missing: names that the layout wants and the file has not.
    unexpected: names below the root that the layout does not know.
    misshaped: (name, shape of the file, shape wanted) of the others.
    unused: names of the file that are no part of the encoder.
  """

  layout: Layout
  root: str
  spec: Mapping[str, Any]
  encoder: Any
  missing: tuple[str, ...]
  unexpected: tuple[str, ...]
  misshaped: tuple[str, ...]
  unused: tuple[str, ...]

  @property
  def faults(self) -> int:
    """How many tensors do not fit."""
    return len(self.missing) + len(self.unexpected) + len(self.misshaped)


def recognise(
  weights: Weights, *, which: str = 'auto', given: Mapping[str, Any]
) -> Fit:
  """Finds the encoder in a file.

  Args:
    weights: the file.
    which: 'student' or 'teacher' where there are both; 'auto' is the teacher
      where they are called so (DINO), else the student (MoCo v3, MoBY).
    given: fields of `Hints` that the user set.

  Returns:
    The layout that fits in every tensor.

  Raises:
    WeightsError: none does; names the one that is nearest and lists what is
      missing, unexpected and of another shape.
  """
  hints = read_hints(weights, given)
  tried, reasons = [], []
  for layout in LAYOUTS:
    roots = _roots(weights.tensors, layout)
    if not roots:
      continue
    root = _choose(roots, which, weights)
    try:
      fit = try_layout(weights.tensors, layout, root, hints)
    except WeightsError as error:
      reasons.append((layout.name, error))
      continue
    if not fit.faults:
      return fit
    tried.append(fit)
  if tried:
    raise WeightsError(
      _differences(weights, min(tried, key=lambda f: f.faults))
    )
  if reasons:
    name, error = reasons[0]
    raise WeightsError(f'{weights.path} looks like {name}, but {error}')
  raise WeightsError(_strange(weights))


def try_layout(
  tensors: Mapping[str, Tensor], layout: Layout, root: str, hints: Hints
) -> Fit:
  """Compares the names and shapes of a file with those of a layout.

  Raises:
    WeightsError: no encoder can be made of them.
  """
  found = {
    name.removeprefix(root): tensor
    for name, tensor in tensors.items()
    if name.startswith(root)
  }
  spec = layout.spec(found, _by_root(hints, root, layout))
  encoder, wanted = _made(spec)
  missing, misshaped, known = [], [], set()
  for pair in layout.pairs(encoder):
    known.add(pair.theirs)
    if pair.theirs not in found:
      missing.append(pair.theirs)
      continue
    misshaped += _compare(pair, found[pair.theirs].shape, wanted)
  for pair in layout.computed(found):
    known.add(pair.theirs)
    read = found[pair.theirs].read()
    if not np.allclose(read, pair.give(), atol=1e-4):
      raise WeightsError(
        f'{root}{pair.theirs} is not the fixed table of {layout.name}, and no '
        'other can be had'
      )
  ignored = re.compile('|'.join(layout.ignored))
  rest = [name for name in found if name not in known]
  unexpected = [name for name in rest if not ignored.fullmatch(name)]
  unused = [name for name in tensors if name.removeprefix(root) not in known]
  return Fit(
    layout=layout,
    root=root,
    spec=spec,
    encoder=encoder,
    missing=tuple(missing),
    unexpected=tuple(unexpected),
    misshaped=tuple(misshaped),
    unused=tuple(unused),
  )


def _made(spec: Mapping[str, Any]) -> tuple[Any, dict[str, tuple[int, ...]]]:
  """The module and the shapes of its parameters."""
  try:
    encoder = build(spec)
    if encoder.depth > MAX_DEPTH:
      raise ValueError(f'{encoder.depth} blocks')
    return encoder, shapes(encoder)
  except (TypeError, ValueError) as error:
    raise WeightsError(f'no encoder has such sizes: {error}') from error


def build(spec: Mapping[str, Any]) -> Any:
  """The module of `config.encoder`."""
  fields = dict(spec)
  return make_encoder(fields.pop('name'), **fields)


def shapes(encoder: Any) -> dict[str, tuple[int, ...]]:
  """{path: shape} of an encoder's parameters, without computing any."""
  size = [max(encoder.strides)] * 2
  image = jax.ShapeDtypeStruct((1, *size, encoder.in_channels), np.float32)
  drawn = jax.eval_shape(encoder.init, jax.random.key(0), image)
  flat = traverse_util.flatten_dict(drawn['params'], sep='/')
  return {path: leaf.shape for path, leaf in flat.items()}


def _compare(pair, shape, wanted) -> list[str]:
  """What a tensor would have to be, if it is not."""
  try:
    # No memory behind it: strides of 0.
    parts = pair.take(np.broadcast_to(np.float32(0), shape))
    if [p.shape for p in parts] == [wanted[path] for path in pair.ours]:
      return []
  except ValueError:
    pass  # axes that cannot be exchanged
  ours = [np.broadcast_to(np.float32(0), wanted[path]) for path in pair.ours]
  if sum(x.size for x in ours) > MAX_TOLD:
    return [f'{pair.theirs} {list(shape)}']
  return [f'{pair.theirs} {list(shape)} for {list(pair.give(*ours).shape)}']


def _roots(names: Mapping[str, Tensor], layout: Layout) -> list[str]:
  """Where in a file a layout may begin: all of its anchors are there."""
  first = layout.anchors[0]
  roots = []
  for name in names:
    root = name.removesuffix(first)
    if name.endswith(first) and (not root or root.endswith('.')):
      if all(root + anchor in names for anchor in layout.anchors):
        roots.append(root)
  return roots


def is_teacher(root: str) -> bool:
  """Whether names that begin so are of a teacher."""
  return bool(TEACHERS & _words(root))


def _words(root: str) -> set[str]:
  return set(re.split('[._]', root))


def _choose(roots: list[str], which: str, weights: Weights) -> str:
  """The root of the encoder that is asked for."""
  by_role = dict(
    teacher=[r for r in roots if is_teacher(r)],
    student=[r for r in roots if not is_teacher(r)],
  )
  if which == 'auto':
    called_so = any('teacher' in _words(r) for r in roots)
    which = 'teacher' if called_so or not by_role['student'] else 'student'
  if not by_role[which]:
    raise WeightsError(f'{weights.path} has no encoder of a {which}')
  if len(by_role[which]) > 1:
    names = ', '.join(repr(r) for r in by_role[which])
    raise WeightsError(
      f'{weights.path} has several encoders, below {names}: save the one you '
      'mean in a file of its own'
    )
  return by_role[which][0]


def _by_root(hints: Hints, root: str, layout: Layout) -> Hints:
  """What the place in the file tells of the authors."""
  parts = set(root.split('.'))
  if layout.name != vit_tables.TIMM.title:
    return hints
  if {'base_encoder', 'momentum_encoder'} & parts and not hints.num_heads:
    return dataclasses.replace(hints, num_heads=vit_layouts.MOCO_V3_HEADS)
  if {'teacher', 'student'} & parts and hints.positions_offset is None:
    return dataclasses.replace(hints, positions_offset=0.1)  # DINO
  return hints


def _differences(weights: Weights, fit: Fit) -> str:
  parts = [
    f'{kind} {", ".join(names[:SHOWN])}'
    + (f' and {len(names) - SHOWN} more' if len(names) > SHOWN else '')
    for kind, names in (
      ('missing', fit.missing),
      ('unexpected', fit.unexpected),
      ('of another shape', fit.misshaped),
    )
    if names
  ]
  where = f' below {fit.root!r}' if fit.root else ''
  return (
    f'{weights.path} is most like {fit.layout.name}{where}, but does not fit: '
    f'{"; ".join(parts)}'
  )


def _strange(weights: Weights) -> str:
  names = sorted(weights.tensors)
  known = ', '.join(layout.name for layout in LAYOUTS)
  return (
    f'{weights.path} holds no encoder of a known layout; its '
    f'{len(names)} tensors are called {", ".join(names[:SHOWN])}, ...; known '
    f'layouts: {known}'
  )
