r"""Training steps: speed, cost and memory, of a method and of RePre on it.

  python -m benchmarks.step --config=configs/moco_v3.py:vit_s16,arrays,repre \
    --batch_size=8 --dtype=float32 --steps=10
  python -m benchmarks.step --all
  python -m benchmarks.step --peer=vit_s16 --peer_python=PYTHON \
    --peer_script=SCRIPT

The first form trains on made-up images. Where the config has RePre, the base is
measured too, a block of steps of one and a block of the other in turn, so that
the overhead is the median of ratios of neighbours. Every field of the config
can be overridden as with `main.py`. `--input=resident` (the default) is the
whole step of a run: gather, crop and augment uint8 images on the device, both
passes, loss, gradients, optimiser, teacher. `--input=views` begins with ready
float views.

`--all` tabulates what every method costs with every encoder, from shapes alone
(see `benchmarks/costs.py`). `--peer` runs a PyTorch step of the same sizes in
turn (see `benchmarks/peer.py`).

A Markdown table goes to stdout, one JSON object per row to `--out`. A row whose
`other_cores` is above 0.15 was measured while others computed: discard it.
"""

import dataclasses
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
from absl import flags, logging
from ml_collections import config_flags

from benchmarks import build, costs, machine, peer

# Flags of its own: `main.py` and other benchmarks have some of the same names.
FLAGS = flags.FlagValues()
OWN = dict(flag_values=FLAGS)
CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'FILE.py:words', lock_config=True, **OWN
)
ALL = flags.DEFINE_bool('all', False, 'Costs from shapes alone.', **OWN)
METHODS = flags.DEFINE_list('methods', None, '--all: only these.', **OWN)
ENCODERS = flags.DEFINE_list('encoders', None, '--all: only these.', **OWN)
COMPILE = flags.DEFINE_bool('compile', False, '--all: compile too.', **OWN)
BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', None, "The config's if unset; 8 for --all.", **OWN
)
DTYPE = flags.DEFINE_string('dtype', None, "The config's if unset.", **OWN)
INPUT = flags.DEFINE_enum(
  'input', 'resident', build.INPUTS, 'What a step begins with.', **OWN
)
STEPS = flags.DEFINE_integer('steps', 20, 'Timed steps of each variant.', **OWN)
BLOCK = flags.DEFINE_integer(
  'block', None, 'Steps per look at the clock: 1 on CPUs, else 10.', **OWN
)
PEER = flags.DEFINE_enum(
  'peer', None, sorted(peer.SIZES), 'Sizes to match.', **OWN
)
PEER_PYTHON = flags.DEFINE_string(
  'peer_python', None, 'An interpreter with PyTorch.', **OWN
)
PEER_SCRIPT = flags.DEFINE_string(
  'peer_script', None, 'The PyTorch step.', **OWN
)
ROUNDS = flags.DEFINE_integer(
  'rounds', 3, '--peer: how often each side runs.', **OWN
)
OUT = flags.DEFINE_string(
  'out', 'step.jsonl', 'JSON lines are added here.', **OWN
)

WARMUP = 2
COLUMNS = dict(
  name='',
  images_per_second='images/s',
  seconds='s/step (median)',
  spread='min - max',
  overhead='time / base',
  gflops_per_image='GFLOPs/image',
  flops_overhead='FLOPs / base',
  mfu='MFU',
  program_mb='program MB',
  compile_seconds='compile s',
  other_cores='other cores',
)


@dataclasses.dataclass
class Timed:
  """One variant that is ready to step, and its times.

  Attributes:
    run: see `training.step.Run`.
    step: the compiled step.
    state: the train state; donated to every step.
    cost: what is known before the first step.
    seconds: per step, one entry per block.
    loss: of the last step.
  """

  run: Any
  step: Any
  state: Any
  cost: dict[str, Any]
  seconds: list[float] = dataclasses.field(default_factory=list)
  loss: float | None = None
  done: int = 0

  def advance(self, steps: int) -> float:
    """Runs steps, the loop's way; returns the seconds of one."""
    began = time.perf_counter()
    for _ in range(steps):
      batch = self.run.data.batch(self.done)
      self.state, report = self.step(self.state, batch)
      self.done += 1
    jax.block_until_ready((self.state, report))
    seconds = (time.perf_counter() - began) / steps
    self.loss = float(report['loss'])
    return seconds


def prepare(config: ml_collections.ConfigDict, given: str) -> Timed:
  """Builds, compiles and warms up a step.

  Args:
    config: see `configs/common.py`.
    given: see `build.make_run`.

  Returns:
    The step, run `WARMUP` times.
  """
  run = build.make_run(config, given=given)
  state, batch = run.init(), run.data.batch(0)
  clock = time.perf_counter()
  lowered = run.step.lower(state, batch)
  traced = time.perf_counter()
  compiled = lowered.compile()
  cost = dict(
    trace_seconds=round(traced - clock, 2),
    compile_seconds=round(time.perf_counter() - traced, 2),
    parameters=sum(x.size for x in jax.tree.leaves(state.params)),
    **costs.program_bytes(compiled),
  )
  # Recomputation and loops would be counted as they are written, not as work.
  plain = ml_collections.ConfigDict(config.to_dict())
  plain.chunks = 1
  if config.chunks > 1 or config.encoder.remat:
    run_plain = build.make_run(plain, given=given, remat=False)
    lowered = run_plain.step.lower(state, batch)
  cost['flops'] = costs.flops(lowered)
  timed = Timed(run=run, step=compiled, state=state, cost=cost)
  timed.advance(WARMUP)
  return timed


