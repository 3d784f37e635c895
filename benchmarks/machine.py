"""What a figure was measured on: devices and peaks, versions, other load."""

import importlib.metadata
import json
import os
import pathlib
import platform
import re
import resource
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from input_pipeline.paths import expand

# A measurement counts while other processes take less than this many cores.
QUIET = 0.15
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')

# TFLOP/s of dense products per JAX device at JAX's default precision, as
# (bfloat16, float32). TPUs multiply float32 in one bfloat16 pass unless told
# otherwise; NVIDIA's take TF32 from Ampere on. Whole names, so that a slice of
# a GPU (MIG) or an unlisted form factor counts as unknown. Sources:
# cloud.google.com/tpu/docs (v2 to v6e, tpu7x: per chip; v2, v3 and tpu7x have
# two JAX devices per chip) and NVIDIA's data sheets, without sparsity.
PEAKS = (
  (r'TPU v2', 22.5, 22.5),
  (r'TPU v3', 61.5, 61.5),
  (r'TPU v4', 275, 275),
  (r'TPU v5( lite|e)', 197, 197),
  (r'TPU v5p?', 459, 459),
  (r'TPU v6( lite|e)', 918, 918),
  (r'TPU ?v?7x', 1153.5, 1153.5),
  (r'NVIDIA A100.*', 312, 156),
  (r'NVIDIA A10', 125, 62.5),
  (r'NVIDIA A10G', 70, 35),
  (r'NVIDIA L4', 121, 60),
  (r'NVIDIA L40S', 362, 183),
  (r'NVIDIA H100 PCIe', 756, 378),
  (r'NVIDIA (H100 80GB HBM3|H200|GH200 480GB)', 989, 494.5),
  (r'NVIDIA B200', 2250, 1125),
  (r'NVIDIA GeForce RTX 3090', 71, 35.6),
  (r'NVIDIA GeForce RTX 4090', 165.2, 82.6),
)


def peak_flops(kind: str, dtype: str) -> float | None:
  """FLOP/s that one device could do at most.

  Args:
    kind: `device_kind` of a JAX device.
    dtype: 'bfloat16' or 'float32', what is multiplied.

  Returns:
    FLOP/s, or None for a device that is not in `PEAKS`.
  """
  for pattern, bfloat16, float32 in PEAKS:
    if re.fullmatch(pattern, kind) and 'MIG' not in kind:
      return 1e12 * {'bfloat16': bfloat16, 'float32': float32}[dtype]
  return None


class Others:
  """Cores that other processes keep busy from construction on (Linux).

  A shared machine slows programs down unequally: figures taken while others
  compute are marked, not compared.
  """

  def __init__(self):
    self._began = self._read()

  def cores(self) -> float | None:
    """The mean number of cores; None where /proc/stat cannot be read."""
    now = self._read()
    if now is None or self._began is None:
      return None
    busy, ours, wall = (b - a for a, b in zip(self._began, now, strict=True))
    return round(max(0.0, (busy - ours) / wall), 2)

  @staticmethod
  def _read() -> tuple[float, float, float] | None:
    try:
      with open('/proc/stat') as file:
        ticks = [int(word) for word in file.readline().split()[1:9]]
    except OSError:
      return None
    idle = ticks[3] + ticks[4]
    busy = (sum(ticks) - idle) / os.sysconf('SC_CLK_TCK')
    mine = os.times()
    ours = mine.user + mine.system + mine.children_user + mine.children_system
    return busy, ours, time.perf_counter()


def disturbed(cores: float | None) -> bool | None:
  """Whether to discard a figure; None where the load is not known."""
  return None if cores is None else cores > QUIET


def device() -> dict[str, Any]:
  """{platform, device_kind, devices, cores} of this process."""
  first = jax.devices()[0]
  kind = first.device_kind
  return dict(
    platform=first.platform,
    device_kind=_cpu_name() if first.platform == 'cpu' else kind,
    devices=jax.device_count(),
    cores=len(os.sched_getaffinity(0))
    if hasattr(os, 'sched_getaffinity')
    else os.cpu_count(),
  )


def software() -> dict[str, Any]:
  """{versions, commit, xla_flags}; commit ends in + with local changes."""
  versions = {p: importlib.metadata.version(p) for p in PACKAGES}
  return dict(
    versions=versions | dict(python=platform.python_version()),
    commit=_commit(),
    xla_flags=os.environ.get('XLA_FLAGS', ''),
  )


def process_memory() -> dict[str, int]:
  """Peak bytes of this process, each named for what it is.

  `device_peak_bytes` is the allocator's, where the backend has one that
  counts; `rss_peak_bytes` the resident memory of the process, compiler
  included. Both hold everything that the process has run so far.
  """
  # Kilobytes on Linux, bytes on macOS.
  unit = 1 if platform.system() == 'Darwin' else 1024
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
  out = dict(rss_peak_bytes=peak)
  stats = jax.local_devices()[0].memory_stats() or {}
  if 'peak_bytes_in_use' in stats:
    out['device_peak_bytes'] = stats['peak_bytes_in_use']
  return out


def table(rows: list[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
  """Rows as a Markdown table.

  Args:
    rows: what was measured; a missing or None field is a dash.
    columns: {field: heading}.

  Returns:
    The lines, joined.
  """

  def cell(value):
    return '-' if value is None else str(value)

  lines = [list(columns.values()), ['---'] * len(columns)]
  lines += [[cell(row.get(field)) for field in columns] for row in rows]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def write(path: str | None, rows: Sequence[Mapping[str, Any]]) -> None:
  """Adds JSON lines to a file."""
  if path:
    with pathlib.Path(expand(path)).open('a') as file:
      file.writelines(json.dumps(row) + '\n' for row in rows)


def describe(row: Mapping[str, Any]) -> str:
  """What all rows of a table share, in one line."""
  versions = ', '.join(f'{k} {v}' for k, v in row['versions'].items())
  return (
    f'{row["devices"]} x {row["platform"]} ({row["device_kind"]}, '
    f'{row["cores"]} cores); {versions}; commit {row["commit"]}'
  )


def _cpu_name() -> str:
  try:
    with open('/proc/cpuinfo') as file:
      found = re.search(r'model name\s*:\s*(.*)', file.read())
  except OSError:
    found = None
  return found[1] if found else platform.processor() or 'cpu'


def _commit() -> str | None:
  here = os.path.dirname(os.path.abspath(__file__))
  command = ['git', '-C', here, 'describe', '--always', '--dirty=+']
  command.append('--exclude=*')
  try:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
  except (OSError, subprocess.CalledProcessError):
    return None
  return done.stdout.strip()
