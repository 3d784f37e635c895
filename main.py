r"""RePre-JAX: one entry for every job.

python main.py --config=configs/moco_v3.py:vit_s16,arrays,repre --workdir=DIR

`config.task` names the job. The same command, run again, continues. Exit 0:
finished; 75: stopped by a signal after saving, start me again; anything else
is an error, whose one line is the last on the screen. Its traceback goes to a
file, or to the screen with --traceback.
"""

import sys

from training import signals

if __name__ == '__main__':  # before the imports below, which take seconds
  listener = signals.listen()
  from training import failures

  failures.install()
  from training import command_line, describe, letters

  letters.accept_any_encoding()
  sys.argv = command_line.expanded(sys.argv)
  describe.leave_if_asked(sys.argv)

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from jax.sharding import Mesh
from ml_collections import config_flags

from input_pipeline import feed
from input_pipeline.eval_batches import eval_batches
from input_pipeline.photos import whole_photos
from input_pipeline.resident import Resident
from input_pipeline.source import Source, check_classes
from input_pipeline.unreadable import Unreadable
from input_pipeline.views import View
from pretrain import collapse, first_start, out_of_memory
from pretrain.figures import in_windows
from pretrain.methods import from_config
from pretrain.online_probe import OnlineProbe
from pretrain.run_figures import run_figures
from pretrain.weighting import far_from_optimum
from training import (
  cluster,
  command_line,
  describe,
  distributed,
  failures,
  lock,
  loop,
  process,
  screen,
  sharding,
  storage,
)
from training import workdir as workdirs
from training.fields import check_fields
from training.protocols import Evaluator, Method
from training.step import Run
from transfer.accuracy import Accuracy, classify
from transfer.check_data import check_data
from transfer.embed.job import embed
from transfer.export import export
from transfer.extract import Extractor
from transfer.fewshot.job import fewshot
from transfer.finetune.job import finetune
from transfer.knn.job import knn
from transfer.knn.online import online_knn
from transfer.probe.job import linear_probe
from transfer.results import ending
from transfer.start import starting_point
from transfer.teachers import load_teachers
from transfer.visualize.job import visualize

FIGURE_ROWS = 8
CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'FILE.py:words, e.g. configs/quickstart.py', lock_config=True
)
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
flags.DEFINE_bool('traceback', False, 'Show the traceback of an error here.')


def pretrain(config: Any, workdir: str) -> dict[str, float]:
  """Self-supervised pre-training, evaluated while it goes.

  Args:
    config: see `configs/common.py`.
    workdir: the folder of the run.

  Returns:
    The summary.
  """
  if config.checkpoint:
    raise ValueError(
      'config.checkpoint is what downstream tasks read; to start pre-training '
      'from weights set config.init_from'
    )
  mesh = sharding.make_mesh(config.fsdp)
  train, test = feed.open_sources(config.data)
  channels = feed.channels_of(config.data, train)
  config, initial = starting_point(config, workdir, channels=channels)
  config, frozen = load_teachers(config, workdir, channels=channels)
  # Chooses what is left open, and checks what needs no pixels.
  config = first_start.settled(
    config,
    workdir,
    sources=(train, test),
    channels=channels,
    mesh=mesh,
    initial=initial,
  )
  known_by = feed.fingerprint(train)
  distributed.check_equal(known_by, 'the list of training images')
  known_by = feed.with_times(known_by, train)  # those of copies differ
  size = config.data.image_size
  views = {n: View(**{'size': size, **v}) for n, v in config.views.items()}
  data, how = feed.make_feed(
    config.data,
    train,
    views,
    batch_size=config.batch_size,
    seed=config.seed,
    shardings=(sharding.over_batch(mesh), sharding.replicated(mesh)),
    agree=lambda choice: distributed.on_lead(lambda: choice),
  )
  train = data.source
  if test is not None and isinstance(data, Resident):
    test = feed.decoded(config.data, test)
  total = loop.count_steps(config, data.steps_per_epoch)
  method = from_config(
    config,
    channels=channels,
    steps_per_epoch=data.steps_per_epoch,
    total=total,
  )
  if config.online_probe_lr:
    method = OnlineProbe(
      base=method, classes=_classes(train), lr=config.online_probe_lr
    )
  run = Run(
    config,
    mesh=mesh,
    method=method,
    data=data,
    initial=initial,
    frozen=frozen,
    what=config.init_from,
  )
  shown = figure_images(config.data, train if test is None else test, channels)
  shown = jax.device_put(shown, sharding.replicated(mesh))
  screen.note(how)
  with contextlib.closing(data):
    summary = loop.train(
      run,
      workdir,
      total=total,
      evaluators=evaluators(
        config, method, train, test, mesh=mesh, channels=channels
      ),
      figures=in_windows(method.figures, (size, size)),
      figure_batch=dict.fromkeys(views, shown),
      watch=functools.partial(warnings, Unreadable(config, len(train))),
      data_fingerprint=known_by,
    )
  for warning in far_from_optimum(summary):
    screen.note(f'WARNING: {warning}')
  return summary


