"""Four fake CPU devices and a compilation cache for the whole suite."""

import gc
import importlib.metadata
import os
import pathlib
import sys

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# What is kept of sources and programs, apart from the user's own.
os.environ.setdefault(
  'REPRE_JAX_CACHE', os.path.expanduser('~/.cache/repre_jax/tests')
)
# XLA's pool has a thread per core, and a fake device that waits for the others
# in a collective holds one: with fewer cores than devices all can be waiting
# for one that finds no thread.
os.environ.setdefault('PJRT_NPROC', '8')
# Fake devices wait for each other; on a loaded machine longer than the 40 s
# after which XLA gives up. Compiling takes most of the suite's time, and a
# third of it with the flags that follow; some of them come and go, and XLA ends
# a process with one that it does not know.
os.environ['XLA_FLAGS'] = ' '.join(
  (
    os.environ.get('XLA_FLAGS', ''),
    '--xla_cpu_collective_call_warn_stuck_timeout_seconds=120',
    '--xla_cpu_collective_call_terminate_timeout_seconds=600',
    '--xla_backend_optimization_level=0',
    '--xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE '
    '--xla_cpu_use_fusion_emitters=false'
    if importlib.metadata.version('jaxlib').startswith('0.10.')
    else '',
  )
)
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import pytest

jax.config.update('jax_num_cpu_devices', 4)
# For the same reason one program at a time.
jax.config.update('jax_cpu_enable_async_dispatch', False)
jax.config.update(
  'jax_compilation_cache_dir',
  os.environ.get('JAX_COMPILATION_CACHE_DIR', os.environ['REPRE_JAX_CACHE']),
)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)

# Of the 65530 memory mappings that Linux allows a process. Each compiled
# program takes some, and where none is left XLA ends in a segmentation fault.
MAPPINGS = 16_000


@pytest.fixture(scope='module', autouse=True)
def forget_programs():
  """Lets go of compiled programs between files, before they are too many."""
  yield
  maps = pathlib.Path('/proc/self/maps')
  if maps.exists() and maps.read_bytes().count(b'\n') > MAPPINGS:
    jax.clear_caches()
    gc.collect()
