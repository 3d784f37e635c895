"""Augmentations on the device: batched, keyed per image, inside the train step.

Everything is float32 on [0, 1]; mean and std belong to the encoder. The order
is that of the papers: crop, flip, jitter, grey, blur, solarise. Semantics
follow torchvision on Pillow images, without the rounding to 8 bits after each
op. Which ops are in the program depends on the `View` and the number of
channels alone, so there is one compilation per view and image shape.
"""

import math

import einops
import jax
import jax.numpy as jnp

from input_pipeline.crop import (
  apply_separable,
  random_resized_crop,
  uniforms,
)
from input_pipeline.views import View

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, Pillow's convert('L')
OPS = ('brightness', 'contrast', 'saturation', 'hue')


def row_keys(rng: jax.Array, number: int, row: jax.Array) -> jax.Array:
  """Keys of a batch, however its rows are spread over devices.

  Args:
    rng: typed PRNG key of the step.
    number: of the view.
    row: int32 [b], places in the global batch.

  Returns:
    Typed PRNG keys [b].
  """
  fold_rows = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
  return fold_rows(jax.random.fold_in(rng, number), row)


def augment(images: jax.Array, view: View, keys: jax.Array) -> jax.Array:
  """Renders one view of each image.

  Args:
    images: uint8 [b, h, w, c], or floats in [0, 1].
    view: what to do.
    keys: typed PRNG keys [b], one per image: a row depends on its own key only.

  Returns:
    float32 [b, *view.size, c] in [0, 1].
  """
  return photometric(random_resized_crop(images, view, keys), view, keys)


def photometric(images: jax.Array, view: View, keys: jax.Array) -> jax.Array:
  """Everything after the crop: jitter, grey, blur, solarise.

  Args:
    images: float32 [b, h, w, c] in [0, 1]. With c other than 3 there is no
      saturation, hue and grey.
    view: what to do; the fields of the crop are not read.
    keys: typed PRNG keys [b]. The draws differ from those that
      `random_resized_crop` makes of the same keys.

  Returns:
    float32 [b, h, w, c] in [0, 1].
  """
  draws = uniforms(keys, 2, 13)
  jitter, gray, blur, solarize, sigma = draws[:, :5].T
  ops = _active_ops(view, channels=images.shape[-1])
  if ops:
    factors = _draw_factors(draws[:, 5:9], jitter < view.jitter, view)
    images = color_jitter(images, factors, draws[:, 9:], ops)
  if view.gray > 0 and images.shape[-1] == 3:
    selected = einops.rearrange(gray < view.gray, 'b -> b 1 1 1')
    images = jnp.where(selected, grayscale(images), images)
  if view.blur > 0:
    low, high = view.sigma
    sigma = jnp.where(blur < view.blur, low + (high - low) * sigma, 0)
    images = gaussian_blur(images, sigma, radius=math.ceil(4 * high))
  if view.solarize > 0:
    selected = einops.rearrange(solarize < view.solarize, 'b -> b 1 1 1')
    images = jnp.where(selected, invert_above(images, view.threshold), images)
  return images


def _active_ops(view: View, *, channels: int) -> tuple[str, ...]:
  """Names of the jitter ops that a view has on images of so many channels."""
  if view.jitter == 0:
    return ()
  possible = OPS if channels == 3 else OPS[:2]
  return tuple(
    op
    for op, strength in zip(OPS, view.strength, strict=True)
    if op in possible and strength > 0
  )


def _draw_factors(
  draws: jax.Array, selected: jax.Array, view: View
) -> jax.Array:
  """Factors [b, 4] of `color_jitter` from uniform draws; else the identity."""
  strength = jnp.array(view.strength)
  identity = jnp.array([1.0, 1.0, 1.0, 0.0])
  low = jnp.maximum(identity - strength, jnp.array([0, 0, 0, -strength[3]]))
  factors = low + (identity + strength - low) * draws
  return jnp.where(selected[:, None], factors, identity)