def measure(
  config: ml_collections.ConfigDict,
  *,
  given: str = 'resident',
  steps: int = 20,
  block: int | None = None,
) -> list[dict[str, Any]]:
  """Base and +RePre in turn.

  Args:
    config: see `configs/common.py`.
    given: see `build.make_run`.
    steps: timed steps of each variant.
    block: steps between two looks at the clock. None: 1 on CPUs; elsewhere 10,
      so that the host runs ahead as it does in training.

  Returns:
    One row per variant, with `COLUMNS` and more.
  """
  block = block or (1 if jax.default_backend() == 'cpu' else 10)
  timed = {
    name: prepare(variant, given)
    for name, variant in build.variants(config).items()
  }
  others = machine.Others()
  for turn in range(max(1, steps // block)):
    # Neither variant is always the one that finds the caches warm.
    names = list(timed)[:: 1 if turn % 2 == 0 else -1]
    for name in names:
      timed[name].seconds.append(timed[name].advance(block))
  shared = dict(
    kind='step',
    method=config.method.name,
    encoder=config.encoder.name,
    image_size=config.data.image_size,
    batch_size=config.batch_size,
    dtype=config.dtype,
    input=given,
    block=block,
    other_cores=others.cores(),
    **machine.device(),
    **machine.software(),
    **machine.process_memory(),
  )
  shared['disturbed'] = machine.disturbed(shared['other_cores'])
  base = timed['base']
  return [shared | _row(name, one, base, shared) for name, one in timed.items()]


def _row(
  name: str, timed: Timed, base: Timed, shared: Mapping[str, Any]
) -> dict[str, Any]:
  seconds = statistics.median(timed.seconds)
  pairs = zip(timed.seconds, base.seconds, strict=True)
  ratios = sorted(ours / theirs for ours, theirs in pairs)
  flops, batch = timed.cost['flops'], shared['batch_size']
  kind = jax.devices()[0].device_kind
  peak = machine.peak_flops(kind, shared['dtype'])
  mfu = peak and flops / seconds / (peak * shared['devices'])
  return dict(
    timed.cost,
    name=name,
    seconds=round(seconds, 5),
    seconds_min=min(timed.seconds),
    seconds_max=max(timed.seconds),
    spread=f'{min(timed.seconds):.4g} - {max(timed.seconds):.4g}',
    images_per_second=round(batch / seconds, 2),
    overhead=round(statistics.median(ratios), 3),
    overhead_min=ratios[0],
    overhead_max=ratios[-1],
    gflops_per_image=round(flops / batch / 1e9, 3),
    flops_overhead=round(flops / base.cost['flops'], 4),
    flops_per_second=flops / seconds,
    peak_flops=peak,
    mfu=round(mfu, 4) if mfu else 'unknown peak',
    program_mb=round(timed.cost['program_bytes'] / 1e6),
    steps=len(timed.seconds) * shared['block'],
    loss=timed.loss,
  )


def write(path: str | None, rows: Sequence[Mapping[str, Any]]) -> None:
  """Adds JSON lines to a file."""
  if path:
    with pathlib.Path(path).open('a') as file:
      file.writelines(json.dumps(row) + '\n' for row in rows)


def describe(row: Mapping[str, Any]) -> str:
  """What all rows of a table share, in one line."""
  versions = ', '.join(f'{k} {v}' for k, v in row['versions'].items())
  return (
    f'{row["devices"]} x {row["platform"]} ({row["device_kind"]}, '
    f'{row["cores"]} cores); {versions}; commit {row["commit"]}'
  )


def main(argv: Sequence[str]) -> None:
  """Measures what the flags say.

  Args:
    argv: of the process; `--config.FIELD=` are read from `sys.argv`.

  Raises:
    flags.Error: unknown flags, or none that says what to do.
  """
  if '--help' in argv:
    print(__doc__, FLAGS.get_help(), sep='\n')
    return
  if words := FLAGS(argv)[1:]:
    raise flags.Error(f'unexpected words {words}: options begin with --')
  # What compiling takes is part of the answer.
  jax.config.update('jax_enable_compilation_cache', False)
  if ALL.value:
    rows = costs.tabulate(
      methods=METHODS.value,
      encoders=ENCODERS.value,
      batch_size=BATCH_SIZE.value or 8,
      dtype=DTYPE.value or 'float32',
      compiled=COMPILE.value,
    )
    columns = costs.COLUMNS
  elif PEER.value:
    rows = peer.compare(
      PEER.value,
      dtype=DTYPE.value or 'float32',
      python=PEER_PYTHON.value,
      script=PEER_SCRIPT.value,
      rounds=ROUNDS.value,
      steps=STEPS.value,
    )
    columns = peer.COLUMNS
  elif CONFIG.value is not None:
    config = CONFIG.value
    config.batch_size = BATCH_SIZE.value or config.batch_size
    config.dtype = DTYPE.value or config.dtype
    rows = measure(
      config, given=INPUT.value, steps=STEPS.value, block=BLOCK.value
    )
    columns = COLUMNS
    first = rows[0]
    print(
      f'{first["method"]}, {first["encoder"]}, {first["image_size"]} px, batch '
      f'{first["batch_size"]}, {first["dtype"]}, input {first["input"]}'
    )
  else:
    raise flags.Error('give --config=FILE.py:words, --all or --peer=SIZES')
  print(f'{describe(rows[0])}\n\n{machine.table(rows, columns)}')
  if any(row.get('disturbed') for row in rows):
    print('\nOther processes computed meanwhile: discard.', file=sys.stderr)
  write(OUT.value, rows)


if __name__ == '__main__':
  logging.set_verbosity(logging.WARNING)
  try:
    main(sys.argv)
  except (flags.Error, ValueError, RuntimeError) as error:
    sys.exit(f'error: {error}')
