"""Plots: projections in class colours, curves by depth and by step."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transfer.visualize.curves import BASELINES, GROUPS, Points, never_changes
from transfer.visualize.drawing import Picture, bare, colors, render

PANELS = 3  # in a row
NAMED = 30  # classes; the colours of more could not be told apart anyway


def scatter(
  ax: Any,
  points: np.ndarray,
  labels: np.ndarray | None,
  classes: Sequence[str],
  *,
  legend: bool = True,
) -> None:
  """Points in the colours of their classes; grey without labels.

  Args:
    ax: a panel.
    points: [n, 2].
    labels: int [n] within 0..len(classes)-1, or None.
    classes: names.
    legend: whether the classes are named beside the panel.
  """
  size = float(np.clip(4000 / len(points), 3, 18))
  dots = dict(s=size, linewidths=0, alpha=0.85)
  if labels is None:
    ax.scatter(*points.T, color='0.35', **dots)
    return
  known = np.unique(labels)
  for color, label in zip(colors(len(known)), known, strict=True):
    rows = labels == label
    ax.scatter(*points[rows].T, color=color, label=str(classes[label]), **dots)
  if legend:
    name_classes(ax, ax, loc='center left', bbox_to_anchor=(1.0, 0.5))


def name_classes(owner: Any, ax: Any, **place: Any) -> None:
  """A legend of the classes of a scatter plot.

  Args:
    owner: what gets it, a panel or a figure.
    ax: the panel with the points.
    **place: where it stands, see `legend` of matplotlib.
  """
  handles, names = ax.get_legend_handles_labels()
  size = handles[0].get_sizes()[0]
  owner.legend(
    handles[:NAMED],
    [name if len(name) <= 24 else f'{name[:23]}…' for name in names[:NAMED]],
    handletextpad=0.2,
    markerscale=(30 / size) ** 0.5,
    title=None if len(names) <= NAMED else f'{NAMED} of {len(names)}',
    **place,
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
    ax.set_title(title)
    if explained is None:
      bare(ax, frame='0.7')
      for spine in ax.spines.values():
        spine.set_linewidth(0.6)
      return
    for put, number, share in zip(
      (ax.set_xlabel, ax.set_ylabel), '12', explained, strict=True
    ):
      put(f'principal component {number} ({share:.1%} of the variance)')

  numbers = dict(points=points, index=indices)
  if labels is not None:
    numbers['label'] = labels
  if explained is not None:
    numbers['explained'] = list(explained)
  width = 4.0 if labels is None else 5.4
  return Picture(name=name, png=render((width, 3.8), paint), numbers=numbers)


def depth_curves(
  runs: Mapping[str, Mapping[str, list[np.ndarray]]], *, images: int
) -> Picture:
  """NMI and attention distance by block: heads as dots, their mean as a line.

  Args:
    runs: {run: {'nmi', 'distance'}}, by block the means over images, [heads].
    images: how many the means are over.
  """
  words = dict(
    nmi=('NMI of query and key', 'Dependence on the query'),
    distance=('mean attention distance (pixels)', 'Reach'),
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
      ax.set(xlabel='block', ylabel=label, title=title)
      ax.xaxis.get_major_locator().set_params(integer=True)
      ax.grid(alpha=0.25, linewidth=0.5)
    axes[0].set_ylim(bottom=0)
    axes[1].set_ylim(bottom=0)
    axes[0].legend()
    figure.suptitle(
      f'Attention among patches; mean over {images} images, dots are heads'
    )

  numbers = {
    f'{run}/{measure}': [heads.tolist() for heads in found[measure]]
    for run, found in runs.items()
    for measure in words
  }
  return Picture(name='depth', png=render((6.8, 3.0), paint), numbers=numbers)


def curve_pictures(
  groups: Mapping[str, Mapping[str, Mapping[str, Points]]], runs: Sequence[str]
) -> list[Picture]:
  """A picture for every group of metrics, a panel per metric, a line per run.

  Args:
    groups: see `curves.grouped`.
    runs: their names, in the order of their colours.
  """
  out = []
  for group in GROUPS:
    metrics = groups.get(group, {})
    drawn = {
      name: lines
      for name, lines in metrics.items()
      if not never_changes(lines)
      and not (name in BASELINES and 'knn_top1' in metrics)
    }
    if not drawn:
      continue
    columns = min(PANELS, len(drawn))
    rows = -(-len(drawn) // columns)
    png = render(
      (2.5 * columns + 0.4, 2.1 * rows + 0.5),
      lambda figure, drawn=drawn, metrics=metrics: paint_group(
        figure, drawn, metrics, runs
      ),
    )
    numbers = {
      f'{metric}/{run}': points
      for metric, lines in metrics.items()
      for run, points in lines.items()
    }
    out.append(Picture(name=f'curves_{group}', png=png, numbers=numbers))
  return out


def paint_group(
  figure: Any,
  drawn: Mapping[str, Mapping[str, Points]],
  metrics: Mapping[str, Mapping[str, Points]],
  runs: Sequence[str],
) -> None:
  """Fills a figure with the panels of one group.

  Args:
    figure: of matplotlib.
    drawn: {metric: {run: points}}, a panel for each.
    metrics: all of the group; `BASELINES` among them become dotted lines.
    runs: their names, in the order of their colours.
  """
  columns = min(PANELS, len(drawn))
  rows = -(-len(drawn) // columns)
  axes = figure.subplots(rows, columns, squeeze=False)
  color = dict(zip(runs, colors(len(runs)), strict=True))
  handles = {}
  for ax, (metric, lines) in zip(axes.flat, drawn.items(), strict=False):
    for run, points in lines.items():
      marker = 'o' if len(points['step']) <= 12 else ''
      (handles[run],) = ax.plot(
        points['step'],
        points['value'],
        color=color[run],
        label=run,
        marker=marker,
        markersize=3,
      )
    if metric == 'knn_top1':
      _baselines(ax, metrics, color)
    ax.set(xlabel='step', title=metric)
    ax.grid(alpha=0.25, linewidth=0.5)
  for ax in axes.flat[len(drawn) :]:
    ax.set_visible(False)
  known = [run for run in runs if run in handles]
  figure.legend(
    [handles[run] for run in known],
    known,
    loc='outside upper center',
    ncols=min(len(known), 2 * columns),
  )


def _baselines(ax: Any, metrics: Mapping, color: Mapping[str, Any]) -> None:
  """Dotted lines for what was measured once, named at their right end."""
  for name in BASELINES:
    values = {r: p['value'][0] for r, p in metrics.get(name, {}).items()}
    same = len(set(values.values())) == 1
    for number, (run, value) in enumerate(values.items()):
      if same and number:
        break
      line = dict(color='0.4' if same else color[run], linestyle=':')
      ax.axhline(value, linewidth=1, **line)
      ax.annotate(
        name.removeprefix('knn_').replace('_', ' '),
        (1, value),
        xycoords=('axes fraction', 'data'),
        ha='right',
        va='bottom',
        fontsize=6,
        color=line['color'],
      )
