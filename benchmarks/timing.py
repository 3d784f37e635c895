"""Timing the steps of several programs in turn: a method and RePre on it."""

import dataclasses
import statistics
import time
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections

from benchmarks import build, costs, machine

WARMUP = 2


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


def teacher_seconds(run: Any, state: Any, steps: int) -> float | None:
  """What the frozen teachers take of a step, alone.

  Args:
    run: see `training.step.Run`.
    state: its train state.
    steps: timed calls.

  Returns:
    Median seconds of one call; None where there is no teacher.
  """
  ask = costs.teachers(run.method)
  if ask is None:
    return None
  batch = run.data.render(run.data.batch(0), jax.random.key(0))
  ask = jax.jit(ask)
  found = []
  for _ in range(WARMUP + steps):
    began = time.perf_counter()
    jax.block_until_ready(ask(state.method_state, batch))
    found.append(time.perf_counter() - began)
  return round(statistics.median(found[WARMUP:]), 5)


def measure(
  variants: ml_collections.ConfigDict | Mapping[str, Any],
  *,
  given: str = 'resident',
  steps: int = 20,
  block: int | None = None,
) -> list[dict[str, Any]]:
  """Several programs in turn.

  Args:
    variants: configs by name, all with the batch size and dtype of the first,
      which the others are compared with; or one config, which stands for its
      base and +RePre.
    given: see `build.make_run`.
    steps: timed steps of each variant.
    block: steps between two looks at the clock. None: 1 on CPUs; elsewhere 10,
      so that the host runs ahead as it does in training.

  Returns:
    One row per variant, with `COLUMNS` and more.
  """
  block = block or (1 if jax.default_backend() == 'cpu' else 10)
  if isinstance(variants, ml_collections.ConfigDict):
    variants = build.variants(variants)
  timed = {name: prepare(one, given) for name, one in variants.items()}
  others = machine.Others()
  for turn in range(max(1, steps // block)):
    # Neither variant is always the one that finds the caches warm.
    names = list(timed)[:: 1 if turn % 2 == 0 else -1]
    for name in names:
      timed[name].seconds.append(timed[name].advance(block))
  first = next(iter(variants))
  shared = dict(
    kind='step',
    batch_size=variants[first].batch_size,
    dtype=variants[first].dtype,
    input=given,
    block=block,
    other_cores=others.cores(),
    **machine.device(),
    **machine.software(),
    **machine.process_memory(),
  )
  shared['disturbed'] = machine.disturbed(shared['other_cores'])
  rows = []
  for name, one in timed.items():
    config = variants[name]
    own = dict(
      method=config.method.name,
      encoder=config.encoder.name,
      image_size=config.data.image_size,
      teacher_seconds=teacher_seconds(one.run, one.state, steps),
    )
    rows.append(shared | own | _row(name, one, timed[first], shared))
  return rows


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
