"""RePre: any contrastive method plus the reconstruction of raw pixels.

Wang et al.: RePre: Improving Self-Supervised Vision Transformer with
Reconstructive Pre-training, 2022 (arXiv:2201.06857).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from models.decoders import FusionDecoder, level_indices
from models.patches import unpatchify
from pretrain.branch import Branch
from pretrain.targets import Pixels
from pretrain.weighting import (
  Fixed,
  Weighting,
  keep_state,
  make_weighting,
  take_state,
)
from training.optim import Rule, Rules
from training.protocols import Method
from training.recipe import Recipe
from training.rng import named_key
from training.schedules import Schedule
from training.state import Aux, Figure
from training.warm_start import given

LOSSES = ('contrast', 'pixels')
WEIGHTINGS = ('balanced', 'uncertainty', 'fixed')
STATE = 'weighting'  # of the weighting, in method_state
CAPTION = (
  'The encoder sees the whole input: nothing is masked. Sharp pictures show '
  'what its features keep, not predictions.'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RePre:
  """A base method and one branch over its own features of a view, or of two.

  The base is given the unsplit rng and knows nothing of the branch: with
  weights fixed at (1, 0) each of its parameters follows the base alone, bit
  for bit. Decoder and uncertainty weights are optimiser groups of their own,
  so that the base's recipe, clipping included, is untouched. Neither is part
  of any teacher. Nothing is masked: the decoder rebuilds pixels that the
  encoder sees, so its pictures show what the features keep.

  Attributes:
    base: a method whose Aux holds `features` and `images` of the views.
    branch: what is reconstructed and from where.
    weighting: how the two losses, 'contrast' and 'pixels', are added up; its
      state, where it has one, is method_state['weighting'].
    lr: the decoder's learning rate by step.
    decay: the decoder's weight decay.
    weighting_lr: rate of the uncertainty weights (their own Adam, no decay).
    views: what is decoded (Algorithm 1: the first view); of several the mean
      counts.
    level_gradients: report the norm of the pixel loss's gradient at each level
      that the decoder reads: which levels it teaches. Costs the decoder twice.
  """

  base: Method
  branch: Branch
  weighting: Weighting
  lr: Schedule
  decay: Schedule | float
  weighting_lr: float = 1e-3
  views: tuple[str, ...] = ('view1',)
  level_gradients: bool = False

  @property
  def encoder(self) -> Any:
    """The base's encoder module."""
    return self.base.encoder

  def init(self, rng, batch, initial=None) -> tuple[Any, Any]:
    """The base's params plus {decoder, weighting}; likewise method_state."""
    params, method_state = self.base.init(rng, batch, initial)
    for view in self.views:
      if view not in batch:
        raise ValueError(
          f'method.repre.view={view!r} is not a view; known: {sorted(batch)}, '
          "or 'both'"
        )
    images = batch[self.views[0]][:1]
    features = self._encode(params['encoder'], images)
    decoder = self.branch.init(named_key(rng, 'decoder'), features)
    added = dict(decoder=decoder, weighting=self.weighting.init())
    if state := self.weighting.init_state():
      method_state = method_state | {STATE: state}
    return params | given(added, initial), method_state

  def _encode(self, encoder, images):
    return self.encoder.apply({'params': encoder}, images)

  def loss(self, params, method_state, batch, rng, step) -> tuple[Any, Aux]:
    """The weighted sum of the base's loss and the mean absolute pixel error."""
    contrast, aux = self.base.loss(params, method_state, batch, rng, step)
    errors = []
    for view in self.views:
      if view not in aux.features:
        raise ValueError(
          f'the base has no features of {view!r}: an asymmetric method encodes '
          f'{sorted(aux.features)}'
        )
      features = aux.features[view]
      if self._unweighted():
        # Nothing flows back: not even zeros, whose sums could round otherwise.
        features = jax.lax.stop_gradient(features)
      errors.append(
        self.branch.loss(params['decoder'], features, aux.images[view])
      )
    pixels = sum(errors) / len(errors)
    losses = dict(contrast=contrast, pixels=pixels)
    weighed = self.weighting(
      params['weighting'], method_state.get(STATE, {}), losses
    )
    metrics = dict(weighed.metrics, loss_pixels=pixels)
    if self.level_gradients:
      metrics |= self._level_gradients(params['decoder'], aux)
    aux = aux.replace(metrics=aux.metrics | metrics)
    return weighed.total(losses), keep_state(aux, STATE, weighed)

  def _level_gradients(self, decoder, aux) -> dict[str, jax.Array]:
    """Norm of the pixel loss's gradient by level, for the first view."""
    view = self.views[0]
    fixed, features = jax.lax.stop_gradient((decoder, aux.features[view]))

    def error(levels):
      seen = features.replace(levels=levels)
      return self.branch.loss(fixed, seen, aux.images[view])

    grads = jax.grad(error)(features.levels)
    return {
      f'grad_level_{i}': jnp.linalg.norm(grads[i].tokens.astype(jnp.float32))
      for i in self.branch.levels
    }

  def _unweighted(self) -> bool:
    return isinstance(self.weighting, Fixed) and (
      self.weighting.weights['pixels'] == 0
    )

  def after_update(self, params, method_state, aux, step) -> Any:
    """The base's, and the weighting's."""
    new = self.base.after_update(params, method_state, aux, step)
    return take_state(new, STATE, aux)

  def rules(self) -> Rules:
    """Decoder and weighting first, then the base's rules."""
    return (
      ('decoder/.*', Rule(lr=self.lr, decay=self.decay)),
      # LARS or SGD at a base's rate would throw a scalar far off.
      ('weighting/.*', Rule(lr=self.weighting_lr, optimizer='adamw')),
      *self.base.rules(),
    )

  def encoder_params(self, params, method_state, which='student') -> Any:
    """The base's."""
    return self.base.encoder_params(params, method_state, which)

  def figures(self, params, method_state, batch) -> dict[str, Figure]:
    """Input, reconstruction and absolute error, one row per image.

    The encoder sees the whole image, as in training: nothing is masked.
    """
    images = batch[self.views[0]].astype(jnp.float32)
    features = self._encode(params['encoder'], images)
    prediction = self.branch.predict(params['decoder'], features)
    rebuilt = unpatchify(prediction, self.branch.target.patch_size)
    rebuilt = rebuilt[:, : images.shape[1], : images.shape[2]]
    cells = [images, jnp.clip(rebuilt, 0, 1), jnp.abs(rebuilt - images)]
    grid = Figure(
      images=jnp.stack(cells, axis=1),
      columns=('input', 'reconstruction', 'error'),
      caption=CAPTION,
    )
    drawn = self.base.figures(params, method_state, batch)
    return drawn | dict(reconstruction=grid)


