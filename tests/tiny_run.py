"""The smallest pre-training run, and ways to start it.

In this process with `pretrain` (four fake devices, see conftest.py), or as a
process of its own with `command` (one device). For the second this file is
also a config file: `--config=tests/tiny_run.py:repre`.

Compiling takes most of the time of such a run, and every constant of the step
(rates, length, sizes) makes it another program: where a test can do with the
numbers below, it should.
"""

import contextlib
import functools
import importlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import jax
import numpy as np

from configs import automatic, moco_v3

ROOT = pathlib.Path(__file__).resolve().parent.parent
SIZE, PATCH, CLASSES = 16, 8, 4
TRAIN, TEST = 48, 16
STEPS, BATCH = 6, 16
# Kept until the process ends: `data` and `finished` are shared by test files.
# Files of `configs/` that configs share.
SHARED_CONFIGS = (
  '__init__',
  'automatic',
  'beside',
  'common',
  'data',
  'optim',
  'views',
  'words',
)
_FOLDER = tempfile.TemporaryDirectory(prefix='tiny_run')


def get_config(arg=None):
  """MoCo v3 on a ViT of two blocks; `arg` may be 'repre' and a data word."""
  words = [f'vit_mini{PATCH}', *filter(None, (arg or '').split(','))]
  config = automatic.as_published(moco_v3.get_config(','.join(words)))
  config.encoder.update(width=32, depth=2, num_heads=2)
  config.method.update(hidden=32, out=16)
  if config.method.repre:
    config.method.repre.update(width=8, levels=2)
  config.data.image_size = SIZE
  # Cropped and flipped only: colours have tests of their own and take long to
  # compile.
  plain = dict(scale=(0.3, 1.0), jitter=0.0, gray=0.0, blur=0.0)
  config.views = dict(view1=plain, view2=dict(plain, solarize=0.2))
  if config.data.name == 'arrays':
    config.data.test_split = 'test'
  config.update(dtype='float32', batch_size=BATCH, steps=STEPS, epochs=2.0)
  config.update(log_every=1, eval_every=3, checkpoint_every=2)
  config.optim.update(base_lr=1e-2, warmup_epochs=1.0)
  config.knn.update(k=5, batch_size=32)
  return config


def load_file(path):
  """The module of a config file, as `--config` would load it."""
  return importlib.import_module(path.removesuffix('.py').replace('/', '.'))


def field(config, name):
  """The value of a field whose name has dots."""
  for part in name.split('.'):
    config = config[part]
  return config


def images(count, *, seed, channels=3):
  """Coloured noise and its labels: k-NN is right now and then."""
  rng = np.random.default_rng(seed)
  labels = np.arange(count) % CLASSES
  colors = np.random.default_rng(0).uniform(70, 185, (CLASSES, channels))
  tint = rng.normal(0, 30, (count, channels))
  noise = rng.normal(0, 25, (count, SIZE, SIZE, channels))
  pixels = np.clip((colors[labels] + tint)[:, None, None] + noise, 0, 255)
  return pixels.astype(np.uint8), labels


def write_data(path, *, labelled=True, test=True, channels=3):
  """An `.npz` file for the source 'arrays'."""
  arrays = {}
  for split, count in (('train', TRAIN), ('test', TEST if test else 0)):
    if count:
      pixels, labels = images(count, seed=count, channels=channels)
      arrays[f'{split}_images'] = pixels
      if labelled:
        arrays[f'{split}_labels'] = labels
  np.savez(path, **arrays)
  return str(path)


@functools.cache
def data():
  """Path of the data that runs use unless told otherwise."""
  return write_data(pathlib.Path(_FOLDER.name) / 'data.npz')


def config(words='repre', **fields):
  """A config to hand to `main.pretrain`.

  Args:
    words: as on the command line.
    **fields: what to change; two underscores stand for a dot.

  Returns:
    The locked config.
  """
  out = get_config(words)
  if out.data.name == 'arrays':
    out.data.data_dir = data()
  names = {name.replace('__', '.'): value for name, value in fields.items()}
  out.update_from_flattened_dict(names)
  return out.lock()


def pretrain(workdir, words='repre', **fields):
  """Runs in this process; returns the summary."""
  import main  # Not above: main.py reads this file as a config.

  return main.pretrain(config(words, **fields), str(workdir))


