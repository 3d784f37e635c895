"""What the screen ends with: results of a job, where they are, what is next."""

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from training import storage
from training.screen import columns, duration
from transfer.fewshot.job import table
from transfer.knn.online import scores_line

# Of a workdir, in the order in which they are named.
FILES = (
  'summary.json',
  'metrics.jsonl',
  'grid.json',
  'figures.json',
  'figures.npz',
  'images',
  'checkpoints',
  'tensorboard',
)
SHOWN = 5  # of a grid of probes
# The job that usually follows, with its config word; see `_next`.
FOLLOWS = {
  'pretrain': 'visualize',
  'knn': 'linear_probe',
  'fewshot': 'linear_probe',
  'linear_probe': 'finetune',
  'visualize': 'knn',
  'finetune': 'export',
}
FLAGS = {'linear_probe': ',sweep,cached'}

Summary = Mapping[str, Any]


def ending(config: Any, summary: Summary, workdir: epath.PathLike) -> str:
  """The last lines of a job.

  Args:
    config: of the job.
    summary: what it returned, as in summary.json.
    workdir: its folder.

  Returns:
    Results with units and baselines, pictures, files, the next command. Only
    paths and what was typed by the user may be wider than `screen.columns()`.
  """
  workdir = _short(storage.resolve(workdir))
  lines = [*RESULTS[config.task](summary, workdir)]
  if config.task not in ('visualize', 'check_data'):  # these name them
    pictures = sorted((workdir / 'images').glob('*.png'))
    lines += [f'picture: {path}' for path in pictures[-1:]]
  kept = [name for name in FILES if (workdir / name).exists()]
  if kept:
    lines.append(f'files: {workdir}: {", ".join(kept)}')
  if 'tensorboard' in kept and config.task != 'visualize':
    lines.append(f'curves: tensorboard --logdir={workdir}')
  return '\n'.join(['', *lines, *_next(config, summary, workdir)])


def _short(path: epath.Path) -> epath.Path:
  """A path as one would type it here: relative to the current folder."""
  here = epath.Path(os.getcwd())
  return path.relative_to(here) if path.is_relative_to(here) else path


def _speed(summary: Summary) -> list[str]:
  words = []
  if summary.get('loss') is not None:
    words.append(f'loss {summary["loss"]:.4g}')
  if 'steps' in summary:
    words.append(f'{summary["steps"]:,} steps')
  if 'seconds' in summary:
    words.append(f'{duration(summary["seconds"])} (h:mm:ss)')
  if summary.get('images_per_second'):
    words.append(f'{summary["images_per_second"]:,.0f} images/s')
  return [', '.join(words)] if words else []


def _pretrain(summary: Summary, workdir: epath.Path) -> list[str]:
  del workdir
  lines = [scores_line(summary)] if scores_line(summary) else []
  if 'probe_top1' in summary:
    lines.append(f'online probe: {_tops(summary, "probe_")}')
  weights = [
    f'{name} {summary[f"weight_{name}"]:.3g} (optimum {optimum:.3g})'
    for name, optimum in _under('optimum_', summary)
    if None not in (optimum, summary.get(f'weight_{name}'))
  ]
  if weights:
    lines.append(f'weights of the losses: {", ".join(weights)}')
  return lines + _speed(summary)


def _under(prefix: str, found: Summary) -> list[tuple[str, Any]]:
  """(rest of the key, value) of what begins with a prefix."""
  return [
    (key.removeprefix(prefix), value)
    for key, value in found.items()
    if key.startswith(prefix)
  ]


def _tops(found: Summary, prefix: str = '') -> str:
  """'top-1 47.80 %, top-5 88.10 %'."""
  names = (('top-1', f'{prefix}top1'), ('top-5', f'{prefix}top5'))
  return ', '.join(
    f'{word} {found[key]:.2f} %' for word, key in names if key in found
  )


def _knn(summary: Summary, workdir: epath.Path) -> list[str]:
  del workdir
  best = summary['knn_k']
  lines = [
    f'k-NN of {summary["query_images"]:,} test images among '
    f'{summary["bank_images"]:,} training images'
  ]
  ks = (k for k, _ in _under('knn_top1_k', summary))
  for k in sorted(int(k) for k in ks if k.isdigit()):
    found = {f'top{n}': summary[f'knn_top{n}_k{k}'] for n in (1, 5)}
    lines.append(f'k {k}: {_tops(found)}{" (best)" * (k == best)}')
  if 'knn_raw_pixels' in summary:
    lines.append(f'raw pixels: top-1 {summary["knn_raw_pixels"]:.2f} %')
  return lines


