r"""Images per second that the host reads, decodes and crops.

  python -m benchmarks.input_pipeline
  python -m benchmarks.input_pipeline --images=FOLDER --rows=moco_v3,dino
  python -m benchmarks.input_pipeline --images=FOLDER --peer_python=PYTHON \
    --peer_script=SCRIPT

Without `--images`, JPEGs of 500 x 375 are cut out of photographs that ship with
scikit-image and scikit-learn. Rows, measured in turn and several times, so that
they can be compared:

  moco_v3, mae, dino, local   uint8 crops by `stream.py`: two of 224 px; one of
                              224; two of 224 and eight of 96; one of 96
  ... fused, ... once         the two ways to decode
  moco_v3 threads             the same work by a thread pool, without tf.data
  moco_v3 whole chain         colours and blur too, on this machine's device
  resident                    128-px images on the device: crop, colours, blur
  PyTorch                     `SCRIPT input --recipe moco_v3|dino --images DIR`,
                              the whole chain, where an interpreter is named

A Markdown table goes to stdout, one JSON object per row to `--out`. A row whose
`other_cores` is above 0.15 was measured while others computed: discard it.
"""

import concurrent.futures
import functools
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import flags
from PIL import Image

from benchmarks import machine
from input_pipeline import order
from input_pipeline.arrays import Arrays
from input_pipeline.folder import from_folder
from input_pipeline.host_crop import DRAWS, Cropper
from input_pipeline.in_memory import to_arrays
from input_pipeline.paths import expand
from input_pipeline.photos import COLOR, open_photo
from input_pipeline.resident import Resident
from input_pipeline.source import Source
from input_pipeline.stream import Stream
from input_pipeline.views import View, moco_v3

# Flags of its own: other programs have some of the same names.
FLAGS = flags.FlagValues()
OWN = dict(flag_values=FLAGS)
IMAGES = flags.DEFINE_string('images', None, 'Folder of images.', **OWN)
ROWS = flags.DEFINE_list('rows', None, 'Only rows that begin so.', **OWN)
BATCH_SIZE = flags.DEFINE_integer('batch_size', 32, 'Images.', **OWN)
SECONDS = flags.DEFINE_float('seconds', 4.0, 'Of one measurement.', **OWN)
ROUNDS = flags.DEFINE_integer('rounds', 3, 'Measurements per row.', **OWN)
WORKERS = flags.DEFINE_integer('workers', None, 'Threads.', **OWN)
PEER_PYTHON = flags.DEFINE_string(
  'peer_python', None, 'An interpreter with PyTorch.', **OWN
)
PEER_SCRIPT = flags.DEFINE_string(
  'peer_script', None, 'The PyTorch input pipeline.', **OWN
)
OUT = flags.DEFINE_string(
  'out', 'input_pipeline.jsonl', 'JSON lines are added here.', **OWN
)

WARMUP = 3  # batches
COLUMNS = dict(
  name='', images_per_second='images/s', spread='rounds', other_cores='others'
)
BICUBIC = dict(resample='bicubic')
RECIPES = dict(
  moco_v3=moco_v3(224),
  mae=dict(view=View(size=224, scale=(0.2, 1.0), **BICUBIC)),
  dino={
    **{f'g{i}': View(size=224, scale=(0.25, 1.0), **BICUBIC) for i in '12'},
    **{f'l{i}': View(size=96, scale=(0.05, 0.25), **BICUBIC) for i in range(8)},
  },
  local=dict(view=View(size=96, scale=(0.05, 0.25), **BICUBIC)),
)


def photo_jpegs(folder: pathlib.Path, count: int = 200) -> None:
  """Writes JPEGs of 500 x 375 px, about 60 kB each.

  Args:
    folder: gets the files.
    count: how many.
  """
  photos = [open_photo(name, 'RGB') for name in COLOR]
  rng = np.random.default_rng(0)
  for i in range(count):
    photo = photos[i % len(photos)]
    width = int(rng.uniform(0.6, 1) * min(photo.width, photo.height * 4 / 3))
    height = width * 3 // 4
    x, y = (
      rng.integers(room + 1)
      for room in (photo.width - width, photo.height - height)
    )
    part = photo.crop((x, y, x + width, y + height))
    part = part.resize((500, 375), Image.Resampling.BICUBIC)
    part.save(folder / f'{i:04}.jpg', quality=92)


def streamed(source: Source, recipe: str, fused: bool | None) -> Iterator:
  """uint8 crops on the host."""
  feed = _stream(source, recipe, fused)
  return feed.host_batches(0)


def _stream(source, recipe, fused=None) -> Stream:
  return Stream(
    source,
    RECIPES[recipe],
    batch_size=BATCH_SIZE.value,
    seed=0,
    workers=WORKERS.value,
    fused=fused,
  )


