"""Errors for unknown words, with the nearest known one where it is near."""

import difflib
from collections.abc import Iterable

NEAR = 0.6  # difflib's ratio from which on two words are alike


def nearest(word: str, known: Iterable[str]) -> str | None:
  """The known word that is most like another one, whatever the case.

  Args:
    word: any text.
    known: the words there are.

  Returns:
    One of `known`; None where none is near.
  """
  lower = {name.lower(): name for name in reversed(list(known))}
  near = difflib.get_close_matches(str(word).lower(), lower, n=1, cutoff=NEAR)
  return lower[near[0]] if near else None


def hint(word: str, known: Iterable[str]) -> str:
  """'; did you mean ...?' where a known word is near, else a full stop."""
  near = nearest(word, known)
  return '.' if near is None else f'; did you mean {near!r}?'


def unknown(what: str, word: str, known: Iterable[str]) -> ValueError:
  """The error for an unknown word, naming the nearest known one.

  Args:
    what: names the kind of word, such as 'method' or 'config.resume'.
    word: the unknown word.
    known: the known words.
  """
  known = tuple(known)
  return ValueError(
    f'unknown {what} {word!r}{hint(word, known)} Known: {", ".join(known)}'
  )
