"""Which training images a few-shot evaluation may look at."""

import dataclasses
import unicodedata
from collections.abc import Sequence

import numpy as np
from etils import epath

from input_pipeline.paths import expand
from input_pipeline.source import Source

SHOWN = 3  # lines or classes in an error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subset:
  """Some training images.

  Attributes:
    name: such as '1%' or '5 per class'.
    draw: 0 and on, of subsets of one name.
    indices: int64 [n], increasing.
  """

  name: str
  draw: int
  indices: np.ndarray


def draw_subsets(
  labels: np.ndarray,
  *,
  shares: Sequence[float] = (),
  shots: Sequence[int] = (),
  draws: int = 1,
  seed: int = 0,
  names: Sequence[str] = (),
) -> list[Subset]:
  """Draws shares of every class, and so many images of every class.

  A draw puts the images of each class into an order of its own and takes the
  first ones: the smaller subsets of a draw are within the larger ones. What is
  drawn of a class does not depend on the other classes.

  Args:
    labels: int [n], of all training images.
    shares: within 0..1, of all images. Every class gives its share, rounded so
      that the sum is right (largest remainders first), and one at least.
    shots: images per class.
    draws: so many of each subset; one where it is everything.
    seed: of the draws.
    names: of the classes, for messages.

  Returns:
    Shares, then shots, as given; the draws of each one after another.

  Raises:
    ValueError: numbers out of range, or a class that has not enough images.
  """
  if draws < 1 or any(not 0 < s <= 1 for s in shares):
    raise ValueError(
      f'config.fewshot needs draws of at least 1 and shares within 0..1; got '
      f'{draws} and {tuple(shares)}'
    )
  classes, counts = np.unique(labels, return_counts=True)
  sizes = {f'{100 * s:g}%': _stratified(counts, s) for s in shares}
  for k in shots:
    if k < 1 or k > counts.min():
      raise ValueError(_too_few(tuple(shots), classes, counts, names))
    sizes[f'{k} per class'] = np.full(len(classes), k)
  members = [np.flatnonzero(labels == c) for c in classes]
  orders = [
    [
      np.random.default_rng([seed, draw, int(c)]).permutation(rows)
      for c, rows in zip(classes, members, strict=True)
    ]
    for draw in range(draws)
  ]
  out = []
  for name, size in sizes.items():
    for draw in range(1 if (size == counts).all() else draws):
      chosen = [o[:n] for o, n in zip(orders[draw], size, strict=True)]
      indices = np.sort(np.concatenate(chosen))
      out.append(Subset(name=name, draw=draw, indices=indices))
  return out


def _too_few(
  shots: tuple[int, ...],
  classes: np.ndarray,
  counts: np.ndarray,
  names: Sequence[str],
) -> str:
  """Names the classes that have not enough images, the smallest first."""
  small = np.flatnonzero(counts < max(*shots, counts.min() + 1))
  small = small[np.argsort(counts[small], kind='stable')]
  words = [
    f'{names[classes[i]] if len(names) else str(classes[i])!r} has {counts[i]}'
    for i in small[:SHOWN]
  ]
  least = int(counts.min())
  fitting = tuple(k for k in shots if 1 <= k <= least) or (least,)
  written = str(fitting).replace(' ', '')
  return (
    f'config.fewshot.shots={shots} must be within 1..{counts.min()}: class '
    + ', class '.join(words)
    + f' and {len(small) - SHOWN} more have too few' * (len(small) > SHOWN)
    + ' training images; add images, leave such classes out, or set '
    f"--config.fewshot.shots='{written}'"
  )


def _stratified(counts: np.ndarray, share: float) -> np.ndarray:
  """How many of each class, at least one."""
  exact = share * counts
  # 0.1 · 30 is a little more than 3.
  out = np.maximum(np.floor(exact + 1e-9).astype(int), 1)
  missing = round(share * int(counts.sum())) - out.sum()
  if missing > 0:
    rest = np.where(out < counts, exact - out, -np.inf)
    out[np.argsort(-rest, kind='stable')[:missing]] += 1
  return out


def listed_subset(path: epath.PathLike, source: Source) -> Subset:
  """The images that a file names, such as SimCLR v2's lists for ImageNet.

  Args:
    path: a text file, an image per line: its path or the last parts of it.
    source: the training images, of which `where` is compared.

  Returns:
    The subset, named 'list'.

  Raises:
    FileNotFoundError: no such file.
    ValueError: nothing in it, a line that fits no image, or several.
  """
  path = epath.Path(expand(path))
  if not path.exists():
    raise FileNotFoundError(f'config.fewshot.list: there is no file {path}')
  lines = [line.strip() for line in path.read_text().splitlines()]
  lines = [line.removeprefix('./') for line in dict.fromkeys(lines) if line]
  if not lines:
    raise ValueError(f'{path}: no lines')
  ends = {}
  for i in range(len(source)):
    where = unicodedata.normalize('NFC', source.where(i))
    ends.setdefault(where.rpartition('/')[2], []).append((i, f'/{where}'))
  chosen, strange = [], []
  for line in lines:
    line = unicodedata.normalize('NFC', line)
    last = line.rpartition('/')[2]
    tail = f'/{line.lstrip("/")}'
    found = [i for i, where in ends.get(last, ()) if where.endswith(tail)]
    if len(found) > 1:
      raise ValueError(
        f'{path}: {line!r} fits several images of {source.name}, such as '
        f'{source.where(found[0])} and {source.where(found[1])}; name their '
        'folders too'
      )
    chosen += found
    if not found:
      strange.append(line)
  if strange:
    raise ValueError(
      f'{path}: {len(strange)} of {len(lines)} lines fit no image of '
      f'{source.name} (such as {source.where(0)}): '
      + ', '.join(map(repr, strange[:SHOWN]))
    )
  return Subset(name='list', draw=0, indices=np.unique(chosen))