def repre(
  base: Method,
  recipe: Recipe,
  *,
  width: int | tuple[int, ...] = 128,
  levels: int = 4,
  fusion: str = 'conv',
  fusion_layers: int = 2,
  lateral: bool = True,
  view: str = 'view1',
  level_gradients: bool = False,
  weighting: str = 'balanced',
  weights: tuple[float, float] = (1.0, 1.0),
  weighting_lr: float = 1e-3,
  weighting_window: int = 10,
  dtype: str = 'float32',
  chunks: int = 1,
) -> RePre:
  """RePre on a contrastive method.

  Args:
    base: the contrastive method.
    recipe: the decoder takes its rate and decay, nothing else.
    width: of the decoder, or of each fusion block from deep to shallow; 64,
      128, 256 for ViT-Ti, S, B and (128, 64, 32) for Swin-T cost 2.2 to 3 % of
      MoCo v3's FLOPs.
    levels: how many levels of the encoder are fused (K); 1 is the ablation
      "Single".
    fusion: 'conv' or 'transformer' (Table 5).
    fusion_layers: layers per fusion block (N).
    lateral: bring the levels to `width` first, see `FusionDecoder`.
    view: the decoded view, or 'both' for view1 and view2.
    level_gradients: report gradient norms by level, see `RePre`.
    weighting: 'balanced' takes the optimum of the learned weights in closed
      form, 'uncertainty' learns them (Eq. 4), 'fixed' takes `weights`; see
      `pretrain.weighting`.
    weights: of (contrast, pixels) where they are fixed.
    weighting_lr: rate of the learned ones.
    weighting_window: steps over which 'balanced' averages the losses.
    dtype: compute dtype of the decoder.
    chunks: into how many parts the decoder's batch is cut.

  Returns:
    The method.

  Raises:
    ValueError: an unknown weighting, or more levels than blocks.
  """
  return RePre(
    base=base,
    branch=_branch(
      base.encoder,
      width=width,
      levels=levels,
      chunks=chunks,
      fusion=fusion,
      fusion_layers=fusion_layers,
      lateral=lateral,
      dtype=dtype,
    ),
    weighting=make_weighting(
      'method.repre',
      weighting,
      WEIGHTINGS,
      LOSSES,
      weights=weights,
      window=weighting_window,
    ),
    lr=recipe.lr,
    decay=recipe.decay,
    weighting_lr=weighting_lr,
    views=('view1', 'view2') if view == 'both' else (view,),
    level_gradients=level_gradients,
  )


def _branch(
  encoder: Any,
  *,
  width: int | tuple[int, ...],
  levels: int,
  chunks: int,
  fusion_layers: int,
  **fields: Any,
) -> Branch:
  """From some levels of an encoder to the pixels of the shallowest's patches.

  Raises:
    ValueError: numbers below 1, or more levels than there are.
  """
  widths = (width,) if isinstance(width, int) else tuple(width)
  if min(widths) < 1 or fusion_layers < 1:
    raise ValueError(
      'method.repre needs width and fusion_layers of at least 1; got '
      f'{widths} and {fusion_layers}'
    )
  taps = level_indices(len(encoder.strides), levels)
  patch_size = encoder.strides[taps[0]]
  if len(widths) > 1:  # stated for four levels
    widths = widths[: max(levels - 1, 1)]
  return Branch(
    levels=taps,
    decoder=FusionDecoder(
      width=widths[0] if len(widths) == 1 else widths,
      patch_size=patch_size,
      out_channels=encoder.in_channels,
      fusion_layers=fusion_layers,
      mean=encoder.mean,
      **fields,
    ),
    target=Pixels(patch_size),
    chunks=chunks,
  )
