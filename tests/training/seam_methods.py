"""Four throw-away methods, each leaning on other seams of the loop.

None of them is shipped: they stand for families that will come (queues,
masking with a teacher, supervised training, delicate optimiser recipes).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from configs import common
from input_pipeline import order
from models.masking import mask_from_noise
from models.vit import ViT
from pretrain.branch import Branch
from pretrain.losses import normalize, squared_error
from pretrain.targets import Pixels
from pretrain.teacher import copy_parts, move_towards, select_encoder
from training import sharding
from training.optim import NEVER, Clip, Rule
from training.rng import named_key
from training.schedules import momentum_cosine
from training.state import Aux
from training.warm_start import given

SIDE = 8  # of the images in pixels
CLASSES = 3
VIEWS = ('view1', 'view2')


def mesh_of(devices, fsdp=1):
  return jax.make_mesh(
    (devices // fsdp, fsdp),
    sharding.AXES,
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
    devices=jax.devices()[:devices],
  )


def make_config(**fields):
  config = common.base()
  config.optim = dict(name='adamw', hyper=dict(b1=0.9, b2=0.999, eps=1e-8))
  config.update(dict(batch_size=8, log_every=1, eval_every=0))
  config.update(dict(checkpoint_every=0, keep_checkpoints=20, **fields))
  return config


def labelled_images(n, seed):
  """Noise whose brightness tells the class."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, CLASSES, n).astype(np.int32)
  images = rng.uniform(0, 0.4, (n, SIDE, SIDE, 3)) + 0.3 * (
    labels[:, None, None, None] / (CLASSES - 1)
  )
  return images.astype(np.float32), labels


@dataclasses.dataclass(frozen=True)
class Memory:
  """Float images in memory, not augmented, so that NumPy twins can follow.

  Attributes:
    images: [n, h, w, c] on the host.
    labels: [n].
    batch_size: global.
    mesh: the batch is split over it.
    poison: steps whose images are NaN.
  """

  images: np.ndarray
  labels: np.ndarray
  batch_size: int
  mesh: Any
  poison: tuple[int, ...] = ()

  @property
  def steps_per_epoch(self):
    return len(self.images) // self.batch_size

  def indices(self, step):
    return order.batch_indices(
      step, size=len(self.images), batch_size=self.batch_size, seed=0
    )

  def batch(self, step):
    index = self.indices(step)
    images = self.images[index]
    if step in self.poison:
      images = np.full_like(images, np.nan)
    rows = dict(image=images, label=self.labels[index], index=index)
    rows['index'] = index.astype(np.int32)
    return jax.device_put(rows, sharding.over_batch(self.mesh))

  @property
  def spec(self):
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      self.batch(0),
    )

  def render(self, batch, rng):
    del rng
    views = dict(view1=batch['image'], view2=batch['image'][:, :, ::-1])
    return views | dict(label=batch['label'], index=batch['index'])


def make_data(n=32, *, batch_size=8, devices=4):
  images, labels = labelled_images(n, seed=0)
  return Memory(images, labels, batch_size, mesh_of(devices))


def tiny_vit(**fields):
  sizes = dict(patch_size=2, width=16, depth=2, num_heads=2, mlp_ratio=2)
  return ViT(**sizes | fields)


class Throwaway:
  """What the four do alike."""

  def encoder_params(self, params, method_state, which='student'):
    return select_encoder(params, method_state, which)

  def figures(self, params, method_state, batch):
    del params, method_state, batch
    return {}


@dataclasses.dataclass(frozen=True)
class Queue(Throwaway):
  """Contrast against a queue of keys; the teacher moves at forward time."""

  encoder: Any = tiny_vit()
  length: int = 24
  temperature: float = 0.2
  momentum: Any = momentum_cosine(0.9, total=20)

  def init(self, rng, batch, initial=None):
    images = batch['view1']
    encoder = self.encoder.init(named_key(rng, 'encoder'), images)['params']
    params = given(dict(encoder=encoder), initial)
    shape = (self.length, self.encoder.width)
    keys = normalize(jax.random.normal(named_key(rng, 'queue'), shape))
    return params, dict(
      teacher=copy_parts(params, ('encoder',)),
      queue=keys,
      index=jnp.full((self.length,), -1, jnp.int32),
      pointer=jnp.zeros((), jnp.int32),
    )

  def _features(self, encoder, images):
    return self.encoder.apply({'params': encoder}, images)

  def loss(self, params, method_state, batch, rng, step):
    del rng
    students = self._features(params['encoder'], batch['view1'])
    teacher = jax.lax.stop_gradient(method_state['teacher'])
    q = normalize(students.pooled)
    k = normalize(self._features(teacher['encoder'], batch['view2']).pooled)
    positive = jnp.sum(q * k, axis=1, keepdims=True)
    negative = q @ method_state['queue'].T
    logits = jnp.concatenate([positive, negative], 1) / self.temperature
    loss = jnp.mean(jax.nn.logsumexp(logits, axis=1) - logits[:, 0])
    return loss, Aux(
      metrics=dict(momentum=self.momentum(step)),
      examples=dict(keys=k, index=batch['index']),
      features=dict(view1=students),
      images=dict(view1=batch['view1']),
    )

  def after_update(self, params, method_state, aux, step):
    keys, pointer = aux.examples['keys'], method_state['pointer']
    place = (pointer + jnp.arange(keys.shape[0])) % self.length
    return dict(
      teacher=move_towards(
        method_state['teacher'],
        copy_parts(params, ('encoder',)),
        self.momentum(step + 1),
      ),
      queue=method_state['queue'].at[place].set(keys),
      index=method_state['index'].at[place].set(aux.examples['index']),
      pointer=(pointer + keys.shape[0]) % self.length,
    )

  def rules(self):
    return (('encoder/.*', Rule(lr=1e-3, decay=0.1)),)


