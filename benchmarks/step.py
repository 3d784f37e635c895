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
(see `benchmarks/costs.py`); with `--clock` it runs them, the mini encoders
unless `--encoders` names others. `--against=mae` compares with that method's
step: in FLOPs, or by the clock, the two in turn. `--peer` runs a PyTorch step
of the same sizes in turn (see `benchmarks/peer.py`).

A Markdown table goes to stdout, one JSON object per row to `--out`. A row whose
`other_cores` is above 0.15 was measured while others computed: discard it.
"""

import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags, logging
from ml_collections import config_flags

from benchmarks import build, costs, machine, peer, timing
from configs import automatic

# Flags of its own: `main.py` and other benchmarks have some of the same names.
FLAGS = flags.FlagValues()
OWN = dict(flag_values=FLAGS)
CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'FILE.py:words', lock_config=True, **OWN
)
ALL = flags.DEFINE_bool('all', False, 'Costs from shapes alone.', **OWN)
METHODS = flags.DEFINE_list('methods', None, '--all: only these.', **OWN)
ENCODERS = flags.DEFINE_list('encoders', None, '--all: only these.', **OWN)
CLOCK = flags.DEFINE_bool('clock', False, '--all: time steps, too.', **OWN)
AGAINST = flags.DEFINE_string(
  'against', None, '--all: the method that others are compared with.', **OWN
)
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

MINI = ('vit_mini4', 'swin_mini')
COLUMNS = dict(
  name='',
  images_per_second='images/s',
  seconds='s/step (median)',
  spread='min - max',
  overhead='time / base',
  teacher_seconds='of a frozen teacher',
  gflops_per_image='GFLOPs/image',
  flops_overhead='FLOPs / base',
  mfu='MFU',
  program_mb='program MB',
  compile_seconds='compile s',
  other_cores='other cores',
)


def clock(
  *,
  methods: Sequence[str] | None,
  encoders: Sequence[str] | None,
  out: str | None = None,
  against: str | None = None,
  **options,
) -> list[dict[str, Any]]:
  """Seconds of a step of every method with every encoder, base and +RePre.

  Args:
    methods: names in METHODS; None takes all.
    encoders: words; None takes the mini ones.
    out: a file that every pair of rows is added to as soon as it is measured.
    against: a method whose step is taken in turn with every other one's, in
      the place of base and +RePre.
    **options: `batch_size` and `dtype`, and arguments of `timing.measure`.
  """
  sizes = {name: options.pop(name) for name in ('batch_size', 'dtype')}
  rows = []
  for method in methods or costs.METHODS:
    for word in encoders or MINI:
      names = dict.fromkeys(filter(None, (against, method)))
      try:
        configs = {name: costs.load(name, word) for name in names}
        if against:
          configs = {n: build.variants(c)['base'] for n, c in configs.items()}
      except ValueError as error:  # a method that this encoder cannot serve
        print(f'{method} {word}: {error}', file=sys.stderr)
        continue
      for config in configs.values():
        config.update(sizes)
      given = configs if against else configs[method]
      found = timing.measure(given, **options)
      rows += found
      machine.write(out, found)  # the whole takes minutes
      first, *others = found
      told = ', '.join(f'{row["overhead"]}' for row in others)
      print(f'{method} {word}: {first["seconds"]} s, {told}', file=sys.stderr)
      jax.clear_caches()
  return rows


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
  if ALL.value and CLOCK.value:
    rows = clock(
      methods=METHODS.value,
      encoders=ENCODERS.value,
      out=OUT.value,
      against=AGAINST.value,
      batch_size=BATCH_SIZE.value or 32,
      dtype=DTYPE.value or 'float32',
      given=INPUT.value,
      steps=STEPS.value,
      block=BLOCK.value,
    )
    columns = dict(method='method', encoder='encoder') | COLUMNS
  elif ALL.value:
    rows = costs.tabulate(
      methods=METHODS.value,
      encoders=ENCODERS.value,
      batch_size=BATCH_SIZE.value or 8,
      dtype=DTYPE.value or 'float32',
      compiled=COMPILE.value,
      against=AGAINST.value,
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
    config = automatic.as_published(CONFIG.value)
    config.batch_size = BATCH_SIZE.value or config.batch_size
    config.dtype = DTYPE.value or config.dtype
    rows = timing.measure(
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
  print(f'{machine.describe(rows[0])}\n\n{machine.table(rows, columns)}')
  if any(row.get('disturbed') for row in rows):
    print('\nOther processes computed meanwhile: discard.', file=sys.stderr)
  if not (ALL.value and CLOCK.value):
    machine.write(OUT.value, rows)


if __name__ == '__main__':
  logging.set_verbosity(logging.WARNING)
  try:
    main(sys.argv)
  except (flags.Error, ValueError, RuntimeError) as error:
    sys.exit(f'error: {error}')
