"""Memory and cores that this process may use."""

import math
import os
import resource
from collections.abc import Iterator

import jax

UNLIMITED = 2**60  # and more is how some systems write "no limit"
CGROUPS = '/sys/fs/cgroup'
OWN = '/proc/self/cgroup'  # lines of number:controllers:path


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
  limits = [
    *_limits('', 'memory.max'),
    *_limits('memory', 'memory.limit_in_bytes'),
  ]
  found += [int(text) for text in limits if text.isdigit()]
  found.append(resource.getrlimit(resource.RLIMIT_AS)[0])
  return min(size for size in found if 0 < size < UNLIMITED)


def cores() -> float:
  """Processor cores that this process may use, at least a part of one."""
  try:
    found = len(os.sched_getaffinity(0))
  except AttributeError:  # not on every system
    found = os.cpu_count() or 1
  for text in [
    *_limits('', 'cpu.max'),
    *map(
      ' '.join,
      zip(
        _limits('cpu', 'cpu.cfs_quota_us'),
        _limits('cpu', 'cpu.cfs_period_us'),
        strict=False,
      ),
    ),
  ]:
    quota, _, period = text.partition(' ')
    if quota.isdigit() and period.isdigit() and int(period):
      found = min(found, int(quota) / int(period))
  return found if math.isfinite(found) and found > 0 else 1


def _limits(controller: str, file: str) -> Iterator[str]:
  """A file of the process's control group and of all groups around it.

  Jobs of SLURM and of systemd are limited below the root, and a container sees
  its own group as the root.

  Args:
    controller: of the first version; '' for the second.
    file: its name, which states a limit.
  """
  root = os.path.join(CGROUPS, controller)
  path = ''
  for line in _read(OWN).splitlines():
    _, names, own = line.split(':', 2)
    if controller in names.split(','):
      path = own.strip('/')
  while True:
    if text := _read(os.path.join(root, path, file)):
      yield text
    if not path:
      return
    path = os.path.dirname(path)


def _read(path: str) -> str:
  try:
    with open(path) as file:
      return file.read().strip()
  except OSError:
    return ''
