"""Sheets of images: attention maps, neighbours, reconstructions, two runs."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from training.state import Figure
from transfer.visualize.attention_maps import mass_mask
from transfer.visualize.drawing import (
  Picture,
  as_rgb,
  bare,
  enlarge,
  overlay,
  panels,
  show,
)
from transfer.visualize.plots import (
  legend_size,
  name_classes,
  scatter,
  short,
  without_scale,
)

CELL = 0.95  # inches
TITLE = 0.4
TALL = 5  # rows of a sheet with few columns
FAINT = 0.25  # brightness of what is not looked at
LETTERS = 17  # of a caption in an inch
SAME, OTHER = '#1a9641', '#d7191c'


def attention_sheet(
  name: str,
  images: np.ndarray,
  maps: np.ndarray,
  *,
  title: str,
  mass: float,
  heads: int,
) -> Picture:
  """Input, mean over heads, the patches that hold the mass, and single heads.

  Args:
    name: of the picture.
    images: [n, h, w, c].
    maps: [n, heads, a, b], see `attention_maps.query_map`.
    title: over the sheet; the number of heads is added.
    mass: share of the attention, see `attention_maps.mass_mask`.
    heads: at most so many are drawn, evenly spread.
  """
  total = maps.shape[1]
  chosen = np.linspace(0, total - 1, min(heads, total)).round().astype(int)
  chosen = chosen[: 0 if total == 1 else None]  # it is the mean
  mean = maps.mean(axis=1)
  kept = mass_mask(mean, mass)
  titles = [
    'input',
    'mean of heads' if total > 1 else 'attention',
    f'{mass:.0%} of the sum',
    *(f'head {head}' for head in chosen),
  ]

  def paint(figure):
    axes = panels(figure, len(images), len(titles))
    for row, image in enumerate(images):
      seen = enlarge(kept[row], image.shape[:2])[..., None]
      rgb = as_rgb(image)
      cells = [
        rgb,
        overlay(image, mean[row]),
        np.where(seen, rgb, FAINT * rgb),
        *(overlay(image, maps[row, head]) for head in chosen),
      ]
      for ax, cell in zip(axes[row], cells, strict=True):
        show(ax, cell)
    for ax, text in zip(axes[0], titles, strict=True):
      ax.set_title(text)
    _scale(figure, axes, 'attention (1: largest of a map)')
    figure.suptitle(f'{title}, {total} head{"s" if total > 1 else ""}')

  size = (CELL * len(titles) + 0.6, CELL * len(images) + 2 * TITLE)
  return Picture(
    name=name,
    size=size,
    paint=paint,
    numbers=dict(maps=maps, mean=mean, kept=kept),
  )


def _scale(figure: Any, axes: np.ndarray, label: str) -> None:
  """The colours of `overlay`, beside the last column."""
  from matplotlib.cm import ScalarMappable

  bar = figure.colorbar(
    ScalarMappable(cmap='inferno'),
    ax=axes,
    shrink=min(1.0, 2.0 / len(axes)),
    aspect=15,
    pad=0.01,
    ticks=[0, 0.5, 1],
  )
  bar.set_label(label)
  bar.outline.set_visible(False)


def neighbor_sheet(
  queries: np.ndarray,
  found: np.ndarray,
  cosines: np.ndarray,
  *,
  title: str,
  same: np.ndarray | None,
  numbers: Mapping[str, Any],
  names: Sequence[str] = (),
) -> Picture:
  """Queries and their nearest images, framed by whether the class agrees.

  Args:
    queries: [q, h, w, c].
    found: [q, k, h, w, c].
    cosines: [q, k].
    title: over the sheet.
    same: bool [q, k], whether query and neighbour share a label; None without
      labels: no frames.
    numbers: what else to keep.
    names: the class of each query, written below it; () for none.
  """
  k = found.shape[1]

  def paint(figure):
    axes = panels(figure, len(queries), k + 1)
    for row, query in enumerate(queries):
      show(axes[row, 0], as_rgb(query))
      if names:
        axes[row, 0].set_xlabel(short(names[row], 16), labelpad=2, fontsize=6)
      for i in range(k):
        ax = axes[row, i + 1]
        show(ax, as_rgb(found[row, i]))
        ax.set_xlabel(f'{cosines[row, i]:.3f}', labelpad=2, fontsize=6)
        if same is not None:
          frame, style = (SAME, '-') if same[row, i] else (OTHER, (0, (3, 2)))
          bare(ax, frame=frame, style=style)
    axes[0, 0].set_title('query')
    for i in range(k):
      axes[0, i + 1].set_title(f'nearest {i + 1}' if i == 0 else str(i + 1))
    text = f'{title}; below each: cosine'
    if same is not None:
      text += '. Green: same class, red dashes: another'
    figure.suptitle(text)

  size = (CELL * (k + 1) + 0.2, (CELL + 0.15) * len(queries) + 2 * TITLE)
  return Picture(
    name='neighbors',
    size=size,
    paint=paint,
    numbers=dict(numbers, cosine=cosines),
  )


def figure_sheet(name: str, drawn: Figure, *, title: str) -> Picture:
  """A method's own figure; a column 'error' in colours, with its mean.

  Args:
    name: of the picture.
    drawn: host arrays, see `Figure`.
    title: over the sheet.
  """
  cells = np.asarray(drawn.images, np.float32)
  errors = {}
  if 'error' in drawn.columns:
    error = cells[:, drawn.columns.index('error')].mean(axis=-1)
    errors = dict(error=error.mean(axis=(1, 2)).tolist())

  count, columns = cells.shape[:2]
  blocks = 1 if count <= TALL else 2  # side by side
  rows = -(-count // blocks)

  def paint(figure):
    axes = panels(figure, rows, blocks * columns)
    last = None
    for number, images in enumerate(cells):
      block, row = divmod(number, rows)
      for column, image in enumerate(images):
        ax = axes[row, block * columns + column]
        if drawn.columns[column] == 'error':
          last = show(
            ax, error[number], cmap='magma', vmin=0, vmax=max(error.max(), 1e-6)
          )
          ax.set_xlabel(
            f'mean {error[number].mean():.3f}', labelpad=2, fontsize=6
          )
        else:
          show(ax, as_rgb(image))
    for ax, text in zip(axes[0], blocks * drawn.columns, strict=True):
      ax.set_title(text)
    if last is not None:
      bar = figure.colorbar(
        last, ax=axes, shrink=min(1.0, 2.0 / len(axes)), aspect=15, pad=0.01
      )
      bar.set_label('absolute error (pixels in [0, 1])')
      bar.outline.set_visible(False)
    figure.suptitle(title)
    if drawn.caption:
      wrapped = textwrap.wrap(drawn.caption, int(size[0] * LETTERS))
      figure.supxlabel('\n'.join(wrapped), fontsize=7)

  side = 1.1
  size = (side * blocks * columns + 0.8, (side + 0.15) * rows + 2.5 * TITLE)
  return Picture(name=name, size=size, paint=paint, numbers=errors)


def two_runs(
  images: np.ndarray,
  maps: Mapping[str, np.ndarray],
  points: Mapping[str, np.ndarray],
  *,
  labels: np.ndarray | None,
  classes: Sequence[str],
) -> Picture:
  """RePre's Fig. 4: attention maps and t-SNE of two encoders side by side.

  Args:
    images: [n, h, w, c].
    maps: {run: [n, a, b]}, means over heads.
    points: {run: [m, 2]}.
    labels: of the points, see `plots.scatter`.
    classes: see `plots.scatter`.
  """
  rows, runs = len(images), list(maps)
  left_width = CELL * (len(runs) + 1)
  stacked = CELL * rows >= 2.2 * len(runs)
  right_width = 2.8 if stacked else 2.6 * len(runs)
  wide, high = legend_size(labels, classes)

  def paint(figure):
    left, right = figure.subfigures(
      1, 2, width_ratios=(left_width, right_width + wide)
    )
    axes = panels(left, rows, len(runs) + 1)
    for row, image in enumerate(images):
      show(axes[row, 0], as_rgb(image))
      for ax, run in zip(axes[row, 1:], runs, strict=True):
        show(ax, overlay(image, maps[run][row]))
    for ax, text in zip(axes[0], ('input', *runs), strict=True):
      ax.set_title(text)
    left.suptitle('attention, mean over heads')
    shape = (len(runs), 1) if stacked else (1, len(runs))
    plots = right.subplots(*shape, squeeze=False).flat
    for ax, run in zip(plots, runs, strict=True):
      scatter(ax, points[run], labels, classes)
      without_scale(ax)
      ax.set_title(run)
      ax.set_box_aspect(1)
    right.suptitle('t-SNE of the features')
    if labels is not None:
      name_classes(right, ax)

  height = max(CELL * rows, 2.6) + TITLE
  numbers = {f'{run}/maps': maps[run] for run in runs}
  numbers |= {f'{run}/points': points[run] for run in runs}
  return Picture(
    name='compare',
    size=(left_width + right_width + wide, max(height, high)),
    paint=paint,
    numbers=numbers,
  )
