"""What contrastive methods share: views, passes, heads and the teacher."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from models.features import Features
from pretrain import collapse
from pretrain.teacher import copy_parts, move_towards, select_encoder
from training.chunking import in_chunks, merge_rows, split_rows
from training.optim import Rules
from training.recipe import Recipe
from training.rng import drop_path_noise, named_key
from training.schedules import Schedule
from training.state import Aux, Figure
from training.warm_start import given

TEACHER = ('encoder', 'projector')  # a predictor has no teacher


@dataclasses.dataclass(frozen=True, kw_only=True)
class Siamese:
  """A contrastive method less its loss.

  Parameters: `encoder`, `projector` and, where there is one, `predictor`;
  method_state: `teacher` with copies of the first two, if `momentum` is given.

  Attributes:
    encoder: an encoder with LayerNorm only (views of one size go through as one
      batch); the student drops paths, the teacher never.
    projector: head of student and teacher.
    predictor: head of the student on top of it, or None.
    recipe: rates, decay, clipping.
    momentum: of the teacher by step; None for a method without one.
    ahead: the authors move the teacher at the beginning of a step, before its
      keys: here that is the end of the step before with the next step's
      momentum, the same sequence. Else it moves after the update.
    frozen_patch_embed: the patch embedding is never trained (Chen et al.,
      arXiv:2104.02057, §4.2).
    chunks: into how many parts the encoder's batch is cut.
    views: names of the views, in the order of the loss.
  """

  encoder: Any
  projector: Any
  predictor: Any = None
  recipe: Recipe
  momentum: Schedule | None = None
  ahead: bool = False
  frozen_patch_embed: bool = False
  chunks: int = 1
  views: tuple[str, ...] = ('view1', 'view2')

  def init(self, rng, batch, initial=None) -> tuple[Any, Any]:
    """Student and teacher start equal.

    Args:
      rng: a key.
      batch: views by name; only their shapes matter.
      initial: {parameter path: array} that replaces what was drawn.

    Returns:
      params and method_state, see the class.

    Raises:
      ValueError: views that the method does not know or lacks.
    """
    self._check_views(batch)
    images = batch[self.views[0]]
    encoder = self.encoder.init(named_key(rng, 'encoder'), images)['params']
    pooled = self.encoder.apply({'params': encoder}, images).pooled
    projector = self.projector.init(named_key(rng, 'projector'), pooled)
    params = dict(encoder=encoder, projector=projector['params'])
    if self.predictor is not None:
      z = self.projector.apply(projector, pooled)
      predictor = self.predictor.init(named_key(rng, 'predictor'), z)
      params['predictor'] = predictor['params']
    params = given(params, initial)
    if self.momentum is None:
      return params, {}
    return params, dict(teacher=copy_parts(params, TEACHER))

  def _check_views(self, batch) -> None:
    images = [name for name, x in batch.items() if len(x.shape) == 4]
    if sorted(images) != sorted(self.views):
      raise ValueError(
        f'{type(self).__name__} learns from the views {list(self.views)}, the '
        f'config has {images}: change config.views (only DINO takes local '
        'crops)'
      )

  def encode(
    self, params, images: Sequence[jax.Array], rng: jax.Array | None = None
  ) -> tuple[Features, ...]:
    """Features of views, through the encoder as one batch per size.

    Args:
      params: of student or teacher.
      images: views [b, H, W, c].
      rng: key of the step, for dropping paths; None keeps them all.

    Returns:
      One Features per view.
    """
    out: list[Any] = [None] * len(images)
    for group, shape in enumerate(dict.fromkeys(x.shape for x in images)):
      where = [i for i, x in enumerate(images) if x.shape == shape]
      noise = None
      if rng is not None:
        key = rng if not group else named_key(rng, f'size {group}')
        noise = drop_path_noise(self.encoder, key, len(where) * shape[0])
      together = self._encode([images[i] for i in where], params, noise)
      for i, features in zip(where, together, strict=True):
        out[i] = features
    return tuple(out)

  def _encode(self, images, params, noise) -> list[Features]:
    """Views of one size."""
    count = len(images)
    # Rows of the views alternate, so that each device keeps its own rows.
    rows = merge_rows(jnp.stack(images))

    def run(x, noise):
      return self.encoder.apply({'params': params['encoder']}, x, noise=noise)

    features = in_chunks(run, self.chunks, rows, noise)
    split = jax.tree.map(lambda x: split_rows(x, count), features)
    return [jax.tree.map(lambda x, i=i: x[i], split) for i in range(count)]

  def project(self, params, features: Features) -> jax.Array:
    """The projector's output for one view, [b, d]."""
    head = {'params': params['projector']}
    return self.projector.apply(head, features.pooled)

  def project_all(self, params, views: Sequence[Features]) -> list[jax.Array]:
    """The projector's output for all views as one batch, [b, d] each."""
    pooled = merge_rows(jnp.stack([features.pooled for features in views]))
    z = self.projector.apply({'params': params['projector']}, pooled)
    return list(split_rows(z, len(views)))

  def predict(self, params, z: jax.Array) -> jax.Array:
    """The predictor's output for one view, [b, d]."""
    return self.predictor.apply({'params': params['predictor']}, z)

  def students(
    self, params, batch, rng
  ) -> tuple[list[jax.Array], tuple[Features, ...]]:
    """The views, and the student's features of each."""
    images = [batch[name] for name in self.views]
    return images, self.encode(params, images, rng)

  def queries(self, params, students: Sequence[Features]) -> list[jax.Array]:
    """The student's predictions by view, [b, d] each."""
    return [
      self.predict(params, self.project(params, features))
      for features in students
    ]

  def keys(self, method_state, images: Sequence[jax.Array]) -> list[jax.Array]:
    """The teacher's projections by view, [b, d] each, without a gradient."""
    teacher = jax.lax.stop_gradient(method_state['teacher'])
    return [
      self.project(teacher, features)
      for features in self.encode(teacher, images)
    ]

  def report(
    self, loss, students, images, step, *, metrics=None, **fields
  ) -> Aux:
    """What `loss` returns beside the loss.

    Args:
      loss: the contrast.
      students: the student's Features of the first views, in order; not of
        those that only the teacher sees.
      images: the same views.
      step: of training.
      metrics: more scalars.
      **fields: of Aux: `means`, `examples`.
    """
    views = self.views[: len(students)]
    scalars = dict(loss_contrast=loss, **(metrics or {}))
    if self.momentum is not None:
      scalars['momentum'] = self.momentum(step)
    return Aux(
      metrics=scalars | collapse.monitor(students[0].pooled),
      features=dict(zip(views, students, strict=True)),
      images=dict(zip(views, images, strict=True)),
      **fields,
    )

  def after_update(self, params, method_state, aux, step) -> Any:
    """Moves the teacher; see `ahead`."""
    del aux
    if self.momentum is None:
      return method_state
    teacher = move_towards(
      method_state['teacher'],
      copy_parts(params, TEACHER),
      self.momentum(step + self.ahead),
    )
    return dict(method_state, teacher=teacher)

  def rules(self) -> Rules:
    """The recipe's; the patch embedding may be frozen."""
    return self.recipe.rules(frozen_patch_embed=self.frozen_patch_embed)

  def encoder_params(self, params, method_state, which='student') -> Any:
    """The encoder of the student or of the teacher."""
    return select_encoder(params, method_state, which)

  def figures(self, params, method_state, batch) -> dict[str, Figure]:
    """Contrast alone draws nothing."""
    del params, method_state, batch
    return {}
