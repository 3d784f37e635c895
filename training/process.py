"""A process: where it keeps compiled programs, how it explains an error."""

import ast
import contextlib
import importlib.util
import os
import tempfile
import warnings

import jax
from absl import flags

from input_pipeline import cache
from input_pipeline.paths import expand

PROBE_BYTES = 2**16  # a disk may be full and still take a name


def compilation_cache() -> None:
  """Keeps compiled programs between starts, where a folder can be written.

  The folder is JAX's own setting if that is set, else `xla` in
  `REPRE_JAX_CACHE`. Where it cannot be written, one notice says so, and every
  start compiles.
  """
  chosen = os.environ.get('JAX_COMPILATION_CACHE_DIR')
  if chosen and '://' in chosen:
    return
  root = None if chosen else cache.folder()
  path = chosen or (root and str(root / 'xla'))
  if path:
    try:
      path = expand(path)
      os.makedirs(path, exist_ok=True)
      with tempfile.TemporaryFile(dir=path) as file:
        file.write(bytes(PROBE_BYTES))
    except (OSError, ValueError) as error:
      cache.give_up(path, error)
      path = None
  # Else a disk that is full later is reported anew for every program.
  warnings.filterwarnings(
    'ignore', 'Error writing persistent compilation cache'
  )
  if path != jax.config.jax_compilation_cache_dir:
    jax.config.update('jax_compilation_cache_dir', path)
  if not chosen:
    # By default programs of less than a second are compiled at every start:
    # together they took two seconds of a warm one.
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


def installed(package: str) -> bool:
  """Whether a package can be imported; it is not imported."""
  return importlib.util.find_spec(package) is not None


def explain(error: BaseException, workdir: str | None) -> str:
  """An error in one line: what its innermost cause says.

  Args:
    error: any exception; where its text is a whole traceback, as of errors in
      config files, the cause is told.
    workdir: named where the system does not say which file it was.

  Returns:
    The message, after the kind of error where the message may not be ours.
  """
  while 'Traceback' in str(error) and (error.__cause__ or error.__context__):
    error = error.__cause__ or error.__context__
  unknown = isinstance(error, KeyError | AttributeError)
  text = str(error.args[0]) if unknown and error.args else str(error)
  if unknown and text[:1] in ('"', "'") and text[-1:] == text[:1]:
    with contextlib.suppress(ValueError, SyntaxError):  # "'X' ... 'y'"
      text = ast.literal_eval(text)  # a KeyError's text within another's
  text = ' '.join(text.split())
  if unknown:
    return f'unknown name: {text}'
  if isinstance(error, OSError) and error.filename is None and workdir:
    return f'{text} (workdir {workdir})'
  told = isinstance(error, ValueError | OSError | RuntimeError | flags.Error)
  return text[:2000] if told else f'{type(error).__name__}: {text[:2000]}'