def color_jitter(
  images: jax.Array,
  factors: jax.Array,
  order: jax.Array,
  ops: tuple[str, ...] = OPS,
) -> jax.Array:
  """Brightness, contrast, saturation and hue, in an order of each image's own.

  All but the hue are a * x + b * grey(x) + c * mean(grey(x)), clipped. The hue
  is therefore computed once, with the linear ops that come earlier in slots
  before it and the later ones in slots after it, identities filling the rest:
  seven small ops for the 24 orders, not all four ops at each of four places.

  Args:
    images: float32 [b, h, w, c] in [0, 1]; c must be 3 for saturation and hue.
    factors: float32 [b, 4]: the factors of brightness, contrast (around the
      mean grey of the image) and saturation, 1 for no change; the shift of the
      hue in turns, 0 for no change.
    order: [b, 4], distinct in a row; ops are applied by increasing value.
    ops: the names out of `OPS` to apply at all; the others are not compiled.

  Returns:
    float32 [b, h, w, c] in [0, 1].
  """
  linear = [i for i, op in enumerate(OPS[:3]) if op in ops]
  when = order[:, linear]
  slot = (when[:, :, None] > when[:, None, :]).sum(axis=-1)
  slots = jnp.arange(len(linear))[:, None, None]
  change = jnp.where(slot == slots, factors[:, linear] - 1, 0)

  def apply_linear(planes, stage):
    # A loop although there are three steps at most: unrolled, XLA on CPU fuses
    # all that follows into one expression and recomputes its parts (36 ms
    # instead of 2 for 128 images of 32 px).
    def step(planes, change):
      return _linear_op(planes, dict(zip(names, change.T, strict=True))), None

    if not linear:
      return planes
    return jax.lax.scan(step, planes, jnp.where(stage, change, 0))[0]

  names = [OPS[i] for i in linear]
  planes = _split(images)
  if 'hue' in ops:
    early = when < order[:, 3:]
    planes = apply_linear(planes, early)
    planes = _shift_hue(planes, factors[:, 3])
    planes = apply_linear(planes, ~early)
  else:
    planes = apply_linear(planes, True)
  return jnp.stack(planes, axis=-1)


def _split(images: jax.Array) -> list[jax.Array]:
  """Images [b, h, w, c] -> c planes [b, h, w].

  On planes every colour op is elementwise; with a channel axis each of them
  would slice and join, and XLA on CPU recomputes what it slices.
  """
  return [images[..., i] for i in range(images.shape[-1])]


def _linear_op(
  planes: list[jax.Array], change: dict[str, jax.Array]
) -> list[jax.Array]:
  """One of brightness, contrast, saturation on planes [b, h, w].

  `change` holds for each op its factor minus 1, [b]: 0 for all but one.
  """
  change = {op: einops.rearrange(x, 'b -> b 1 1') for op, x in change.items()}
  scale = 1 + sum(change.values())
  shift = 0
  if 'saturation' in change:
    shift -= change['saturation'] * _luma(planes)
  if 'contrast' in change:
    # Differs from Pillow: the mean is not rounded to 8 bits.
    mean = einops.reduce(_luma(planes), 'b h w -> b 1 1', 'mean')
    shift -= change['contrast'] * mean
  return [jnp.clip(plane * scale + shift, 0, 1) for plane in planes]


def _luma(planes: list[jax.Array]) -> jax.Array:
  """Grey of red, green and blue; of other than 3 planes, the mean."""
  weights = LUMA if len(planes) == 3 else (1 / len(planes),) * len(planes)
  return sum(w * plane for w, plane in zip(weights, planes, strict=True))


