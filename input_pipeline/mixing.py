"""Mixup (Zhang et al., 2018) and CutMix (Yun et al., 2019) on the device.

As timm does it in its batch mode (timm/data/mixup.py): one ratio for a whole
batch, and the partner of an image is the one at its place from the end. Nothing
here depends on how the batch lies on devices.
"""

import jax
import jax.numpy as jnp


def mix(
  images: jax.Array,
  labels: jax.Array,
  rng: jax.Array,
  *,
  classes: int,
  mixup: float = 0.8,
  cutmix: float = 1.0,
  switch: float = 0.5,
  probability: float = 1.0,
  smoothing: float = 0.1,
  groups: int = 1,
) -> tuple[jax.Array, jax.Array]:
  """Mixes each image, and its target, with its partner's.

  Args:
    images: floats [b, h, w, c].
    labels: integers [b] in 0..classes - 1.
    rng: typed PRNG key of the step.
    classes: k, number of classes.
    mixup: alpha of Beta(alpha, alpha), from which mixup draws its ratio; 0 for
      no mixup.
    cutmix: the same for CutMix; 0 for no CutMix. With both 0 targets are
      smoothed and nothing is mixed.
    switch: probability of CutMix where both are on.
    probability: of mixing at all.
    smoothing: of the labels, before they are mixed: a share that is spread
      evenly over all classes.
    groups: the batch is cut into so many runs of images, each with draws and
      partners of its own. timm mixes per process: where it has n of them,
      n groups mix as it does.

  Returns:
    Images [b, h, w, c] of the same type and targets float32 [b, k], whose rows
    sum to 1.

  Raises:
    ValueError: a number out of its range, or a batch that does not fall into
      groups of even size.
  """
  _check(len(images), mixup, cutmix, switch, probability, smoothing, groups)
  targets = soft_labels(labels, classes, smoothing)
  if mixup == 0 and cutmix == 0:
    return images, targets
  size = images.shape[1:3]
  keys = jax.random.split(rng, groups)
  masks, ratios = jax.vmap(
    lambda key: draw_mask(
      key,
      size,
      mixup=mixup,
      cutmix=cutmix,
      switch=switch,
      probability=probability,
    )
  )(keys)
  targets = _mix_with_reversed(targets, ratios[:, None, None], groups)
  masks = masks[:, None, :, :, None].astype(images.dtype)
  return _mix_with_reversed(images, masks, groups), targets


def soft_labels(labels: jax.Array, classes: int, smoothing: float) -> jax.Array:
  """One-hot rows, of which a share is spread over all classes (timm).

  Args:
    labels: int [b].
    classes: number of classes c.
    smoothing: ε: 1 − ε + ε/c on the label, ε/c elsewhere.

  Returns:
    float32 [b, c].
  """
  return jax.nn.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes


def draw_mask(
  key: jax.Array,
  size: tuple[int, int],
  *,
  mixup: float,
  cutmix: float,
  switch: float,
  probability: float,
) -> tuple[jax.Array, jax.Array]:
  """How much of each pixel an image keeps.

  Args:
    key: typed PRNG key.
    size: (height, width) of the images, pixels.
    mixup: see `mix`, as are the rest; `mixup` and `cutmix` are not both 0.
    cutmix: alpha of CutMix.
    switch: probability of CutMix where both are on.
    probability: of mixing at all.

  Returns:
    float32 [h, w]: the same ratio everywhere (mixup), or 0 in a box and 1
    outside it (CutMix); and its mean, the weight of the image's own target.
  """
  mixup_key, cutmix_key, center_key, choice_key = jax.random.split(key, 4)
  choice, done = jax.random.uniform(choice_key, (2,))
  own = jnp.ones(())
  if mixup > 0:
    own = jax.random.beta(mixup_key, mixup, mixup)
  mask = jnp.broadcast_to(own, size)
  if cutmix > 0:
    ratio = jax.random.beta(cutmix_key, cutmix, cutmix)
    center = jax.random.uniform(center_key, (2,))
    outside = 1 - _inside(ratio, center, size).astype(jnp.float32)
    is_cutmix = choice < switch if mixup > 0 else True
    mask = jnp.where(is_cutmix, outside, mask)
    # The true area: the borders can have cut off some of the box.
    own = jnp.where(is_cutmix, outside.mean(), own)
  done = done < probability
  return jnp.where(done, mask, 1), jnp.where(done, own, 1)


def _inside(
  ratio: jax.Array, center: jax.Array, size: tuple[int, int]
) -> jax.Array:
  """Box of area 1 - ratio, but for what the borders cut off: bool [h, w]."""

  def side(fraction, length):
    cut = jnp.floor(length * jnp.sqrt(1 - ratio))
    middle = jnp.minimum(jnp.floor(fraction * length), length - 1)
    start = middle - jnp.floor(cut / 2)
    place = jnp.arange(length)
    return (place >= start) & (place < start + cut)

  rows, columns = (side(f, n) for f, n in zip(center, size, strict=True))
  return rows[:, None] & columns


def _mix_with_reversed(
  x: jax.Array, weights: jax.Array, groups: int
) -> jax.Array:
  """Weighted means of rows and the rows from the end, within groups.

  Args:
    x: [b, ...].
    weights: of a row itself, [groups, 1, ...] with dimensions as `x` or 1.
    groups: that divide b.

  Returns:
    [b, ...].
  """
  grouped = x.reshape(groups, -1, *x.shape[1:])
  mixed = weights * grouped + (1 - weights) * grouped[:, ::-1]
  return mixed.reshape(x.shape)


def _check(
  count, mixup, cutmix, switch, probability, smoothing, groups
) -> None:
  """Whether the arguments of `mix` make sense."""
  for name, value in (('mixup', mixup), ('cutmix', cutmix)):
    if value < 0:
      raise ValueError(f'{name} must not be negative, got {value}')
  for name, value in (
    ('switch', switch),
    ('probability', probability),
    ('smoothing', smoothing),
  ):
    if not 0 <= value <= 1:
      raise ValueError(f'{name} must be within 0..1, got {value}')
  if groups < 1:
    raise ValueError(f'groups must be at least 1, got {groups}')
  if (mixup > 0 or cutmix > 0) and count % (2 * groups):
    raise ValueError(
      f'mixing needs a batch that is a multiple of {2 * groups} '
      f'(pairs in {groups} groups), got {count}: change the batch size'
    )
