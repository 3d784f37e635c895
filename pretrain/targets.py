"""What a branch predicts, as functions of the [0, 1] view."""

import dataclasses

import jax
import jax.numpy as jnp

from models.patches import normalize, patchify, unpatchify


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormalizedPixels:
  """Pixels of every patch as the encoder sees them (MAE, section 3).

  Channels are brought to the encoder's mean and standard deviation and then,
  with `by_patch`, every patch to mean 0 and standard deviation 1 over all its
  pixels and channels: (x − μ) / √(σ² + 1e-6) with the unbiased σ², as in the
  authors' code.

  Attributes:
    patch_size: side of a patch.
    mean: the encoder's; see `models.patches.normalize`.
    std: the encoder's.
    by_patch: MAE's `norm_pix_loss`.
  """

  patch_size: int
  mean: tuple[float, ...] | None = None
  std: tuple[float, ...] | None = None
  by_patch: bool = True

  def __call__(self, images: jax.Array) -> jax.Array:
    """[b, H, W, c] in [0, 1] -> [b, h, w, p·p·c], float32."""
    patches = self._patches(images)
    if not self.by_patch:
      return patches
    mean, std = _moments(patches)
    return (patches - mean) / std

  def restore(self, prediction: jax.Array, images: jax.Array) -> jax.Array:
    """Images that a prediction stands for, to be looked at.

    What normalising by patch took away is that of the true patch, as in MAE's
    demo: brightness and contrast are given, only their pattern is predicted.

    Args:
      prediction: [b, h, w, p·p·c].
      images: the true ones, [b, H, W, c] in [0, 1].

    Returns:
      [b, H, W, c], about [0, 1].
    """
    if self.by_patch:
      mean, std = _moments(self._patches(images))
      prediction = prediction * std + mean
    seen = unpatchify(prediction, self.patch_size)
    # `normalize` is linear: its value at 0 and slope, by channel.
    zero, one = (
      normalize(jnp.full((1, 1, 1, images.shape[-1]), x), self.mean, self.std)
      for x in (0.0, 1.0)
    )
    return (seen - zero) / (one - zero)

  def _patches(self, images: jax.Array) -> jax.Array:
    x = normalize(images.astype(jnp.float32), self.mean, self.std)
    return patchify(x, self.patch_size)


def _moments(patches: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean and √(unbiased variance + 1e-6) of patches [..., f], [..., 1]."""
  mean = patches.mean(axis=-1, keepdims=True)
  variance = patches.var(axis=-1, ddof=1, keepdims=True)
  return mean, jnp.sqrt(variance + 1e-6)
