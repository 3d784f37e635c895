"""Random resized crops on the device: torchvision's boxes, Pillow's filters.

Resampling is two small matrix products per image, rows then columns, so it
needs no gather and runs on the matrix units where there are any.
"""

import einops
import jax
import jax.numpy as jnp

from input_pipeline.views import View

# Rounds of torchvision's rejection loop (transforms.RandomResizedCrop).
TRIES = 10
BOX_DRAWS = 2 * TRIES + 2  # areas, ratios, and the place


def uniforms(keys: jax.Array, tag: int, count: int) -> jax.Array:
  """Random numbers that depend on each row's key alone.

  Args:
    keys: typed PRNG keys [b].
    tag: tells apart the uses of one key.
    count: numbers per row.

  Returns:
    float32 [b, count] in [0, 1).
  """
  return jax.vmap(
    lambda key: jax.random.uniform(jax.random.fold_in(key, tag), (count,))
  )(keys)


def crop_boxes(
  keys: jax.Array, view: View, image_size: tuple[int, int]
) -> jax.Array:
  """Draws crop boxes with torchvision's distribution.

  Args:
    keys: typed PRNG keys [b].
    view: `scale`, `ratio` and `retry` are read.
    image_size: (height, width) of the images, pixels.

  Returns:
    int32 [b, 4]: top, left, height, width.
  """
  draws = uniforms(keys, 0, BOX_DRAWS)
  return boxes_from(
    draws, view.scale, view.ratio, image_size, jnp, retry=view.retry
  )


def boxes_from(draws, scale, ratio, image_size, xp, *, retry=True):
  """Boxes from uniform draws, on the device or on the host.

  An area and a log-uniform aspect ratio are drawn until the box fits, ten times
  at most; after that the largest central box of an allowed ratio is taken. Here
  all ten are drawn at once and the first that fits is picked.

  Args:
    draws: floats [b, BOX_DRAWS or more] in [0, 1).
    scale: smallest and largest area as fractions, each a number or [b, 1].
    ratio: smallest and largest width / height, each a number or [b, 1].
    image_size: (height, width) of the image, pixels.
    xp: `jax.numpy` or `numpy`.
    retry: False for the first draw in any case, clipped to the image; a bool or
      [b, 1].

  Returns:
    int32 [b, 4]: top, left, height, width, inside the image.
  """
  image_height, image_width = image_size
  area, log_ratio = draws[:, :TRIES], draws[:, TRIES : 2 * TRIES]
  area = image_height * image_width * (scale[0] + (scale[1] - scale[0]) * area)
  low, high = xp.log(xp.asarray(ratio[0])), xp.log(xp.asarray(ratio[1]))
  aspect = xp.exp(low + (high - low) * log_ratio)
  width = xp.round(xp.sqrt(area * aspect))
  height = xp.round(xp.sqrt(area / aspect))
  if retry is not True:  # what is clipped fits
    width = xp.where(retry, width, xp.clip(width, 1, image_width))
    height = xp.where(retry, height, xp.clip(height, 1, image_height))
  fits = (width >= 1) & (width <= image_width)
  fits &= (height >= 1) & (height <= image_height)
  # One-hot of the first that fits, all zero if none does.
  first = fits & (xp.cumsum(fits, axis=1) == 1)
  none = ~fits.any(axis=1, keepdims=True)
  # The largest central box: all of the shorter side that the limits allow.
  wide = xp.clip(image_width / image_height, ratio[0], ratio[1])
  central_width = xp.minimum(xp.round(image_height * wide), image_width)
  central_height = xp.minimum(xp.round(image_width / wide), image_height)

  def pick(drawn, central):
    drawn = (first * drawn).sum(axis=1, keepdims=True)
    return xp.where(none, xp.maximum(central, 1), drawn)

  height, width = pick(height, central_height), pick(width, central_width)

  def place(fraction, room):
    inside = xp.minimum(xp.floor(fraction * (room + 1)), room)
    return xp.where(none, room // 2, inside)

  y, x = draws[:, 2 * TRIES, None], draws[:, 2 * TRIES + 1, None]
  top = place(y, image_height - height)
  left = place(x, image_width - width)
  boxes = xp.concatenate([top, left, height, width], axis=1)
  return boxes.astype(xp.int32)


def _kernel(x: jax.Array, resample: str) -> jax.Array:
  """Pillow's filters at distance `x`, before normalisation."""
  x = jnp.abs(x)
  if resample == 'bilinear':
    return jnp.maximum(1 - x, 0)
  # Keys' cubic with a = -0.5, as Pillow; PyTorch's interpolate has -0.75.
  near = (1.5 * x - 2.5) * x * x + 1
  far = ((-0.5 * x + 2.5) * x - 4) * x + 2
  return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))


