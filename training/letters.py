"""Letters that the encoding of a stream lacks."""

import codecs
import sys

PLAIN = {
  '±': '+-',
  '×': 'x',
  '·': '*',
  '…': '...',
  '–': '-',
  '−': '-',
  '√': 'sqrt ',
  'λ': 'lambda',
  'α': 'alpha',
  'τ': 'tau',
}


def _plain(error: UnicodeError) -> tuple[str, int]:
  """Letters that an encoding lacks, in ASCII or as an escape."""
  if not isinstance(error, UnicodeEncodeError):
    raise error
  letters = error.object[error.start : error.end]
  out = (
    PLAIN.get(x) or x.encode('ascii', 'backslashreplace').decode()
    for x in letters
  )
  return ''.join(out), error.end


def accept_any_encoding() -> None:
  """Makes stdout and stderr accept every letter, whatever their encoding.

  What ASCII or Windows-1252 lack is written in ASCII instead of raising
  UnicodeEncodeError.
  """
  codecs.register_error('plain', _plain)
  for stream in (sys.stdout, sys.stderr):
    if hasattr(stream, 'reconfigure'):  # not where a test or notebook took over
      stream.reconfigure(errors='plain')
