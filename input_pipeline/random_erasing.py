"""Random erasing (Zhong et al., 2020) on the device, keyed per image.

timm's variant (timm/data/random_erasing.py, mode 'pixel'): one box per image,
filled with noise.
"""

import math

import einops
import jax
import jax.numpy as jnp

from input_pipeline.crop import TRIES, uniforms


def random_erasing(
  images: jax.Array,
  keys: jax.Array,
  *,
  mean: tuple[float, ...],
  std: tuple[float, ...],
  probability: float = 0.25,
  area: tuple[float, float] = (0.02, 1 / 3),
  aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> jax.Array:
  """Overwrites a box of some of the images by noise.

  The noise is standard normal after `mean` and `std` have normalised it, each
  value by itself; it is not clipped to [0, 1].

  Args:
    images: float32 [b, h, w, c] in [0, 1].
    keys: typed PRNG keys [b], one per image: a row depends on its own key only.
      The draws differ from those that crops, views and RandAugment make of the
      same keys.
    mean: c numbers, that the encoder subtracts.
    std: c numbers, by which the encoder divides.
    probability: that an image is erased.
    area: smallest and largest area of the box, as fractions of the image.
    aspect: smallest and largest height / width of the box, log-uniform.

  Returns:
    float32 [b, h, w, c].

  Raises:
    ValueError: a number out of its range, or for other channels.
  """
  size, channels = images.shape[1:3], images.shape[-1]
  for name, values in (('mean', mean), ('std', std)):
    if len(values) != channels:
      raise ValueError(
        f'{name} must hold a number for each of {channels} channels, '
        f'got {values}'
      )
  if not 0 <= probability <= 1:
    raise ValueError(f'probability must be within 0..1, got {probability}')
  boxes = draw_boxes(keys, size, area=area, aspect=aspect)
  done = uniforms(keys, 5, 1)[:, 0] < probability
  boxes = jnp.where(done[:, None], boxes, 0)
  noise = _noise(keys, _largest(size, area[1]), channels)
  noise = jnp.asarray(mean) + jnp.asarray(std) * noise
  return _fill(images, boxes, noise)


def draw_boxes(
  keys: jax.Array,
  size: tuple[int, int],
  *,
  area: tuple[float, float],
  aspect: tuple[float, float],
) -> jax.Array:
  """Boxes smaller than the image in both directions.

  Areas and ratios are drawn until a box fits, ten times at most. Here all ten
  are drawn at once and the first that fits is taken.

  Args:
    keys: typed PRNG keys [b].
    size: (height, width) of the images, pixels.
    area: smallest and largest area as fractions of the image.
    aspect: smallest and largest height / width.

  Returns:
    int32 [b, 4]: top, left, height, width; zeros where none fits.

  Raises:
    ValueError: limits that are not in order.
  """
  for name, (low, high) in (('area', area), ('aspect', aspect)):
    if not 0 < low <= high:
      raise ValueError(
        f'{name} must be (smallest, largest) above 0, got {(low, high)}'
      )
  if area[1] > 1:
    raise ValueError(f'area must not exceed 1, got {area}')
  draws = uniforms(keys, 4, 2 * TRIES + 2)
  first, second = draws[:, :TRIES], draws[:, TRIES : 2 * TRIES]
  pixels = size[0] * size[1] * (area[0] + (area[1] - area[0]) * first)
  low, high = math.log(aspect[0]), math.log(aspect[1])
  ratio = jnp.exp(low + (high - low) * second)
  height = jnp.round(jnp.sqrt(pixels * ratio))
  width = jnp.round(jnp.sqrt(pixels / ratio))
  fits = (height < size[0]) & (width < size[1])
  chosen = fits & (jnp.cumsum(fits, axis=1) == 1)
  height, width = ((chosen * x).sum(axis=1) for x in (height, width))

  def place(fraction, room):
    return jnp.minimum(jnp.floor(fraction * (room + 1)), room)

  top = place(draws[:, -2], size[0] - height)
  left = place(draws[:, -1], size[1] - width)
  boxes = jnp.stack([top, left, height, width], axis=1)
  some = fits.any(axis=1, keepdims=True)
  return jnp.where(some, boxes, 0).astype(jnp.int32)


def _largest(size: tuple[int, int], area: float) -> int:
  """Pixels that a box can have at most, its sides being rounded."""
  height, width = size
  bound = area * height * width + (height + width) / 2 + 1
  return min(height * width, math.ceil(bound))


def _noise(keys: jax.Array, count: int, channels: int) -> jax.Array:
  """Standard normal numbers [b, count, channels]."""

  def draw(key):
    return jax.random.normal(jax.random.fold_in(key, 6), (count, channels))

  return jax.vmap(draw)(keys)


def _fill(images: jax.Array, boxes: jax.Array, noise: jax.Array) -> jax.Array:
  """Writes noise [b, n, c] into boxes [b, 4], in reading order."""
  # Random numbers for the largest box, not for the image, and then looked up:
  # to make them is nearly all that erasing costs on a CPU.
  _, image_height, image_width, _ = images.shape
  top, left, height, width = einops.rearrange(boxes, 'b n -> n b 1 1')
  row = jnp.arange(image_height)[:, None] - top
  column = jnp.arange(image_width) - left
  inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
  place = jnp.where(inside, row * width + column, 0)
  place = einops.rearrange(place, 'b h w -> b (h w) 1')
  found = jnp.take_along_axis(noise, place, axis=1, mode='promise_in_bounds')
  return jnp.where(inside[..., None], found.reshape(images.shape), images)