@functools.cache
def finished():
  """Workdir of an uninterrupted run; read it, or copy it."""
  workdir = pathlib.Path(_FOLDER.name) / 'finished'
  pretrain(workdir)
  return workdir


def environment(**changes):
  """Variables of a child process: one CPU device, the suite's cache."""
  ours = dict(
    JAX_PLATFORMS='cpu',
    JAX_NUM_CPU_DEVICES='1',
    JAX_COMPILATION_CACHE_DIR=str(jax.config.jax_compilation_cache_dir),
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0',
    PYTHONPATH=str(ROOT),
  )
  return os.environ | ours | changes


def command(workdir, *options, words='repre'):
  """`python main.py ...` as a list of words, options last."""
  return [
    sys.executable,
    str(ROOT / 'main.py'),
    f'--config={__file__}:{words}',
    f'--config.data.data_dir={data()}',
    f'--workdir={workdir}',
    *options,
  ]


# A process that kills itself: argv is moment, number, then main.py's.
DYING = """
import os, signal, sys, time
moment, number = sys.argv[1], int(sys.argv[2])
sys.argv[1:3] = []

import main
from input_pipeline.resident import Resident
from transfer.knn.online import Knn

def die(now=True):
  if now:
    os.kill(os.getpid(), signal.SIGKILL)

def before(owner, name, check):
  old = getattr(owner, name)
  def new(*args, **kwargs):
    check(*args)
    return old(*args, **kwargs)
  setattr(owner, name, new)

if moment == 'training':
  before(Resident, 'batch', lambda self, step: die(step == number))
elif moment == 'evaluation':
  before(Knn, 'update', lambda self, *_: die(self._step == number))
elif moment == 'saving':  # all written, not yet named
  final = os.path.join('checkpoints', str(number))
  before(os, 'rename', lambda a, b: die(str(b).endswith(final)))
elif moment == 'slowly':  # lives, but leaves time for others to kill
  before(Resident, 'batch', lambda *_: time.sleep(number / 1000))
sys.exit(main.run())
"""


def dying(moment, number, command):
  """`command`, but it kills itself as `DYING` says."""
  return [command[0], '-c', DYING, moment, str(number), *command[2:]]


def call(words, **changes):
  """Runs a command to its end."""
  return subprocess.run(
    words,
    cwd=ROOT,
    env=environment(**changes),
    capture_output=True,
    text=True,
    timeout=300,
  )


def main_in_process(monkeypatch, *options):
  """`main.py` with these options, without a process of its own.

  Returns:
    (exit code, standard output, standard error).
  """
  import main

  known = main.flags.FLAGS
  for name in ('config', 'workdir'):
    known[name].unparse()
  for name in [n for n in known if n.startswith('config.')]:
    delattr(known, name)  # parsing --config defines a flag for every override
  monkeypatch.setattr(sys, 'argv', ['main.py', *options])
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    code = main.run()
  return code, out.getvalue(), err.getvalue()


def rows(workdir):
  """The reports of a run."""
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  text = path.read_text() if path.exists() else ''
  return [json.loads(line) for line in text.splitlines()]


def losses(workdir):
  """{step: what was reported about training}, without the speed."""
  speed = ('images_per_second', 'seconds_per_step')
  return {
    row['step']: {k: v for k, v in row.items() if k not in speed}
    for row in rows(workdir)
    if 'loss' in row
  }


def measured(workdir):
  """{step: what the evaluators reported}."""
  return {row['step']: row for row in rows(workdir) if 'knn_top1' in row}


def saved_steps(workdir):
  """Steps of the finished checkpoints."""
  found = pathlib.Path(workdir).glob('checkpoints/*')
  return sorted(int(path.name) for path in found if path.name.isdigit())


def checksums(workdir, step=STEPS):
  """{leaf: checksum} of one checkpoint: the whole state, bit for bit."""
  path = pathlib.Path(workdir) / f'checkpoints/{step}/meta/metadata'
  leaves = json.loads(path.read_text())['record']['leaves']
  return {name: leaf['checksum'] for name, leaf in leaves.items()}


def copy(workdir, target):
  """A workdir to continue or to break, the first one untouched."""
  return pathlib.Path(shutil.copytree(workdir, target))