def _shift_hue(planes: list[jax.Array], turns: jax.Array) -> list[jax.Array]:
  """Turns the hue of red, green and blue by `turns` [b], by way of HSV."""
  red, green, blue = planes
  value = jnp.maximum(jnp.maximum(red, green), blue)
  chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
  # Hue in sixths of a turn, within -1..5.
  scale = 1 / jnp.where(chroma > 0, chroma, 1)
  hue = jnp.where(
    value == red,
    (green - blue) * scale,
    jnp.where(
      value == green, 2 + (blue - red) * scale, 4 + (red - green) * scale
    ),
  )
  hue = hue / 6 + einops.rearrange(turns, 'b -> b 1 1')
  hue = 6 * (hue - jnp.floor(hue))

  def channel(offset):
    # Not `%`: fmod takes longer than all the rest together on a CPU.
    k = hue + offset
    k = jnp.where(k >= 6, k - 6, k)
    return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

  return [channel(5.0), channel(3.0), channel(1.0)]


def grayscale(images: jax.Array) -> jax.Array:
  """Removes the colours.

  Args:
    images: float32 [b, h, w, 3].

  Returns:
    float32 [b, h, w, 3] with three equal channels.
  """
  return jnp.stack([_luma(_split(images))] * 3, axis=-1)


def gaussian_blur(
  images: jax.Array, sigma: jax.Array, *, radius: int
) -> jax.Array:
  """Gaussian blur with a width of each image's own and replicated borders.

  Differs from Pillow, which approximates the Gaussian by box filters.

  Args:
    images: float32 [b, h, w, c].
    sigma: float32 [b], standard deviations in pixels; 0 changes nothing.
    radius: the kernel reaches so many pixels to each side; 4 sigma or more
      makes what is cut off invisible.

  Returns:
    float32 [b, h, w, c].
  """
  # Banded matrices, not shifted sums. With 17 taps on two CPU cores sums take
  # 0.6 ms and matrices 1.0 ms for 128 images of 32 px (4.5 and 16 ms for 16 of
  # 224 px), each alone. But XLA fuses what comes before into the sums and
  # recomputes it for every tap (15 ms behind the jitter); a matrix product is a
  # boundary for its fusion, and the work that accelerators are made for.
  sigma = jnp.maximum(sigma, 1e-3)  # all weight underflows into the middle
  rows, columns = (
    _blur_weights(sigma, radius, size) for size in images.shape[1:3]
  )
  planes = einops.rearrange(images, 'b h w c -> b h c w')
  planes = apply_separable(rows, planes, columns)
  return einops.rearrange(planes, 'b h c w -> b h w c')


def _blur_weights(sigma: jax.Array, radius: int, size: int) -> jax.Array:
  """Matrices [b, size, size] that blur an axis; the borders are replicated."""

  def gaussian(distance):
    sigmas = jnp.expand_dims(sigma, range(1, distance.ndim + 1))
    return jnp.exp(-0.5 * (distance / sigmas) ** 2)

  taps = jnp.arange(-radius, radius + 1)
  kernel = gaussian(taps)
  total = kernel.sum(axis=1, keepdims=True)
  pixel = jnp.arange(size)
  distance = pixel[:, None] - pixel
  weights = jnp.where(jnp.abs(distance) <= radius, gaussian(distance), 0)
  # What falls off an end counts for the pixel at that end.
  beyond = (taps[:, None] < -pixel).astype(jnp.float32)
  lost = jnp.dot(kernel, beyond, precision=jax.lax.Precision.HIGHEST)
  weights = weights.at[:, :, 0].add(lost).at[:, :, -1].add(lost[:, ::-1])
  return weights / total[:, :, None]


def invert_above(images: jax.Array, threshold: float) -> jax.Array:
  """Solarises: inverts the values from a threshold upwards.

  Args:
    images: floats in [0, 1], any shape.
    threshold: on [0, 1].

  Returns:
    The same shape and type.
  """
  # The margin takes in 128 / 255 computed as 128 * (1 / 255).
  return jnp.where(images >= threshold - 1e-6, 1 - images, images)
