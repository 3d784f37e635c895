"""Memory and cores that this process may use."""

import math
import os
import resource

import jax

UNLIMITED = 2**60  # and more is how some systems write "no limit"
LIMITS = (
  '/sys/fs/cgroup/memory.max',
  '/sys/fs/cgroup/memory/memory.limit_in_bytes',
)
QUOTA = '/sys/fs/cgroup/cpu.max'


def device_memory() -> int:
  """Bytes of a device; of the host's, shared by its devices, without its own.

  The host's are what the machine has, or less where a control group or a
  resource limit says so.
  """
  device = jax.local_devices()[0]
  stats = device.memory_stats() if device.platform != 'cpu' else None
  if stats and 'bytes_limit' in stats:
    return stats['bytes_limit']
  return host_memory() // jax.local_device_count()


def host_memory() -> int:
  """Bytes that this process may use."""
  found = [os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')]
  found += [int(text) for text in map(_read, LIMITS) if text.isdigit()]
  found.append(resource.getrlimit(resource.RLIMIT_AS)[0])
  return min(size for size in found if 0 < size < UNLIMITED)


def cores() -> float:
  """Processor cores that this process may use, at least a part of one."""
  try:
    found = len(os.sched_getaffinity(0))
  except AttributeError:  # not on every system
    found = os.cpu_count() or 1
  quota, _, period = _read(QUOTA).partition(' ')
  if quota.isdigit() and period.isdigit():
    found = min(found, int(quota) / int(period))
  return found if math.isfinite(found) and found > 0 else 1


def _read(path: str) -> str:
  try:
    with open(path) as file:
      return file.read().strip()
  except OSError:
    return ''
