"""DINO: a student's crops learn the teacher's distribution over other crops.

Caron et al.: Emerging Properties in Self-Supervised Vision Transformers, 2021
(arXiv:2104.14294).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from models.heads import DINOHead
from pretrain.losses import dino as dino_loss
from pretrain.losses import update_centre
from pretrain.siamese import Siamese
from training.optim import NEVER, Rule, Rules
from training.recipe import Recipe
from training.schedules import Schedule, by_epoch, momentum_cosine
from training.state import Aux


@dataclasses.dataclass(frozen=True, kw_only=True)
class DINO(Siamese):
  """Algorithm 1 of the paper with local crops; see `losses.dino`.

  The teacher sees the first two views, the student all of them: one pass of the
  encoder per size, one of the head over all. The centre moves after the loss,
  the teacher after the update.

  method_state: `teacher` and `centre` [out].

  Attributes:
    teacher_temperature: τ_t by step.
    student_temperature: τ_s.
    centre_momentum: of the centre.
    frozen_last: steps in which the last layer of the head does not move.
  """

  teacher_temperature: Schedule
  student_temperature: float = 0.1
  centre_momentum: float = 0.9
  frozen_last: int = 0

  def init(self, rng, batch, initial=None) -> tuple[Any, Any]:
    """As `Siamese`, with a centre of zeros."""
    params, method_state = super().init(rng, batch, initial)
    centre = jnp.zeros((self.projector.out,), jnp.float32)
    return params, dict(method_state, centre=centre)

  def loss(self, params, method_state, batch, rng, step) -> tuple[Any, Aux]:
    """See the class; ln(out) where nothing is learned."""
    images, students = self.students(params, batch, rng)
    logits = self.project_all(params, students)
    teacher = jax.lax.stop_gradient(method_state['teacher'])
    targets = self.project_all(teacher, self.encode(teacher, images[:2]))
    temperature = self.teacher_temperature(step)
    loss = dino_loss(
      logits,
      targets,
      method_state['centre'],
      student_temperature=self.student_temperature,
      teacher_temperature=temperature,
    )
    centre = update_centre(
      method_state['centre'], targets, self.centre_momentum
    )
    return loss, self.report(
      loss,
      students,
      images,
      step,
      metrics=dict(teacher_temperature=temperature),
      means=dict(centre=centre),
    )

  def after_update(self, params, method_state, aux, step) -> Any:
    """The centre of this step, and the teacher's move."""
    method_state = super().after_update(params, method_state, aux, step)
    return dict(method_state, centre=aux.means['centre'])

  def rules(self) -> Rules:
    """The last layer starts later; its gain may never train."""
    recipe = self.recipe
    last = Rule(
      lr=recipe.lr,
      decay=recipe.decay,
      clip=recipe.clip,
      trainable_from=self.frozen_last,
    )
    gain = ()
    if self.projector.norm_last:
      frozen = dataclasses.replace(last, trainable_from=NEVER)
      gain = (('projector/last/g', frozen),)
    return (*gain, ('projector/last/.*', last), *super().rules())


def dino(
  encoder: Any,
  recipe: Recipe,
  *,
  hidden: int = 2048,
  bottleneck: int = 256,
  out: int = 65536,
  norm_last: bool = True,
  local_crops: int = 8,
  momentum: float = 0.996,
  centre_momentum: float = 0.9,
  student_temperature: float = 0.1,
  teacher_temperature: float = 0.04,
  warmup_teacher_temperature: float = 0.04,
  warmup_teacher_epochs: int = 0,
  freeze_last_epochs: int = 1,
  frozen_patch_embed: bool = False,
  dtype: str = 'float32',
  chunks: int = 1,
) -> DINO:
  """DINO (authors' code, `main_dino.py`).

  Args:
    encoder: an encoder of `models` in DINO's flavour.
    recipe: rates, decay that rises, clipping per tensor.
    hidden: width of the head's hidden layers.
    bottleneck: width of what its last layer reads.
    out: number of its outputs.
    norm_last: keep the gain of the last layer at 1.
    local_crops: views beside the two global ones: 'local1', 'local2', ...
    momentum: of the teacher at step 0; rises to 1 along a cosine.
    centre_momentum: of the centre.
    student_temperature: τ_s.
    teacher_temperature: τ_t after its warm-up.
    warmup_teacher_temperature: τ_t in the first epoch.
    warmup_teacher_epochs: epochs of τ_t's linear warm-up.
    freeze_last_epochs: epochs in which the last layer does not move.
    frozen_patch_embed: whether the patch embedding is never trained.
    dtype: compute dtype of the head.
    chunks: into how many parts the encoder's batch is cut.

  Returns:
    The method.
  """
  local = tuple(f'local{i + 1}' for i in range(local_crops))
  return DINO(
    encoder=encoder,
    projector=DINOHead(
      hidden, bottleneck, out, norm_last=norm_last, dtype=dtype
    ),
    recipe=recipe,
    momentum=momentum_cosine(momentum, total=recipe.total),
    teacher_temperature=by_epoch(
      warmup_teacher_temperature,
      teacher_temperature,
      warmup_epochs=warmup_teacher_epochs,
      steps_per_epoch=recipe.steps_per_epoch,
    ),
    student_temperature=student_temperature,
    centre_momentum=centre_momentum,
    frozen_last=recipe.steps(freeze_last_epochs),
    views=('view1', 'view2', *local),
    frozen_patch_embed=frozen_patch_embed,
    chunks=chunks,
  )
