"""What a step costs, from shapes alone: no array is made."""

import contextlib
import re
import runpy
import time
from collections.abc import Iterable
from typing import Any

import jax
import ml_collections

from benchmarks import build, machine
from configs import common
from models import COMPLETE, ENCODERS
from pretrain.masked_modeling import VIEW, MaskedModeling
from pretrain.methods import MASKED, METHODS
from training import optim
from training.state import named_leaves

COLUMNS = dict(
  method='method',
  encoder='encoder',
  parameters_m='parameters, M',
  encoder_m='of the encoder',
  gflops='GFLOPs/image',
  gflops_repre='+RePre',
  overhead='ratio',
  teacher_gflops='of a frozen teacher',
  against='/ --against',
  state_mb='state MB',
  saved_mb='saved MB/image',
  saved_repre_mb='+RePre',
  temp_mb='temp MB/image',
)


def flops(lowered: jax.stages.Lowered) -> float:
  """FLOPs of a program as it is written, before the compiler rewrites it.

  Compilers call libraries, whose work the analysis of a compiled program does
  not see. A multiply-add is two.
  """
  return lowered.cost_analysis()['flops']


def program_bytes(compiled: jax.stages.Compiled) -> dict[str, int]:
  """Memory that a compiled program needs on one device.

  Returns:
    `argument_bytes`, `output_bytes`, `temp_bytes` and their sum without what is
    donated, `program_bytes`; all 0 where the backend does not tell.
  """
  stats = compiled.memory_analysis()
  if stats is None:
    names = ('argument_bytes', 'output_bytes', 'temp_bytes', 'program_bytes')
    return dict.fromkeys(names, 0)
  out = dict(
    argument_bytes=stats.argument_size_in_bytes,
    output_bytes=stats.output_size_in_bytes,
    temp_bytes=stats.temp_size_in_bytes,
  )
  donated = stats.alias_size_in_bytes
  return out | dict(program_bytes=sum(out.values()) - donated)


def encoder_words() -> list[str]:
  """A word for every encoder: patches of 16, of 4 for the mini sizes."""
  return [
    name if name in COMPLETE else f'{name}{4 if name.endswith("mini") else 16}'
    for name in ENCODERS
  ]


def load(method: str, word: str) -> ml_collections.ConfigDict:
  """The config file of a method, as `--config` would load it.

  Args:
    method: a name in METHODS; its file is `configs/{method}.py`.
    word: of an encoder; the mini ones get 32-px images (a Swin whose parts are
      hidden 48), the others what the config says: 224, SimMIM's Swin 192.

  Returns:
    The config, with RePre if the file knows the word, and with a ViT-B/16 as
    the frozen teacher, `vit_mini4` for mini encoders, where one is needed.
  """
  get_config = runpy.run_path(f'configs/{method}.py')['get_config']
  try:
    config = get_config(f'{word},arrays,repre,paper')
  except ValueError:
    config = get_config(f'{word},arrays,paper')
  mini = bool(re.search(r'mini', word))
  if mini:
    config.data.image_size = 32
    patch = word.removeprefix(common.family(word))
    if patch and 'positions_grid' in config.encoder:
      config.encoder.positions_grid = 32 // int(patch)
    if patch and 'mask_unit' in config.method:
      config.method.mask_unit = int(patch)
  if method in MASKED:
    common.whole_cells(config, word)
  if 'teachers' in config.method:
    name = 'vit_mini4' if mini else 'vit_b16'
    config.method.teachers.first.encoder = dict(name=name)
  return config


