"""Optimiser groups by parameter path.

A method states its recipe as rules, `(pattern, Rule)` pairs. Every parameter
belongs to the first rule whose pattern matches its whole path; each rule
becomes one group with a rate, a decay, moments and a step count of its own.
"""

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from training.schedules import Schedule, constant
from training.state import named_leaves, path_name

NEVER = -1  # `Rule.trainable_from`: frozen for the whole run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
  """Gradient clipping by norm.

  Attributes:
    norm: gradients are scaled down to this L2 norm.
    per: 'scope' takes one norm over all parameters whose rules hold an equal
      Clip; 'tensor' takes one norm per parameter (DINO).
    scope: tells two clipping groups with the same norm apart.
    fused: 'tensor': a pattern; parameters whose paths are equal but for what it
      matches count as one tensor, as they are one in the authors' code.
  """

  norm: float
  per: str = 'scope'
  scope: str = 'model'
  fused: str = ''

  def __post_init__(self):
    if self.per not in ('scope', 'tensor'):
      raise ValueError(f"Clip.per={self.per!r} must be 'scope' or 'tensor'")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
  """How one group of parameters is optimised.

  Attributes:
    lr: the rate, a number or a function of the step.
    scale: factor of the rate (layer-wise decay); 1 for the run's own.
    decay: decoupled weight decay (LARS, SGD: coupled), likewise.
    trainable_from: first step at which the group moves; before it neither
      update nor decay nor moments nor step count change. `NEVER` freezes it
      for good and keeps no optimiser state.
    clip: gradient clipping, or None.
    adaptive: LARS: whether the trust ratio applies.
    copies: so many independent parameters lie along the first axis of every
      leaf, each with a trust ratio and a clipping norm of its own; `lr` may
      then give one rate for each, [copies]. 0: a leaf is one parameter.
    optimizer: one of `OPTIMIZERS` with its default numbers, for a group that
      does not follow the run's; None follows it.
  """

  lr: Schedule | float
  scale: float = 1.0
  decay: Schedule | float = 0.0
  trainable_from: int = 0
  clip: Clip | None = None
  adaptive: bool = True
  copies: int = 0
  optimizer: str | None = None


Rules = tuple[tuple[str, Rule], ...]


def assign(params: Any, rules: Rules) -> dict[str, int]:
  """{parameter path: number of its rule}; the first full match wins.

  Raises:
    ValueError: a parameter that no rule matches.
  """
  patterns = [re.compile(pattern) for pattern, _ in rules]
  out, unmatched = {}, []
  for name in named_leaves(params):
    hits = (i for i, p in enumerate(patterns) if p.fullmatch(name))
    out[name] = next(hits, None)
    if out[name] is None:
      unmatched.append(name)
  if unmatched:
    raise ValueError(
      f'no optimiser rule matches {unmatched}; '
      f'patterns: {[pattern for pattern, _ in rules]}'
    )
  return out


def _adamw(rule: Rule, *, b1=0.9, b2=0.999, eps=1e-8):
  """Loshchilov & Hutter (2019), as torch.optim.AdamW."""
  return optax.chain(
    optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
    _add_decay(rule.decay),
    _scale_by_rate(rule),
  )


def _sgd(rule: Rule, *, momentum=0.9, nesterov=False):
  """Decay is part of the gradient, the rate outside the velocity (torch)."""
  return optax.chain(
    _add_decay(rule.decay),
    optax.trace(momentum, nesterov=nesterov),
    _scale_by_rate(rule),
  )


def _lars(rule: Rule, *, momentum=0.9, trust=1e-3, classic=False):
  """You et al. (2017) as in BYOL, MoCo v3 and MAE: rate outside the velocity.

  With `classic` it is inside, as in that paper and in SimCLR: a step's share
  keeps the rate that it came in with.
  """
  ratio = optax.scale_by_trust_ratio(trust_coefficient=trust)
  if rule.copies:
    ratio = _for_each_copy(ratio)
  velocity = [optax.trace(momentum), _scale_by_rate(rule)]
  return optax.chain(
    _add_decay(rule.decay),
    ratio if rule.adaptive else optax.identity(),
    *(reversed(velocity) if classic else velocity),
  )


OPTIMIZERS: Mapping[str, Callable[..., optax.GradientTransformation]] = {
  'adamw': _adamw,
  'sgd': _sgd,
  'lars': _lars,
}


