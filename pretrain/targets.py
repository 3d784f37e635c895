"""What a branch predicts, as functions of the [0, 1] view."""

import dataclasses

import jax
import jax.numpy as jnp

from models.patches import patchify


@dataclasses.dataclass(frozen=True)
class Pixels:
  """Raw pixels of every patch, neither normalised nor clamped (RePre, Eq. 3).

  Attributes:
    patch_size: side of a patch.
  """

  patch_size: int

  def __call__(self, images: jax.Array) -> jax.Array:
    """[b, H, W, c] -> [b, h, w, p·p·c]; h, w count patches begun.

    Swin's deep maps cover more than an image whose sides are not multiples of
    the stride: there the border is continued.
    """
    beyond = [(0, -side % self.patch_size) for side in images.shape[1:3]]
    if any(after for _, after in beyond):
      images = jnp.pad(images, ((0, 0), *beyond, (0, 0)), mode='edge')
    return patchify(images, self.patch_size)
