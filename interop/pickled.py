"""Pickles read as text: nothing in them is ever imported, made or called.

Python's own unpickler is a machine that calls whatever a file names. This one
knows the same instructions but only symbols: a name stays a name, and a call of
a name is looked up in a table that the caller gives. What is not in the table
is refused. Only instructions that `torch.save` writes are known (protocols 2
to 5, pickletools in the standard library says what each does).
"""

import dataclasses
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from interop.mapped import WeightsError

MAX_STEPS = 8_000_000  # seconds; a large checkpoint with optimiser: 500,000
_CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
_EMPTY = {'EMPTY_DICT': dict, 'EMPTY_LIST': list, 'EMPTY_SET': list}
_LITERALS = frozenset(
  'BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT BINUNICODE SHORT_BINUNICODE '
  'BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 BINSTRING '
  'SHORT_BINSTRING'.split()
)
_TUPLES = {'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}


@dataclasses.dataclass(frozen=True, eq=False)
class Symbol:
  """A name in a pickle, 'module name'; nobody looks for what it means."""

  name: str


@dataclasses.dataclass(eq=False)
class Inert:
  """Stands for an object of a known harmless kind; it does nothing.

  Attributes:
    kind: 'module name' of its class.
    fields: its attributes or items, where the pickle has them as a dict.
  """

  kind: str
  fields: dict = dataclasses.field(default_factory=dict)


class Machine:
  """Follows the instructions of pickles.

  Args:
    calls: {'module name': value of a call, given the tuple of arguments}.
    inert: whether another 'module name' may appear; its call is an `Inert`.
    persistent: gives the value of a persistent id.
  """

  def __init__(
    self,
    calls: Mapping[str, Callable[[tuple], Any]],
    inert: Callable[[str], bool],
    persistent: Callable[[Any], Any],
  ):
    self._calls, self._inert, self._persistent = calls, inert, persistent
    self._steps = 0

  def run(self, stream: BinaryIO) -> Any:
    """The value of one pickle, of which `stream` is at the start.

    dicts, lists (sets too), tuples, plain values, `Symbol`, `Inert` and what
    the table of calls gives. The stream is left behind the pickle.

    Raises:
      WeightsError: the pickle is damaged, or wants what is not allowed.
    """
    self._stack, self._marks, self._memo = [], [], {}
    try:
      for op, arg, _ in pickletools.genops(stream):
        self._steps += 1
        if self._steps > MAX_STEPS:
          raise WeightsError('its pickle is absurdly long')
        if op.name == 'STOP':
          return self._stack.pop()
        self._step(op.name, arg)
    except WeightsError:
      raise
    except Exception as error:  # any byte of it may be broken, in any way
      raise WeightsError(f'its pickle is damaged ({error})'[:200]) from error

  def call(self, symbol: Any, arguments: Any) -> Any:
    """What a call of a symbol gives."""
    if type(symbol) is not Symbol or type(arguments) is not tuple:
      raise WeightsError('damaged: its pickle calls what cannot be called')
    if symbol.name in self._calls:
      return self._calls[symbol.name](arguments)
    return Inert(symbol.name)

  def _symbol(self, name: str) -> Symbol:
    if not (name in self._calls or self._inert(name)):
      raise WeightsError(
        f'refused: it wants {name.replace(" ", ".")[:100]!r}, which is code or '
        'unknown; ask for a file of plain tensors (safetensors, or torch.save '
        'of a state_dict)'
      )
    return Symbol(name)

  def _to_mark(self) -> list:
    found, self._stack = self._stack, self._marks.pop()
    return found

  def _step(self, op: str, arg: Any) -> None:
    stack = self._stack
    match op:
      case 'BINPUT' | 'LONG_BINPUT':
        self._memo[arg] = stack[-1]
      case 'BINGET' | 'LONG_BINGET':
        stack.append(self._memo[arg])
      case 'MEMOIZE':
        self._memo[len(self._memo)] = stack[-1]
      case op if op in _LITERALS:
        stack.append(arg)
      case 'MARK':
        self._marks.append(stack)
        self._stack = []
      case op if op in _TUPLES:
        items = tuple(stack[-_TUPLES[op] :])
        if len(items) < _TUPLES[op]:
          raise IndexError('nothing on the stack')
        del stack[-len(items) :]
        stack.append(items)
      case 'TUPLE':
        items = tuple(self._to_mark())
        self._stack.append(items)
      case 'FROZENSET':
        items = self._to_mark()
        self._stack.append(items)
      case op if op in _CONSTANTS:
        stack.append(_CONSTANTS[op])
      case op if op in _EMPTY:
        stack.append(_EMPTY[op]())
      case 'EMPTY_TUPLE':
        stack.append(())
      case 'GLOBAL':
        stack.append(self._symbol(arg))
      case 'STACK_GLOBAL':
        name, module = stack.pop(), stack.pop()
        stack.append(self._symbol(f'{module!s:.200} {name!s:.200}'))
      case 'REDUCE' | 'NEWOBJ':
        arguments, symbol = stack.pop(), stack.pop()
        stack.append(self.call(symbol, arguments))
      case 'NEWOBJ_EX':
        del stack[-1]  # arguments by name: only inert classes take them
        arguments, symbol = stack.pop(), stack.pop()
        stack.append(self.call(symbol, arguments))
      case 'BINPERSID':
        stack.append(self._persistent(stack.pop()))
      case 'BUILD':
        state = stack.pop()
        _build(stack[-1], state)
      case 'SETITEM':
        value, key = stack.pop(), stack.pop()
        _set_items(stack[-1], [key, value])
      case 'SETITEMS':
        items = self._to_mark()
        _set_items(self._stack[-1], items)
      case 'APPEND':
        value = stack.pop()
        _extend(stack[-1], [value])
      case 'APPENDS' | 'ADDITEMS':
        items = self._to_mark()
        _extend(self._stack[-1], items)
      case 'PROTO' | 'FRAME':
        pass
      case _:
        raise WeightsError(f'refused: torch.save writes no {op} in a pickle')


def _build(target: Any, state: Any) -> None:
  if type(target) is Inert:
    if type(state) is dict:
      target.fields = state
  elif type(target) is not dict:  # an OrderedDict's attributes are not needed
    raise WeightsError('damaged: its pickle gives a state to a plain value')


def _set_items(target: Any, items: list) -> None:
  fields = target.fields if type(target) is Inert else target
  if type(fields) is not dict or len(items) % 2:
    raise WeightsError('damaged: its pickle fills what is not a dict')
  for key, value in zip(items[::2], items[1::2], strict=True):
    # Others could not name a tensor, and many that are equal in hash are slow.
    plain = type(key) is str or type(key) is int and abs(key) < 2**60
    fields[key if plain else Symbol('unnamed')] = value


def _extend(target: Any, items: list) -> None:
  if type(target) is list:
    target += items
  elif type(target) is not Inert:
    raise WeightsError('damaged: its pickle fills what is not a list')