def _linear_probe(summary: Summary, workdir: epath.Path) -> list[str]:
  lines = [f'linear probe: {_tops(summary)}']
  path = workdir / 'grid.json'
  rows = json.loads(path.read_text()) if path.exists() else []
  if rows:
    lines.append(
      f'the best {min(SHOWN, len(rows))} of {len(rows)}, chosen by the test '
      'images:'
    )
    lines += [f'  {row["probe"]}: {_tops(row)}' for row in rows[:SHOWN]]
  return lines + _speed({k: v for k, v in summary.items() if k != 'loss'})


def _finetune(summary: Summary, workdir: epath.Path) -> list[str]:
  del workdir
  return [f'test images: {_tops(summary)}', *_speed(summary)]


def _fewshot(summary: Summary, workdir: epath.Path) -> list[str]:
  del workdir
  return table(summary['fewshot']).splitlines()


def _embed(summary: Summary, workdir: epath.Path) -> list[str]:
  del workdir
  lines = [
    f'features: {summary["images"]:,} images x {summary["width"]:,} numbers in '
    f'{summary["file"]}'
  ]
  if summary['unreadable']:
    lines.append(f'left out, cannot be read: {summary["unreadable"]:,}')
  return lines


def _visualize(summary: Summary, workdir: epath.Path) -> list[str]:
  lines = [
    f'pictures: {len(summary["pictures"])} in {workdir / "images"} '
    f'({", ".join(summary.get("formats", ["png"]))})',
    'the numbers behind them: figures.npz and figures.json',
  ]
  if summary['left_out']:
    words = ', '.join(summary['left_out'])
    lines.append(f'left out: {words} (the reasons are in summary.json)')
  return lines


def _export(summary: Summary, workdir: epath.Path) -> list[str]:
  del workdir
  return [
    *(f'file: {name}' for name in summary['files']),
    *(f'note: {note}' for note in summary['notes']),
  ]


def _check_data(summary: Summary, workdir: epath.Path) -> list[str]:
  """What it has found is on the screen already."""
  del summary
  return [f'views: {workdir / "images" / "views.png"}']


RESULTS: Mapping[str, Callable[[Summary, epath.Path], list[str]]] = {
  'pretrain': _pretrain,
  'check_data': _check_data,
  'linear_probe': _linear_probe,
  'finetune': _finetune,
  'knn': _knn,
  'fewshot': _fewshot,
  'embed': _embed,
  'visualize': _visualize,
  'export': _export,
}


def _next(config: Any, summary: Summary, workdir: epath.Path) -> list[str]:
  """The command that usually follows, in lines to be copied."""
  task = config.task
  if task == 'check_data':
    other = ('--config.task', '--workdir')
    words = [word for word in sys.argv[1:] if not word.startswith(other)]
    words.append(f'--workdir={workdir.with_name(f"{workdir.name}_run")}')
    return ['next, to train on them:', *_command(words)]
  if task == 'embed':
    return [
      "next, in Python: numpy.load('features.npz')['features']"
      if summary['file'].endswith('.npz')
      else "next, in Python: pandas.read_parquet('features.parquet')"
    ]
  if task == 'export':
    return ['next: the library that you exported for reads the files above']
  checkpoint = config.checkpoint
  if task in ('pretrain', 'finetune'):
    checkpoint = workdir
  follows = FOLLOWS[task]
  if not checkpoint:
    return []
  run = epath.Path(checkpoint)
  if run.parent.name == 'checkpoints':  # one step of a run
    run = run.parent.parent
  target = workdir.parent / f'{run.name}_{follows}'
  options = [f'--config.checkpoint={checkpoint}', f'--workdir={target}']
  if follows == 'export':
    words = ['--config=configs/export.py:timm', *options]
  else:
    word = f'{config.data.name}{FLAGS.get(follows, "")}'
    words = [f'--config=configs/{follows}.py:{word}', *_data(config.data)]
    words += options
  lines = ['next:', *_command(words)]
  if task == 'pretrain' and config.data.name == 'photos':
    own = ['--config=configs/moco_v3.py:vit_s16,folder,repre']
    own += ['--config.data.data_dir=FOLDER', '--workdir=runs/mine']
    lines += ['your own images (see README.md):', *_command(own)]
  return lines


def _data(data: Any) -> list[str]:
  """Options that name the same images again."""
  names = ['data_dir', 'tfds_name']
  if data.name != 'photos':
    names.append('image_size')
  if data.name == 'arrays':
    names.append('test_split')
  values = ((name, data.get(name)) for name in names)
  return [f'--config.data.{name}={value}' for name, value in values if value]


def _command(words: Sequence[str]) -> list[str]:
  """`main.py` with options, in lines that a shell reads as one."""
  python = os.path.relpath(sys.executable)
  python = sys.executable if python.startswith('..') else python
  lines = [f'  {shlex.quote(python)} main.py']
  for word in words:
    if len(lines[-1]) + len(word) + 3 > columns():
      lines[-1] += ' \\'
      lines.append(f'    {shlex.quote(word)}')
    else:
      lines[-1] += f' {shlex.quote(word)}'
  return lines
