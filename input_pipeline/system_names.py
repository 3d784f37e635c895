"""Names of files and folders that systems and programs make for themselves."""

import re

# In lower case: Windows and macOS do not distinguish cases, and network drives
# show their names in either. Names such as `recycle` may be a person's classes.
_NAMES = frozenset(
  name.encode()
  for name in (
    '#recycle',
    '#snapshot',
    '$av_asw',
    '$avg',
    '$extend',
    '$recycle',
    '$recycle.bin',
    '$sysreset',
    '$windows.~bt',
    '$windows.~ws',
    '$winreagent',
    '@__thumb',
    '@appstore',
    '@database',
    '@docker',
    '@eadir',
    '@img_bkp_cache',
    '@recently-snapshot',
    '@recycle',
    '@s2s',
    '@sharebin',
    '@sharesnap',
    '@synodrive',
    '@synoeastream',
    '@synofinder-log',
    '@synologydrive',
    '@synoresource',
    '@tmp',
    '@transcode',
    '@upload_cache',
    '__macosx',
    '__pycache__',
    '_gsdata_',
    'config.msi',
    'desktop.ini',
    'ehthumbs.db',
    'icon\r',
    'lost+found',
    'msocache',
    'network trash folder',
    'recycler',
    'system volume information',
    'temporary items',
    'thefindbycontentfolder',
    'thevolumesettingsfolder',
    'thumbs.db',
    '~snapshot',
  )
)
# Of one user in a Windows recycle bin, and what its disk check has rescued.
_NUMBERED = re.compile(rb's-1-5(-\d+)+|found\.\d{3}')


def is_hidden(name: bytes) -> bool:
  """Whether a file or folder is hidden or a system's own, not a user's data."""
  if name.startswith(b'.'):
    return True
  lower = name.lower()
  return lower in _NAMES or _NUMBERED.fullmatch(lower) is not None
