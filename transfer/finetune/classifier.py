"""Fine-tuning and supervised training of an encoder as a `Method`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from input_pipeline.mixing import soft_labels
from models import layers
from models.features import Features
from training.chunking import in_chunks
from training.optim import Rules
from training.recipe import Recipe
from training.rng import drop_path_noise, named_key
from training.state import Aux, Figure
from training.warm_start import given
from transfer.finetune.layer_decay import layer_rules
from transfer.probe.heads import VIEW

POOLS = ('auto', 'fc_norm')
# (images, labels or soft labels, key) -> (images, soft labels [b, classes])
Augment = Callable[[jax.Array, jax.Array, jax.Array], tuple[Any, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier:
  """An encoder and a linear head, both trained.

  Parameters: `encoder`, `head/{kernel, bias}` and, with `pool='fc_norm'`,
  `fc_norm/{scale, bias}`; method_state: `teacher`, an average of all
  parameters, where `average` is above 0.

  Attributes:
    encoder: the module.
    classes: number of classes.
    recipe: rates, decay, clipping.
    layer_decay: see `layer_rules`.
    decay_tables: likewise.
    pool: 'auto', the encoder's pooled feature; 'fc_norm', a LayerNorm of its
      own on the mean of the raw patch tokens (MAE, `global_pool`); the
      encoder's final norm then is not used and stays as it is.
    head_std: standard deviation of the head's kernel at the start, normal.
    augment: what happens to a batch of views on the device before the encoder,
      soft labels included; None for smoothed labels alone.
    smoothing: of the labels where `augment` is None.
    average: momentum of the exponential moving average of the parameters; 0 for
      none.
    chunks: into how many parts the encoder's batch is cut.
  """

  encoder: Any
  classes: int
  recipe: Recipe
  layer_decay: float = 1.0
  decay_tables: bool = False
  pool: str = 'auto'
  head_std: float = 2e-5
  augment: Augment | None = None
  smoothing: float = 0.0
  average: float = 0.0
  chunks: int = 1

  def __post_init__(self):
    if self.pool not in POOLS:
      raise ValueError(
        f'unknown config.head.pool {self.pool!r}; known: {", ".join(POOLS)}'
      )

  def init(self, rng, batch, initial=None) -> tuple[Any, Any]:
    """See the class; `initial` {path: array} replaces what was drawn."""
    one = batch[VIEW][:1]
    encoder = self.encoder.init(named_key(rng, 'encoder'), one)['params']
    features = self.encoder.apply({'params': encoder}, one)
    d = features.pooled.shape[-1]
    draw = jax.nn.initializers.normal(self.head_std)
    params = dict(
      encoder=encoder,
      head=dict(
        kernel=draw(named_key(rng, 'head'), (d, self.classes)),
        bias=jnp.zeros(self.classes),
      ),
    )
    if self.pool == 'fc_norm':
      params['fc_norm'] = dict(scale=jnp.ones(d), bias=jnp.zeros(d))
    params = given(params, initial)
    state = {}
    if self.average:
      state['teacher'] = jax.tree.map(jnp.copy, params)
    return params, state

  def _pooled(self, params, features: Features) -> jax.Array:
    if self.pool == 'auto':
      return features.pooled
    mean = features.levels[-1].tokens.astype(jnp.float32).mean(axis=1)
    norm = layers.layer_norm('fc_norm', epsilon=self.encoder.norm_epsilon)
    return norm.apply({'params': params['fc_norm']}, mean)

  def logits(self, params, images, noise=None) -> jax.Array:
    """Float32 [b, classes] of images [b, h, w, c] in [0, 1]."""

    def run(images, noise):
      features = self.encoder.apply(
        {'params': params['encoder']}, images, noise=noise
      )
      return self._pooled(params, features)

    pooled = in_chunks(run, self.chunks, images, noise)
    head = params['head']
    highest = jax.lax.Precision.HIGHEST
    return jnp.matmul(pooled, head['kernel'], precision=highest) + head['bias']

  def loss(self, params, method_state, batch, rng, step) -> tuple[Any, Aux]:
    """Mean cross-entropy with soft labels."""
    del method_state, step
    images, labels = batch[VIEW], batch['label']
    targets = soft_labels(labels, self.classes, self.smoothing)
    if self.augment is not None:
      images, targets = self.augment(images, labels, named_key(rng, 'augment'))
    noise = drop_path_noise(self.encoder, rng, len(images))
    logits = self.logits(params, images, noise)
    loss = -(targets * jax.nn.log_softmax(logits)).sum(axis=-1).mean()
    hits = logits.argmax(-1) == targets.argmax(-1)
    return loss, Aux(metrics=dict(train_top1=100.0 * hits.mean()))

  def after_update(self, params, method_state, aux, step) -> Any:
    """Moves the average of the parameters."""
    del aux, step
    if not self.average:
      return method_state
    m = self.average
    moved = jax.tree.map(
      lambda a, p: m * a + (1 - m) * p, method_state['teacher'], params
    )
    return dict(method_state, teacher=moved)

  def rules(self) -> Rules:
    """By layer."""
    return layer_rules(
      self.encoder,
      self.recipe,
      layer_decay=self.layer_decay,
      decay_tables=self.decay_tables,
    )

  def encoder_params(self, params, method_state, which='student') -> Any:
    """The encoder as it is trained, or ('teacher') its average."""
    if which == 'teacher':
      return method_state['teacher']['encoder']
    return params['encoder']

  def predict(self, params, method_state, batch) -> dict[str, jax.Array]:
    """Logits [b, classes], by 'last' parameters and by their 'average'."""
    out = dict(last=self.logits(params, batch[VIEW]))
    if self.average:
      out['average'] = self.logits(method_state['teacher'], batch[VIEW])
    return out

  def figures(self, params, method_state, batch) -> dict[str, Figure]:
    """Nothing to draw."""
    del params, method_state, batch
    return {}
