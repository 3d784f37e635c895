"""BYOL: the student predicts its teacher's projection; no negatives.

Grill et al.: Bootstrap Your Own Latent, 2020 (arXiv:2006.07733).
"""

import dataclasses
from typing import Any

from models.heads import byol_head
from pretrain.losses import regression
from pretrain.siamese import Siamese
from training.recipe import Recipe
from training.schedules import momentum_cosine
from training.state import Aux


@dataclasses.dataclass(frozen=True, kw_only=True)
class BYOL(Siamese):
  """Eq. 2 and 3 of the paper, in both directions.

  The loss is ‖n(q1) − n(k2)‖² + ‖n(q2) − n(k1)‖², between 0 and 8. The teacher
  moves after the update.

  Differs from the authors' code: student and teacher start equal, there they
  # are drawn apart.
  """

  def loss(self, params, method_state, batch, rng, step) -> tuple[Any, Aux]:
    """See the class."""
    images, students = self.students(params, batch, rng)
    q1, q2 = self.queries(params, students)
    k1, k2 = self.keys(method_state, images)
    loss = regression(q1, k2) + regression(q2, k1)
    return loss, self.report(loss, students, images, step)


def byol(
  encoder: Any,
  recipe: Recipe,
  *,
  hidden: int = 4096,
  out: int = 256,
  momentum: float = 0.996,
  frozen_patch_embed: bool = True,
  dtype: str = 'float32',
  chunks: int = 1,
) -> BYOL:
  """BYOL; on ViT as in MoCo v3's comparison (arXiv:2104.02057, §6.1).

  Args:
    encoder: an encoder of `models`.
    recipe: rates and decay.
    hidden: width of the heads' hidden layer.
    out: width of their output.
    momentum: of the teacher at step 0; rises to 1 along a cosine. The authors
      take 0.97 for 40 epochs, 0.99 for 100 and 300, 0.996 for 1000.
    frozen_patch_embed: whether the patch embedding is never trained.
    dtype: compute dtype of the heads.
    chunks: into how many parts the encoder's batch is cut.

  Returns:
    The method.
  """
  return BYOL(
    encoder=encoder,
    projector=byol_head(hidden, out, dtype=dtype),
    predictor=byol_head(hidden, out, dtype=dtype),
    recipe=recipe,
    momentum=momentum_cosine(momentum, total=recipe.total),
    frozen_patch_embed=frozen_patch_embed,
    chunks=chunks,
  )
