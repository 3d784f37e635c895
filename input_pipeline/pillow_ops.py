"""Pillow's ops on 8-bit images, batched: another op for each image.

A batched choice of one in 15 ops would compute all 15. They are therefore three
kinds, and one pass of a kind holds all its ops, identities for other images:

* geometry: an affine map, sampled once;
* tables: 256 values per channel, looked up once;
* blends: a mix with a duller image (grey, flat or smooth).

Values are whole numbers of 0..255, so identities are exact.
"""

import einops
import jax
import jax.numpy as jnp

from input_pipeline.warp import warp

OPS = (
  'auto_contrast',
  'equalize',
  'invert',
  'rotate',
  'posterize',
  'solarize',
  'solarize_add',
  'color',
  'contrast',
  'brightness',
  'sharpness',
  'shear_x',
  'shear_y',
  'translate_x',
  'translate_y',
)
NO_OP = len(OPS)
WARPS = ('rotate', 'shear_x', 'shear_y', 'translate_x', 'translate_y')
BLENDS = ('color', 'contrast', 'sharpness')
# ITU-R 601 in 16 bits, as in Pillow's convert('L').
LUMA = (19595, 38470, 7471)


def apply_ops(
  pixels: jax.Array,
  op: jax.Array,
  value: jax.Array,
  fill: tuple[int, ...],
  cubic: jax.Array | None = None,
) -> jax.Array:
  """One op on each image.

  Tables equal Pillow's, but for auto_contrast: where its stretched value is a
  whole number, Pillow's floating point can fall one level short. Blends and
  geometry are Pillow's up to the last bit of a float, which can show as one
  level. On images of other than 3 channels color does nothing and the grey of
  contrast is the mean of the channels; all else is channel by channel.

  Args:
    pixels: uint8 [b, h, w, c].
    op: int32 [b], places in `OPS`, or `NO_OP`.
    value: float32 [b], what the op takes: rotate degrees counterclockwise;
      posterize the bits to keep, 0..8; solarize the smallest level to invert;
      solarize_add what is added below 128; color, contrast, brightness,
      sharpness a factor, 1 for no change; shear_x, shear_y pixels per pixel;
      translate_x, translate_y the fraction of the side by which the image moves
      to the left or up. The first three of `OPS` take none.
    fill: c levels of 0..255 for what geometry moves in from outside.
    cubic: bool [b], whose geometry is bicubic; None for bilinear throughout.

  Returns:
    uint8 [b, h, w, c].
  """
  if pixels.dtype != jnp.uint8:
    raise TypeError(f'apply_ops takes uint8 images, got {pixels.dtype}')
  # Each kind starts from the pixels themselves. In a chain XLA on CPU fuses one
  # kind into the next and computes it again for every value that is read: for
  # 64 images of 224 px all take 130 ms, geometry and blends in a chain 740.
  warped = warp(pixels, affine_maps(op, value, pixels.shape[1:3]), fill, cubic)
  looked_up = look_up(pixels, tables(pixels, op, value))
  kind = einops.rearrange(op, 'b -> b 1 1 1')
  is_warp, is_blend = (
    jnp.isin(kind, jnp.array([OPS.index(name) for name in names]))
    for names in (WARPS, BLENDS)
  )
  pixels = jnp.where(is_blend, blend(pixels, op, value), looked_up)
  return jnp.where(is_warp, warped, pixels)


def _is(op: jax.Array, name: str) -> jax.Array:
  return op == OPS.index(name)


def affine_maps(
  op: jax.Array, value: jax.Array, size: tuple[int, int]
) -> jax.Array:
  """Where geometric ops take their pixels from.

  Args:
    op: int32 [b]; maps of other ops are the identity.
    value: float32 [b], see `apply_ops`.
    size: (height, width) of the images, pixels.

  Returns:
    float32 [b, 2, 3]: (x, y) in the source = map @ (x, y, 1), all in pixels
    from the middle of the image.
  """
  height, width = size
  amount = {name: jnp.where(_is(op, name), value, 0) for name in WARPS}
  angle = jnp.deg2rad(amount['rotate'])
  # Pillow shears about the corner: from the middle that is a shift as well.
  shift_x = amount['translate_x'] * width + amount['shear_x'] * (height / 2)
  shift_y = amount['translate_y'] * height + amount['shear_y'] * (width / 2)
  rows = (
    (jnp.cos(angle), amount['shear_x'] - jnp.sin(angle), shift_x),
    (amount['shear_y'] + jnp.sin(angle), jnp.cos(angle), shift_y),
  )
  return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def tables(pixels: jax.Array, op: jax.Array, value: jax.Array) -> jax.Array:
  """What becomes of each level in the ops that look at one pixel at a time.

  Args:
    pixels: uint8 [b, h, w, c].
    op: int32 [b]; tables of other ops are the identity.
    value: float32 [b], see `apply_ops`.

  Returns:
    uint8 [b, c, 256].
  """
  # The loop is a boundary for XLA's fusion on CPU: without it tables are
  # computed again for every pixel that is looked up (230 ms instead of 43).
  planes = einops.rearrange(pixels, 'b h w c -> c b (h w)')
  found = jax.lax.map(lambda plane: _plane_tables(plane, op, value), planes)
  return einops.rearrange(found, 'c b n -> b c n')


