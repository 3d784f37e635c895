"""Frozen teachers: encoders that somebody trained, and what they say."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import reduce

from models.features import Features

EPSILON = 1e-5  # of the norm without parameters


class Said(NamedTuple):
  """What a teacher says of a batch, without a gradient.

  Attributes:
    places: [b, h, w, levels * d] float32, on the student's grid, one level
      after the other.
    cls: the same of its CLS token, [b, levels * d], where it was asked for.
    saliency: the last block's attention from CLS (without CLS: from all
      patches, on average) to every patch, mean over heads, [b, h * w] float32,
      where it was asked for.
  """

  places: jax.Array
  cls: jax.Array | None = None
  saliency: jax.Array | None = None

  def tokens(
    self, index: jax.Array | None, *, class_token: bool = False
  ) -> jax.Array:
    """What was said of visible places, [b, k, levels * d].

    Args:
      index: of the visible places, [b, k]; None for all.
      class_token: CLS comes before them.
    """
    flat = self.places.reshape(len(self.places), -1, self.places.shape[-1])
    if index is not None:
      flat = jnp.take_along_axis(flat, index[:, :, None], axis=1)
    if class_token:
      flat = jnp.concatenate([self.cls[:, None], flat], axis=1)
    return flat


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frozen:
  """An encoder without a gradient, as a target and as a guide of masks.

  It sees the same crop as the student, whole and normalised with its own mean
  and standard deviation. What it says of a place is its raw residual stream
  after some blocks, brought to mean 0 and standard deviation 1 by token: a
  LayerNorm without parameters, which makes CLIP's and DINO's features alike in
  scale (MaskAlign, Xue et al., 2023).

  Attributes:
    encoder: of `models`.
    levels: whose stream; several are stacked.
    class_token: what it says includes its CLS token.
    size: (height, width) in pixels that images are resized to for it; None as
      they are, or, if that gives no grid that the student's divides, such that
      the grids agree (CLIP's ViT-L/14 sees 196 px for a student of 14 x 14).
  """

  encoder: Any
  levels: tuple[int, ...] = (-1,)
  class_token: bool = False
  size: tuple[int, int] | None = None

  def init(self, rng: jax.Array, images: jax.Array) -> Any:
    """Parameters, to be replaced by trained ones.

    Raises:
      ValueError: a teacher of other images.
    """
    self.check_channels(images.shape[-1])
    # No shape depends on the size, and its patches need not tile these images.
    stride = self.encoder.strides[-1]
    size = (max(side // stride, 1) * stride for side in images.shape[1:3])
    images = jnp.zeros((1, *size, images.shape[-1]))
    return self.encoder.init(rng, images)['params']

  def check_channels(self, channels: int) -> None:
    """Raises ValueError for a teacher of other images."""
    if self.encoder.in_channels != channels:
      raise ValueError(
        f'the teacher takes {self.encoder.in_channels} channels, the images '
        f'have {channels}: set config.data.channels='
        f'{self.encoder.in_channels}, or take another teacher'
      )

  def __call__(
    self,
    params: Any,
    images: jax.Array,
    grid: tuple[int, int],
    *,
    with_saliency: bool = False,
  ) -> Said:
    """What the teacher says of every place of the student's grid.

    Args:
      params: of the encoder.
      images: the view, [b, H, W, c] in [0, 1].
      grid: (h, w) of the student; a finer one of the teacher's is averaged.
      with_saliency: whether saliency is wanted.

    Returns:
      See `Said`.

    Raises:
      ValueError: grids that do not fit, saliency of an encoder that attends in
        windows, or CLS of one without.
    """
    self.check_channels(images.shape[-1])
    images = self._resized(images, grid)
    blocks = (self.encoder.depth - 1,) if with_saliency else ()
    features = self.encoder.apply({'params': params}, images, attention=blocks)
    features = jax.lax.stop_gradient(features)
    levels = [features.levels[i] for i in self.levels]
    maps = [_averaged(_whiten(level.map()), grid) for level in levels]
    cls = saliency = None
    if self.class_token:
      if features.cls is None:
        raise ValueError(
          'this teacher has no CLS token: set method.mimic.class_token=False'
        )
      tokens = [_whiten(level.prefix[:, 0]) for level in levels]
      cls = jnp.concatenate(tokens, axis=-1)
    if with_saliency:
      # A share of the attention: a cell's is the sum of its patches'.
      attention = self._saliency(features, blocks[0])
      saliency = _averaged(attention, grid).reshape(len(images), -1)
    return Said(jnp.concatenate(maps, axis=-1), cls, saliency)

  def _resized(self, images: jax.Array, grid: tuple[int, int]) -> jax.Array:
    stride = self.encoder.strides[-1]
    size = self.size
    if size is None:
      fits = all(
        side % stride == 0 and side // stride % n == 0
        for side, n in zip(images.shape[1:3], grid, strict=True)
      )
      if fits:
        return images
      size = (grid[0] * stride, grid[1] * stride)
    shape = (len(images), *size, images.shape[-1])
    # Cubic overshoots; the teacher was trained on images in [0, 1].
    return jnp.clip(jax.image.resize(images, shape, 'cubic'), 0, 1)

  def _saliency(self, features: Features, block: int) -> jax.Array:
    weights = features.attention[block]
    if weights.ndim != 4:
      raise ValueError(
        'masks cannot be guided by a teacher that attends in windows: take a '
        "ViT, or set method.focus='none'"
      )
    level = features.levels[-1]
    prefix = level.prefix.shape[1]
    rows = weights[:, :, 0, prefix:]
    if features.cls is None:
      rows = weights[:, :, prefix:, prefix:].mean(axis=2)
    return rows.mean(axis=1).reshape(len(rows), *level.grid, 1)


def _whiten(x: jax.Array) -> jax.Array:
  """LayerNorm over the last axis without parameters, float32."""
  return jax.nn.standardize(x.astype(jnp.float32), epsilon=EPSILON)


def _averaged(x: jax.Array, grid: tuple[int, int]) -> jax.Array:
  """Maps [b, h, w, d] on a grid that divides theirs.

  Raises:
    ValueError: it does not.
  """
  h, w = x.shape[1:3]
  if h % grid[0] or w % grid[1]:
    raise ValueError(
      f"the teacher's {h}x{w} patches do not fit the student's "
      f'{grid[0]}x{grid[1]}: set method.teachers.NAME.size so that they do'
    )
  parts = dict(p=h // grid[0], q=w // grid[1])
  return reduce(x, 'b (h p) (w q) d -> b h w d', 'mean', **parts)
