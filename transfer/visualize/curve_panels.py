"""Curves of runs by step: a picture for every group of metrics."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from training.metric_names import metric
from transfer.visualize.curves import BASELINES, GROUPS, Points, never_changes
from transfer.visualize.drawing import Picture, colors

PANELS = 3  # in a row
APART = 0.09  # of a panel's height between two names at its side


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
      and '/' not in name  # one of many of a kind
      and not (name in BASELINES and 'knn_top1' in metrics)
    }
    if not drawn:
      continue
    columns = min(PANELS, len(drawn))
    rows = -(-len(drawn) // columns)
    size = (2.6 * columns + 0.4, 2.1 * rows + 0.5)
    paint = functools.partial(
      paint_group, drawn=drawn, metrics=metrics, runs=runs
    )
    numbers = {
      f'{key}/{run}': points
      for key, lines in metrics.items()
      for run, points in lines.items()
    }
    name = f'curves_{group}'
    out.append(Picture(name=name, size=size, paint=paint, numbers=numbers))
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
  for ax, (key, lines) in zip(axes.flat, drawn.items(), strict=False):
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
    shown = metric(key)
    ax.set(xlabel='step', ylabel=shown.axis, title=shown.title)
    ax.xaxis.get_major_locator().set_params(integer=True, nbins=5)
    ax.grid(alpha=0.25, linewidth=0.5)
    if key == 'knn_top1':
      _baselines(ax, metrics, color)
  for ax in axes.flat[len(drawn) :]:
    ax.set_visible(False)
  if len(runs) == 1:
    return
  known = [run for run in runs if run in handles]
  figure.legend(
    [handles[run] for run in known],
    known,
    loc='outside upper center',
    ncols=min(len(known), 2 * columns),
  )


def _baselines(ax: Any, metrics: Mapping, color: Mapping[str, Any]) -> None:
  """Dotted lines for what was measured once, named at the panel's side."""
  found = []
  for name in BASELINES:
    values = {r: p['value'][0] for r, p in metrics.get(name, {}).items()}
    same = len(set(values.values())) == 1
    for number, (run, value) in enumerate(values.items()):
      if same and number:
        break
      line = dict(color='0.35' if same else color[run], linestyle=':')
      ax.axhline(value, linewidth=1, **line)
      found.append((value, metric(name).short, line['color']))
  ax.margins(y=0.1)
  low, high = ax.get_ylim()
  ax.set_ylim(low, high)
  found.sort()
  places = spread([(value - low) / (high - low) for value, *_ in found], APART)
  for (_, name, shade), place in zip(found, places, strict=True):
    ax.annotate(
      name,
      (1.02, place),
      xycoords='axes fraction',
      annotation_clip=False,
      ha='left',
      va='center',
      fontsize=6,
      color=shade,
    )


def spread(places: Sequence[float], apart: float) -> list[float]:
  """Moves numbers so far that neighbours have a distance of at least `apart`.

  Args:
    places: rising numbers.
    apart: the least distance.

  Returns:
    Rising numbers, as near to the old ones as sweeps of halves bring them.
  """
  out = list(places)
  for _ in range(100):
    for i in range(len(out) - 1):
      short = apart - (out[i + 1] - out[i])
      if short > 1e-6:
        out[i], out[i + 1] = out[i] - short / 2, out[i + 1] + short / 2
  return out
