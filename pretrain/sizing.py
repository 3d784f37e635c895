"""The recipe that a data set and a device allow: numbers in, numbers out.

Rules, ours and not a paper's. B, E and W are the paper's batch, epochs and
warm-up, N the number of images:

* batch: N / 64 rounded down to a power of two, at most B, and where that is
  less than 64 as much of 64 as half the images give (all of fewer than 8). On
  CPUs 32, and down to 16 where time allows fewer than 200 steps.
* length: E epochs, at least 500 steps; on CPUs no more than half an hour at
  55 GFLOP/s for each core, and at least 100 steps.
* rate: the paper's times sqrt(batch / B), the rule for Adam; as `base_lr` per
  256 images that is sqrt(B / batch) times the paper's.
* warm-up: W, but at most a tenth of a run that is not the paper's.
* chunks: the fewest, a power of two, with which a step fits into 70 % of the
  device's memory; if none does, half the batch, and so on.
* reports: 20 of a run, at least one a minute on CPUs; 5 checkpoints and
  evaluations, fewer where these take more than a quarter of the training.
* a queue: at most a quarter of the images, in whole batches of both views.

* dtype: float32 on CPUs, which have no half precision.

Of 64 B images or more, on accelerators with enough memory, the recipe is the
paper's.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from pretrain.footprint import Footprint

FITS = 0.7  # share of a device's memory that a step may take
PER_EPOCH = 64  # batches in an epoch, if there are enough images
LEAST = 64  # images in a batch, likewise; on CPUs half of it
CPU_LEAST = 16  # to which a CPU's batch is halved for more steps
STEPS, CPU_STEPS, CPU_FEW = 500, 100, 200
CPU_SECONDS = 1800.0
CPU_SPEED = 55e9  # FLOP/s of a core
CPU_IMAGE = 0.03  # seconds of a core for the crops and colours of an image
CPU_BYTES = 2e9  # of state that a core updates in a second
WARMUP = 0.1  # of the run
REPORTS, SAVES = 20, 5
CPU_REPORT, CPU_SAVE = 60.0, 600.0  # seconds between two, at most
EVALUATING = 0.25  # of the training's time
CPU_BANK = 60.0  # seconds that k-NN's bank may take
QUEUE = 4  # images for each place in a queue
KEYS = 2  # that an image may add to it in a step: one for each view
ENCODING = 0.1  # share of the memory for a batch of k-NN


@dataclasses.dataclass(frozen=True)
class Device:
  """What a step runs on.

  Attributes:
    memory: bytes of each device.
    count: devices that share a batch.
    cores: of a CPU, over all devices; 0 for accelerators, whose speed is not
      guessed.
  """

  memory: float
  count: int = 1
  cores: float = 0.0

  @property
  def speed(self) -> float:
    """FLOP/s of a CPU; infinite where it is not known."""
    return self.cores * CPU_SPEED if self.cores else math.inf

  def __str__(self) -> str:
    kind = f'CPU with {self.cores:g} cores' if self.cores else 'accelerator'
    count = f'{self.count} devices, each: ' if self.count > 1 else ''
    return f'{count}{kind}, {gib(self.memory)}'


@dataclasses.dataclass(frozen=True)
class Choice:
  """A recipe.

  Attributes:
    values: by field with dots, `steps` among them.
    seconds: estimate of the whole training; None where speed is not known.
    bytes: estimate of a step, on one device.
    fits: whether that fits.
  """

  values: Mapping[str, Any]
  seconds: float | None
  bytes: float
  fits: bool


def gib(size: float) -> str:
  """Bytes in words."""
  return f'{size / 2**30:.3g} GiB'


def choose(
  paper: Mapping[str, Any],
  given: Mapping[str, Any],
  *,
  images: int,
  tests: int = 0,
  cost: Footprint,
  device: Device,
) -> Choice:
  """Chooses what is open.

  Args:
    paper: the paper's numbers by open field, some of `configs.automatic.OPEN`.
    given: numbers that the user set, of the same and of `steps`, by field.
    images: N, of training.
    tests: test images with labels, on which k-NN is measured; 0 for none.
    cost: of a step.
    device: where it runs.

  Returns:
    Values for all of `paper` and `given`; those of `given` as they are.
  """
  batch = given.get('batch_size') or _batch(
    paper, given, images=images, cost=cost, device=device
  )
  chunks = given.get('chunks') or chunks_that_fit(batch, cost, device)
  if chunks is None:
    chunks = max(batch // device.count, 1)
  used = cost.step(max(batch // device.count, 1), chunks)
  per_epoch = max(images // batch, 1)
  seconds = _seconds(batch, cost, device)
  steps = _steps(paper, given, batch, per_epoch, seconds)
  out = dict(paper, batch_size=batch, chunks=chunks, steps=steps)
  epochs = steps / per_epoch
  out['epochs'] = float(f'{epochs:.4g}')
  out |= _length(paper, epochs, whole=batch == paper.get('batch_size'))
  if 'dtype' in paper and device.cores:
    out['dtype'] = 'float32'
  if base_lr := paper.get('optim.base_lr'):
    whole = paper.get('batch_size', batch)
    out['optim.base_lr'] = float(f'{base_lr * math.sqrt(whole / batch):.3g}')
  if queue := paper.get('method.queue'):
    most = min(queue, images // QUEUE)
    keys = KEYS * batch
    out['method.queue'] = max(most // keys, 1) * keys
  out |= _intervals(paper, steps, seconds)
  out |= _evaluation(paper, images, tests, steps, steps * seconds, cost, device)
  return Choice(
    values=out | {k: v for k, v in given.items() if v is not None},
    seconds=steps * seconds if math.isfinite(device.speed) else None,
    bytes=used,
    fits=used <= FITS * device.memory,
  )


def chunks_that_fit(batch: int, cost: Footprint, device: Device) -> int | None:
  """The fewest chunks, a power of two, whose step fits; None if none does."""
  rows, chunks = max(batch // device.count, 1), 1
  while rows % chunks == 0:
    if cost.step(rows, chunks) <= FITS * device.memory:
      return chunks
    chunks *= 2
  return None


def refitted(chunks: int, batch: int, cost: Footprint, device: Device) -> int:
  """Chunks of a run that continues: the same where they fit this device."""
  rows = max(batch // device.count, 1)
  same = rows % chunks == 0
  if same and cost.step(rows, chunks) <= FITS * device.memory:
    return chunks
  return chunks_that_fit(batch, cost, device) or rows


def _power(number: float) -> int:
  """The largest power of two up to a number, at least 1."""
  return 2 ** max(int(math.log2(max(number, 1))), 0)


def _batch(paper, given, *, images, cost, device) -> int:
  """See the module."""
  least = LEAST // 2 if device.cores else LEAST
  few = _power(images if images < 8 else images / 2)
  batch = max(_power(images / PER_EPOCH), min(least, few))
  batch = min(batch, paper['batch_size'])
  length = given.get('steps') or given.get('epochs')
  if device.cores and not length:
    most = CPU_SECONDS / CPU_FEW
    while batch > CPU_LEAST and _seconds(batch, cost, device) > most:
      batch //= 2
  unit = device.count * (given.get('chunks') or 1)
  while batch > unit and (
    not given.get('chunks') and chunks_that_fit(batch, cost, device) is None
  ):
    batch //= 2
  queue = given.get('method.queue') or 0
  batch = max(batch // unit, 1) * unit
  while queue and batch > unit and queue % (KEYS * batch):
    batch -= unit
  return batch


def _seconds(batch: int, cost: Footprint, device: Device) -> float:
  """Of a step on a CPU; 0 for accelerators, whose speed is not guessed."""
  if not device.cores:
    return 0.0
  update = (cost.state + cost.fixed) / (CPU_BYTES * device.cores)
  images = cost.flops / device.speed + CPU_IMAGE / device.cores
  return batch * images + update


def _steps(paper, given, batch, per_epoch, seconds) -> int:
  """See the module."""
  if given.get('steps') is not None:
    return given['steps']
  if given.get('epochs') is not None:
    return round(given['epochs'] * per_epoch)
  steps = round(paper['epochs'] * per_epoch)
  if not seconds:
    return max(steps, STEPS)
  allowed = int(CPU_SECONDS / seconds)
  return max(min(max(steps, STEPS), allowed), CPU_STEPS)


def _length(paper, epochs, *, whole: bool) -> dict[str, Any]:
  """Fields that are counted in epochs."""
  out = {}
  short = not whole or epochs < paper.get('epochs', 0)
  if (warmup := paper.get('optim.warmup_epochs')) is not None:
    fit = min(warmup, WARMUP * epochs) if short else warmup
    out['optim.warmup_epochs'] = _rounded(fit)
  if (teacher := paper.get('method.warmup_teacher_epochs')) is not None:
    fit = min(teacher, int(WARMUP * epochs)) if short else teacher
    out['method.warmup_teacher_epochs'] = fit
  if (frozen := paper.get('method.freeze_last_epochs')) is not None:
    fit = frozen if frozen <= WARMUP * epochs or not short else 0
    out['method.freeze_last_epochs'] = fit
  return out


def _rounded(value: float) -> float:
  """Three digits, never above the value."""
  digits = math.floor(math.log10(value)) if value > 0 else 0
  unit = 10.0 ** (digits - 2)
  return float(f'{math.floor(value / unit + 1e-6) * unit:.3g}')


def _intervals(paper, steps, seconds) -> dict[str, int]:
  """Reports and checkpoints, in steps."""
  out = {}
  for name, times, most in (
    ('log_every', REPORTS, CPU_REPORT),
    ('checkpoint_every', SAVES, CPU_SAVE),
  ):
    if name in paper:
      every = min(paper[name], -(-steps // times))
      if seconds:
        every = min(every, int(most / seconds))
      out[name] = max(every, 1)
  return out


def _evaluation(
  paper, images, tests, steps, training, cost, device
) -> dict[str, int]:
  """How often and on how much k-NN is measured."""
  out, bank = {}, min(images, paper.get('knn.bank_images', images))
  if 'knn.batch_size' in paper:
    fit = ENCODING * device.memory / cost.encoding
    out['knn.batch_size'] = min(paper['knn.batch_size'], _power(fit))
  if device.cores and 'knn.bank_images' in paper:
    allowed = int(CPU_BANK * device.speed / cost.encoding_flops)
    if allowed < bank:
      bank = out['knn.bank_images'] = max(allowed, 1)
  if 'eval_every' not in paper:
    return out
  each = (bank + tests) * cost.encoding_flops / device.speed if tests else 0.0
  times = min(SAVES, EVALUATING * training / each) if each else SAVES
  if times >= 1:
    every = min(paper['eval_every'], -(-steps // int(times)))
  else:  # at the start and at the end, or not at all
    every = steps if each <= training else 0
  out['eval_every'] = max(every, 1) if every else 0
  return out
