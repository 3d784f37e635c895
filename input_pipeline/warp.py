"""Affine maps of batches of 8-bit images, as Pillow samples them."""

import einops
import jax
import jax.numpy as jnp


def warp(
  pixels: jax.Array,
  maps: jax.Array,
  fill: tuple[int, ...],
  cubic: jax.Array | None = None,
) -> jax.Array:
  """Affine maps of images, with a colour for what is outside.

  As Pillow's transform: borders are repeated, and fractions of a level are cut
  off. Its cubic is Keys' with a = -1 here, where its resize has -0.5.

  Args:
    pixels: uint8 [b, h, w, c].
    maps: float32 [b, 2, 3], see `affine_maps`.
    fill: c levels of 0..255.
    cubic: bool [b], which images are sampled bicubically, the others
      bilinearly; None for bilinear throughout, of a quarter of the reads.

  Returns:
    uint8 [b, h, w, c].
  """
  _, height, width, channels = pixels.shape
  reach = 1 if cubic is None else 2  # pixels to each side of a place
  y, x = (jnp.arange(n) + (0.5 - n / 2) for n in (height, width))
  # [b, 2, 3] -> six of [b, 1, 1], to be spread over rows and columns.
  (a, b, c), (d, e, f) = einops.rearrange(maps, 'b i j -> i j b 1 1')
  source_x = a * x + b * y[:, None] + c + width / 2
  source_y = d * x + e * y[:, None] + f + height / 2
  inside = (source_x >= 0) & (source_x < width)
  inside &= (source_y >= 0) & (source_y < height)
  left = jnp.clip(jnp.floor(source_x - 0.5), -1, width - 1)
  top = jnp.clip(jnp.floor(source_y - 0.5), -1, height - 1)
  # All that is outside is taken from rows of the fill at the end. A choice
  # between pixel and fill instead takes XLA on CPU longer than the rest.
  margin = (reach, reach)
  bordered = jnp.pad(pixels, ((0, 0), margin, margin, (0, 0)), mode='edge')
  stride = width + 2 * reach
  beyond = jnp.broadcast_to(
    jnp.asarray(fill, jnp.uint8), (len(pixels), 2 * reach, stride, channels)
  )
  bordered = jnp.concatenate([bordered, beyond], axis=1)
  bordered = einops.rearrange(bordered, 'b h w c -> b (h w) c')
  row = jnp.where(inside, top + 1, height + 2 * reach).astype(jnp.int32)
  column = jnp.where(inside, left + 1, 0).astype(jnp.int32)
  corner = einops.rearrange(row * stride + column, 'b h w -> b (h w) 1')

  def neighbor(i, j):
    found = jnp.take_along_axis(
      bordered, corner + (i * stride + j), axis=1, mode='promise_in_bounds'
    )
    return found.reshape(pixels.shape).astype(jnp.float32)

  def between(taps, weight):
    weight = weight[..., None]
    if cubic is None:
      return _linear(*taps, weight)
    return _cubic(*taps, weight, einops.rearrange(cubic, 'b -> b 1 1 1'))

  taps = range(2 * reach)
  right, below = source_x - 0.5 - left, source_y - 0.5 - top
  rows = [between([neighbor(i, j) for j in taps], right) for i in taps]
  sampled = between(rows, below)
  if cubic is not None:  # it overshoots
    sampled = jnp.clip(sampled, 0, 255)
  return sampled.astype(jnp.uint8)


def _linear(first, second, weight):
  # In this form equal neighbours give exactly themselves.
  return first + (second - first) * weight


def _cubic(before, first, second, after, weight, cubic):
  """Pillow's BICUBIC, in its form, or `_linear` of the two in the middle."""
  slope = jnp.where(cubic, second - before, second - first)
  bend = jnp.where(cubic, 2 * (before - first) + second - after, 0)
  twist = jnp.where(cubic, first - before + after - second, 0)
  return first + weight * (slope + weight * (bend + weight * twist))
