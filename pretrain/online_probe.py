"""A linear probe that learns beside any method, without touching it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pretrain.losses import normalize
from training.optim import Rule, Rules
from training.protocols import Method
from training.rng import named_key
from training.state import Aux, Figure
from training.warm_start import given

NAME = 'online_probe'


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnlineProbe:
  """A base method and a linear classifier on its stop-gradient features.

  The classifier reads the pooled feature of the first view at unit length and
  learns with an Adam of its own; it follows the moving features, so its
  accuracy lies below a probe's that is trained afterwards. The base is given
  the unsplit rng and its parameters follow it alone, bit for bit.

  Attributes:
    base: a method whose Aux holds `features`.
    classes: number of classes.
    lr: rate of the classifier.
    scale: of the unit-length features, as the logits' 1 / temperature.
  """

  base: Method
  classes: int
  lr: float = 1e-2
  scale: float = 10.0

  @property
  def encoder(self) -> Any:
    """The base's."""
    return self.base.encoder

  def init(self, rng, batch, initial=None) -> tuple[Any, Any]:
    """The base's params plus {online_probe: {kernel, bias}}."""
    params, method_state = self.base.init(rng, batch, initial)
    image = next(x for x in batch.values() if len(x.shape) == 4)[:1]
    shape = jax.eval_shape(
      lambda p, x: self.encoder.apply({'params': p}, x).pooled,
      params['encoder'],
      image,
    ).shape
    draw = jax.nn.initializers.normal(0.01)
    kernel = draw(named_key(rng, NAME), (shape[-1], self.classes))
    probe = {NAME: dict(kernel=kernel, bias=jnp.zeros(self.classes))}
    return params | given(probe, initial), method_state

  def logits(self, params, pooled: jax.Array) -> jax.Array:
    """Float32 [b, classes] of pooled features [b, d]."""
    x = self.scale * normalize(jax.lax.stop_gradient(pooled))
    probe = params[NAME]
    return x @ probe['kernel'] + probe['bias']

  def loss(self, params, method_state, batch, rng, step) -> tuple[Any, Aux]:
    """The base's loss plus the classifier's cross-entropy."""
    loss, aux = self.base.loss(params, method_state, batch, rng, step)
    features = next(iter(aux.features.values()))
    logits = self.logits(params, features.pooled)
    entropy = optax.softmax_cross_entropy_with_integer_labels(
      logits, batch['label']
    ).mean()
    hits = 100.0 * (logits.argmax(-1) == batch['label']).mean()
    metrics = dict(loss_probe=entropy, train_probe_top1=hits)
    return loss + entropy, aux.replace(metrics=aux.metrics | metrics)

  def after_update(self, params, method_state, aux, step) -> Any:
    """The base's."""
    return self.base.after_update(params, method_state, aux, step)

  def rules(self) -> Rules:
    """The classifier first, then the base's rules."""
    mine = Rule(lr=self.lr, optimizer='adamw')
    return ((f'{NAME}/.*', mine), *self.base.rules())

  def encoder_params(self, params, method_state, which='student') -> Any:
    """The base's."""
    return self.base.encoder_params(params, method_state, which)

  def predict(self, params, method_state, batch) -> dict[str, jax.Array]:
    """{'online': logits [b, classes]} of the images `batch['view1']`."""
    encoder = self.encoder_params(params, method_state)
    features = self.encoder.apply({'params': encoder}, batch['view1'])
    return dict(online=self.logits(params, features.pooled))

  def figures(self, params, method_state, batch) -> dict[str, Figure]:
    """The base's."""
    return self.base.figures(params, method_state, batch)
