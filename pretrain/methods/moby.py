"""MoBY: MoCo v2's queues with BYOL's predictor, made for Swin.

Xie et al.: Self-Supervised Learning with Swin Transformers, 2021
(arXiv:2105.04553).
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from models.heads import moby_head
from pretrain.losses import queue_nce
from pretrain.queues import check_queue, enqueue, init_queue
from pretrain.siamese import Siamese
from training.recipe import Recipe
from training.rng import named_key
from training.schedules import momentum_cosine
from training.state import Aux


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoBY(Siamese):
  """Section 3 of the paper; see `losses.queue_nce`.

  The loss is ctr(q1, k2; queue2) + ctr(q2, k1; queue1): each view has a queue
  of its own, filled after the loss. The teacher moves before its keys are
  computed; the student alone drops paths.

  method_state: `teacher`, `queue1`, `queue2` [k, d] of unit length, `pointer`.

  Attributes:
    temperature: τ.
    queue: length k of each queue, a multiple of the batch.
  """

  temperature: float = 0.2
  queue: int = 4096

  def init(self, rng, batch, initial=None) -> tuple[Any, Any]:
    """As `Siamese`, with two queues of random directions."""
    check_queue(self.queue, batch[self.views[0]].shape[0])
    params, method_state = super().init(rng, batch, initial)
    for name in ('queue1', 'queue2'):
      key = named_key(rng, name)
      method_state[name] = init_queue(key, self.queue, self.projector.out)
    return params, dict(method_state, pointer=jnp.zeros((), jnp.int32))

  def loss(self, params, method_state, batch, rng, step) -> tuple[Any, Aux]:
    """See the class."""
    images, students = self.students(params, batch, rng)
    q1, q2 = self.queries(params, students)
    k1, k2 = self.keys(method_state, images)
    queue1, queue2 = method_state['queue1'], method_state['queue2']
    loss1, hits1 = queue_nce(q1, k2, queue2, temperature=self.temperature)
    loss2, hits2 = queue_nce(q2, k1, queue1, temperature=self.temperature)
    loss = loss1 + loss2
    return loss, self.report(
      loss,
      students,
      images,
      step,
      metrics=dict(contrast_accuracy=(hits1 + hits2) / 2),
      examples=dict(keys1=k1, keys2=k2),
    )

  def after_update(self, params, method_state, aux, step) -> Any:
    """Queues this step's keys and moves the teacher."""
    pointer = method_state['pointer']
    queue1, _ = enqueue(method_state['queue1'], pointer, aux.examples['keys1'])
    queue2, pointer = enqueue(
      method_state['queue2'], pointer, aux.examples['keys2']
    )
    method_state = super().after_update(params, method_state, aux, step)
    return dict(method_state, queue1=queue1, queue2=queue2, pointer=pointer)


def moby(
  encoder: Any,
  recipe: Recipe,
  *,
  hidden: int = 4096,
  out: int = 256,
  queue: int = 4096,
  temperature: float = 0.2,
  momentum: float = 0.99,
  frozen_patch_embed: bool = False,
  dtype: str = 'float32',
  chunks: int = 1,
) -> MoBY:
  """MoBY (authors' code, `models/moby.py`).

  Args:
    encoder: an encoder of `models`; the authors drop paths at 0.2.
    recipe: rates, decay of all but biases and norms, and clipping at 5.
    hidden: width of the heads' hidden layer.
    out: width of their output.
    queue: length of each queue, a multiple of the batch.
    temperature: τ.
    momentum: of the teacher at step 0; rises to 1 along a cosine.
    frozen_patch_embed: whether the patch embedding is never trained.
    dtype: compute dtype of the heads.
    chunks: into how many parts the encoder's batch is cut.

  Returns:
    The method.
  """
  return MoBY(
    encoder=encoder,
    projector=moby_head(hidden, out, dtype=dtype),
    predictor=moby_head(hidden, out, dtype=dtype),
    recipe=recipe,
    momentum=momentum_cosine(momentum, total=recipe.total),
    ahead=True,
    temperature=temperature,
    queue=queue,
    frozen_patch_embed=frozen_patch_embed,
    chunks=chunks,
  )
