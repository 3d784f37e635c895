"""Recorded training steps, and our side of them."""

import json
import pathlib

import jax
import numpy as np
import optax
from official_names import below, head_from_torch, vit_from_torch

from training import optim
from training.state import named_leaves

GOLDENS = pathlib.Path(__file__).parent.parent / 'goldens'


class Record:
  """Steps of several cases, from files that describe the same views.

  Args:
    *files: names in tests/goldens; the first one has the views.
  """

  def __init__(self, *files):
    self._rows, self._cases = {}, {}
    for name in files:
      with np.load(GOLDENS / name) as file:
        rows = {k: file[k] for k in file.files}
      shape = json.loads(str(rows.pop('cfg')))
      self._cases |= shape.pop('methods')
      self._rows |= rows
      self.shape = shape

  def numbers(self, case):
    """Sizes and rates of a case."""
    return self._cases[case]

  def arrays(self, case):
    """What was recorded, a row per step, as {name: array}."""
    return below(self._rows, f'{case}/')

  def batches(self, views, steps):
    """The views of every step in [0, 1]."""
    return [
      {v: np.float32(self._rows[v][i]) / 255 for v in views}
      for i in range(steps)
    ]

  def weights(self, case, who, row):
    """{our parameter path: array} of 'student' or 'teacher'."""
    numbers, weights = self.numbers(case), {}
    layout = numbers['layout']
    if who == 'teacher':
      layout = numbers.get('teacher_layout', layout)
    flat = self.arrays(case)[who][row]
    for part, shape in layout:
      weights[part], flat = np.split(flat, [int(np.prod(shape))])
      weights[part] = weights[part].reshape(shape)
    assert not flat.size
    dino = 'head.weight_v' in weights
    vit = below(weights, 'backbone.' if dino else 'encoder.')
    out = vit_from_torch(vit, learned_positions='pos_embed' in vit)
    if dino:
      head = below(weights, 'head.')
      last = {
        'projector/last/v': head['weight_v'].T,
        'projector/last/g': head['weight_g'][:, 0],
      }
      return out | last | head_from_torch(below(head, 'mlp.'), 'projector')
    for head in ('projector', 'predictor'):
      out |= head_from_torch(below(weights, f'{head}.'), head)
    return out


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
