"""Progress bars: on a terminal alone, gone when they are done."""

import sys

import tqdm


def progress_bar(
  what: str, total: int | None = None, *, unit: str = 'images', **options
) -> tqdm.tqdm:
  """A bar on stderr; one line at the start where that is no terminal.

  Args:
    what: what is done, and to what.
    total: how many units, if that is known.
    unit: what is counted.
    **options: further ones of `tqdm`; with `disable` there is no line either.

  Returns:
    The bar, to be used as a context, with `update`. It is erased at its end, so
    that a job of many passes leaves nothing but its results.
  """
  terminal = sys.stderr.isatty()
  disable = options.pop('disable', False)
  if not terminal and not disable and 'delay' not in options:
    count = '' if total is None else f': {total:,} {unit}'
    print(f'{what}{count}', file=sys.stderr, flush=True)
  return tqdm.tqdm(
    desc=what,
    total=total,
    unit=f' {unit}',
    leave=False,
    dynamic_ncols=True,
    disable=disable or not terminal,
    **options,
  )
