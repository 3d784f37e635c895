"""A contrastive method and a masked one on the same encoder."""

import dataclasses
from typing import Any

import jax

from pretrain.masked_modeling import VIEW, MaskedModeling
from pretrain.weighting import Balanced, Fixed, keep_state, take_state
from training.optim import Rules
from training.protocols import Method
from training.state import Aux, Figure
from training.warm_start import given

PREFIX = 'masked_'  # of the branches' parameters, metrics and figures
LOSSES = ('contrast', 'masked')
WEIGHTINGS = ('balanced', 'fixed')
STATE = 'masked_weighting'  # of the weighting, in method_state


@dataclasses.dataclass(frozen=True, kw_only=True)
class Joint:
  """A base method, and the branches of masked modelling on one of its views.

  The encoder sees that view once more, less what a mask hides, and the losses
  are added up. Both are given the unsplit rng and know nothing of each other:
  where one weighs 0 nothing of it reaches the encoder, not even zeros, whose
  sums could round otherwise; every parameter of the other then follows it
  alone, bit for bit if that is the base.

  The branches are optimiser groups of their own at the rate and decay of their
  recipe, without clipping, so that the base's recipe, clipping included, is
  untouched; the encoder is in the base's groups.

  Parameters: the base's, and those of the branches (and of a neck) with
  `masked_` before their names; method_state: the base's, `teachers` of the
  branches and, where the weighting has a state, `masked_weighting`.

  Attributes:
    base: a method whose encoder is that of `masked`.
    masked: the branches, and what is hidden from them.
    weighting: of the losses 'contrast' and 'masked'. What it computes from the
      losses (`Balanced`) it computes from the base's contrast alone; the weight
      of 'contrast' applies to the base's whole loss, with RePre's part.
    view: which of the base's views is masked.
  """

  base: Method
  masked: MaskedModeling
  weighting: Fixed | Balanced = Fixed(dict.fromkeys(LOSSES, 1.0))
  view: str = VIEW

  def __post_init__(self):
    if isinstance(self.base, MaskedModeling):
      raise ValueError(
        'method.masked goes beside a contrastive method, and this one is '
        'masked itself: leave method.masked out'
      )
    if self.base.encoder != self.masked.encoder:
      raise ValueError('both methods must be given one and the same encoder')

  @property
  def encoder(self) -> Any:
    """The base's encoder module, which is that of the branches."""
    return self.base.encoder

  def init(self, rng, batch, initial=None) -> tuple[Any, Any]:
    """Parameters and states of both, see the class.

    Raises:
      ValueError: there is no such view.
    """
    if self.view not in batch:
      views = sorted(n for n, x in batch.items() if len(x.shape) == 4)
      raise ValueError(
        f'method.masked.view={self.view!r} is not a view; known: {views}'
      )
    params, method_state = self.base.init(rng, batch, initial)
    theirs, added_state = self.masked.init(rng, self._masked_batch(batch))
    added = {PREFIX + n: x for n, x in theirs.items() if n != 'encoder'}
    if both := (params.keys() & added) | (method_state.keys() & added_state):
      raise ValueError(f'both methods have {sorted(both)}')
    if state := self.weighting.init_state():
      added_state = added_state | {STATE: state}
    return params | given(added, initial), method_state | added_state

  def _masked_batch(self, batch):
    """What masked modelling knows of a batch: its one view."""
    return {VIEW: batch[self.view]}

  def _masked_params(self, params):
    """Parameters by the names that masked modelling gives them."""
    own = {
      name.removeprefix(PREFIX): x
      for name, x in params.items()
      if name.startswith(PREFIX)
    }
    return dict(own, encoder=params['encoder'])

  def loss(self, params, method_state, batch, rng, step) -> tuple[Any, Aux]:
    """The weighted sum; features and images are the base's."""
    weight, masked_weight = self._fixed()
    still = dict(params, encoder=jax.lax.stop_gradient(params['encoder']))
    base, aux = self.base.loss(
      params if weight else still, method_state, batch, rng, step
    )
    masked, own = self.masked.loss(
      self._masked_params(params if masked_weight else still),
      method_state,
      self._masked_batch(batch),
      rng,
      step,
    )
    weighed = self.weighting(
      {},
      method_state.get(STATE, {}),
      dict(contrast=aux.metrics.get('loss_contrast', base), masked=masked),
    )
    metrics = {PREFIX + name: x for name, x in own.metrics.items()}
    metrics |= weighed.metrics | aux.metrics | dict(loss_masked=masked)
    loss = weighed.total(dict(contrast=base, masked=masked))
    return loss, keep_state(aux.replace(metrics=metrics), STATE, weighed)

  def _fixed(self) -> tuple[float, float]:
    """The weights, 1 where they are not fixed: only zeros matter."""
    if isinstance(self.weighting, Fixed):
      return tuple(self.weighting.weights[name] for name in LOSSES)
    return 1.0, 1.0

  def after_update(self, params, method_state, aux, step) -> Any:
    """The base's, and the weighting's; teachers of branches are frozen."""
    new = self.base.after_update(params, method_state, aux, step)
    return take_state(new, STATE, aux)

  def rules(self) -> Rules:
    """Those of the branches first, then the base's."""
    mine = tuple(
      (f'(?={PREFIX})({pattern})', dataclasses.replace(rule, clip=None))
      for pattern, rule in self.masked.rules()
    )
    return (*mine, *self.base.rules())

  def encoder_params(self, params, method_state, which='student') -> Any:
    """The base's."""
    return self.base.encoder_params(params, method_state, which)

  def figures(self, params, method_state, batch) -> dict[str, Figure]:
    """The base's, and what the branches predict."""
    masked = self.masked.figures(
      self._masked_params(params), method_state, self._masked_batch(batch)
    )
    drawn = self.base.figures(params, method_state, batch)
    return drawn | {PREFIX + name: figure for name, figure in masked.items()}
