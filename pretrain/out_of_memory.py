"""What to change where memory is not enough, with numbers that would fit."""

import contextlib
import math
import re
from collections.abc import Iterator
from typing import Any

from pretrain.estimate import cost_of, device_of
from pretrain.footprint import Footprint
from pretrain.sizing import FITS, Device, chunks_that_fit, gib
from training import sharding

# As XLA, its allocators, NVIDIA's libraries and NumPy write it.
SIGNS = re.compile(
  r'RESOURCE_EXHAUSTED|out of memory|OOM when allocating|'
  r'failed to allocate|unable to allocate|bad_alloc|'
  r'CUDNN_STATUS_ALLOC_FAILED|CUBLAS_STATUS_ALLOC_FAILED|'
  r'CUDA_ERROR_OUT_OF_MEMORY',
  re.IGNORECASE,
)
NO_SPACE = re.compile(r'no space left|disk quota', re.IGNORECASE)
ALLOCATION = re.compile(
  r'(?:allocat\w*|requested)\D{0,40}?([\d.]+)\s?(bytes|[KMGT]i?B)',
  re.IGNORECASE,
)
CHUNKED = ('pretrain', 'finetune', 'linear_probe')  # jobs with chunks
UNITS = dict(b=1, k=2**10, m=2**20, g=2**30, t=2**40)


class OutOfMemoryError(RuntimeError):
  """A device or the host ran out of memory; names the fields to change."""


_settled: list[Any] = []  # the config that the guarded job runs with


def is_out_of_memory(error: BaseException) -> bool:
  """Whether an exception, or one that it came from, says so."""
  seen = set()
  while error is not None and id(error) not in seen:
    seen.add(id(error))
    if isinstance(error, MemoryError):
      return True
    text = str(error)
    if not isinstance(error, OSError | ValueError) and (
      SIGNS.search(text) and not NO_SPACE.search(text)
    ):
      return True
    hidden = error.__suppress_context__  # raised `from` another, or from None
    error = error.__cause__ if hidden else error.__context__
  return False


def wanted_bytes(text: str) -> float | None:
  """The size of the allocation that failed, if the message states it."""
  found = ALLOCATION.search(text)
  if found is None:
    return None
  return float(found[1]) * UNITS[found[2][0].lower()]


def advice(
  *,
  batch: int,
  chunks: int,
  dtype: str,
  remat: str,
  device: Device,
  cost: Footprint | None = None,
  wanted: float | None = None,
) -> str:
  """Fields to change, each with a number that would fit.

  Args:
    batch: `config.batch_size`.
    chunks: `config.chunks`; 0 where a job has none.
    dtype: `config.dtype`.
    remat: the field that makes the encoder recompute its blocks; '' where it
      does so already, or none does.
    device: where it ran.
    cost: of a step; None where it is not known.
    wanted: bytes of the failed allocation, if that is known.

  Returns:
    Text that begins with the first field.
  """
  rows = max(batch // device.count, 1)
  if cost is None:
    over = max((wanted or 0) / (FITS * device.memory), 2)
    parts = 2 ** math.ceil(math.log2(over) + 1)
    fewer, more = max(rows // parts, 1), chunks * parts
    more = more if more and rows % more == 0 else None
  else:
    more = chunks_that_fit(batch, cost, device)
    # The estimate may be too low: it has just been refuted.
    if more is not None and more <= chunks:
      more = chunks * 2 if rows % (chunks * 2) == 0 else None
    fewer = rows // 2
    while fewer > 1 and cost.step(fewer) > FITS * device.memory:
      fewer //= 2
  ways = []
  if more:
    ways.append(
      f'config.chunks={more} (same result, less memory; now {chunks})'
    )
  if fewer and fewer < rows:
    ways.append(f'config.batch_size={fewer * device.count} (now {batch})')
  if remat:
    ways.append(f'{remat}=True (recomputes blocks)')
  if dtype == 'float32' and not device.cores:
    ways.append("config.dtype='bfloat16' (half the activations)")
  ways.append('a smaller config.data.image_size or encoder')
  return ', or '.join(ways)


def message(error: BaseException, ways: str, device: Device) -> str:
  """One line for an error.

  Args:
    error: what was raised.
    ways: of `advice`.
    device: where it ran.
  """
  text = ' '.join(str(error).split()) or type(error).__name__
  size = wanted_bytes(text)
  size = f' (an allocation of {gib(size)} failed)' if size else ''
  return f'out of memory on {device}{size}: set {ways}'


def remat_field(config: Any) -> str:
  """The field that makes a job recompute blocks; '' where none is left."""
  if config.task == 'pretrain':
    return '' if config.encoder.get('remat') else 'config.encoder.remat'
  return '' if config.get('remat', True) else 'config.remat'


@contextlib.contextmanager
def guarded(config: Any) -> Iterator[None]:
  """Raises `OutOfMemoryError` in the place of errors that mean so.

  Args:
    config: of the job; once `settle` was called that one counts, in which
      nothing is left open.
  """
  _settled.clear()
  try:
    yield
  except Exception as error:
    if isinstance(error, OutOfMemoryError) or not is_out_of_memory(error):
      raise
    raise explained(error, *_known(config)) from error


def explained(
  error: BaseException, config: Any, device: Device, cost: Footprint | None
) -> OutOfMemoryError:
  """The error to raise in the place of one that `is_out_of_memory`.

  Args:
    error: what was raised.
    config: of the job.
    device: where it ran.
    cost: of a step; None where it is not known.
  """
  ways = advice(
    batch=config.get('batch_size') or 1,
    chunks=(config.get('chunks') or 1) if config.task in CHUNKED else 0,
    dtype=config.get('dtype') or 'float32',
    remat=remat_field(config),
    device=device,
    cost=cost,
    wanted=wanted_bytes(str(error)),
  )
  return OutOfMemoryError(message(error, ways, device))


def settle(config: Any) -> None:
  """States the config that the job of `guarded` runs with from now on."""
  _settled[:] = [config]


def _known(config: Any) -> tuple[Any, Device, Footprint | None]:
  """The config of a job that failed, its devices, and its cost or None."""
  config = _settled[0] if _settled else config
  device = device_of(sharding.make_mesh(config.get('fsdp') or 1))
  cost = None
  # An estimate must never hide the error that it is to explain.
  with contextlib.suppress(Exception):
    if config.task == 'pretrain':
      channels = config.data.channels or (1 if config.data.get('gray') else 3)
      cost = cost_of(config, channels=channels)
  return config, device, cost
