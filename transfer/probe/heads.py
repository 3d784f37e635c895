"""Linear probes on a frozen encoder, as many at once as one likes.

The protocols of MoCo v3, DINO, MAE and MoBY are configs of one method
(`configs/linear_probe.py`). Learning rates x features are trained side by side
on one forward pass of the encoder (iBOT and DINOv2 sweep so).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from input_pipeline.mixing import soft_labels
from models.features import Features
from training.chunking import in_chunks
from training.optim import NEVER, Clip, Rule, Rules
from training.rng import drop_path_noise, named_key
from training.schedules import Schedule
from training.state import Aux, Figure
from training.warm_start import given
from transfer.pooling import pool_blocks

VIEW = 'view1'
EPSILON = 1e-6  # of MAE's BatchNorm
MOMENTUM = 0.9  # of its running statistics
DIVERGED = 1e10  # a weight as large as this will not come back


@dataclasses.dataclass(frozen=True)
class Probe:
  """What one family of linear classifiers reads.

  Attributes:
    blocks: n, of the last blocks.
    pooling: one of `transfer.pooling.POOLINGS`.
  """

  blocks: int = 1
  pooling: str = 'auto'

  @property
  def name(self) -> str:
    """Of its parameters and metrics."""
    return f'{self.pooling}_{self.blocks}'


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearProbes:
  """Linear classifiers for every probe and learning rate.

  Parameters: `encoder`, frozen, and for each probe `probes/NAME/{kernel
  [r, d, classes], bias [r, classes]}`, one slice for each of r rates; all
  slices start equal. method_state: running `mean` and `var` of each probe's
  features, where `batch_norm`.

  Attributes:
    encoder: the module; frozen, never dropping paths unless `noisy`.
    probes: the features to read.
    rates: learning rates, r.
    schedule: factor of all rates by step, 1 at its highest.
    classes: number of classes.
    decay: weight decay of kernels and biases.
    clip: norm to which each classifier's gradient is clipped; 0 for none.
    batch_norm: normalise features by batch statistics, without scale and bias
      (MAE: He et al., 2022, appendix A.1).
    init_std: standard deviation of the kernels at the start, normal.
    smoothing: of the labels: a share that is spread evenly over all classes.
    noisy: drop paths while training, as MoBY's code does.
    chunks: into how many parts the encoder's batch is cut.
  """

  encoder: Any
  probes: tuple[Probe, ...]
  rates: tuple[float, ...]
  schedule: Schedule
  classes: int
  decay: float = 0.0
  clip: float = 0.0
  batch_norm: bool = False
  init_std: float = 0.01
  smoothing: float = 0.0
  noisy: bool = False
  chunks: int = 1

  def __post_init__(self):
    if not self.probes or not self.rates:
      raise ValueError(
        'a linear probe needs at least one of config.probe.lrs, blocks and '
        'pooling'
      )
    if len({probe.name for probe in self.probes}) < len(self.probes):
      raise ValueError('config.probe names some features twice')

  def init(self, rng, batch, initial=None) -> tuple[Any, Any]:
    """See the class.

    Args:
      rng: a key.
      batch: {VIEW: images} or {'features': {probe's name: [b, d]}}.
      initial: the encoder's parameters by path.

    Returns:
      params and method_state.
    """
    params = {}
    if VIEW in batch:
      one = batch[VIEW][:1]
      params['encoder'] = given(
        {
          'encoder': self.encoder.init(named_key(rng, 'encoder'), one)['params']
        },
        initial,
      )['encoder']
    features = self.features(params, batch)
    draw = jax.nn.initializers.normal(self.init_std)
    params['probes'], state = {}, {}
    for name, x in features.items():
      d = x.shape[-1]
      kernel = draw(named_key(rng, name), (d, self.classes))
      params['probes'][name] = dict(
        kernel=jnp.tile(kernel, (len(self.rates), 1, 1)),
        bias=jnp.zeros((len(self.rates), self.classes)),
      )
      if self.batch_norm:
        state[name] = dict(mean=jnp.zeros(d), var=jnp.ones(d))
    return params, state

  def features(self, params, batch, rng=None) -> dict[str, jax.Array]:
    """What each probe reads, float32 [b, d] by name, without a gradient.

    Args:
      params: with the encoder's.
      batch: see `init`.
      rng: key of the step, to drop paths by; None keeps them.
    """
    if 'features' in batch:
      return batch['features']
    frozen = jax.lax.stop_gradient(params['encoder'])
    images, noise = batch[VIEW], None
    if rng is not None and self.noisy:
      noise = drop_path_noise(self.encoder, rng, len(images))

    def read(images, noise):
      found = self.encoder.apply({'params': frozen}, images, noise=noise)
      return self.pick(frozen, found)

    return in_chunks(read, self.chunks, images, noise)

  def pick(self, params, features: Features) -> dict[str, jax.Array]:
    """What each probe reads of the encoder's Features."""
    return {
      probe.name: pool_blocks(
        self.encoder,
        params,
        features,
        blocks=probe.blocks,
        pooling=probe.pooling,
      )
      for probe in self.probes
    }

  def loss(self, params, method_state, batch, rng, step) -> tuple[Any, Aux]:
    """The sum of all classifiers' mean cross-entropies: none sees another.

    One that diverges (LARS grows weights by a share of themselves, so at a high
    rate without bound) is left behind before its loss makes steps non-finite
    for all.
    """
    del step
    features = self.features(params, batch, rng)
    targets = soft_labels(batch['label'], self.classes, self.smoothing)
    losses, means = [], {}
    for name, x in features.items():
      if self.batch_norm:
        mean, var, b = x.mean(axis=0), x.var(axis=0), len(x)
        # PyTorch keeps the unbiased variance.
        means[name] = dict(mean=mean, var=var * (b / max(b - 1, 1)))
        x = (x - mean) * jax.lax.rsqrt(var + EPSILON)
      logits = _logits(_still_learning(params['probes'][name]), x)
      entropy = -(targets * jax.nn.log_softmax(logits)).sum(axis=-1)
      losses.append(entropy.mean(axis=1))
    losses = jnp.concatenate(losses)
    metrics = dict(loss_best=losses.min(), loss_mean=losses.mean())
    return losses.sum(), Aux(metrics=metrics, means=means)

  def after_update(self, params, method_state, aux, step) -> Any:
    """Moves the running statistics."""
    del params, step
    return jax.tree.map(
      lambda old, new: MOMENTUM * old + (1 - MOMENTUM) * new,
      method_state,
      aux.means,
    )

  def rules(self) -> Rules:
    """One group for each probe's kernels and one for its biases."""
    rates = jnp.asarray(self.rates, jnp.float32)
    shared = dict(
      lr=lambda step: rates * self.schedule(step),
      decay=self.decay,
      copies=len(self.rates),
    )
    out = [('encoder/.*', Rule(lr=0.0, trainable_from=NEVER))]
    for probe in self.probes:
      path = f'probes/{probe.name}/'
      clip = Clip(norm=self.clip, scope=path) if self.clip else None
      kernels = Rule(**shared, clip=clip)
      # LARS adapts what has more than one axis.
      biases = dataclasses.replace(kernels, adaptive=False)
      out += [(f'{path}kernel', kernels), (f'{path}bias', biases)]
    return tuple(out)

  def encoder_params(self, params, method_state, which='student') -> Any:
    """The frozen encoder."""
    del method_state, which
    return params['encoder']

  def predict(self, params, method_state, batch) -> dict[str, jax.Array]:
    """Logits [r, b, classes] by probe; BatchNorm by running statistics."""
    out = {}
    for name, x in self.features(params, batch).items():
      if self.batch_norm:
        running = method_state[name]
        x = (x - running['mean']) * jax.lax.rsqrt(running['var'] + EPSILON)
      out[name] = _logits(params['probes'][name], x)
    return out

  def figures(self, params, method_state, batch) -> dict[str, Figure]:
    """Nothing to draw."""
    del params, method_state, batch
    return {}


def _logits(probe: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
  """[b, d] -> [r, b, classes], float32."""
  logits = jnp.einsum(
    'bd,rdc->rbc', x, probe['kernel'], precision=jax.lax.Precision.HIGHEST
  )
  return logits + probe['bias'][:, None]


def _still_learning(probe: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """The classifiers, those that diverged as zeros without a gradient."""

  def small(x):
    return (jnp.abs(x) < DIVERGED).all(axis=tuple(range(1, x.ndim)))

  learns = small(probe['kernel']) & small(probe['bias'])
  return {
    name: jnp.where(jnp.expand_dims(learns, range(1, x.ndim)), x, 0.0)
    for name, x in probe.items()
  }