def resize_weights(
  start: jax.Array,
  length: jax.Array,
  *,
  old: int,
  new: int,
  resample: str = 'bilinear',
) -> jax.Array:
  """Matrices that cut an interval out of an axis and resize it.

  The filter is widened by the scale when shrinking (antialiasing); pixels
  outside the interval have no weight, as if it had been cut out first.

  Args:
    start: first pixel of the interval, [b].
    length: pixels in the interval, [b].
    old: length of the axis.
    new: length of the resized interval.
    resample: 'bilinear' or 'bicubic'.

  Returns:
    float32 [b, new, old]; each row sums to 1.
  """
  start, length = (
    einops.rearrange(x.astype(jnp.float32), 'b -> b 1 1')
    for x in (start, length)
  )
  scale = length / new
  center = (jnp.arange(new)[:, None] + 0.5) * scale + start
  pixel = jnp.arange(old) + 0.5
  weights = _kernel((pixel - center) / jnp.maximum(scale, 1), resample)
  inside = (pixel > start) & (pixel < start + length)
  weights = jnp.where(inside, weights, 0)
  return weights / weights.sum(axis=-1, keepdims=True)


def apply_separable(
  rows: jax.Array, planes: jax.Array, columns: jax.Array
) -> jax.Array:
  """Linear maps of the rows and of the columns of each image.

  Args:
    rows: float32 [b, s, h].
    planes: float32 [b, h, c, w]; with channels there, both products are plain
      matrix products without a transposition.
    columns: float32 [b, t, w].

  Returns:
    float32 [b, s, c, t].
  """
  # HIGHEST: TPUs and GPUs would otherwise round pixels to 8 or 10 bits.
  highest = jax.lax.Precision.HIGHEST
  planes = jnp.einsum('bsh,bhcw->bscw', rows, planes, precision=highest)
  return jnp.einsum('bscw,btw->bsct', planes, columns, precision=highest)


def resized_crop(
  images: jax.Array,
  boxes: jax.Array,
  flips: jax.Array,
  size: tuple[int, int],
  *,
  resample: str = 'bilinear',
) -> jax.Array:
  """Cuts a box out of each image and resizes it as Pillow does.

  Args:
    images: uint8 [b, h, w, c], or floats in [0, 1].
    boxes: integers [b, 4]: top, left, height, width, inside the image.
    flips: bool [b]; True mirrors the result (left-right).
    size: (height, width) of the result.
    resample: 'bilinear' or 'bicubic', antialiased.

  Returns:
    float32 [b, *size, c] in [0, 1]; unlike Pillow's, not rounded to 8 bits.
  """
  _, image_height, image_width, _ = images.shape
  top, left, height, width = boxes.T
  rows = resize_weights(
    top, height, old=image_height, new=size[0], resample=resample
  )
  columns = resize_weights(
    left, width, old=image_width, new=size[1], resample=resample
  )
  columns = jnp.where(flips[:, None, None], columns[:, ::-1], columns)
  if images.dtype == jnp.uint8:
    rows = rows / 255
  planes = einops.rearrange(images, 'b h w c -> b h c w').astype(jnp.float32)
  planes = apply_separable(rows, planes, columns)
  # The cubic overshoots, and sums of weights are 1 only up to rounding.
  return einops.rearrange(jnp.clip(planes, 0, 1), 'b h c w -> b h w c')


def random_resized_crop(
  images: jax.Array, view: View, keys: jax.Array
) -> jax.Array:
  """Crops, resizes and flips each image at random.

  Args:
    images: uint8 [b, h, w, c], or floats in [0, 1].
    view: `size`, `scale`, `ratio`, `retry`, `flip` and `resample` are read.
    keys: typed PRNG keys [b], one per image.

  Returns:
    float32 [b, *view.size, c] in [0, 1].
  """
  boxes = crop_boxes(keys, view, images.shape[1:3])
  flips = uniforms(keys, 1, 1)[:, 0] < view.flip
  return resized_crop(images, boxes, flips, view.size, resample=view.resample)
