r"""RePre-JAX: one entry for every job.

python main.py --config=configs/moco_v3.py:vit_s16,arrays,repre --workdir=DIR

`config.task` names the job. The same command, run again, continues. Exit 0:
finished; 75: stopped by a signal after saving, start me again; anything else
is an error, told in one line above its traceback.
"""

import difflib
import json
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging
from jax.sharding import Mesh
from ml_collections import config_flags

from input_pipeline.arrays import Arrays, fit
from input_pipeline.photos import whole_photos
from input_pipeline.resident import Resident
from input_pipeline.sources import load
from input_pipeline.views import View
from models import make_encoder
from pretrain import collapse
from pretrain.figures import in_windows
from pretrain.methods import make_method
from training import loop, schedules, sharding, signals
from training.protocols import Method
from training.step import Run
from training.warm_start import load_params
from transfer.knn import Knn

FIGURE_ROWS = 8
MODES = ('auto', 'resident')
SCORES = (
  ('raw pixels', 'knn_raw_pixels'),
  ('histogram', 'knn_histogram'),
  ('untrained', 'knn_untrained'),
  ('trained', 'knn_top1'),
)

CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'FILE.py:words, e.g. configs/quickstart.py', lock_config=True
)
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')


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
  sharding.check_batch(config.batch_size, mesh, config.chunks)
  train, test = load_data(config.data)
  size = config.data.image_size
  views = {n: View(**{'size': size, **v}) for n, v in config.views.items()}
  data = Resident(
    train,
    views,
    batch_size=config.batch_size,
    seed=config.seed,
    shardings=(sharding.over_batch(mesh), sharding.replicated(mesh)),
  )
  total = loop.count_steps(config, data.steps_per_epoch)
  channels = train.images.shape[-1]
  method = build_method(config, channels, data.steps_per_epoch, total)
  init_from = config.init_from
  run = Run(
    config,
    mesh=mesh,
    method=method,
    data=data,
    initial=load_params(init_from) if init_from else None,
  )
  return loop.train(
    run,
    workdir,
    total=total,
    evaluators=build_evaluators(config, method, mesh, train, test, size),
    figures=in_windows(method.figures, (size, size)),
    figure_batch=figure_batch(config.data, test or train, views, mesh),
    watch=collapse.warnings,
  )


TASKS: Mapping[str, Callable[[Any, str], Any]] = {'pretrain': pretrain}


def load_data(config: Any) -> tuple[Arrays, Arrays | None]:
  """Training images, and test images where `test_split` names them."""
  fields = dict(config)
  mode, test_split = fields.pop('mode'), fields.pop('test_split')
  if mode not in MODES:
    raise ValueError(
      f'unknown config.data.mode {mode!r}; known: {", ".join(MODES)}'
    )
  fields.pop('image_size')  # of the views; the source keeps its own size
  train = load(fields.pop('name'), **fields)
  if not test_split:
    return train, None
  return train, load(config.name, **(fields | dict(split=test_split)))


def build_method(
  config: Any, channels: int, steps_per_epoch: int, total: int
) -> Method:
  """Encoder and method with their schedules, all in steps."""
  encoder = dict(config.encoder)
  optim = config.optim
  return make_method(
    make_encoder(
      encoder.pop('name'),
      in_channels=channels,
      dtype=config.dtype,
      **encoder,
    ),
    config.method.to_dict(),
    lr=schedules.warmup_cosine(
      optim.base_lr * config.batch_size / 256,
      warmup=min(optim.warmup_epochs * steps_per_epoch, total),
      total=total,
    ),
    decay=optim.decay,
    total=total,
    dtype=config.dtype,
    chunks=config.chunks,
  )


