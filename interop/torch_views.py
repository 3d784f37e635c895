"""What `torch.save` writes about tensors: views of storages.

A storage is a flat run of numbers; a tensor is a view of one (offset, sizes,
strides), and several tensors may share one (torch/_utils.py says what each
function below would make of its arguments).
"""

import dataclasses
from typing import Any

import numpy as np

from interop.mapped import DTYPES, MAX_RANK, WeightsError, is_count
from interop.pickled import Inert, Machine, Symbol

_STORAGES = {  # torch's names of typed storages
  'FloatStorage': 'float32',
  'DoubleStorage': 'float64',
  'HalfStorage': 'float16',
  'BFloat16Storage': 'bfloat16',
  'LongStorage': 'int64',
  'IntStorage': 'int32',
  'ShortStorage': 'int16',
  'CharStorage': 'int8',
  'ByteStorage': 'uint8',
  'BoolStorage': 'bool',
  'ComplexFloatStorage': 'complex64',
  'ComplexDoubleStorage': 'complex128',
}
_UNTYPED = ('torch.storage UntypedStorage', 'torch UntypedStorage')
_UNSUPPORTED = {  # torch._utils: no array holds them as they are
  '_rebuild_qtensor': 'quantised',
  '_rebuild_sparse_tensor': 'sparse',
  '_rebuild_sparse_csr_tensor': 'sparse',
  '_rebuild_nested_tensor': 'nested',
  '_rebuild_meta_tensor_no_storage': 'empty (meta)',
  '_rebuild_wrapper_subclass': 'wrapped',
  '_rebuild_device_tensor_from_numpy': 'TPU',
  '_rebuild_device_tensor_from_cpu_tensor': "another device's",
}
_PLAIN = 'int float str bool complex bytearray object list dict set tuple'
# Found in released checkpoints beside the tensors: settings and counters.
_INERT = frozenset(
  f'{module} {name}'
  for module, names in {
    'argparse': 'Namespace',
    'types': 'SimpleNamespace',
    'typing': 'Any',
    'builtins': _PLAIN,
    '__builtin__': f'{_PLAIN} unicode long',  # protocol 2 has Python 2's names
    '_codecs': 'encode',
    'collections': 'Counter',
    'datetime': 'datetime date timedelta',
    'pathlib': 'Path PosixPath WindowsPath PurePosixPath PureWindowsPath',
    'pathlib._local': 'Path PosixPath WindowsPath PurePosixPath',
    'numpy': 'dtype ndarray float32 float64 int64',
    'numpy.core.multiarray': 'scalar _reconstruct',
    'numpy._core.multiarray': 'scalar _reconstruct',
    'torch': 'device Size Tensor strided',
    'torch.nn.parameter': 'Parameter Buffer',
    'torch._tensor': 'Tensor',
    'torch.serialization': '_get_layout',
    'torch.torch_version': 'TorchVersion',
    'yacs.config': 'CfgNode',
    'easydict': 'EasyDict',
    'addict.addict': 'Dict',
    'mmcv.utils.config': 'ConfigDict',
    'mmengine.config.config': 'ConfigDict',
    'omegaconf.dictconfig': 'DictConfig',
    'omegaconf.listconfig': 'ListConfig',
    'omegaconf.base': 'ContainerMetadata Metadata',
    'omegaconf.nodes': (
      'AnyNode StringNode IntegerNode FloatNode BooleanNode BytesNode PathNode'
    ),
    'pytorch_lightning.utilities.parsing': 'AttributeDict',
    'lightning_fabric.utilities.data': 'AttributeDict',
  }.items()
  for name in names.split()
)
TORCHSCRIPT = '__torch__'  # modules of a scripted model, whose code is ignored


@dataclasses.dataclass(frozen=True, eq=False)
class Storage:
  """A run of numbers.

  Attributes:
    key: its name in the file.
    dtype: of its numbers; None for plain bytes.
    count: how many numbers (or bytes).
  """

  key: str
  dtype: np.dtype | None
  count: int

  @property
  def nbytes(self) -> int:
    """Its size in bytes."""
    return self.count * (self.dtype.itemsize if self.dtype else 1)


@dataclasses.dataclass(frozen=True, eq=False)
class View:
  """A tensor: `shape` and `steps` (its strides) count numbers, as `offset`."""

  storage: Storage
  dtype: np.dtype
  offset: int
  shape: tuple[int, ...]
  steps: tuple[int, ...]


def machine(storages: dict[str, Storage]) -> Machine:
  """Reads the pickles of `torch.save`; tensors become `View`.

  Args:
    storages: filled with those that are met, by key.
  """

  def persistent(pid):
    storage = _storage(pid)
    known = storages.setdefault(storage.key, storage)
    if storage.nbytes > known.nbytes:
      raise WeightsError('damaged: a storage has two sizes')
    return storage

  made = Machine(_calls(lambda *call: made.call(*call)), _is_inert, persistent)
  return made


