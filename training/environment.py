"""Where a run ran: versions, devices, commit and command."""

import datetime
import importlib.metadata
import platform
import subprocess
import sys
from typing import Any

import jax
from etils import epath

PACKAGES = (
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'numpy',
  'pillow',
  'ml-collections',
  'tensorflow-cpu',
  'tensorflow',
)


def environment() -> dict[str, Any]:
  """Versions, devices and commit of this process."""
  versions = {}
  for name in PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      versions[name] = None
  return dict(
    python=platform.python_version(),
    platform=platform.platform(),
    packages=versions,
    devices=[str(device.device_kind) for device in jax.devices()],
    backend=jax.default_backend(),
    processes=jax.process_count(),
    commit=_commit(),
    command=sys.argv,
    started=datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
  )


def _commit() -> str | None:
  try:
    folder = epath.Path(__file__).parent
    return subprocess.run(
      ['git', 'describe', '--always', '--dirty'],
      cwd=folder,
      capture_output=True,
      text=True,
      check=True,
      timeout=10,
    ).stdout.strip()
  except (OSError, subprocess.SubprocessError):
    return None