class Placing(nn.Module):
  """Puts visible tokens where they stand and predicts every patch."""

  out: int

  @nn.compact
  def __call__(self, levels):
    (level,) = levels
    b, k, d = level.tokens.shape
    h, w = level.grid
    rows = jnp.arange(b)[:, None]
    grid = jnp.zeros((b, h * w, d)).at[rows, level.index].set(level.tokens)
    place = self.param('place', nn.initializers.normal(0.1), (h * w, d))
    whole = jnp.broadcast_to(level.tokens.mean(1, keepdims=True), grid.shape)
    x = jnp.concatenate([grid, whole + place], axis=-1)
    x = nn.Dense(self.out, name='out')(nn.gelu(nn.Dense(32, name='in')(x)))
    return x.reshape(b, h, w, self.out)


def guided(rng, grid, hints, *, batch, ratio):
  """Hides the patches that the teacher's CLS token attends to most."""
  n = grid[0] * grid[1]
  ties = 1e-6 * jax.random.uniform(rng, (batch, n))
  return mask_from_noise(hints + ties, int(n * (1 - ratio)), grid)


@dataclasses.dataclass(frozen=True)
class Masked(Throwaway):
  """Pixels of hidden patches, a frozen teacher's tokens at visible ones."""

  encoder: Any = tiny_vit()
  masking: Any = functools.partial(guided, ratio=0.5)
  chunks: int = 1

  @property
  def branches(self):
    p, width = self.encoder.patch_size, self.encoder.width
    shared = dict(levels=(-1,), error=squared_error, chunks=self.chunks)
    return dict(
      pixels=Branch(
        decoder=Placing(p * p * 3), target=Pixels(p), on='masked', **shared
      ),
      # The target is computed beforehand and handed over per example.
      mimic=Branch(
        decoder=Placing(width), target=lambda maps: maps, on='visible', **shared
      ),
    )

  def init(self, rng, batch, initial=None):
    images = batch['view1']
    encoder = self.encoder.init(named_key(rng, 'encoder'), images)['params']
    teacher = self.encoder.init(named_key(rng, 'teacher'), images)['params']
    mask, _ = self.guide(teacher, images, rng)
    features = self.encoder.apply({'params': encoder}, images, mask=mask)
    params = dict(encoder=encoder)
    for name, branch in self.branches.items():
      params[name] = branch.init(named_key(rng, name), features)
    return given(params, initial), dict(teacher=dict(encoder=teacher))

  def guide(self, teacher, images, rng):
    """The teacher runs first: a mask and what is to be mimicked."""
    seen = self.encoder.apply({'params': teacher}, images, attention=(-1,))
    hints = seen.attention[-1][:, :, 0, 1:].mean(axis=1)
    key, b = named_key(rng, 'masking'), images.shape[0]
    mask = self.masking(key, seen.levels[-1].grid, hints, batch=b)
    h, w = seen.levels[-1].grid
    return mask, seen.tokens.reshape(b, h, w, -1)

  def loss(self, params, method_state, batch, rng, step):
    del step
    images = batch['view1']
    teacher = jax.lax.stop_gradient(method_state['teacher']['encoder'])
    mask, tokens = self.guide(teacher, images, rng)
    features = self.encoder.apply(
      {'params': params['encoder']}, images, mask=mask
    )
    targets = dict(pixels=images, mimic=tokens)
    losses = {
      f'loss_{name}': branch.loss(params[name], features, targets[name], mask)
      for name, branch in self.branches.items()
    }
    return sum(losses.values()), Aux(metrics=losses)

  def after_update(self, params, method_state, aux, step):
    del params, aux, step
    return method_state

  def rules(self):
    return (('.*', Rule(lr=3e-3)),)


class NormalizedPixels(nn.Module):
  """BatchNorm of the raw pixels, so that NumPy knows its statistics."""

  @nn.compact
  def __call__(self, x, train):
    x = x.reshape(x.shape[0], -1)
    # Momentum 0: what comes out are this batch's own statistics.
    x = nn.BatchNorm(not train, momentum=0.0, name='norm')(x)
    return nn.relu(nn.Dense(16, name='dense')(x))


