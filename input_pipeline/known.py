"""What to say to a word that is none of the known ones."""

import difflib
from collections.abc import Iterable


def unknown(what: str, word: str, known: Iterable[str]) -> ValueError:
  """The error to raise, with the nearest known word.

  Args:
    what: names the kind of word, such as 'method' or 'config.resume'.
    word: as it was given.
    known: the words there are, at least one.
  """
  known = tuple(known)
  near = difflib.get_close_matches(str(word), known, n=1, cutoff=0)[0]
  return ValueError(
    f'unknown {what} {word!r}; did you mean {near!r}? Known: {", ".join(known)}'
  )
