"""What a branch predicts, as functions of the [0, 1] view."""

import dataclasses

import jax

from models.patches import patchify


@dataclasses.dataclass(frozen=True)
class Pixels:
  """Raw pixels of every patch, neither normalised nor clamped (RePre, Eq. 3).

  Attributes:
    patch_size: side of a patch.
  """

  patch_size: int

  def __call__(self, images: jax.Array) -> jax.Array:
    """[b, h·p, w·p, c] -> [b, h, w, p·p·c]."""
    return patchify(images, self.patch_size)
