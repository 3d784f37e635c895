"""Pictures that a paper can print: one style, PNG bytes, no display."""

import dataclasses
import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

DPI = 200
STYLE = {
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
  """A drawn picture.

  Attributes:
    name: of its file, without the ending.
    png: the file.
    numbers: what was drawn: arrays, or plain data that JSON can hold.
  """

  name: str
  png: bytes
  numbers: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def render(
  size: tuple[float, float], paint: Callable[[Any], None], *, dpi: int = DPI
) -> bytes:
  """Draws a figure of matplotlib.

  Args:
    size: (width, height) in inches.
    paint: fills the `matplotlib.figure.Figure` that it is given.
    dpi: pixels per inch.

  Returns:
    A PNG file.
  """
  import matplotlib
  from matplotlib.figure import Figure

  # Not pyplot: no state that is shared, no window system, no interactive mode.
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=size, layout='constrained')
    paint(figure)
    out = io.BytesIO()
    figure.savefig(out, format='png', dpi=dpi)
  return out.getvalue()


def colors(count: int) -> list[Any]:
  """Colours that can be told apart: lines, or classes of a scatter plot."""
  import matplotlib

  if count <= 10:
    return [matplotlib.colormaps['tab10'](i) for i in range(count)]
  if count <= 20:
    return [matplotlib.colormaps['tab20'](i) for i in range(count)]
  return [matplotlib.colormaps['turbo'](i / (count - 1)) for i in range(count)]


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