@dataclasses.dataclass(frozen=True)
class Classifier(Throwaway):
  """Supervised; running statistics live in method_state."""

  encoder: Any = NormalizedPixels()
  head: Any = nn.Dense(CLASSES)
  momentum: float = 0.8

  def init(self, rng, batch, initial=None):
    images = batch['view1']
    made = self.encoder.init(named_key(rng, 'encoder'), images, train=False)
    features = self.encoder.apply(made, images, train=False)
    head = self.head.init(named_key(rng, 'head'), features)['params']
    params = given(dict(encoder=made['params'], head=head), initial)
    return params, dict(statistics=made['batch_stats'])

  def loss(self, params, method_state, batch, rng, step):
    del rng, step
    features, own = self.encoder.apply(
      {
        'params': params['encoder'],
        'batch_stats': method_state['statistics'],
      },
      batch['view1'],
      train=True,
      mutable=['batch_stats'],
    )
    logits = self.head.apply({'params': params['head']}, features)
    log_p = jax.nn.log_softmax(logits)
    label = batch['label'][:, None]
    loss = -jnp.mean(jnp.take_along_axis(log_p, label, axis=1))
    return loss, Aux(metrics={}, means=dict(statistics=own['batch_stats']))

  def after_update(self, params, method_state, aux, step):
    del params, step
    return jax.tree.map(
      lambda old, new: self.momentum * old + (1 - self.momentum) * new,
      method_state,
      aux.means,
    )

  def predict(self, params, method_state, batch):
    features = self.encoder.apply(
      {
        'params': params['encoder'],
        'batch_stats': method_state['statistics'],
      },
      batch['view1'],
      train=False,
    )
    return self.head.apply({'params': params['head']}, features)

  def rules(self):
    return (('.*', Rule(lr=1e-2, decay=0.01)),)


class Accuracy:
  """Share of right answers on data of its own; remembers when it was asked."""

  def __init__(self, method, images, labels, *, batch_size=10):
    self._predict = jax.jit(method.predict)
    self._data, self._size = (images, labels), batch_size
    self.steps = []

  def start(self, step):
    self.steps.append(step)
    self._hits, self._count = 0, 0

  def batches(self):
    images, labels = self._data
    for i in range(0, len(images), self._size):
      part = slice(i, i + self._size)
      yield dict(view1=images[part], label=labels[part])

  def update(self, params, method_state, batch):
    images = dict(view1=batch['view1'])
    logits = self._predict(params, method_state, images)
    hits = np.argmax(jax.device_get(logits), axis=1) == batch['label']
    self._hits, self._count = self._hits + hits.sum(), self._count + len(hits)

  def finish(self):
    return dict(test_accuracy=float(self._hits / self._count))

  def names(self):
    return ('test_accuracy',)


class Spy:
  """An evaluator that copies what it is shown; measures nothing."""

  def __init__(self):
    self.params, self.states = {}, {}

  def start(self, step):
    self._step = step

  def batches(self):
    yield None

  def update(self, params, method_state, batch):
    copy = functools.partial(jax.tree.map, np.array)
    self.params[self._step] = copy(params)
    self.states[self._step] = copy(method_state)

  def finish(self):
    return {}

  def names(self):
    return ()


UNFREEZE = 3


def rate(step):
  return 0.02 / (1 + jnp.asarray(step, jnp.float32))


def rising_decay(step):
  return 0.1 + 0.05 * jnp.asarray(step, jnp.float32)


@dataclasses.dataclass(frozen=True)
class Recipe(Throwaway):
  """Vectors drawn towards means of the batch, under every kind of rule.

  The gradient of a vector w with scale s is s·(w − mean of the batch's rows).
  """

  encoder: Any = None
  scales: Any = dataclasses.field(
    default_factory=lambda: {
      'encoder/late': 1.0,
      'encoder/plain': 2.0,
      'encoder/still': 3.0,
      'head/a': 0.5,
      'head/b': 4.0,
      'added/a': 0.7,
    }
  )

  def init(self, rng, batch, initial=None):
    del batch
    params = {}
    for name in self.scales:
      group, leaf = name.split('/')
      drawn = jax.random.normal(named_key(rng, name), (SIDE,))
      params.setdefault(group, {})[leaf] = drawn
    return given(params, initial), {}

  def loss(self, params, method_state, batch, rng, step):
    del method_state, rng, step
    mean = batch['view1'].mean(axis=(0, 2, 3))
    loss = 0.0
    for name, scale in self.scales.items():
      group, leaf = name.split('/')
      loss += 0.5 * scale * jnp.sum(jnp.square(params[group][leaf] - mean))
    return loss, Aux(metrics={})

  def after_update(self, params, method_state, aux, step):
    del params, aux, step
    return method_state

  def rules(self):
    shared = Clip(norm=1.5)
    late = Rule(
      lr=rate, decay=rising_decay, trainable_from=UNFREEZE, clip=shared
    )
    still = Rule(lr=rate, decay=1.0, trainable_from=NEVER, clip=shared)
    return (
      ('encoder/late', late),
      ('encoder/still', still),
      ('encoder/.*', Rule(lr=rate, decay=rising_decay, clip=shared)),
      ('head/.*', Rule(lr=0.01, clip=Clip(norm=0.3, per='tensor'))),
      ('added/.*', Rule(lr=0.03, clip=Clip(norm=1.5, scope='added'))),
    )
