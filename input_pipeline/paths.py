"""Paths as people write them: `~`, `~user` and variables."""

import os


def expand(path: str | os.PathLike) -> str:
  """A path with its home folder and variables filled in.

  Shells expand `~` only where a word begins with it, so `--workdir=~/runs/x`
  arrives as it was typed.

  Args:
    path: a path or a URL. A URL stays as it is, and so does a path that exists
      as it is written, for example a folder that is really named `$data`.

  Returns:
    The path; variables that are not set stay as they are written.

  Raises:
    ValueError: it begins with a home folder that is not known: an unknown user,
      or `~` without `HOME` and without an entry in the list of users.
  """
  text = os.fspath(path)
  if '://' in text or not ('~' in text or '$' in text) or os.path.lexists(text):
    return text
  filled = os.path.expandvars(text)
  out = os.path.expanduser(filled)
  if filled.startswith('~') and out == filled:
    user, _, rest = filled[1:].partition('/')
    whose = f'of a user {user!r}' if user else 'of this user'
    raise ValueError(
      f'{text}: the home folder {whose} is not known; write the path from / on'
      f', or ./{filled} for a folder of that name'
    )
  return out
