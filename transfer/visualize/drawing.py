"""Pictures that a paper can print: one style, PNG bytes, no display."""

import dataclasses
import functools
import io
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

DPI = 200
# What a file can be, and what keeps the time of day out of it.
FORMATS: Mapping[str, Mapping[str, Any]] = {
  'png': {},
  'pdf': {'CreationDate': None},
  'svg': {'Date': None},
}
STYLE = {
  'pdf.fonttype': 42,  # TrueType, which journals ask for
  'svg.hashsalt': 'repre',  # the same file from the same numbers
  'font.size': 8,
  'axes.titlesize': 8,
  'axes.labelsize': 8,
  'xtick.labelsize': 7,
  'ytick.labelsize': 7,
  'legend.fontsize': 7,
  'figure.titlesize': 9,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.linewidth': 0.6,
  'lines.linewidth': 1.2,
  'legend.frameon': False,
}
# Okabe and Ito (2008), which the colour-blind can tell apart; yellow is too
# faint on white and left out.
COLORS = (
  '#0072b2',
  '#e69f00',
  '#009e73',
  '#d55e00',
  '#cc79a7',
  '#56b4e9',
  '#000000',
)
MARKERS = ('o', '^', 's', 'X', 'D', 'P', 'v', '*')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
  """A picture, drawn when a file of it is asked for.

  Attributes:
    name: of its file, without the ending.
    size: (width, height) in inches.
    paint: fills the `matplotlib.figure.Figure` that it is given.
    numbers: what is drawn: arrays, or plain data that JSON can hold.
  """

  name: str
  size: tuple[float, float]
  paint: Callable[[Any], None]
  numbers: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def png(self) -> bytes:
    """The picture as a PNG file."""
    return render(self.size, self.paint)

  def file(self, kind: str) -> bytes:
    """The picture as a file of one of `FORMATS`."""
    return self.png if kind == 'png' else render(self.size, self.paint, kind)


def render(
  size: tuple[float, float],
  paint: Callable[[Any], None],
  kind: str = 'png',
  *,
  dpi: int = DPI,
) -> bytes:
  """Draws a figure of matplotlib.

  Args:
    size: (width, height) in inches.
    paint: fills the `matplotlib.figure.Figure` that it is given.
    kind: one of `FORMATS`; images inside a PDF or SVG keep their pixels.
    dpi: pixels per inch.

  Returns:
    The file.
  """
  import matplotlib
  from matplotlib.figure import Figure

  # Not pyplot: no state that is shared, no window system, no interactive mode.
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=size, layout='constrained')
    paint(figure)
    out = io.BytesIO()
    figure.savefig(out, format=kind, dpi=dpi, metadata=FORMATS[kind])
  return out.getvalue()


def looks(count: int) -> list[tuple[str, str]]:
  """(colour, marker) by number, all different: classes of a scatter plot.

  The markers change first where the colours are used up, so that of 56 looks no
  two are equal, also for the colour-blind; more than that come again.

  Args:
    count: how many.
  """
  pairs = ((color, marker) for marker in MARKERS for color in COLORS)
  return list(itertools.islice(itertools.cycle(pairs), count))


def colors(count: int) -> list[str]:
  """Colours of lines."""
  return [color for color, _ in looks(count)]


def as_rgb(image: np.ndarray) -> np.ndarray:
  """What a screen can show of an image.

  Args:
    image: uint8 or [0, 1] floats, [h, w, c]; 1 or 2 channels are shown as the
      first in grey, of more than 3 the first three.

  Returns:
    [h, w, 3] float32 in [0, 1].
  """
  scale = 255 if image.dtype == np.uint8 else 1
  image = np.asarray(image, np.float32) / scale
  image = image[..., :3] if image.shape[-1] >= 3 else image[..., :1]
  return np.clip(np.broadcast_to(image, (*image.shape[:2], 3)), 0, 1)


def bare(ax: Any, *, frame: Any = None, style: str = '-') -> None:
  """Takes ticks off a panel, and its frame unless it has a colour."""
  ax.set_xticks([])
  ax.set_yticks([])
  for spine in ax.spines.values():
    spine.set_visible(frame is not None)
    if frame is not None:
      spine.set_edgecolor(frame)
      spine.set_linewidth(2)
      spine.set_linestyle(style)


def panels(figure: Any, rows: int, columns: int) -> np.ndarray:
  """Bare panels side by side, an array [rows, columns]."""
  axes = figure.subplots(rows, columns, squeeze=False)
  for ax in axes.flat:
    bare(ax)
  return axes


def show(ax: Any, image: np.ndarray, **options: Any) -> Any:
  """An image, its pixels left as they are."""
  return ax.imshow(image, interpolation='nearest', **options)


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
  """A map in colours over the image in grey.

  Args:
    image: [h, w, c], see `as_rgb`.
    heat: [a, b] not negative; its largest value is drawn brightest.

  Returns:
    [h, w, 3] float32 in [0, 1].
  """
  import matplotlib

  gray = as_rgb(image).mean(axis=-1, keepdims=True)
  heat = enlarge(heat / max(float(heat.max()), 1e-12), gray.shape[:2])
  paint = matplotlib.colormaps['inferno'](heat)[..., :3].astype(np.float32)
  return 0.35 * gray + 0.65 * paint


def enlarge(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """A map of patches at the size of the image, without smoothing."""
  rows, columns = (
    np.arange(side) * cells // side
    for side, cells in zip(size, grid.shape, strict=True)
  )
  return grid[rows[:, None], columns[None, :]]
