"""Jobs on the encoder of the smallest run, through `main.py`."""

import json
import pathlib

import numpy as np
import tiny_run
from PIL import Image


def call(monkeypatch, config, workdir, *options, checkpoint=None):
  """Exit code, standard output and standard error of a job."""
  return tiny_run.main_in_process(
    monkeypatch,
    f'--config={tiny_run.ROOT}/configs/{config}',
    f'--workdir={workdir}',
    f'--config.checkpoint={checkpoint or tiny_run.finished()}',
    f'--config.data.image_size={tiny_run.SIZE}',
    '--config.data.eval_crop=1.0',
    '--config.batch_size=8',
    *options,
  )


def run(monkeypatch, config, workdir, *options, **kwargs):
  """The summary of a job that must not fail."""
  code, out, err = call(monkeypatch, config, workdir, *options, **kwargs)
  assert code == 0, err[-2000:]
  summary = json.loads((pathlib.Path(workdir) / 'summary.json').read_text())
  assert out == ''  # all is on stderr, and for a program in summary.json
  return summary


def refused(monkeypatch, config, workdir, *options, **kwargs):
  """The line that a job fails with."""
  code, _, err = call(monkeypatch, config, workdir, *options, **kwargs)
  assert code == 1, err[-2000:]
  # Behind the progress bars.
  return next(x for x in err.splitlines() if x.startswith('error: '))


def arrays(split='test'):
  """Options for the data of the smallest run."""
  return [
    f'--config.data.data_dir={tiny_run.data()}',
    f'--config.data.test_split={split}',
  ]


def embedded(monkeypatch, workdir, split):
  """(features, labels) of a split of that data, by the job `embed`."""
  run(
    monkeypatch,
    'embed.py:arrays',
    workdir / split,
    f'--config.data.data_dir={tiny_run.data()}',
    f'--config.data.split={split}',
  )
  with np.load(workdir / split / 'features.npz') as file:
    return file['features'], file['label']


def write_folder(root, count=11, *, broken=(), suffix='png', mode='RGB'):
  """Images of three classes and several sizes."""
  for i in range(count):
    path = pathlib.Path(root) / f'class {i % 3}' / f'{i:02}.{suffix}'
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels, _ = tiny_run.images(1, seed=i)
    image = Image.fromarray(pixels[0]).convert(mode)
    image.resize((20 + i % 3, 18)).save(path)
    if i in broken:
      path.write_bytes(b'broken')
  return root
