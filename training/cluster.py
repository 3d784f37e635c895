"""How the processes of one run find each other.

`jax.distributed.initialize` joins them; `launchers.py` says what it is told.
"""

import contextlib
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator, Mapping

import jax

from training import distributed, exits
from training.launchers import ClusterError, announced

CONNECT_SECONDS = 300
# A process that dies is noticed after this long, and ends the others.
HEARTBEAT_SECONDS = 100


def initialize(
  environ: Mapping[str, str] = os.environ,
  start: Callable[..., None] = jax.distributed.initialize,
) -> None:
  """Joins the other processes of this run, where the environment names some.

  To be called before any device is touched.

  Args:
    environ: variables of the process.
    start: `jax.distributed.initialize`.

  Raises:
    ClusterError: part of what is needed is missing, or nobody answered.
  """
  arguments = announced(environ)
  if arguments is None or jax.distributed.is_initialized():
    return
  # Its handler would take SIGTERM from ours, which also answers SIGINT, in
  # evaluations and while compiling (`signals.py`).
  jax.config.update('jax_enable_preemption_service', False)
  seconds = int(environ.get('REPRE_JAX_CONNECT_SECONDS', CONNECT_SECONDS))
  where = arguments.get('coordinator_address', 'process 0')
  _mention_proxies(environ)
  try:
    with _patience(where, seconds):
      start(
        initialization_timeout=2 * seconds,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        **arguments,
      )
  except Exception as error:  # of JAX, gRPC, or a scheduler's own library
    raise ClusterError(_explain(error, where)) from error


@contextlib.contextmanager
def _patience(where: str, seconds: float) -> Iterator[None]:
  """Ends the wait for others itself: JAX would abort with a dump of memory."""

  def late():
    print(
      f'error: not every process reached {where} within {seconds} s; start the '
      'same command everywhere, see that its address and port can be reached, '
      'or wait longer with REPRE_JAX_CONNECT_SECONDS',
      file=sys.stderr,
      flush=True,
    )
    exits.leave(1)

  timer = threading.Timer(seconds, late)
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def _mention_proxies(environ: Mapping[str, str]) -> None:
  names = [n for n in environ if n.lower() in ('http_proxy', 'https_proxy')]
  if names:
    print(
      f'{", ".join(names)} set: if the processes do not find each other, start '
      'them without',
      file=sys.stderr,
    )


def _explain(error: Exception, where: str) -> str:
  text = ' '.join(str(error).split())[:300]
  # What gRPC says of it, and JAX's own server.
  taken = ('address already in use', 'failed to start rpc server')
  if any(words in text.lower() for words in taken):
    return (
      f'the port of {where} is taken; choose another in '
      f'JAX_COORDINATOR_ADDRESS or JAX_COORDINATOR_PORT ({text})'
    )
  return f'the processes could not join at {where}: {text}'


def who() -> str:
  """'process 1 of 2 on HOST' where there are several, else ''."""
  if not jax.distributed.is_initialized() or jax.process_count() == 1:
    return ''
  index, count = jax.process_index(), jax.process_count()
  return f'process {index} of {count} on {platform.node()}'


def leaving() -> str:
  """What an error in one of several processes means for the others, else ''."""
  return who() and (
    f'{who()} leaves after this error; the others end within '
    f'{HEARTBEAT_SECONDS} s'
  )


def abandon(code: int) -> None:
  """Ends this process at once after an error, if there are others.

  An orderly exit would wait for them, and they for this one. Where it is
  process 0 they end at once, else when its heartbeat is missed.
  """
  if who():
    exits.leave(code)


def describe() -> str:
  """A table of all processes: where each runs and which devices it sees."""
  devices = jax.local_devices()
  memory = (devices[0].memory_stats() or {}).get('bytes_limit')
  rows = distributed.gather(
    (
      str(jax.process_index()),
      platform.node(),
      str(os.getpid()),
      devices[0].platform,
      ' '.join(str(device.id) for device in devices),
      ' '.join(sorted({device.device_kind for device in devices})),
      f'{memory / 2**30:.1f} GiB' if memory else 'unknown',
    )
  )
  head = ('process', 'host', 'pid', 'platform', 'devices', 'kind', 'memory')
  table = [head, *rows]
  widths = [max(map(len, column)) for column in zip(*table, strict=True)]
  return '\n'.join(
    '  '.join(map(str.ljust, row, widths)).rstrip() for row in table
  )
