"""RandAugment (Cubuk et al., 2020) on the device, batched, keyed per image.

Two of 15 ops per image, drawn with replacement, each done with probability
one half. The recipe is timm's (timm/data/auto_augment.py), by which vision
transformers are fine-tuned: 'rand-m9-mstd0.5-inc1' are the defaults here. One
thing differs: magnitude 10 posterizes to no bits, which is black, where newer
versions of Pillow raise an error.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from input_pipeline.crop import uniforms
from input_pipeline.known import unknown
from input_pipeline.pillow_ops import NO_OP, OPS, apply_ops

MAX_MAGNITUDE = 10
RESAMPLES = ('bilinear', 'bicubic', 'random')


def rand_augment(
  images: jax.Array,
  keys: jax.Array,
  *,
  fill: tuple[float, ...],
  magnitude: float = 9.0,
  num_ops: int = 2,
  std: float = 0.5,
  increasing: bool = True,
  probability: float = 0.5,
  resample: str = 'bilinear',
) -> jax.Array:
  """Augments each image by a few ops of its own.

  Args:
    images: float32 [b, h, w, c] in [0, 1]; rounded to 8 bits before the first
      op and after each, as Pillow images are. With c other than 3, color does
      nothing.
    keys: typed PRNG keys [b], one per image: a row depends on its own key only.
      The draws differ from those that crops and views make of the same keys.
    fill: c numbers in [0, 1], the colour of what rotations, shears and
      translations move in; timm takes the mean of the data set.
    magnitude: mean strength of the ops, 0 to 10.
    num_ops: ops per image.
    std: standard deviation of the magnitude, which is clipped to 0..10.
    increasing: posterize, solarize, color, contrast, brightness and sharpness
      are the stronger, the larger the magnitude; else as in the first version.
    probability: that an op is done.
    resample: of rotations, shears and translations: 'bilinear', 'bicubic', or
      'random', either of them for each op (timm where no interpolation is
      given; recipes of the MAE family give 'bicubic'). Two ops on 64 images
      of 224 px take 0.5 s instead of 0.27 on two CPU cores.

  Returns:
    float32 [b, h, w, c] in [0, 1], multiples of 1 / 255.

  Raises:
    ValueError: a number out of its range, `fill` for other channels, or an
      unknown `resample`.
  """
  _check(images, fill, magnitude, num_ops, std, probability)
  op, magnitudes, signs = draw_ops(
    keys,
    magnitude=magnitude,
    num_ops=num_ops,
    std=std,
    probability=probability,
  )
  values = op_values(op, magnitudes, signs, increasing=increasing)
  levels = tuple(min(255, round(255 * x)) for x in fill)
  pixels = jnp.round(jnp.clip(images, 0, 1) * 255).astype(jnp.uint8)

  cubic = _draw_cubic(keys, num_ops, resample)

  def do_round(pixels, drawn):
    op, value, cubic = drawn
    return apply_ops(pixels, op, value, levels, cubic), None

  rounds = (op.T, values.T, None if cubic is None else cubic.T)
  pixels, _ = jax.lax.scan(do_round, pixels, rounds)
  return pixels.astype(jnp.float32) / 255


def draw_ops(
  keys: jax.Array,
  *,
  magnitude: float,
  num_ops: int,
  std: float,
  probability: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """What is done to each image, in order.

  Args:
    keys: typed PRNG keys [b].
    magnitude: mean of the magnitudes.
    num_ops: n, ops per image.
    std: standard deviation of the magnitudes.
    probability: that an op is done.

  Returns:
    int32 [b, n], places in `OPS` or `NO_OP`; float32 [b, n], magnitudes in
    0..10; float32 [b, n], signs 1 or -1 for the ops that have a direction.
  """
  draws = uniforms(keys, 3, 4 * num_ops).reshape(len(keys), 4, num_ops)
  which, done, normal, sign = draws.swapaxes(0, 1)
  op = jnp.where(
    done < probability, jnp.floor(which * len(OPS)).astype(jnp.int32), NO_OP
  )
  # A draw of 0 would be infinitely far out.
  normal = ndtri(jnp.maximum(normal, 2.0**-24))
  magnitudes = jnp.clip(magnitude + std * normal, 0, MAX_MAGNITUDE)
  return op, magnitudes, jnp.where(sign < 0.5, -1.0, 1.0)


def _draw_cubic(
  keys: jax.Array, num_ops: int, resample: str
) -> jax.Array | None:
  """Which ops are bicubic, bool [b, n]; None for none of them."""
  if resample not in RESAMPLES:
    raise unknown('resample', resample, RESAMPLES)
  if resample == 'bilinear':
    return None
  if resample == 'bicubic':
    return jnp.ones((len(keys), num_ops), bool)
  return uniforms(keys, 6, num_ops) < 0.5


def op_values(
  op: jax.Array, magnitude: jax.Array, sign: jax.Array, *, increasing: bool
) -> jax.Array:
  """What magnitudes mean to ops.

  Args:
    op: int32, any shape, places in `OPS` or `NO_OP`.
    magnitude: float32 in 0..10, the same shape.
    sign: float32, 1 or -1, the same shape.
    increasing: see `rand_augment`.

  Returns:
    float32, the same shape: what `apply_ops` takes.
  """
  tenths = magnitude * sign / 10
  # Products before quotients: whole numbers must come out as such.
  bits = jnp.floor(magnitude * 4 / 10)
  threshold = jnp.minimum(jnp.floor(magnitude * 256 / 10), 256)
  factor = magnitude * 1.8 / 10 + 0.1
  if increasing:
    bits, threshold = 4 - bits, 256 - threshold
    factor = jnp.maximum(1 + 0.9 * tenths, 0.1)
  values = {
    'rotate': 30 * tenths,
    'posterize': bits,
    'solarize': threshold,
    'solarize_add': jnp.minimum(jnp.floor(magnitude * 11), 128),
    'color': factor,
    'contrast': factor,
    'brightness': factor,
    'sharpness': factor,
    'shear_x': 0.3 * tenths,
    'shear_y': 0.3 * tenths,
    'translate_x': 0.45 * tenths,
    'translate_y': 0.45 * tenths,
  }
  none = jnp.zeros_like(magnitude)
  return jax.lax.select_n(op, *(values.get(name, none) for name in OPS), none)


def _check(images, fill, magnitude, num_ops, std, probability) -> None:
  """Whether the arguments of `rand_augment` make sense."""
  if len(fill) != images.shape[-1] or not all(0 <= x <= 1 for x in fill):
    raise ValueError(
      f'fill must hold a number in 0..1 for each of {images.shape[-1]} '
      f'channels, got {fill}'
    )
  if not 0 <= magnitude <= MAX_MAGNITUDE:
    raise ValueError(f'magnitude must be within 0..10, got {magnitude}')
  if num_ops < 1:
    raise ValueError(f'num_ops must be at least 1, got {num_ops}')
  if std < 0:
    raise ValueError(f'std must not be negative, got {std}')
  if not 0 <= probability <= 1:
    raise ValueError(f'probability must be within 0..1, got {probability}')
