"""Our side of recorded training steps."""

import jax
import numpy as np
import optax

from training import optim
from training.state import named_leaves


def follow(method, student, batches, *, state=None, **optimizer):
  """Training steps from given weights.

  Args:
    method: a method.
    student: {parameter path: array} to start from.
    batches: the views of every step.
    state: entries of the method state to start from.
    **optimizer: of `optim.make_optimizer`.

  Returns:
    The loss of every step; the parameters and the method states that steps
    begin with, and at the end what the last one leaves, as {path: array}.
  """
  params, method_state = jax.jit(method.init)(
    jax.random.key(0), batches[0], student
  )
  method_state = method_state | (state or {})
  transform = optim.make_optimizer(params, method.rules(), **optimizer)
  opt_state = transform.init(params)

  @jax.jit
  def update(params, method_state, opt_state, batch, step):
    (loss, aux), grads = jax.value_and_grad(method.loss, has_aux=True)(
      params, method_state, batch, jax.random.key(0), step
    )
    updates, opt_state = transform.update(grads, opt_state, params, step=step)
    params = optax.apply_updates(params, updates)
    method_state = method.after_update(params, method_state, aux, step)
    return params, method_state, opt_state, loss

  losses, students, states = [], [], []
  for i, batch in enumerate(batches):
    students.append(numbers(params))
    states.append(numbers(method_state))
    params, method_state, opt_state, loss = update(
      params, method_state, opt_state, batch, i
    )
    losses.append(float(loss))
  students.append(numbers(params))
  states.append(numbers(method_state))
  return losses, students, states


def numbers(tree):
  return {name: np.asarray(leaf) for name, leaf in named_leaves(tree).items()}