def make_optimizer(
  params: Any, rules: Rules, *, name: str = 'adamw', **hyper: float
) -> optax.GradientTransformationExtraArgs:
  """One optimiser over all groups.

  Args:
    params: the parameters, or their shapes.
    rules: the method's rules.
    name: one of `OPTIMIZERS`.
    **hyper: numbers of that optimiser (`b1`, `b2`, `eps`, `momentum`, ...).

  Returns:
    A transformation whose `update` takes the run's `step` as a keyword; rates,
    decays and freezing follow it, not a count of their own.

  Raises:
    ValueError: an unknown name, or a parameter without a rule.
  """
  if name not in OPTIMIZERS:
    raise ValueError(
      f'unknown optimiser {name!r}; known: {", ".join(OPTIMIZERS)}'
    )
  takes = list(inspect.signature(OPTIMIZERS[name]).parameters)[1:]
  if wrong := sorted(set(hyper) - set(takes)):
    raise ValueError(f'optimiser {name!r} takes {takes}, not {wrong}')
  groups = assign(params, rules)

  def transform(rule):
    if rule.optimizer is None:
      return OPTIMIZERS[name](rule, **hyper)
    return OPTIMIZERS[rule.optimizer](rule)

  used = {i: rules[i][1] for i in sorted(set(groups.values()))}
  transforms = {
    str(i): _from_step(rule, transform(rule)) for i, rule in used.items()
  }

  def labels(tree):
    return jax.tree_util.tree_map_with_path(
      lambda path, _: str(groups[path_name(path)]), tree
    )

  return optax.chain(_clip(groups, rules), optax.partition(transforms, labels))


def trainable(params: Any, rules: Rules) -> dict[str, bool]:
  """{parameter path: False if its rule freezes it for good}."""
  groups = assign(params, rules)
  return {n: rules[i][1].trainable_from != NEVER for n, i in groups.items()}


def apply(params: Any, updates: Any, moving: Mapping[str, bool]) -> Any:
  """Parameters plus updates; frozen ones stay as they are, bit for bit.

  Args:
    params: a pytree.
    updates: of the optimiser, the same structure.
    moving: of `trainable`. Even zeros are not added: they turn -0 into 0.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, p, u: p + u if moving[path_name(path)] else p, params, updates
  )


def _at(value: Schedule | float, step: jax.Array) -> jax.Array:
  return value(step) if callable(value) else constant(value)(step)


def _for_each_copy(stateless: optax.GradientTransformation):
  """Applies a transformation without a state along the first axis."""

  def update(updates, state, params):
    one = jax.vmap(lambda u, p: stateless.update(u, state, p)[0])
    return one(updates, params), state

  return optax.GradientTransformation(stateless.init, update)


def _add_decay(decay: Schedule | float):
  def update(updates, state, params, *, step, **_):
    rate = _at(decay, step)
    return jax.tree.map(lambda u, p: u + rate * p, updates, params), state

  if not callable(decay) and decay == 0:
    return optax.identity()
  return optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update
  )


def _along(factor: jax.Array, leaf: jax.Array) -> jax.Array:
  """A scalar, or a factor for each copy, ready to scale a leaf."""
  return factor.reshape(factor.shape + (1,) * (leaf.ndim - factor.ndim))


def _scale_by_rate(rule: Rule):
  def update(updates, state, params=None, *, step, **_):
    rate = _at(rule.lr, step)
    rate = rate if rule.scale == 1 else rule.scale * rate
    return jax.tree.map(lambda u: -_along(rate, u) * u, updates), state

  return optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update
  )


def _from_step(rule: Rule, inner: optax.GradientTransformation):
  """Freezes a group, its state included, before `rule.trainable_from`."""
  if rule.trainable_from == NEVER:
    return optax.set_to_zero()
  if rule.trainable_from == 0:
    return inner

  def update(updates, state, params=None, *, step, **extra):
    moved, advanced = inner.update(updates, state, params, step=step, **extra)
    active = step >= rule.trainable_from
    moved = jax.tree.map(lambda u: jnp.where(active, u, 0), moved)
    return moved, jax.tree.map(
      lambda new, old: jnp.where(active, new, old), advanced, state
    )

  return optax.GradientTransformationExtraArgs(inner.init, update)


def _clip(groups: dict[str, int], rules: Rules):
  """Scales gradients as the rules' clips say; frozen ones do not count."""

  def scope(name, clip):
    """What is known by one norm."""
    if clip.per == 'scope':
      return clip
    return re.sub(clip.fused, '', name) if clip.fused else name

  def square(grad, copies):
    axes = tuple(range(1, grad.ndim)) if copies else None
    return jnp.sum(jnp.square(grad), axis=axes)

  def update(updates, state, params=None, *, step, **_):
    scopes = {}
    for name, grad in named_leaves(updates).items():
      rule = rules[groups[name]][1]
      if rule.clip is not None and rule.trainable_from != NEVER:
        counted = jnp.where(step >= rule.trainable_from, grad, 0)
        part = square(counted, rule.copies)
        scopes.setdefault(scope(name, rule.clip), []).append(part)
    norms = {key: jnp.sqrt(sum(parts)) for key, parts in scopes.items()}

    def scale(path, grad):
      name = path_name(path)
      clip = rules[groups[name]][1].clip
      size = None if clip is None else norms.get(scope(name, clip))
      if size is None:
        return grad
      # torch.nn.utils.clip_grad_norm_ divides by norm + 1e-6 as well.
      factor = jnp.minimum(1.0, clip.norm / (size + 1e-6))
      return grad * _along(factor, grad)

    return jax.tree_util.tree_map_with_path(scale, updates), state

  return optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update
  )
