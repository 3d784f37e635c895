"""Curves of runs from their metrics.jsonl."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from training import storage
from training.json_lines import read_rows

# The first that matches a metric's name.
GROUPS = {
  'losses': r'loss.*|.*_loss',
  'probes': r'(knn|linear|fewshot)_.*|.*top[15]|accuracy|miou',
  'features': r'effective_rank|feature_std|mean_cosine|contrast_accuracy'
  r'|.*entropy',
  'optimisation': r'lr|.*_lr|decay|momentum|grad_.*|(weight|optimum)_.*'
  r'|bad_steps|.*temperature',
  'speed': r'images_per_second|seconds_per_step',
  'others': r'.*',
}
# Measured once, to be compared with `knn_top1`.
BASELINES = ('knn_untrained', 'knn_raw_pixels', 'knn_histogram')

Points = Mapping[str, list[float]]  # 'step' and 'value'


def short_names(paths: Sequence[epath.PathLike]) -> tuple[str, ...]:
  """As few trailing parts of each path as tell all of them apart."""
  parts = [tuple(p for p in str(path).split('/') if p) for path in paths]
  longest = max(map(len, parts), default=1)
  for count in range(1, longest + 1):
    names = tuple('/'.join(part[-count:]) for part in parts)
    if len(set(names)) == len(set(parts)):
      break
  return names


def read_curves(workdir: epath.PathLike) -> dict[str, Points]:
  """All that a run reported.

  Args:
    workdir: of the run.

  Returns:
    {metric: {'step', 'value'}}; values that were not finite are left out.

  Raises:
    ValueError: no reports there.
  """
  path = storage.resolve(workdir) / 'metrics.jsonl'
  curves = {}
  for row in read_rows(path):
    for name, value in row.items():
      if name != 'step' and value is not None:
        points = curves.setdefault(name, dict(step=[], value=[]))
        points['step'].append(row['step'])
        points['value'].append(float(value))
  if not curves:
    raise ValueError(f'there are no reports to draw in {path}')
  return curves


def grouped(
  runs: Mapping[str, Mapping[str, Points]],
) -> dict[str, dict[str, dict[str, Points]]]:
  """Curves by group, metric and run: a picture, a panel and a line each."""
  out = {}
  for group in GROUPS:
    for metric in sorted({name for curves in runs.values() for name in curves}):
      if group_of(metric) == group:
        lines = {r: c[metric] for r, c in runs.items() if metric in c}
        out.setdefault(group, {})[metric] = lines
  return out


def group_of(metric: str) -> str:
  """The group that a metric belongs to."""
  for group, pattern in GROUPS.items():
    if re.fullmatch(pattern, metric):
      return group
  raise AssertionError('the last pattern matches everything')


def never_changes(lines: Mapping[str, Points]) -> bool:
  """Whether a metric has stayed at 0 in every run: nothing to look at."""
  return not any(np.any(points['value']) for points in lines.values())