def build_evaluators(
  config: Any,
  method: Method,
  mesh: Mesh,
  train: Arrays,
  test: Arrays | None,
  size: int,
) -> list[Knn]:
  """Online k-NN, where there are labels and a test split."""
  if test is None or train.labels is None or test.labels is None:
    logging.warning('no labels or no test split: training without k-NN')
    return []
  knn = dict(config.knn)
  which = knn.pop('which')

  def encode(params, method_state, images):
    encoder = method.encoder_params(params, method_state, which)
    images = images.astype(jnp.float32) / 255
    return method.encoder.apply({'params': encoder}, images).pooled

  return [
    Knn(
      bank=train,
      queries=test,
      encode=encode,
      mesh=mesh,
      size=size,
      untrained=not config.init_from,
      **knn,
    )
  ]


def figure_batch(
  config: Any, arrays: Arrays, views: Mapping[str, View], mesh: Mesh
) -> dict[str, jax.Array]:
  """What figures show, not augmented, as every view.

  A few images from all over the data set; of tiled photographs a few whole
  ones, so that a person sees what the tiles are parts of.
  """
  size = config.image_size
  if config.name == 'photos':
    images = whole_photos(size=size, tile=config.tile, gray=config.gray)
  else:
    rows = np.linspace(0, len(arrays) - 1, FIGURE_ROWS).astype(int)
    images = fit(arrays.images[rows], size)
  images = images.astype(np.float32) / 255
  put = jax.device_put(images, sharding.replicated(mesh))
  return dict.fromkeys(views, put)


def compilation_cache() -> None:
  """Keeps compiled programs between starts, unless JAX was told where."""
  if not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    home = os.environ.get('REPRE_JAX_CACHE', '~/.cache/repre_jax')
    path = pathlib.Path(home).expanduser() / 'xla'
    jax.config.update('jax_compilation_cache_dir', str(path))


def tell(summary: Mapping[str, float], workdir: pathlib.Path) -> None:
  """What a person wants to know at the end, on stderr."""
  scores = {name: summary[key] for name, key in SCORES if key in summary}
  if scores:
    row = ' | '.join(f'{name} {value:.1f}' for name, value in scores.items())
    print(f'\nk-NN top-1 in %: {row}', file=sys.stderr)
  pictures = sorted(workdir.glob('images/*.png'))
  if pictures:
    print(f'picture: {pictures[-1]}', file=sys.stderr)
  print(
    f'curves: {workdir}/metrics.jsonl, or tensorboard --logdir={workdir}\n'
    'your own images: python main.py '
    '--config=configs/moco_v3.py:vit_s16,arrays,repre '
    '--config.data.data_dir=images.npz --workdir=runs/mine (see README.md)',
    file=sys.stderr,
  )


def main(argv: list[str]) -> None:
  """Runs the task that the config names."""
  if len(argv) > 1:
    raise ValueError(f'unexpected words {argv[1:]}: options begin with --')
  config = CONFIG.value
  if config is None or not WORKDIR.value:
    raise ValueError('give both --config=FILE.py:words and --workdir=FOLDER')
  if config.task not in TASKS:
    near = difflib.get_close_matches(config.task, TASKS, n=1, cutoff=0)[0]
    raise ValueError(
      f'unknown config.task {config.task!r}; did you mean {near!r}? Known: '
      f'{", ".join(TASKS)}'
    )
  compilation_cache()
  summary = TASKS[config.task](config, WORKDIR.value)
  if jax.process_index() == 0:
    print(json.dumps(summary, indent=2, sort_keys=True))
    tell(summary, pathlib.Path(WORKDIR.value))


def run() -> int:
  """`main` with its exit code: errors in one line above the traceback."""
  logging.set_verbosity(logging.WARNING)
  try:
    main(flags.FLAGS(sys.argv))
  except signals.Stopped as stopped:
    print(stopped, file=sys.stderr)
    return signals.EXIT_STOPPED
  except Exception as error:  # the one place where everything is told
    message = ' '.join(str(error).split())
    print(f'error: {message}\n', file=sys.stderr)
    traceback.print_exc()
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(run())
