"""What is said where memory is not enough: fields, with numbers that fit."""

import re

import ml_collections
import pytest

from pretrain import out_of_memory
from pretrain.footprint import Footprint
from pretrain.out_of_memory import OutOfMemoryError, advice, is_out_of_memory
from pretrain.sizing import FITS, Device

GIB = 2**30
COST = Footprint(
  state=1e9,
  fixed=0.5e9,
  chunked=0.25e9,
  kept=5e6,
  flops=1.0,
  encoding=1.0,
  encoding_flops=1.0,
)
GPU = Device(memory=24 * GIB)
MESSAGES = {
  'RESOURCE_EXHAUSTED: Out of memory while trying to allocate 72726037696 '
  'bytes.': 72726037696,
  'INTERNAL: Error dispatching computation: Out of memory allocating '
  '72726037696 bytes.': 72726037696,
  'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in '
  'memory space hbm.': None,
  'Failed to allocate request for 2.50GiB (2684354560B) on device ordinal 0': (
    2.5 * GIB
  ),
  'CUDNN_STATUS_ALLOC_FAILED': None,
  'INTERNAL: cublas error: CUBLAS_STATUS_ALLOC_FAILED': None,
  'std::bad_alloc': None,
}


@pytest.mark.parametrize('text', MESSAGES)
def test_messages_of_every_backend(text):
  assert is_out_of_memory(RuntimeError(text))
  assert out_of_memory.wanted_bytes(text) == MESSAGES[text]


def test_of_the_host_and_behind_other_errors():
  assert is_out_of_memory(MemoryError())
  outer = RuntimeError('the step failed')
  outer.__cause__ = MemoryError('Unable to allocate 3.00 GiB for an array')
  assert is_out_of_memory(outer)
  assert not is_out_of_memory(ValueError('config.chunks: out of memory'))
  assert not is_out_of_memory(OSError(28, 'No space left on device'))
  assert not is_out_of_memory(RuntimeError('INTERNAL: no kernel image'))


def number(field, text):
  return int(re.search(rf'config\.{field}=(\d+)', text)[1])


def test_numbers_would_fit():
  text = advice(
    batch=256,
    chunks=1,
    dtype='float32',
    remat='config.encoder.remat',
    device=GPU,
    cost=COST,
  )
  assert COST.step(256) > GPU.memory
  chunks, batch = number('chunks', text), number('batch_size', text)
  assert (
    COST.step(256, chunks) <= FITS * GPU.memory < COST.step(256, chunks / 2)
  )
  assert COST.step(batch) <= FITS * GPU.memory < COST.step(2 * batch)
  assert 'config.encoder.remat=True' in text and "dtype='bfloat16'" in text


def test_an_estimate_that_was_too_low_is_not_believed():
  """It should have fitted, in two chunks, and did not."""
  shared = dict(dtype='bfloat16', remat='', device=GPU, cost=COST)
  text = advice(batch=32, chunks=2, **shared)
  assert number('chunks', text) == 4 and number('batch_size', text) == 16
  assert 'remat' not in text and 'dtype' not in text
  assert 'config.chunks' not in advice(batch=1, chunks=1, **shared)


def test_without_an_estimate_the_failed_size_tells():
  device = Device(memory=24 * GIB, cores=2)
  shared = dict(dtype='float32', remat='', device=device)
  text = advice(batch=1024, chunks=0, wanted=72726037696, **shared)
  assert number('batch_size', text) <= 1024 * FITS * 24 * GIB / 72726037696
  assert 'config.chunks' not in text and 'dtype' not in text


@pytest.mark.parametrize('task', ['knn', 'finetune'])
def test_any_job_is_guarded(task, tmp_path):
  config = ml_collections.ConfigDict(
    dict(task=task, batch_size=1024, chunks=1, dtype='float32')
  )
  if task == 'finetune':
    config.remat = False
  with (
    pytest.raises(OutOfMemoryError, match='out of memory on') as raised,
    out_of_memory.guarded(config),
  ):
    raise RuntimeError('Out of memory allocating 72726037696 bytes.')
  text = str(raised.value)
  assert '\n' not in text and '67.7 GiB' in text
  assert number('batch_size', text) < 1024
  assert ('config.chunks=' in text) == (task == 'finetune')
  assert ('config.remat=True' in text) == (task == 'finetune')
  with (
    pytest.raises(ValueError, match='other'),
    out_of_memory.guarded(config),
  ):
    raise ValueError('other')


def test_the_config_that_was_settled_is_what_the_advice_is_for():
  """Before config.json is written; the command line leaves fields open."""
  opened = dict(task='finetune', batch_size=None, chunks=None, dtype=None)
  config = ml_collections.ConfigDict(opened | dict(remat=True))
  settled = ml_collections.ConfigDict(
    dict(opened, batch_size=64, chunks=2, dtype='float32', remat=True)
  )
  with (
    pytest.raises(OutOfMemoryError, match=r'\(now 64\)'),
    out_of_memory.guarded(config),
  ):
    out_of_memory.settle(settled)
    raise RuntimeError('Out of memory allocating 72726037696 bytes.')


def test_an_error_raised_from_none_is_itself():
  try:
    try:
      raise MemoryError
    except MemoryError:
      raise ValueError('too many unreadable images') from None
  except ValueError as error:
    assert not out_of_memory.is_out_of_memory(error)
