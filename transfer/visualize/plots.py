"""Plots: projections in class colours, attention by depth."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transfer.visualize.drawing import Picture, bare, colors, looks

NAMED = 30  # classes with a look each; more are numbers on a colour bar
TALL = 16  # names in one column of a legend
LONGEST = 24  # letters of a name


def scatter(
  ax: Any, points: np.ndarray, labels: np.ndarray | None, classes: Sequence[str]
) -> None:
  """Points in colours and markers of their classes; grey without labels.

  Args:
    ax: a panel.
    points: [n, 2].
    labels: int [n] within 0..len(classes)-1, or None.
    classes: names.
  """
  size = float(np.clip(6000 / len(points), 5, 22))
  dots = dict(s=size, linewidths=0, alpha=0.85)
  if labels is None:
    ax.scatter(*points.T, color='0.35', **dots)
    return
  known, number = np.unique(labels, return_inverse=True)
  if len(known) > NAMED:
    ax.scatter(*points.T, c=number + 1, cmap='viridis', **dots)
    return
  for (color, marker), label in zip(looks(len(known)), known, strict=True):
    ax.scatter(
      *points[labels == label].T,
      color=color,
      marker=marker,
      label=short(str(classes[label])),
      **dots,
    )


def short(name: str, longest: int = LONGEST) -> str:
  """A name of a class, cut where it is long."""
  return name if len(name) <= longest else f'{name[: longest - 1]}…'


def without_scale(ax: Any) -> None:
  """Axes of a t-SNE, whose numbers mean nothing: names and a thin frame."""
  bare(ax, frame='0.7')
  for spine in ax.spines.values():
    spine.set_linewidth(0.6)
  ax.set(xlabel='t-SNE dimension 1', ylabel='t-SNE dimension 2')


def legend_size(
  labels: np.ndarray | None, classes: Sequence[str]
) -> tuple[float, float]:
  """(width, height) in inches of what `name_classes` puts beside a panel."""
  if labels is None:
    return 0.0, 0.0
  known = np.unique(labels)
  if len(known) > NAMED:
    return 0.9, 0.0
  columns = -(-len(known) // TALL)
  longest = max(len(short(str(classes[label]))) for label in known)
  rows = -(-len(known) // columns)
  return columns * (0.4 + 0.06 * longest), 0.17 * rows + 0.3


def name_classes(figure: Any, ax: Any) -> None:
  """A legend of the classes of a scatter plot, or a bar of their numbers.

  Args:
    figure: gets it at its right, outside of the panels.
    ax: a panel with the points.
  """
  handles, names = ax.get_legend_handles_labels()
  if not handles:
    points = ax.collections[0]
    bar = figure.colorbar(points, ax=figure.axes, aspect=30)
    bar.set_label('class, numbered by its name')
    bar.outline.set_visible(False)
    return
  size = handles[0].get_sizes()[0]
  figure.legend(
    handles,
    names,
    handletextpad=0.2,
    markerscale=(30 / size) ** 0.5,
    ncols=-(-len(names) // TALL),
    columnspacing=0.8,
    loc='outside right center',
  )


def projection(
  name: str,
  points: np.ndarray,
  *,
  title: str,
  labels: np.ndarray | None,
  classes: Sequence[str],
  indices: np.ndarray,
  explained: Sequence[float] | None = None,
) -> Picture:
  """t-SNE or principal components of one encoder.

  Args:
    name: of the picture.
    points: [n, 2].
    title: over the plot.
    labels: see `scatter`.
    classes: see `scatter`.
    indices: which images the points are.
    explained: shares of the variance of the two axes, where they have some.
  """

  def paint(figure):
    ax = figure.subplots()
    scatter(ax, points, labels, classes)
    if labels is not None:
      name_classes(figure, ax)
    ax.set_title(title)
    if explained is None:
      without_scale(ax)
      return
    for put, number, share in zip(
      (ax.set_xlabel, ax.set_ylabel), '12', explained, strict=True
    ):
      put(f'principal component {number} ({share:.1%} of the variance)')
    ax.margins(0.05)

  numbers = dict(points=points, index=indices)
  if labels is not None:
    numbers['label'] = labels
  if explained is not None:
    numbers['explained'] = list(explained)
  wide, high = legend_size(labels, classes)
  size = (3.9 + wide, max(3.8, high))
  return Picture(name=name, size=size, paint=paint, numbers=numbers)


def depth_curves(
  runs: Mapping[str, Mapping[str, list[np.ndarray]]], *, images: int
) -> Picture:
  """NMI and attention distance by block: heads as dots, their mean as a line.

  Args:
    runs: {run: {'nmi', 'distance'}}, by block the means over images, [heads].
    images: how many the means are over.
  """
  words = dict(
    nmi=('NMI of query and key (0 to 1)', 'Normalised mutual information'),
    distance=('mean distance (pixels)', 'Attention distance'),
  )

  def paint(figure):
    axes = figure.subplots(1, 2)
    for ax, (measure, (label, title)) in zip(axes, words.items(), strict=True):
      for color, (run, found) in zip(
        colors(len(runs)), runs.items(), strict=True
      ):
        means = [np.mean(heads) for heads in found[measure]]
        ax.plot(means, 'o-', color=color, label=run, markersize=3.5)
        for block, heads in enumerate(found[measure]):
          place = np.full(len(heads), block)
          ax.scatter(place, heads, s=6, color=color, alpha=0.35, linewidths=0)
      ax.set(xlabel='block (0 is the first)', ylabel=label, title=title)
      ax.xaxis.get_major_locator().set_params(integer=True)
      ax.grid(alpha=0.25, linewidth=0.5)
      ax.margins(y=0.12)
      ax.set_ylim(bottom=0)
    if len(runs) > 1:
      figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc='outside lower center',
        ncols=len(runs),
      )
    plural = '' if images == 1 else 's'
    figure.suptitle(
      f'Attention among patches: mean over {images} image{plural}; dots: heads'
    )

  numbers = {
    f'{run}/{measure}': [heads.tolist() for heads in found[measure]]
    for run, found in runs.items()
    for measure in words
  }
  return Picture(name='depth', size=(6.8, 3.0), paint=paint, numbers=numbers)
