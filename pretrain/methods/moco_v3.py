"""MoCo v3: contrast of two views against a momentum teacher.

Chen, Xie, He: An Empirical Study of Training Self-Supervised Vision
Transformers, 2021 (arXiv:2104.02057).
"""

import dataclasses
import functools
from typing import Any

from models.heads import MLPHead
from pretrain.losses import info_nce
from pretrain.siamese import Siamese
from training.recipe import Recipe
from training.schedules import momentum_cosine
from training.state import Aux


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoCoV3(Siamese):
  """Algorithm 1 of the paper, with the order of the authors' code.

  The loss is ctr(q1, k2) + ctr(q2, k1), see `losses.info_nce`.

  Differs from the paper: its Algorithm 1 moves the teacher after the update;
  # the authors' code moves it before the keys. A shift of one step.

  Every trainable parameter decays, biases and norms included, as in the
  authors' code, which has one parameter group. The patch embedding stays as
  drawn (§4.2: it is where instability begins).

  Attributes:
    temperature: τ.
  """

  temperature: float = 0.2

  def loss(self, params, method_state, batch, rng, step) -> tuple[Any, Aux]:
    """See the class; metrics of contrast and collapse."""
    images, students = self.students(params, batch, rng)
    q1, q2 = self.queries(params, students)
    k1, k2 = self.keys(method_state, images)
    loss1, hits1 = info_nce(q1, k2, temperature=self.temperature)
    loss2, hits2 = info_nce(q2, k1, temperature=self.temperature)
    loss = loss1 + loss2
    metrics = dict(contrast_accuracy=(hits1 + hits2) / 2)
    return loss, self.report(loss, students, images, step, metrics=metrics)


def moco_v3(
  encoder: Any,
  recipe: Recipe,
  *,
  hidden: int = 4096,
  out: int = 256,
  temperature: float = 0.2,
  momentum: float = 0.99,
  frozen_patch_embed: bool = True,
  dtype: str = 'float32',
  chunks: int = 1,
) -> MoCoV3:
  """MoCo v3 with the heads of its ViTs (authors' code, `moco/builder.py`).

  Args:
    encoder: an encoder of `models`.
    recipe: rates and decay; the authors exclude nothing from decay.
    hidden: width of the heads' hidden layers.
    out: width of their output.
    temperature: τ.
    momentum: of the teacher at step 0; rises to 1 along a cosine.
    frozen_patch_embed: whether the patch embedding is never trained.
    dtype: compute dtype of the heads.
    chunks: into how many parts the encoder's batch is cut.

  Returns:
    The method.
  """
  head = functools.partial(MLPHead, hidden=hidden, out=out, dtype=dtype)
  return MoCoV3(
    encoder=encoder,
    projector=head(layers=3),
    predictor=head(layers=2),
    recipe=recipe,
    momentum=momentum_cosine(momentum, total=recipe.total),
    ahead=True,
    temperature=temperature,
    frozen_patch_embed=frozen_patch_embed,
    chunks=chunks,
  )
