"""How a process ends after an error: one line, last and alone on the screen.

The standard library only, and at first little of it: imports can fail, too, and
until `main.py` listens a signal ends the process.
"""

import os
import sys
import time

from training import exits

FLAG = '--traceback'
FILE = 'traceback.txt'
PYTHON = (3, 11)
# The run's own folder, once it is known to be that.
_folder: str | None = None


def keep_in(folder: str | os.PathLike) -> None:
  """From now on tracebacks go to `traceback.txt` in this workdir."""
  global _folder
  _folder = os.fspath(folder)


def report(
  error: BaseException, line: str, *, whole: bool = False, note: str = ''
) -> None:
  """Prints an error as the last line of stderr: `error: ...`.

  The line before it names the file that has the traceback: `traceback.txt` in
  the workdir of the run, or, where the run had not begun or the workdir cannot
  be written, a new file in the temporary folder.

  Args:
    error: what was raised.
    line: what it says, in one line.
    whole: whether the screen shows the traceback instead.
    note: a line to be printed before.
  """
  import traceback

  text = ''.join(traceback.format_exception(error))
  # Progress bars and generators that live on in its frames end now, not below.
  each = error
  while each is not None:
    traceback.clear_frames(each.__traceback__)
    each = each.__cause__ or each.__context__
  try:
    sys.stdout.flush()
  except (OSError, ValueError):
    pass
  if note:
    exits.say(note)
  if whole:
    exits.say(text.rstrip())
  elif path := _keep(text):
    exits.say(f'traceback: {path} ({FLAG} shows it here)')
  line = ' '.join(line.split()).rstrip(': ')
  exits.say(f'error: {line or type(error).__name__}')


def _keep(text: str) -> str | None:
  """Path of a file with the traceback; None where nothing can be written."""
  import tempfile

  words = ' '.join(map(repr, sys.argv))
  when = time.strftime('%Y-%m-%d %H:%M:%S%z')
  text = f'{when}, process {os.getpid()}: {words}\n\n{text}'
  if _folder is not None and '://' not in _folder:
    try:
      path = os.path.join(_folder, FILE)
      with open(path, 'w', errors='surrogateescape') as file:
        file.write(text)
      return path
    except OSError:
      pass  # the error may be that it cannot be written
  try:
    with tempfile.NamedTemporaryFile(
      'w',
      prefix='repre_jax_',
      suffix=f'_{FILE}',
      delete=False,
      errors='surrogateescape',
    ) as file:
      file.write(text)
    return file.name
  except OSError:
    return None


def silence() -> None:
  """What threads and libraries print from now on does not appear."""
  for stream in (sys.stdout, sys.stderr):
    try:
      stream.flush()
    except (OSError, ValueError):
      pass
  exits.detach(1, 2)


def install() -> None:
  """Reports what nothing else catches, such as a package that is missing."""
  sys.excepthook = _hook


def _hook(kind, error, trace) -> None:
  del kind, trace
  report(error, _early(error), whole=FLAG in sys.argv)
  silence()


def _early(error: BaseException) -> str:
  """An error before anything of ours can explain it."""
  found = sys.version_info[:2]
  if found < PYTHON:
    return (
      f'Python {PYTHON[0]}.{PYTHON[1]} or later is needed, {sys.executable} is '
      f'{found[0]}.{found[1]}; run `make setup` with PYTHON=python3.11 and '
      'start with .venv/bin/python'
    )
  if isinstance(error, ModuleNotFoundError):
    return (
      f'{error}: {sys.executable} lacks packages; run `make setup` and start '
      'with .venv/bin/python'
    )
  return f'{type(error).__name__}: {error}'