def teachers(method: Any) -> Any:
  """What a method asks its frozen teachers in a step.

  Args:
    method: of `pretrain`.

  Returns:
    A function (method_state, batch) -> what they say, or None where there is
    no teacher.
  """
  if not isinstance(method, MaskedModeling) or not method.teachers:
    return None

  def ask(method_state, batch):
    images = batch[VIEW]
    grid = tuple(side // method.encoder.cell for side in images.shape[1:3])
    return {
      name: teacher(
        method_state['teachers'][name],
        images,
        grid,
        with_saliency=name == method.guide,
      )
      for name, teacher in method.teachers.items()
    }

  return ask


def abstract(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Shapes of a step on ready views, and the step.

  Returns:
    method, params, method_state, batch and opt_state (shapes) and `step`, the
    function of them that is counted: loss, gradients, update, teacher.
  """
  method = build.make(config, remat=False)
  batch = build.view_shapes(config, method.encoder.in_channels)
  params, method_state = jax.eval_shape(method.init, jax.random.key(0), batch)
  optimizer = optim.make_optimizer(
    params,
    method.rules(),
    name=config.optim.name,
    **config.optim.hyper.to_dict(),
  )
  opt_state = jax.eval_shape(optimizer.init, params)

  def step(params, opt_state, method_state, batch):
    rng = jax.random.key(0)
    grad = jax.value_and_grad(method.loss, has_aux=True)
    (loss, aux), grads = grad(params, method_state, batch, rng, 0)
    moved, opt_state = optimizer.update(grads, opt_state, params, step=0)
    params = jax.tree.map(lambda p, u: p + u, params, moved)
    method_state = method.after_update(params, method_state, aux, 0)
    return loss, params, opt_state, method_state

  return dict(
    method=method,
    params=params,
    method_state=method_state,
    opt_state=opt_state,
    batch=batch,
    step=step,
  )


def saved_bytes(parts: dict[str, Any]) -> int:
  """What the forward pass keeps for the backward pass, as it is written.

  An upper bound that needs no compiler: compilers recompute cheap parts. What
  has the shape of a parameter counts as one and is left out.
  """
  method = parts['method']

  def pull(params, method_state, batch):
    def loss(params):
      rng = jax.random.key(0)
      return method.loss(params, method_state, batch, rng, 0)

    return jax.vjp(loss, params, has_aux=True)[1]

  kept = jax.eval_shape(
    pull, parts['params'], parts['method_state'], parts['batch']
  )
  shapes = {leaf.shape for leaf in jax.tree.leaves(parts['params'])}
  leaves = [leaf for leaf in jax.tree.leaves(kept) if leaf.shape not in shapes]
  return _bytes(leaves)


def cost(
  config: ml_collections.ConfigDict, *, compiled: bool
) -> dict[str, Any]:
  """Parameters, FLOPs and bytes of one step.

  Args:
    config: see `configs/common.py`.
    compiled: also compile, for the memory that this backend needs.

  Returns:
    See `COLUMNS`; counts per step.
  """
  parts = abstract(config)
  args = [parts[n] for n in ('params', 'opt_state', 'method_state', 'batch')]
  began = time.perf_counter()
  lowered = jax.jit(parts['step'], donate_argnums=(0, 1, 2)).lower(*args)
  out = dict(
    flops=flops(lowered),
    lower_seconds=time.perf_counter() - began,
    parameters=sum(leaf.size for leaf in jax.tree.leaves(parts['params'])),
    encoder_parameters=sum(
      leaf.size
      for name, leaf in named_leaves(parts['params']).items()
      if name.startswith('encoder/')
    ),
    state_bytes=_bytes(args[:3]),
    saved_bytes=saved_bytes(parts),
  )
  if ask := teachers(parts['method']):
    given = parts['method_state'], parts['batch']
    out['teacher_flops'] = flops(jax.jit(ask).lower(*given))
  if compiled:
    out |= program_bytes(lowered.compile())
  return out


def tabulate(
  *,
  methods: Iterable[str] | None = None,
  encoders: Iterable[str] | None = None,
  batch_size: int = 8,
  dtype: str = 'float32',
  compiled: bool = False,
  against: str | None = None,
) -> list[dict[str, Any]]:
  """Every method with every encoder.

  Args:
    methods: names in METHODS; None takes all.
    encoders: words; None takes one for every name in ENCODERS.
    batch_size: images per step; costs are told per image.
    dtype: 'float32' or 'bfloat16'.
    compiled: also compile, for the memory that this backend needs (slow).
    against: a method whose row with the same encoder comes first; the others
      tell their FLOPs as a part of its.

  Returns:
    One row per pair, with an `error` where the pair does not exist.
  """
  shared = dict(kind='cost', batch_size=batch_size, dtype=dtype)
  shared |= machine.device() | machine.software()
  rows, reference = [], {}
  methods = list(methods or METHODS)
  if against:
    methods = [against, *(m for m in methods if m != against)]
  for method in methods:
    for word in encoders or encoder_words():
      row = dict(shared, method=method, encoder=word)
      try:
        config = load(method, word)
      except ValueError as error:  # a method that this encoder cannot serve
        rows.append(row | dict(error=str(error)))
        continue
      config.batch_size, config.dtype, config.chunks = batch_size, dtype, 1
      costs = {
        name: cost(variant, compiled=compiled)
        for name, variant in build.variants(config).items()
      }
      row |= _row(costs, batch_size)
      if method == against:
        reference[word] = row['gflops']
      if word in reference:
        row['against'] = round(row['gflops'] / reference[word], 3)
      rows.append(row)
  return rows


def _row(costs: dict[str, dict[str, Any]], batch: int) -> dict[str, Any]:
  base, added = costs['base'], costs.get('+RePre')
  row = dict(
    costs=costs,
    parameters_m=round(base['parameters'] / 1e6, 2),
    encoder_m=round(base['encoder_parameters'] / 1e6, 2),
    gflops=round(base['flops'] / batch / 1e9, 3),
    state_mb=round(base['state_bytes'] / 1e6),
    saved_mb=round(base['saved_bytes'] / batch / 1e6, 1),
  )
  if 'teacher_flops' in base:
    row['teacher_gflops'] = round(base['teacher_flops'] / batch / 1e9, 3)
  with contextlib.suppress(KeyError):
    row['temp_mb'] = round(base['temp_bytes'] / batch / 1e6, 1)
  if added:
    row |= dict(
      gflops_repre=round(added['flops'] / batch / 1e9, 3),
      overhead=round(added['flops'] / base['flops'], 4),
      saved_repre_mb=round(added['saved_bytes'] / batch / 1e6, 1),
    )
  return row


def _bytes(tree: Any) -> int:
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