def _plane_tables(
  plane: jax.Array, op: jax.Array, value: jax.Array
) -> jax.Array:
  """Tables uint8 [b, 256] of one channel uint8 [b, n]."""
  level = jnp.arange(256)
  op, value = op[:, None], value[:, None]
  whole = value.astype(jnp.int32)
  step_of_bits = 2 ** (8 - jnp.clip(whole, 0, 8))
  rules = {
    'auto_contrast': _auto_contrast(plane),
    'equalize': _equalize(plane),
    'invert': 255 - level,
    'posterize': level - level % step_of_bits,
    'solarize': jnp.where(level < value, level, 255 - level),
    'solarize_add': jnp.where(level < 128, level + whole, level),
    'brightness': jnp.clip(value * level, 0, 255).astype(jnp.int32),
  }
  table = jnp.broadcast_to(level, (len(plane), 256))
  for name, rule in rules.items():
    table = jnp.where(_is(op, name), rule, table)
  return jnp.clip(table, 0, 255).astype(jnp.uint8)


def _auto_contrast(plane: jax.Array) -> jax.Array:
  """Stretches what occurs to 0..255; a single level stays: [b, 256]."""
  level = jnp.arange(256)
  low = plane.min(axis=1, keepdims=True).astype(jnp.int32)
  high = plane.max(axis=1, keepdims=True).astype(jnp.int32)
  stretched = (level - low) * 255 // jnp.maximum(high - low, 1)
  return jnp.where(high > low, stretched, level)


def _equalize(plane: jax.Array) -> jax.Array:
  """Spreads the levels so that each is as frequent: [b, 256]."""
  counts = _histogram(plane)
  below = jnp.cumsum(counts, axis=1) - counts
  # Pillow leaves the highest level that occurs out of the sum.
  total = jnp.where(counts > 0, below, 0).max(axis=1, keepdims=True)
  step = total // 255
  spread = (step // 2 + below) // jnp.maximum(step, 1)
  return jnp.where(step > 0, spread, jnp.arange(256))


def _histogram(plane: jax.Array) -> jax.Array:
  """How often each level occurs, int32 [b, 256]."""

  # Counting one by one is the fastest of what XLA on CPU offers: sorting takes
  # five times as long, products of one-hot nibbles four times.
  def count(levels):
    counts = jnp.zeros(256, jnp.int32)
    return counts.at[levels].add(1, mode='promise_in_bounds')

  return jax.vmap(count)(plane.astype(jnp.int32))


def look_up(pixels: jax.Array, tables: jax.Array) -> jax.Array:
  """Replaces each level by that of a table.

  Args:
    pixels: uint8 [b, h, w, c].
    tables: uint8 [b, c, 256].

  Returns:
    uint8 [b, h, w, c].
  """
  tables = einops.rearrange(tables, 'b c n -> b n c')
  flat = einops.rearrange(pixels, 'b h w c -> b (h w) c').astype(jnp.int32)
  found = jnp.take_along_axis(tables, flat, axis=1, mode='promise_in_bounds')
  return found.reshape(pixels.shape)


def blend(pixels: jax.Array, op: jax.Array, value: jax.Array) -> jax.Array:
  """Color, contrast and sharpness: a duller image and the way back or beyond.

  Args:
    pixels: uint8 [b, h, w, c].
    op: int32 [b]; images with other ops stay.
    value: float32 [b]: 0 for the duller image, 1 for no change.

  Returns:
    uint8 [b, h, w, c].
  """
  op, value = (einops.rearrange(x, 'b -> b 1 1 1') for x in (op, value))
  whole = pixels.astype(jnp.int32)
  gray = _gray(whole)
  # Rounded, halves upwards.
  area = gray.shape[1] * gray.shape[2]
  total = einops.reduce(gray, 'b h w 1 -> b 1 1 1', 'sum')
  dull = jnp.where(_is(op, 'contrast'), (2 * total + area) // (2 * area), whole)
  dull = jnp.where(_is(op, 'sharpness'), _smooth(whole), dull)
  if pixels.shape[-1] == 3:
    dull = jnp.where(_is(op, 'color'), gray, dull)
  mixed = dull + value * (whole - dull)
  return jnp.clip(mixed, 0, 255).astype(jnp.uint8)


def _gray(whole: jax.Array) -> jax.Array:
  """Grey levels of images [b, h, w, c] -> [b, h, w, 1], rounded."""
  channels = whole.shape[-1]
  if channels != 3:
    total = whole.sum(axis=-1, keepdims=True)
    return (2 * total + channels) // (2 * channels)
  red, green, blue = (whole[..., i : i + 1] for i in range(3))
  return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue + 2**15) >> 16


def _smooth(whole: jax.Array) -> jax.Array:
  """Means of 3 x 3 pixels with 5 times the middle one; borders stay."""
  inner = whole[:, 1:-1, 1:-1]
  if not inner.size:
    return whole
  rows = whole[:, :-2] + whole[:, 1:-1] + whole[:, 2:]
  total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * inner
  return whole.at[:, 1:-1, 1:-1].set((2 * total + 13) // 26)
