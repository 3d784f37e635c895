"""MoCo v3: contrast of two views against a momentum teacher.

Chen, Xie, He: An Empirical Study of Training Self-Supervised Vision
Transformers, 2021 (arXiv:2104.02057).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from models.features import Features
from models.heads import MLPHead
from pretrain import collapse
from pretrain.losses import info_nce
from pretrain.teacher import (
  copy_parts,
  drop_path_noise,
  given,
  move_towards,
  select_encoder,
)
from training.chunking import in_chunks, merge_rows, split_rows
from training.optim import NEVER, Rule, Rules
from training.rng import named_key
from training.schedules import Schedule, momentum_cosine
from training.state import Aux, Figure

TEACHER = ('encoder', 'projector')  # the predictor has no teacher


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoCoV3:
  """Algorithm 1 of the paper, with the order of the authors' code.

  The loss is ctr(q1, k2) + ctr(q2, k1), see `losses.info_nce`. The teacher is
  moved before its keys are computed, with the parameters of before the step
  and this step's momentum; here that is the end of the step before, with the
  next step's momentum: the same sequence.

  Differs from the paper: its Algorithm 1 moves the teacher after the update;
  # the authors' code moves it before. A shift of one step.

  Every trainable parameter decays, biases and norms included, as in the
  authors' code, which has one parameter group. The patch embedding stays as
  drawn (§4.2: it is where instability begins).

  Attributes:
    encoder: an encoder with LayerNorm only (both views go through as one
      batch).
    projector: head of student and teacher.
    predictor: head of the student.
    lr: learning rate by step.
    decay: weight decay.
    momentum: of the teacher, by step.
    temperature: τ.
    frozen_patch_embed: whether the patch embedding is never trained.
    chunks: into how many parts the encoder's batch is cut.
    views: names of the two views.
  """

  encoder: Any
  projector: Any
  predictor: Any
  lr: Schedule
  decay: float
  momentum: Schedule
  temperature: float = 0.2
  frozen_patch_embed: bool = True
  chunks: int = 1
  views: tuple[str, str] = ('view1', 'view2')

  def init(self, rng, batch, initial=None) -> tuple[Any, Any]:
    """Student and teacher start equal.

    Args:
      rng: a key.
      batch: views by name; only their shapes matter.
      initial: {parameter path: array} that replaces what was drawn.

    Returns:
      params {encoder, projector, predictor} and method_state {teacher}.
    """
    images = batch[self.views[0]]
    encoder = self.encoder.init(named_key(rng, 'encoder'), images)['params']
    pooled = self.encoder.apply({'params': encoder}, images).pooled
    projector = self.projector.init(named_key(rng, 'projector'), pooled)
    z = self.projector.apply(projector, pooled)
    predictor = self.predictor.init(named_key(rng, 'predictor'), z)
    params = dict(
      encoder=encoder,
      projector=projector['params'],
      predictor=predictor['params'],
    )
    params = given(params, initial)
    return params, dict(teacher=copy_parts(params, TEACHER))

  def _encode(self, encoder, images, noise=None) -> tuple[Features, ...]:
    """Features of both views, through the encoder as one batch."""
    # Rows of the views alternate, so that each device keeps its own rows.
    both = merge_rows(jnp.stack(images))

    def run(x, noise):
      return self.encoder.apply({'params': encoder}, x, noise=noise)

    features = in_chunks(run, self.chunks, both, noise)
    split = jax.tree.map(lambda x: split_rows(x, 2), features)
    return tuple(jax.tree.map(lambda x, i=i: x[i], split) for i in range(2))

  def _project(self, params, features):
    return self.projector.apply(
      {'params': params['projector']}, features.pooled
    )

  def loss(self, params, method_state, batch, rng, step) -> tuple[Any, Aux]:
    """See the class; metrics of contrast and collapse."""
    images = tuple(batch[name] for name in self.views)
    noise = drop_path_noise(self.encoder, rng, 2 * images[0].shape[0])
    students = self._encode(params['encoder'], images, noise)
    queries = [
      self.predictor.apply(
        {'params': params['predictor']}, self._project(params, features)
      )
      for features in students
    ]
    teacher = jax.lax.stop_gradient(method_state['teacher'])
    teachers = self._encode(teacher['encoder'], images)
    keys = [self._project(teacher, features) for features in teachers]
    loss1, hits1 = info_nce(queries[0], keys[1], temperature=self.temperature)
    loss2, hits2 = info_nce(queries[1], keys[0], temperature=self.temperature)
    loss = loss1 + loss2
    metrics = dict(
      loss_contrast=loss,
      contrast_accuracy=(hits1 + hits2) / 2,
      momentum=self.momentum(step),
      **collapse.monitor(students[0].pooled),
    )
    return loss, Aux(
      metrics=metrics,
      features=dict(zip(self.views, students, strict=True)),
      images=dict(zip(self.views, images, strict=True)),
    )

  def after_update(self, params, method_state, aux, step) -> Any:
    """Moves the teacher for the next step, with that step's momentum."""
    del aux
    teacher = move_towards(
      method_state['teacher'],
      copy_parts(params, TEACHER),
      self.momentum(step + 1),
    )
    return dict(method_state, teacher=teacher)

  def rules(self) -> Rules:
    """One group for all that trains; the patch embedding may be frozen."""
    everything = ('.*', Rule(lr=self.lr, decay=self.decay))
    if not self.frozen_patch_embed:
      return (everything,)
    frozen = Rule(lr=self.lr, decay=self.decay, trainable_from=NEVER)
    return (('encoder/patch_embed/.*', frozen), everything)

  def encoder_params(self, params, method_state, which='student') -> Any:
    """The student is what the paper evaluates."""
    return select_encoder(params, method_state, which)

  def figures(self, params, method_state, batch) -> dict[str, Figure]:
    """Contrast alone draws nothing."""
    del params, method_state, batch
    return {}


def moco_v3(
  encoder: Any,
  *,
  lr: Schedule,
  decay: float,
  total: int,
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
    lr: learning rate by step.
    decay: weight decay of everything that trains.
    total: length of the run in steps, for the teacher's momentum.
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
    lr=lr,
    decay=decay,
    momentum=momentum_cosine(momentum, total=total),
    temperature=temperature,
    frozen_patch_embed=frozen_patch_embed,
    chunks=chunks,
  )
