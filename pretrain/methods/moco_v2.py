"""MoCo v2: a view against a queue of a momentum teacher's earlier keys.

Chen, Fan, Girshick, He: Improved Baselines with Momentum Contrastive Learning,
2020 (arXiv:2003.04297); He et al., 2019 (arXiv:1911.05722).
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from models.heads import MLPHead, moco_v2_head
from pretrain.losses import queue_nce
from pretrain.queues import check_queue, enqueue, init_queue
from pretrain.siamese import Siamese
from training.recipe import Recipe
from training.rng import named_key
from training.schedules import constant
from training.state import Aux

HEADS = ('official', 'moco_v3')


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoCoV2(Siamese):
  """Algorithm 1 of MoCo with a queue and one head; see `losses.queue_nce`.

  Keys are queued after the loss. Asymmetric, the first view asks and the
  second answers (authors' code); symmetric, the loss is the sum of both
  directions and the keys of both views are queued, view 1 first.

  method_state: `teacher`, `queue` [k, d] of unit length and `pointer`.

  Attributes:
    temperature: τ.
    queue: length k, a multiple of the keys of a step.
    symmetric: both directions.
  """

  temperature: float = 0.2
  queue: int = 65536
  symmetric: bool = False

  def init(self, rng, batch, initial=None) -> tuple[Any, Any]:
    """As `Siamese`, with a queue of random directions."""
    rows = batch[self.views[0]].shape[0]
    check_queue(self.queue, rows * (2 if self.symmetric else 1))
    params, method_state = super().init(rng, batch, initial)
    queue = init_queue(named_key(rng, 'queue'), self.queue, self.projector.out)
    pointer = jnp.zeros((), jnp.int32)
    return params, dict(method_state, queue=queue, pointer=pointer)

  def loss(self, params, method_state, batch, rng, step) -> tuple[Any, Aux]:
    """See the class."""
    images = [batch[name] for name in self.views]
    asking = images if self.symmetric else images[:1]
    answering = images if self.symmetric else images[1:]
    students = self.encode(params, asking, rng)
    queries = [self.project(params, features) for features in students]
    keys = self.keys(method_state, answering)
    pairs = zip(queries, reversed(keys), strict=True)
    terms = [
      queue_nce(q, k, method_state['queue'], temperature=self.temperature)
      for q, k in pairs
    ]
    loss = sum(term for term, _ in terms)
    hits = sum(hits for _, hits in terms) / len(terms)
    return loss, self.report(
      loss,
      students,
      asking,
      step,
      metrics=dict(contrast_accuracy=hits),
      examples=dict(keys=jnp.concatenate(keys)),
    )

  def after_update(self, params, method_state, aux, step) -> Any:
    """Queues this step's keys and moves the teacher."""
    queue, pointer = enqueue(
      method_state['queue'], method_state['pointer'], aux.examples['keys']
    )
    method_state = super().after_update(params, method_state, aux, step)
    return dict(method_state, queue=queue, pointer=pointer)


def moco_v2(
  encoder: Any,
  recipe: Recipe,
  *,
  head: str = 'moco_v3',
  hidden: int = 4096,
  out: int = 256,
  queue: int = 65536,
  temperature: float = 0.2,
  momentum: float = 0.999,
  symmetric: bool = True,
  frozen_patch_embed: bool = False,
  dtype: str = 'float32',
  chunks: int = 1,
) -> MoCoV2:
  """MoCo v2; as it is on ViT unless `head` and `symmetric` say otherwise.

  RePre's Table 1 takes its baseline from DINO's authors, who gave MoCo v2 on
  ViT a head of three layers with BatchNorm and 256 outputs (arXiv:2104.14294,
  appendix B). Both directions are RePre's (Algorithm 1).

  Args:
    encoder: an encoder of `models`.
    recipe: rates and decay.
    head: 'moco_v3', three layers with BatchNorm; or 'official', two without,
      for which the authors take the encoder's width and 128 outputs.
    hidden: width of its hidden layers.
    out: width of its output.
    queue: length of the queue, a multiple of the keys of a step.
    temperature: τ.
    momentum: of the teacher, constant.
    symmetric: both directions; off as in the authors' code.
    frozen_patch_embed: whether the patch embedding is never trained.
    dtype: compute dtype of the head.
    chunks: into how many parts the encoder's batch is cut.

  Returns:
    The method.

  Raises:
    ValueError: an unknown head.
  """
  if head not in HEADS:
    raise ValueError(f'unknown method.head {head!r}; known: {", ".join(HEADS)}')
  if head == 'official':
    projector = moco_v2_head(hidden, out, dtype=dtype)
  else:
    projector = MLPHead(hidden, out, 3, dtype=dtype)
  return MoCoV2(
    encoder=encoder,
    projector=projector,
    recipe=recipe,
    momentum=constant(momentum),
    ahead=True,
    temperature=temperature,
    queue=queue,
    symmetric=symmetric,
    frozen_patch_embed=frozen_patch_embed,
    chunks=chunks,
  )
