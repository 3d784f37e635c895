"""The pure step, and all that is built around it once."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from training import optim, sharding
from training.checkpoint import check_same_leaves
from training.overview import overview
from training.protocols import Data, Method
from training.rng import named_key, step_key
from training.state import TrainState, named_leaves
from training.warm_start import given, matching


def make_train_step(
  method: Method,
  data: Data,
  optimizer: optax.GradientTransformationExtraArgs,
  counted: Mapping[str, bool],
  seed: int,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
  """The pure step.

  Args:
    method: what is learned.
    data: renders the views.
    optimizer: from `optim.make_optimizer`.
    counted: {parameter path: whether it can train}; the others' gradients are
      never computed.
    seed: of the run.

  Returns:
    (state, batch) -> (state, metrics), to be jitted.
  """

  def train_step(state, batch):
    rng = step_key(seed, state.step)
    views = data.render(batch, named_key(rng, 'views'))
    loss_fn = jax.value_and_grad(method.loss, has_aux=True)
    (loss, aux), grads = loss_fn(
      state.params, state.method_state, views, rng, state.step
    )
    updates, opt_state = optimizer.update(
      grads, state.opt_state, state.params, step=state.step
    )
    params = optim.apply(state.params, updates, counted)
    method_state = method.after_update(
      params, state.method_state, aux, state.step
    )
    kept = {n: g for n, g in named_leaves(grads).items() if counted[n]}
    grad_norm = optax.tree.norm(kept)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    new = state.replace(
      params=params, opt_state=opt_state, method_state=method_state
    )
    # A bad step changes nothing but the counts.
    new = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, state)
    bad = jnp.where(finite, 0, state.bad_steps + 1)
    new = new.replace(step=state.step + 1, bad_steps=bad)
    metrics = dict(aux.metrics, loss=loss, grad_norm=grad_norm, bad_steps=bad)
    if 'replaced' in views:  # for images that cannot be read
      metrics['replaced'] = views['replaced'].sum()
    return new, metrics

  return train_step


def _check_frozen(frozen: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
  """Raises CheckpointError where a teacher would be drawn in part."""
  parts = {name.partition('/')[0] for name in frozen}
  wanted = {k: v for k, v in wanted.items() if k.partition('/')[0] in parts}
  # Weights kept in half precision become float32.
  found = {k: dict(shape=x.shape, dtype='float32') for k, x in frozen.items()}
  check_same_leaves(wanted, found, what='what is frozen')


class Run:
  """A method on data in a workdir: everything a step needs, built once.

  Args:
    config: see `configs/common.py`; read here: `seed`, `batch_size`, `chunks`,
      `optim` and the intervals.
    mesh: from `sharding.make_mesh`.
    method: what is learned.
    data: where batches come from.
    initial: {parameter path: array} to start from instead of a fresh draw.
    frozen: {path: array} of the method_state that does not start from a draw:
      frozen teachers.
    what: names where `initial` comes from, in messages.
  """

  def __init__(
    self,
    config,
    *,
    mesh,
    method,
    data,
    initial=None,
    frozen=None,
    what='initial',
  ):
    sharding.check_batch(config.batch_size, mesh, config.chunks)
    if config.log_every < 1:
      raise ValueError(
        f'config.log_every={config.log_every} must be at least 1: reports are '
        'when bad steps are noticed'
      )
    self.config, self.method, self.data = config, method, data
    self.mesh, self._spec = mesh, data.spec
    shapes = jax.eval_shape(self._init_method, None)
    if initial:
      initial = matching(initial, shapes[0], what=str(what))
    self._initial = initial
    if frozen:
      _check_frozen(frozen, named_leaves(shapes[1]))
    self._frozen = frozen
    hyper = dict(config.optim.hyper)
    self.rules = method.rules()
    self.optimizer = optim.make_optimizer(
      shapes[0], self.rules, name=config.optim.name, **hyper
    )
    self.groups = optim.assign(shapes[0], self.rules)
    like = jax.eval_shape(self._begin, *shapes)
    self.shardings = sharding.state_shardings(mesh, like)
    self.like = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      like,
      self.shardings,
    )
    self.step = jax.jit(
      make_train_step(
        method,
        data,
        self.optimizer,
        optim.trainable(shapes[0], self.rules),
        config.seed,
      ),
      donate_argnums=0,
      out_shardings=(self.shardings, sharding.replicated(mesh)),
    )

  def _init_method(self, initial):
    # Only shapes matter: of zeros made here the compiler drops every use, the
    # forward pass with them, and no image has to be read.
    batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self._spec)
    rng = named_key(jax.random.key(self.config.seed), 'init')
    return self.method.init(rng, self.data.render(batch, rng), initial)

  def _init(self, initial, frozen) -> TrainState:
    params, method_state = self._init_method(initial)
    return self._begin(params, given(method_state, frozen))

  def _begin(self, params, method_state) -> TrainState:
    """The state of step 0."""
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      bad_steps=jnp.zeros((), jnp.int32),
      params=params,
      opt_state=self.optimizer.init(params),
      method_state=method_state,
    )

  def init(self) -> TrainState:
    """The state of step 0, made inside jit so that no two leaves share."""
    init = jax.jit(self._init, out_shardings=self.shardings)
    return init(self._initial, self._frozen)

  def rate(self, step: int) -> float:
    """The learning rate that is reported as `lr`.

    That of the group with the most parameters, the largest where it has
    several, without the group's `scale`: with layer-wise decay the rate of the
    recipe, at which the head learns. Groups with rates of their own, such as a
    predictor's or an online probe's, do not count.
    """
    sizes = {}
    for name, leaf in named_leaves(self.like.params).items():
      group = self.groups[name]
      if self.rules[group][1].trainable_from != optim.NEVER:
        sizes[group] = sizes.get(group, 0) + leaf.size
    lr = self.rules[max(sizes, key=sizes.get)][1].lr
    return float(np.max(lr(step) if callable(lr) else lr))

  def overview(self) -> str:
    """The optimiser groups in words, see `overview.overview`."""
    sizes = {n: leaf.size for n, leaf in named_leaves(self.like.params).items()}
    return overview(sizes, self.groups, self.rules)