def threads(source: Source, recipe: str) -> Iterator:
  """The same crops by a pool of threads, batch after batch."""
  views, size = tuple(RECIPES[recipe].values()), BATCH_SIZE.value
  cropper, rows = Cropper(views, 3), np.arange(BATCH_SIZE.value)
  batch_indices = functools.partial(
    order.batch_indices, size=len(source), batch_size=size, seed=0
  )

  def load(index, draws, row, out):
    for array, crop in zip(
      out, cropper(source.read(index), draws), strict=True
    ):
      array[row] = crop

  def submit(pool, step):
    out = [np.empty((size, *view.size, 3), np.uint8) for view in views]
    draws = order.uniforms(rows, len(views) * DRAWS, seed=0, step=step)
    draws = draws.reshape(size, len(views), DRAWS)
    index = batch_indices(step).tolist()
    return out, [
      pool.submit(load, index[row], draws[row], row, out) for row in rows
    ]

  with concurrent.futures.ThreadPoolExecutor(WORKERS.value) as pool:
    waiting = [submit(pool, step) for step in range(2)]
    for step in itertools.count(2):
      waiting.append(submit(pool, step))
      out, futures = waiting.pop(0)
      for future in futures:
        future.result()
      yield out


def rendered(feed: Resident | Stream) -> Iterator:
  """Float views on the device."""
  render = jax.jit(feed.render)
  try:
    for step in itertools.count():
      yield jax.block_until_ready(
        render(feed.batch(step), jax.random.key(step))
      )
  finally:
    feed.close()


def make_rows(source: Source, small: Arrays) -> Mapping[str, Any]:
  """{name: a function that begins an endless iterator of batches}."""
  rows = {
    recipe: functools.partial(streamed, source, recipe, None)
    for recipe in RECIPES
  }
  for recipe in RECIPES:
    for word, fused in (('once', False), ('fused', True)):
      rows[f'{recipe} {word}'] = functools.partial(
        streamed, source, recipe, fused
      )
  rows['moco_v3 threads'] = functools.partial(threads, source, 'moco_v3')
  rows['moco_v3 whole chain'] = lambda: rendered(_stream(source, 'moco_v3'))
  rows['resident'] = lambda: rendered(
    Resident(small, moco_v3(112), batch_size=BATCH_SIZE.value, seed=0)
  )
  wanted = ROWS.value
  if wanted:
    rows = {k: v for k, v in rows.items() if k.startswith(tuple(wanted))}
  return rows


def measure(begin) -> float:
  """Images per second of one iterator, begun anew."""
  batches = begin()
  for _ in range(WARMUP):
    next(batches)
  count, began = 0, time.perf_counter()
  while time.perf_counter() - began < SECONDS.value:
    next(batches)
    count += BATCH_SIZE.value
  rate = count / (time.perf_counter() - began)
  batches.close()
  return rate


def peer(recipe: str, images: str) -> float:
  """Images per second of the PyTorch chain."""
  command = [PEER_PYTHON.value, PEER_SCRIPT.value, 'input']
  command += ['--recipe', recipe, '--images', images, '--locals', '8']
  command += ['--seconds', str(SECONDS.value)]
  command += ['--batch', str(BATCH_SIZE.value)]
  done = subprocess.run(command, capture_output=True, text=True)
  if done.returncode:
    raise RuntimeError(f'{" ".join(command)} failed: {done.stderr[-500:]}')
  return json.loads(done.stdout.splitlines()[-1])['images_per_s']


def run(images: str) -> list[dict[str, Any]]:
  """All rows in turn, round after round."""
  source = from_folder(data_dir=images, split='all', labels='none')
  small = to_arrays(source, channels=3, size=128)
  rows = {
    name: functools.partial(measure, b)
    for name, b in make_rows(source, small).items()
  }
  if PEER_PYTHON.value:
    for recipe in ('moco_v3', 'dino'):
      name = f'PyTorch {recipe} whole chain'
      rows[name] = functools.partial(peer, recipe, images)
  found = {name: [] for name in rows}
  loads = {name: [] for name in rows}
  for _ in range(ROUNDS.value):
    for name, rate in rows.items():
      others = machine.Others()
      found[name].append(rate())
      loads[name].append(others.cores())
  return [
    dict(
      name=name,
      images_per_second=round(statistics.median(rates)),
      spread=' '.join(f'{rate:.0f}' for rate in rates),
      other_cores=' '.join(map(str, loads[name])),
      images=len(source),
      batch_size=BATCH_SIZE.value,
      workers=WORKERS.value,
    )
    for name, rates in found.items()
  ]


def main(argv: list[str]) -> None:
  """Measures and prints."""
  FLAGS(argv)
  with tempfile.TemporaryDirectory() as folder:
    if IMAGES.value is None:
      photo_jpegs(pathlib.Path(folder))
    rows = run(expand(IMAGES.value) if IMAGES.value else folder)
  about = machine.device() | machine.software()
  with open(expand(OUT.value), 'a') as file:
    for row in rows:
      file.write(json.dumps(row | about) + '\n')
  print(json.dumps(about), file=sys.stderr)
  print(machine.table(rows, COLUMNS))


if __name__ == '__main__':
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  main(sys.argv)
