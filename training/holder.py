"""Which process holds a workdir, and whether it still lives."""

import datetime
import json
import os
import platform
import sys
from typing import Any

LAPSE_SECONDS = 300.0  # of silence of a process on another machine


def _boot() -> str | None:
  return _text('/proc/sys/kernel/random/boot_id')


def _text(path: str) -> str | None:
  try:
    with open(path) as file:
      return file.read().strip()
  except OSError:
    return None


def _began(pid: int) -> str | None:
  """When a process began, in ticks since the boot: distinguishes a reused pid.

  None where there is no such process, '' where the system does not say.
  """
  if not os.path.isdir('/proc/self'):
    try:
      os.kill(pid, 0)
    except ProcessLookupError:
      return None
    except OSError:
      pass
    return ''
  status = _text(f'/proc/{pid}/stat')
  if status is None:
    return None
  state, *fields = status.rpartition(')')[2].split()
  return None if state in 'ZX' else fields[18]  # a zombie has ended


# Shorter than a machine takes to start again; longer than two signs of life.
REBOOT_SECONDS = 70.0


def _numbering() -> int | None:
  """Inode of the PID namespace; containers have their own."""
  try:
    return os.stat('/proc/self/ns/pid').st_ino
  except OSError:
    return None


def record_of(workdir: str) -> dict[str, Any]:
  """What tells this process apart from any other, on any machine.

  Args:
    workdir: the folder that it works in.
  """
  now = datetime.datetime.now(datetime.UTC)
  return dict(
    host=platform.node(),
    pid=os.getpid(),
    began=_began(os.getpid()),
    boot=_boot(),
    numbering=_numbering(),
    workdir=workdir,
    since=now.isoformat(timespec='seconds'),
    command=sys.argv,
  )


def parsed(data: bytes) -> dict[str, Any]:
  """A record from a file; empty where it is damaged or not written yet."""
  try:
    record = json.loads(data)
  except ValueError:
    return {}
  whole = isinstance(record, dict) and isinstance(record.get('pid'), int)
  return record if whole else {}


def lives(record: dict[str, Any], *, age: float, free: bool) -> bool:
  """Whether the process of a record may still be at work.

  Args:
    record: of the lock.
    age: seconds since its last sign of life; all that is known of other
      machines.
    free: whether the system's own lock is there and nobody holds it.
  """
  boot = _boot()
  here = record.get('host') == platform.node()
  if boot and record.get('boot') == boot:  # this machine, by whatever name
    if record.get('numbering') == _numbering():
      if record.get('pid') == os.getpid():
        return False  # of an earlier run in this process
      began = _began(record.get('pid', 0))
      return began is not None and began == record.get('began')
    if free and record.get('flock'):
      return False
  elif here and boot and record.get('boot'):
    # Started again since, or another machine of the same name.
    return age < REBOOT_SECONDS and not (free and record.get('flock'))
  elif here and not boot:
    return _began(record.get('pid', 0)) is not None
  return age < LAPSE_SECONDS and not (free and not record)
