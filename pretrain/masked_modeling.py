"""Masked image modelling: hide patches, encode the rest, predict."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from models.features import Features
from models.masking import Mask
from pretrain import collapse
from pretrain.branch import Branch
from pretrain.teacher import select_encoder
from training.chunking import in_chunks
from training.optim import Rules
from training.recipe import Recipe
from training.rng import drop_path_noise, named_key
from training.state import Aux, Figure
from training.warm_start import given

VIEW = 'view1'
GREY = 0.5  # of hidden patches in figures


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedModeling:
  """One view, one mask, and branches on what the encoder makes of the rest.

  The loss is the sum of the branches' mean errors. All work is per example and
  is done in chunks; a mask depends on (rng, row) alone, so that neither chunks
  nor devices nor hosts change what is hidden.

  Parameters: `encoder`, and those of every branch's decoder under its name.

  Attributes:
    encoder: an encoder that takes masks.
    masking: (rng, grid, batch=b) -> Mask.
    branches: what is predicted and from where, by name.
    recipe: rates, decay, clipping.
    chunks: into how many parts the batch is cut.
    drawn: the branch whose predictions figures show; its target can `restore`.
  """

  encoder: Any
  masking: Callable[..., Mask]
  branches: Mapping[str, Branch]
  recipe: Recipe
  chunks: int = 1
  drawn: str = 'decoder'

  def init(self, rng, batch, initial=None) -> tuple[Any, Any]:
    """Parameters, see the class; there is no other state.

    Args:
      rng: a key.
      batch: views by name; only their shapes matter.
      initial: {parameter path: array} that replaces what was drawn.

    Returns:
      params and an empty method_state.

    Raises:
      ValueError: other views than the one.
    """
    views = [name for name, x in batch.items() if len(x.shape) == 4]
    if views != [VIEW]:
      raise ValueError(
        f'masked modelling learns from one view, {VIEW!r}; the config has '
        f'{views}: change config.views'
      )
    images = batch[VIEW][:1]
    mask = self._mask(rng, images)
    encoder = self.encoder.init(named_key(rng, 'encoder'), images, mask)
    features = self._encode(encoder['params'], images, mask)
    params = dict(encoder=encoder['params'])
    for name, branch in self.branches.items():
      params[name] = branch.init(named_key(rng, name), features)
    return given(params, initial), {}

  def _mask(self, rng, images: jax.Array) -> Mask:
    grid = tuple(side // self.encoder.cell for side in images.shape[1:3])
    return self.masking(named_key(rng, 'mask'), grid, batch=images.shape[0])

  def _encode(self, encoder, images, mask, noise=None) -> Features:
    return self.encoder.apply({'params': encoder}, images, mask, noise=noise)

  def loss(self, params, method_state, batch, rng, step) -> tuple[Any, Aux]:
    """The sum of the branches' errors; features are of the visible patches."""
    del method_state, step
    images = batch[VIEW]
    mask = self._mask(rng, images)
    noise = drop_path_noise(self.encoder, rng, images.shape[0])

    def run(images, mask, noise):
      features = self._encode(params['encoder'], images, mask, noise)
      errors = {
        name: branch.errors(params[name], features, images)
        for name, branch in self.branches.items()
      }
      return features, errors

    features, errors = in_chunks(run, self.chunks, images, mask, noise)
    losses = {
      f'loss_{name}': branch.mean(errors[name], mask)
      for name, branch in self.branches.items()
    }
    # Nothing asks for features that are apart, and CLS stays almost the same
    # for all images: of the signs of collapse only the rank means something.
    rank = collapse.monitor(features.pooled)['effective_rank']
    return sum(losses.values()), Aux(
      metrics=losses | dict(effective_rank=rank),
      features={VIEW: features},
      images={VIEW: images},
    )

  def after_update(self, params, method_state, aux, step) -> Any:
    """There is nothing to update."""
    del params, aux, step
    return method_state

  def rules(self) -> Rules:
    """The recipe's."""
    return self.recipe.rules()

  def encoder_params(self, params, method_state, which='student') -> Any:
    """The encoder; there is no teacher."""
    return select_encoder(params, method_state, which)

  def figures(self, params, method_state, batch) -> dict[str, Figure]:
    """Input, what the encoder sees, and predictions in the hidden places.

    The masks are the same at every step, so that pictures can be compared.
    """
    del method_state
    images = batch[VIEW].astype(jnp.float32)
    mask = self._mask(jax.random.key(0), images)
    features = self._encode(params['encoder'], images, mask)
    branch = self.branches[self.drawn]
    prediction = branch.predict(params[self.drawn], features)
    rebuilt = jnp.clip(branch.target.restore(prediction, images), 0, 1)
    hidden = self._pixels(mask, images)
    cells = [
      images,
      jnp.where(hidden, GREY, images),
      jnp.where(hidden, rebuilt, images),
    ]
    grid = Figure(
      images=jnp.stack(cells, axis=1),
      columns=('input', 'visible', 'reconstruction'),
    )
    return dict(reconstruction=grid)

  def _pixels(self, mask: Mask, images: jax.Array) -> jax.Array:
    """Which pixels are hidden, [b, H, W, 1]."""
    return mask.share(images.shape[1:3])[..., None] > 0
