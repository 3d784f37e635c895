"""One run at a time in a workdir.

A file `.lock` there names the process that works in it. On a disk the process
also holds the system's own lock on that file (`flock`), which ends with the
process, however it ends; where a file system has none, process number, start
time and boot tell whether it still lives. What runs on another machine cannot
be looked at: it shows that it lives by the file's time, every `BEAT_SECONDS`,
and its lock lapses after `LAPSE_SECONDS`.

In an object store (`gs://`) nothing can be created only where it is absent, so
the record is written, and read again a moment later: of two runs that start
within the same moment the one that wrote last goes on. That leaves runs that
begin at the same moment on a store that answers slowly: they may both go on.
"""

import atexit
import contextlib
import errno
import fcntl
import json
import os
import platform
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from absl import logging
from etils import epath

from training import exits, storage
from training.holder import LAPSE_SECONDS, lives, parsed, record_of

NAME = '.lock'
BEAT_SECONDS = 30.0
SETTLE_SECONDS = 2.0  # of an object store
PATIENCE_SECONDS = 3.0  # with a run that takes over what another left
NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


class LockedError(ValueError):
  """Another run works in this workdir."""


# What this process holds: the locks by workdir, until the last scope ends.
_held: dict[str, '_Lock'] = {}
_scopes = 0


def take(folder: epath.Path) -> None:
  """Takes the lock of a workdir, unless this process has it already.

  Args:
    folder: the workdir, which exists.

  Raises:
    LockedError: another run has it.
    OSError: the folder cannot be written.
  """
  key = os.fspath(folder)
  if key in _held:
    return
  exits.before(release)
  atexit.register(release)
  kind = _InStore if storage.is_remote(folder) else _OnDisk
  _held[key] = kind(folder)


def release() -> None:
  """Gives back every lock of this process."""
  while _held:
    _, lock = _held.popitem()
    lock.close()


@contextlib.contextmanager
def releasing() -> Iterator[None]:
  """Gives back what was taken inside, at the end of the outermost of these."""
  global _scopes
  _scopes += 1
  try:
    yield
  finally:
    _scopes -= 1
    if not _scopes:
      release()


def _refuse(path: epath.Path, record: dict[str, Any], age: float) -> None:
  pid, host = record.get('pid', 'unknown'), record.get('host', 'unknown')
  here = host == platform.node()
  text = (
    f'the workdir {path.parent} is in use by process {pid} on {host} since '
    f'{record.get("since", "a moment ago")}; wait for it or stop it '
    f'({"" if here else f"on {host}: "}kill {pid}), or choose another --workdir'
  )
  if not here:
    text += (
      f'; if it is gone, its lock lapses {LAPSE_SECONDS:.0f} s after its last '
      f'sign of life, {age:.0f} s ago, or delete {path}'
    )
  raise LockedError(text)


def _take_over(path: epath.Path, record: dict[str, Any]) -> None:
  print(
    f'{path.parent}: process {record.get("pid", "unknown")} on '
    f'{record.get("host", "unknown")} ended without leaving its lock; taken '
    'over',
    file=sys.stderr,
    flush=True,
  )


class _Lock:
  """A lock that this process holds; a thread shows that it lives."""

  def __init__(self, folder: epath.Path):
    self.path = folder / NAME
    self._acquire(folder)
    self._ended = threading.Event()
    threading.Thread(target=self._beat, daemon=True).start()

  def _beat(self) -> None:
    lost = 0
    while not self._ended.wait(BEAT_SECONDS):
      try:
        held = self._show() or not self.path.exists()  # removed: nobody's
        lost = 0 if held else lost + 1
      except Exception as error:  # clients of object stores have their own
        logging.warning('%s could not be written: %s', self.path, error)
      if lost > 1:  # one may be a record that was read half written
        # Stopped for longer than the lock lasts, such as a suspended machine.
        exits.say(
          f'error: {self.path} is no longer the lock of this run: another run '
          'took over the workdir, and this one ends without saving'
        )
        exits.leave(1)

  def close(self) -> None:
    """Gives it back."""
    self._ended.set()
    try:
      self._remove()
    except OSError as error:  # it lapses
      logging.warning('%s could not be removed: %s', self.path, error)


