"""Masked image modelling: hide patches, encode the rest, predict."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from models.features import Features
from models.masking import Mask
from models.patches import check_divisible
from pretrain import collapse
from pretrain.branch import Branch
from pretrain.frozen import Frozen
from pretrain.mimic import Mimic
from pretrain.pictures import masked_picture
from pretrain.teacher import select_encoder
from training.chunking import in_chunks
from training.optim import Rules
from training.recipe import Recipe
from training.rng import drop_path_noise, named_key
from training.state import Aux, Figure
from training.warm_start import given

VIEW = 'view1'


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedModeling:
  """One view, one mask, and branches on what the encoder makes of the rest.

  The loss is the weighted sum of the branches' mean errors. All work is per
  example and is done in chunks; a mask depends on (rng, row) and on what a
  guide says of that row alone, so that neither chunks nor devices nor hosts
  change what is hidden.

  Parameters: `encoder`, those of every branch's decoder under its name, and
  `neck` where there is one; method_state: `teachers` by name, where there are
  any.

  Attributes:
    encoder: an encoder that takes masks.
    masking: (rng, grid, hints, batch=b) -> Mask.
    branches: what is predicted and from where, by name.
    recipe: rates, decay, clipping.
    weights: factors of the branches' errors, by name; 1 where nothing is said.
    cuts: after which blocks or stages no gradient flows back (LocalMIM's
      isolated segments); see the encoder.
    neck: a module (Features) -> Features between encoder and branches, or None.
    teachers: frozen encoders whose features branches predict, by name.
    guide: the teacher whose attention the masking gets as hints, or None.
    copies: masks per image; a masking that returns several rows for each image,
      one after the other (`partition_masking`).
    chunks: into how many parts the batch is cut.
    drawn: the branches whose predictions figures show; their targets can
      `restore`.
  """

  encoder: Any
  masking: Callable[..., Mask]
  branches: Mapping[str, Branch | Mimic]
  recipe: Recipe
  weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
  cuts: tuple[int, ...] = ()
  neck: Any = None
  teachers: Mapping[str, Frozen] = dataclasses.field(default_factory=dict)
  guide: str | None = None
  copies: int = 1
  chunks: int = 1
  drawn: tuple[str, ...] = ('decoder',)

  def init(self, rng, batch, initial=None) -> tuple[Any, Any]:
    """Parameters and teachers, see the class.

    Args:
      rng: a key.
      batch: views by name; only their shapes matter.
      initial: {parameter path: array} that replaces what was drawn.

    Returns:
      params and method_state; teachers are drawn, for the caller to replace.

    Raises:
      ValueError: other views than the one, or images that cells do not tile.
    """
    views = [name for name, x in batch.items() if len(x.shape) == 4]
    if views != [VIEW]:
      raise ValueError(
        f'masked modelling learns from one view, {VIEW!r}; the config has '
        f'{views}: change config.views'
      )
    images = batch[VIEW][:1]
    # Before a mask of another grid says that nothing is left to see.
    cell = self.encoder.cell
    check_divisible(images.shape[1:3], cell, "a mask's cell")
    teachers = {
      name: teacher.init(named_key(rng, f'teacher {name}'), images)
      for name, teacher in self.teachers.items()
    }
    _, mask, images, _ = self._given(dict(teachers=teachers), images, rng)
    encoder = self.encoder.init(named_key(rng, 'encoder'), images, mask)
    params = dict(encoder=encoder['params'])
    features = self._apply(params, images, mask)
    if self.neck is not None:
      neck = self.neck.init(named_key(rng, 'neck'), features)
      params['neck'] = neck['params']
      features = self._necked(params, features)
    for name, branch in self.branches.items():
      params[name] = branch.init(named_key(rng, name), features)
    state = dict(teachers=teachers) if teachers else {}
    return given(params, initial), state

  def _given(self, method_state, images, rng, chunks=1):
    """What a step works on, by row: sources, mask, images, noise.

    Sources are what targets are computed from, by name. Batches that are none
    of the run's, at the start and for figures, may not divide into its chunks.
    """
    b, size = len(images), images.shape[1:3]
    grid = tuple(side // self.encoder.cell for side in size)
    said = self._taught(method_state, images, grid, chunks)
    hints = said[self.guide].saliency if self.guide else None
    mask = self.masking(named_key(rng, 'mask'), grid, hints, batch=b)
    if self.copies > 1:
      # Rows of one image stay together, and so on their device.
      images, said = jax.tree.map(
        lambda x: jnp.repeat(x, self.copies, axis=0), (images, said)
      )
    noise = drop_path_noise(self.encoder, rng, len(images))
    return dict(said, images=images), mask, images, noise

  def _taught(self, method_state, images, grid, chunks):
    """What the teachers that are asked say of every cell, by name."""
    asked = {branch.source for branch in self.branches.values()} | {self.guide}
    said = {}
    for name, teacher in self.teachers.items():
      if name not in asked:
        continue
      params = jax.lax.stop_gradient(method_state['teachers'][name])

      def ask(images, teacher=teacher, params=params, name=name):
        guides = name == self.guide
        return teacher(params, images, grid, with_saliency=guides)

      said[name] = in_chunks(ask, chunks, images)
    return jax.lax.stop_gradient(said)

  def _apply(self, params, images, mask, noise=None) -> Features:
    return self.encoder.apply(
      {'params': params['encoder']}, images, mask, cuts=self.cuts, noise=noise
    )

  def _necked(self, params, features: Features) -> Features:
    if self.neck is None:
      return features
    return self.neck.apply({'params': params['neck']}, features)

  def encode(self, params, images, mask, noise=None) -> Features:
    """What branches read: of the visible patches, after the neck."""
    return self._necked(params, self._apply(params, images, mask, noise))

  def loss(self, params, method_state, batch, rng, step) -> tuple[Any, Aux]:
    """The sum of the branches' errors; features are of the visible patches."""
    del step
    given = self._given(method_state, batch[VIEW], rng, self.chunks)
    sources, mask, images, noise = given
    # One mask for all has no rows to be dealt out to chunks.
    shared = mask if len(mask.hidden) != len(images) else None

    def run(sources, own, images, noise):
      mask = shared or own
      features = self.encode(params, images, mask, noise)
      errors = {
        name: branch.errors(params[name], features, sources[branch.source])
        for name, branch in self.branches.items()
      }
      return features, errors

    own = None if shared else mask
    features, errors = in_chunks(run, self.chunks, sources, own, images, noise)
    losses = {
      name: branch.mean(errors[name], mask)
      for name, branch in self.branches.items()
    }
    # Nothing asks for features that are apart, and CLS stays almost the same
    # for all images: of the signs of collapse only the rank means something.
    rank = collapse.monitor(features.pooled)['effective_rank']
    if self.copies > 1:  # one row per image, as its label
      features = jax.tree.map(lambda x: x[:: self.copies], features)
    metrics = {f'loss_{name}': loss for name, loss in losses.items()}
    return self.total(losses), Aux(
      metrics=metrics | dict(effective_rank=rank),
      features={VIEW: features},
      images={VIEW: batch[VIEW]},
    )

  def total(self, losses: Mapping[str, jax.Array]) -> jax.Array:
    """The weighted sum."""
    return sum(self.weights.get(n, 1.0) * loss for n, loss in losses.items())

  def after_update(self, params, method_state, aux, step) -> Any:
    """There is nothing to update."""
    del params, aux, step
    return method_state

  def rules(self) -> Rules:
    """The recipe's."""
    return self.recipe.rules()

  def encoder_params(self, params, method_state, which='student') -> Any:
    """The encoder; frozen teachers are not the method's to give away."""
    if which == 'teacher':
      raise ValueError(
        "masked modelling has no moving teacher: set which='student'"
      )
    return select_encoder(params, method_state, which)

  def figures(self, params, method_state, batch) -> dict[str, Figure]:
    """Input, what the encoder sees, and predictions in the hidden places.

    The masks are the same at every step, so that pictures can be compared; a
    guide's follow its attention. Of several masks the first is shown.
    """
    images = batch[VIEW].astype(jnp.float32)
    rng = jax.random.key(0)
    _, mask, copies, _ = self._given(method_state, images, rng)
    features = self.encode(params, copies, mask)
    predictions = {
      name: self.branches[name].predict(params[name], features)
      for name in self.drawn
    }
    mask = mask.rows(len(copies))
    mask, predictions = jax.tree.map(
      lambda x: x[:: self.copies], (mask, predictions)
    )
    targets = {name: self.branches[name].target for name in self.drawn}
    return dict(
      reconstruction=masked_picture(images, mask, predictions, targets)
    )
