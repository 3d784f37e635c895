"""How a method's parameters are optimised, in the paper's terms."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from training import schedules
from training.optim import NEVER, Clip, Rule, Rules
from training.schedules import Schedule

# 'cosine' is the papers' own (MoCo v3's code at fractional epochs), 'epochs'
# the same at whole ones; the others are what those authors' loops apply, to the
# step.
SCHEDULES = ('cosine', 'epochs', 'dino', 'moby', 'steps')
# One tensor in the authors' code.
QKV = r'(?<=/)(query|key|value)(?=/)'
PATCH_EMBED = 'encoder/patch_embed/.*'
# Fields that are counted in epochs, and what happens if they do not end.
IN_EPOCHS = dict(
  warmup_epochs=(
    'the warm-up is cut to the run, and the learning rate only rises'
  ),
  warmup_teacher_epochs=(
    "the teacher's temperature never reaches its last value"
  ),
  freeze_last_epochs="the head's last layer never learns",
)
FIT = 0.1  # of a run, that a warm-up should take at most
# Parameters that papers mean by "biases and norms": our vectors, by name.
VECTORS = r'(.*/)?(bias|scale)'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  """Rates, decay and clipping of a run, and its length.

  Attributes:
    lr: learning rate by step.
    decay: weight decay, a number or by step.
    peak: the highest rate, for groups that keep it.
    total: length of the run in steps.
    steps_per_epoch: for what papers state in epochs.
    exclude: pattern of parameter paths without decay and, with LARS, without
      the trust ratio; '' for none.
    clip: gradient clipping, or None.
  """

  lr: Schedule
  decay: Schedule | float
  peak: float
  total: int
  steps_per_epoch: int = 1
  exclude: str = ''
  clip: Clip | None = None

  def rules(self, *, frozen_patch_embed: bool = False) -> Rules:
    """The rules that cover every parameter.

    Args:
      frozen_patch_embed: the patch embedding stays as drawn.
    """
    everything = Rule(lr=self.lr, decay=self.decay, clip=self.clip)
    out = [('.*', everything)]
    if self.exclude:
      vectors = dataclasses.replace(everything, decay=0.0, adaptive=False)
      out.insert(0, (self.exclude, vectors))
    if frozen_patch_embed:
      frozen = dataclasses.replace(everything, trainable_from=NEVER)
      out.insert(0, (PATCH_EMBED, frozen))
    return tuple(out)

  def steps(self, epochs: float) -> int:
    """Epochs in steps, rounded."""
    return round(epochs * self.steps_per_epoch)


def make_recipe(
  optim: Mapping[str, Any], *, batch_size: int, steps_per_epoch: int, total: int
) -> Recipe:
  """The recipe that a config states.

  Args:
    optim: `config.optim`; see `configs.optim.optim`.
    batch_size: global; rates are per `optim['per']` images.
    steps_per_epoch: length of an epoch.
    total: length of the run in steps.

  Returns:
    The recipe.

  Raises:
    ValueError: an unknown schedule, or steps that are not given.
  """
  scale = batch_size / optim['per']
  warmup = min(optim['warmup_epochs'] * steps_per_epoch, total)
  peak = optim['base_lr'] * scale
  times = dict(warmup=warmup, start=optim['warmup_lr'] * scale)
  if optim['schedule'] == 'steps':
    lr = _steps(optim, peak, total=total, **times)
  else:
    lr = _rate(
      optim['schedule'],
      peak,
      total=total,
      steps_per_epoch=steps_per_epoch,
      end=optim['end_lr'] * (scale if optim['scale_end_lr'] else 1.0),
      **times,
    )
  decay = optim['decay']
  if optim['end_decay'] is not None:
    decay = schedules.warmup_cosine(
      decay, warmup=0, total=total, end=optim['end_decay']
    )
  clip = None
  if optim['clip']:
    clip = Clip(norm=optim['clip'], per=optim['clip_per'], fused=QKV)
  return Recipe(
    lr=lr,
    decay=decay,
    peak=peak,
    total=total,
    steps_per_epoch=steps_per_epoch,
    exclude=_excluded(optim),
    clip=clip,
  )


def warnings_of_length(
  config: Mapping[str, Any], *, steps_per_epoch: int, total: int
) -> list[str]:
  """Fields in epochs that do not fit into a run, in words.

  Args:
    config: of a run; every field that `IN_EPOCHS` names is looked at, wherever
      it stands.
    steps_per_epoch: length of an epoch.
    total: length of the run in steps.

  Returns:
    One line per field that lasts to the end of the run, or longer.
  """
  out = []
  for name, epochs in _named(config):
    effect = IN_EPOCHS[name.rpartition('.')[2]]
    steps = epochs * steps_per_epoch if epochs else 0
    if steps and steps >= total:
      fit = FIT * total / steps_per_epoch
      out.append(
        f'config.{name}={epochs:g} epochs are {steps:g} steps '
        f'({steps_per_epoch} per epoch), and the run has {total}: {effect}; '
        f'set config.{name} to at most {_round(fit, type(epochs))}, or train '
        'for longer (config.steps, config.epochs)'
      )
  return out


def _named(config: Any, above: str = '') -> Iterator[tuple[str, Any]]:
  """Fields of `IN_EPOCHS`, by name with dots."""
  for key, value in config.items():
    if isinstance(value, Mapping) or hasattr(value, 'items'):
      yield from _named(value, f'{above}{key}.')
    elif key in IN_EPOCHS:
      yield above + key, value


def _round(value: float, kind: type) -> str:
  return str(int(value)) if kind is int else f'{value:.2g}'


def _excluded(optim: Mapping[str, Any]) -> str:
  """Pattern of what has no decay."""
  vectors = VECTORS if optim['exclude_vectors'] else ''
  return '|'.join(filter(None, (vectors, optim.get('exclude', ''))))


def _steps(
  optim: Mapping[str, Any],
  peak: float,
  *,
  warmup: float,
  total: int,
  start: float,
) -> Schedule:
  """The learning rate by step where it falls at given points of the run.

  Raises:
    ValueError: there are none.
  """
  if not optim['milestones']:
    raise ValueError(
      "optim.schedule='steps' needs optim.milestones: where in the run the "
      'rate falls, such as 0.875'
    )
  rate = schedules.multi_step(
    peak,
    warmup=round(warmup),
    milestones=[share * total for share in optim['milestones']],
    factor=optim['step_factor'],
    start=start,
  )
  return schedules.one_step_late(rate)


def _rate(
  name: str,
  peak: float,
  *,
  warmup: float,
  total: int,
  steps_per_epoch: int,
  start: float,
  end: float,
) -> Schedule:
  """The learning rate by step, by the name of its schedule."""
  if name in ('cosine', 'epochs'):
    rate = schedules.warmup_cosine(
      peak, warmup=warmup, total=total, start=start, end=end
    )
    if name == 'epochs':
      return lambda step: rate(step // steps_per_epoch * steps_per_epoch)
    return rate
  numbers = dict(warmup=round(warmup), total=total, start=start, end=end)
  if name == 'dino':
    return schedules.dino_cosine(peak, **numbers)
  if name == 'moby':
    return schedules.one_step_late(schedules.unshifted_cosine(peak, **numbers))
  raise ValueError(
    f'unknown optim.schedule {name!r}; known: {", ".join(SCHEDULES)}'
  )