class _OnDisk(_Lock):
  """A file that appears with its content, locked: it is linked to its name."""

  def _acquire(self, folder: epath.Path) -> None:
    # Containers can share the host's name and have equal process numbers.
    name = f'{NAME}.{platform.node()}.{os.getpid()}.{secrets.token_hex(4)}'
    part = folder / name
    self._file = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
      record = record_of(os.fspath(folder))
      record['flock'] = _flock(self._file) is True
      os.write(self._file, json.dumps(record).encode())
      self._until = time.monotonic() + PATIENCE_SECONDS
      while not (self._link(part) or self._replace(part)):
        time.sleep(0.05)
    except BaseException:
      os.close(self._file)
      raise
    finally:
      part.unlink(missing_ok=True)

  def _link(self, part: epath.Path) -> bool:
    """Gives the file its name where there is none of that name."""
    try:
      os.link(part, self.path)
    except FileExistsError:
      return False
    except OSError:  # a file system without links
      try:
        os.close(os.open(self.path, os.O_CREAT | os.O_EXCL))
      except FileExistsError:
        return False
      os.replace(part, self.path)
      return self._settled()
    return True

  def _settled(self) -> bool:
    """Whether the name still is that of this file a moment later."""
    time.sleep(0.5)
    return _same(self.path, os.fstat(self._file))

  def _replace(self, part: epath.Path) -> bool:
    """Takes the place of a lock whose process ended; False: look again.

    Raises:
      LockedError: it lives.
    """
    try:
      old = _open(self.path)
    except FileNotFoundError:
      return False
    try:
      free = _flock(old)
      status = os.fstat(old)
      record = parsed(os.pread(old, 2**16, 0))
      if not _same(self.path, status):
        return False  # another run was faster, or the lock was given back
      # By the clock of the file system, whichever machine keeps it.
      age = os.fstat(self._file).st_mtime - status.st_mtime
      copied = _is_copy(record, self.path)
      alive = not copied and lives(record, age=age, free=bool(free))
      if free is False and not alive and time.monotonic() < self._until:
        return False  # another run is taking it over: see who that is
      if free is False or alive:
        _refuse(self.path, record, age)
      os.replace(part, self.path)
    finally:
      os.close(old)
    if free is None and not self._settled():  # then two can be here at once
      return False
    if not copied:
      _take_over(self.path, record)
    return True

  def _show(self) -> bool:
    os.utime(self._file)
    return _same(self.path, os.fstat(self._file))

  def _remove(self) -> None:
    if _same(self.path, os.fstat(self._file)):
      self.path.unlink(missing_ok=True)
    os.close(self._file)


def _open(path: epath.Path) -> int:
  try:
    return os.open(path, os.O_RDWR)  # NFS locks only what may be written
  except PermissionError:
    return os.open(path, os.O_RDONLY)


def _flock(file: int) -> bool | None:
  """Takes the system's lock; False: another has it, None: there is none."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError as error:
    if error.errno in (*NO_FLOCK, errno.EBADF, errno.EINVAL):
      return None
    raise
  return True


def _same(path: epath.Path, status: os.stat_result) -> bool:
  try:
    return os.path.samestat(os.stat(path), status)
  except FileNotFoundError:
    return False


def _is_copy(record: dict[str, Any], path: epath.Path) -> bool:
  """Whether a lock came here with a copy of a workdir in use."""
  try:
    return not os.path.samefile(os.path.join(record['workdir'], NAME), path)
  except (OSError, KeyError, TypeError):
    return False


class _InStore(_Lock):
  """An object; see above how far that goes."""

  def _acquire(self, folder: epath.Path) -> None:
    record = self._read()
    age = time.time() - record.get('beat', 0)
    if record and lives(record, age=age, free=False):
      _refuse(self.path, record, age)
    if record:
      _take_over(self.path, record)
    self._mine = record_of(os.fspath(folder))
    self._write()
    time.sleep(SETTLE_SECONDS)
    if not self._is_mine():
      _refuse(self.path, self._read(), 0)

  def _read(self) -> dict[str, Any]:
    try:
      return parsed(self.path.read_bytes())
    except FileNotFoundError:
      return {}

  def _write(self) -> None:
    record = dict(self._mine, beat=time.time())
    self.path.write_bytes(json.dumps(record).encode())

  def _is_mine(self) -> bool:
    found = self._read()
    return all(found.get(k) == v for k, v in self._mine.items())

  def _show(self) -> bool:
    mine = self._is_mine()
    if mine:
      self._write()
    return mine

  def _remove(self) -> None:
    if self._is_mine():
      self.path.unlink(missing_ok=True)