def _is_inert(name: str) -> bool:
  module, _, attribute = name.partition(' ')
  if module == 'torch':
    known = attribute in DTYPES or attribute in _STORAGES
    return known or name in _INERT or name in _UNTYPED
  if module == TORCHSCRIPT or module.startswith(f'{TORCHSCRIPT}.'):
    return True
  return name in _INERT or name in _UNTYPED


def _storage(pid: Any) -> Storage:
  """('storage', type, key, place, count) and, before torch 1.6, a view."""
  if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != 'storage':
    raise WeightsError('refused: it refers to more than numbers (a module?)')
  _, kind, key, _, count = pid[:5]
  if type(kind) is not Symbol or type(key) is not str:
    raise WeightsError('damaged: a storage without type or name')
  if type(count) is not int or not 0 <= count < 2**56:
    raise WeightsError('damaged: a storage of impossible size')
  if len(pid) == 6 and pid[5] is not None:
    raise WeightsError('refused: written by torch < 0.4; save it again')
  name = kind.name.partition(' ')[2]
  if kind.name in _UNTYPED:
    return Storage(key, None, count)
  if name not in _STORAGES:
    raise WeightsError(f'refused: a storage of type {kind.name[:80]!r}')
  return Storage(key, DTYPES[_STORAGES[name]], count)


def _calls(call) -> dict:
  """{'module name': value of a call, given the arguments}."""

  def rebuild(arguments):
    storage, offset, shape, steps = arguments[:4]
    flags = arguments[6] if len(arguments) > 6 else None
    return _view(storage, storage.dtype, offset, shape, steps, flags)

  def rebuild_v3(arguments):
    storage, offset, shape, steps, _, _, kind = arguments[:7]
    name = kind.name.partition(' ')[2]
    if name not in DTYPES:
      raise WeightsError(f'refused: numbers of type {kind.name[:80]!r}')
    flags = arguments[7] if len(arguments) > 7 else None
    return _view(storage, DTYPES[name], offset, shape, steps, flags)

  def refuse(kind):
    def refused(_):
      raise WeightsError(
        f'refused: it holds a {kind} tensor; save plain ones instead '
        '(tensor.dequantize(), tensor.to_dense(), tensor.cpu())'
      )

    return refused

  calls = {f'torch._utils {k}': refuse(v) for k, v in _UNSUPPORTED.items()}
  calls |= {
    'torch._utils _rebuild_tensor': rebuild,
    'torch._utils _rebuild_tensor_v2': rebuild,
    'torch._utils _rebuild_tensor_v3': rebuild_v3,
    'torch._utils _rebuild_parameter': _first,
    'torch._utils _rebuild_parameter_with_state': _first,
    # A tensor with attributes: function, class, its arguments, attributes.
    'torch._tensor _rebuild_from_type_v2': lambda a: call(a[0], a[2]),
    'collections OrderedDict': lambda _: {},
    'collections defaultdict': lambda _: {},
    'torch.jit._pickle build_intlist': _first,
    'torch.jit._pickle build_doublelist': _first,
    'torch.jit._pickle build_boollist': _first,
    'torch.jit._pickle build_tensorlist': _first,
    'torch.jit._pickle restore_type_tag': _first,
  }
  return calls


def _first(arguments: tuple) -> Any:
  return arguments[0]


def _view(storage, dtype, offset, shape, steps, flags) -> View:
  if type(storage) is not Storage or dtype is None:
    raise WeightsError('damaged: a tensor without a storage')
  if type(shape) is not tuple or type(steps) is not tuple:
    raise WeightsError('damaged: a tensor without sizes')
  numbers = (offset, *shape[:MAX_RANK], *steps[:MAX_RANK])
  if not len(shape) == len(steps) <= MAX_RANK or not all(
    map(is_count, numbers)
  ):
    raise WeightsError('damaged: a tensor has impossible sizes')
  last = offset + sum((n - 1) * s for n, s in zip(shape, steps, strict=True))
  if 0 not in shape and (last + 1) * dtype.itemsize > storage.nbytes:
    raise WeightsError('damaged: a tensor reaches beyond its storage')
  if flags:  # conjugated or negated when it is read
    raise WeightsError('refused: a tensor to be changed when it is read')
  return View(storage, dtype, offset, shape, steps)


def describe(value: Any) -> str:
  """What the top level of a file holds, in a few words."""
  if type(value) is dict:
    kinds = [f'{str(k)[:40]!r} ({_kind(v)})' for k, v in value.items()][:8]
    more = ', ...' if len(value) > len(kinds) else ''
    return f'a dict of {", ".join(kinds)}{more}' if kinds else 'an empty dict'
  return f'{_kind(value)} alone'


def _kind(value: Any) -> str:
  if isinstance(value, Inert):
    return value.kind.replace(' ', '.')[:80]
  return type(value).__name__.lower()
