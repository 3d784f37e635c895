"""SimSiam: two views, one network, a predictor and a stopped gradient.

Chen, He: Exploring Simple Siamese Representation Learning, 2020
(arXiv:2011.10566).
"""

import dataclasses
from typing import Any

from models.heads import simsiam_predictor, simsiam_projector
from pretrain.losses import negative_cosine
from pretrain.siamese import Siamese
from training.optim import Rule, Rules
from training.recipe import Recipe
from training.schedules import Schedule
from training.state import Aux


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimSiam(Siamese):
  """Algorithm 1 of the paper, plus 1.

  The loss is 1 + ½ D(p1, z2) + ½ D(p2, z1), between 0 and 2; no teacher. The
  paper's, without the 1, has the same gradients; but a learned weight needs a
  positive loss (see `weighting.Uncertainty`).

  Attributes:
    predictor_lr: rate of the predictor by step: the authors keep it constant.
  """

  predictor_lr: Schedule | float

  def loss(self, params, method_state, batch, rng, step) -> tuple[Any, Aux]:
    """See the class; `cosine` is the paper's loss with the sign turned."""
    images, students = self.students(params, batch, rng)
    z1, z2 = (self.project(params, features) for features in students)
    p1, p2 = self.predict(params, z1), self.predict(params, z2)
    negative = (negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2
    metrics = dict(cosine=-negative)
    loss = 1 + negative
    return loss, self.report(loss, students, images, step, metrics=metrics)

  def rules(self) -> Rules:
    """The predictor has a rate of its own."""
    rules = super().rules()
    predictor = Rule(
      lr=self.predictor_lr, decay=self.recipe.decay, clip=self.recipe.clip
    )
    return (('predictor/.*', predictor), *rules)


def simsiam(
  encoder: Any,
  recipe: Recipe,
  *,
  hidden: int = 2048,
  out: int = 2048,
  bottleneck: int = 512,
  constant_predictor_lr: bool = True,
  frozen_patch_embed: bool = False,
  dtype: str = 'float32',
  chunks: int = 1,
) -> SimSiam:
  """SimSiam (authors' code, `simsiam/builder.py` and `main_simsiam.py`).

  Args:
    encoder: an encoder of `models`.
    recipe: rates and decay; the authors' SGD excludes nothing from decay.
    hidden: width of the projector's hidden layers.
    out: width of projection and prediction.
    bottleneck: width of the predictor's hidden layer.
    constant_predictor_lr: keep the predictor's rate at the highest of the run.
    frozen_patch_embed: whether the patch embedding is never trained.
    dtype: compute dtype of the heads.
    chunks: into how many parts the encoder's batch is cut.

  Returns:
    The method.
  """
  return SimSiam(
    encoder=encoder,
    projector=simsiam_projector(hidden, out, dtype=dtype),
    predictor=simsiam_predictor(bottleneck, out, dtype=dtype),
    predictor_lr=recipe.peak if constant_predictor_lr else recipe.lr,
    recipe=recipe,
    frozen_patch_embed=frozen_patch_embed,
    chunks=chunks,
  )