TASKS: Mapping[str, Callable[[Any, str], Any]] = {
  'pretrain': pretrain,
  'check_data': check_data,
  'linear_probe': linear_probe,
  'finetune': finetune,
  'knn': knn,
  'fewshot': fewshot,
  'embed': embed,
  'visualize': functools.partial(visualize, figures_of=run_figures),
  'export': export,
}


def evaluators(
  config: Any,
  method: Method,
  train: Source,
  test: Source | None,
  *,
  mesh: Mesh,
  channels: int,
) -> list[Evaluator]:
  """What is measured while pre-training: k-NN, and an online probe if asked."""
  images = dict(
    size=config.data.image_size,
    channels=channels,
    crop=config.data.eval_crop,
    resample=config.data.eval_resample,
  )
  found: list[Evaluator] = [
    *online_knn(
      config.knn,
      method,
      bank=train,
      queries=test,
      mesh=mesh,
      untrained=not config.init_from,
      **images,
    )
  ]
  if config.online_probe_lr and test is not None and test.labels is not None:
    check_classes(train, test)
    extractor = Extractor(
      classify(method), mesh=mesh, batch_size=config.knn.batch_size, **images
    )
    found.append(Accuracy(extractor, test, prefix='probe_'))
  return found


def _classes(source: Source) -> int:
  if source.labels is None:
    raise ValueError(
      f'config.online_probe_lr needs labels, and {source.name} has none'
    )
  return len(source.classes)


def warnings(unreadable: Unreadable, scalars: Mapping[str, float]) -> list[str]:
  """What a report should warn of; raises where the run had better end."""
  unreadable.check(scalars)
  return collapse.warnings(scalars)


def figure_images(config: Any, source: Source, channels: int) -> np.ndarray:
  """What figures show, not augmented: float32 [n, h, w, c] in [0, 1].

  A few images from all over the data set; of tiled photographs a few whole
  ones, so that a person sees what the tiles are parts of.
  """
  size = config.image_size
  if config.name == 'photos':
    images = whole_photos(size=size, tile=config.tile, gray=config.gray)
  else:
    rows = np.linspace(0, len(source) - 1, FIGURE_ROWS).astype(int)
    (batch,) = eval_batches(
      source, len(rows), size=size, channels=channels, indices=rows
    )
    images = batch['images']
  return images.astype(np.float32) / 255


def main(argv: list[str]) -> None:
  """Runs the task that the config names."""
  if len(argv) > 1:
    raise ValueError(f'unexpected words {argv[1:]}: options begin with --')
  config = CONFIG.value
  if config is None or not WORKDIR.value:
    raise ValueError('give both --config=FILE.py:words and --workdir=FOLDER')
  check_fields(config, TASKS)
  with signals.listening(begun=False), lock.releasing():
    storage.prefer_fsspec()
    cluster.initialize()
    process.compilation_cache()
    if jax.process_count() > 1:
      table = cluster.describe()
      if jax.process_index() == 0:
        print(table, file=sys.stderr)
    workdirs.claim(WORKDIR.value)
    with out_of_memory.guarded(config):
      summary = TASKS[config.task](config, WORKDIR.value)
    if jax.process_index() == 0:
      screen.say(ending(config, summary, WORKDIR.value))


def run() -> int:
  """`main` with its exit code; an error is one line, the last on stderr."""
  logging.set_verbosity(logging.WARNING)
  screen.set_up()
  app.define_help_flags()
  try:
    if describe.answer(sys.argv):
      return 0
    command_line.check(sys.argv)
    main(flags.FLAGS(sys.argv))
  except signals.Stopped as stopped:
    print(stopped, file=sys.stderr)
    return signals.EXIT_STOPPED
  except SystemExit as ended:
    if not isinstance(ended.code, str):
      raise
    failures.report(ended, ended.code, whole=failures.FLAG in sys.argv)
    return 1
  except BaseException as error:  # the one place where errors are reported
    workdir = WORKDIR.value if flags.FLAGS.is_parsed() else None
    line, who = process.explain(error, workdir), cluster.who()
    failures.report(
      error,
      f'[{who}] {line}' if who else line,
      whole=failures.FLAG in sys.argv,
      note=cluster.leaving(),
    )
    cluster.abandon(1)
    return 1
  return 0


if __name__ == '__main__':
  code = run()
  listener.end(code)
  if code:
    failures.silence()
  sys.exit(code)
