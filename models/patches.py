"""From pixels to patches and back."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from models.dense import flat_product
from models.initializers import MOCO_PATCHES, PatchInit, torch_bias

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Images that are not RGB have no customary statistics: [0, 1] goes to [-1, 1].
PLAIN = (0.5,)


def per_channel(
  name: str,
  values: tuple[float, ...] | None,
  default: tuple[float, ...],
  channels: int,
) -> tuple[float, ...]:
  """Spells out a per-channel constant.

  Args:
    name: what to call it in an error.
    values: one number per channel, a single one for all, or None.
    default: what None means for three channels; others get `PLAIN`.
    channels: number of channels c.

  Returns:
    c numbers.

  Raises:
    ValueError: if there are neither 1 nor c values.
  """
  if values is None:
    values = default if channels == 3 else PLAIN
  if len(values) not in (1, channels):
    raise ValueError(
      f'{name} has {len(values)} values for {channels} channels: give 1 or '
      f'{channels}'
    )
  return tuple(values) * (channels // len(values))


def normalize(
  x: jax.Array,
  mean: tuple[float, ...] | None,
  std: tuple[float, ...] | None,
) -> jax.Array:
  """(x - mean) / std of images [b, H, W, c]; None as in `per_channel`."""
  c = x.shape[-1]
  mean = per_channel('mean', mean, IMAGENET_MEAN, c)
  std = per_channel('std', std, IMAGENET_STD, c)
  return (x - jnp.array(mean)) / jnp.array(std)


def check_images(x: jax.Array, channels: int) -> None:
  """Raises ValueError for what is no batch of float images [b, H, W, c]."""
  if x.ndim != 4:
    raise ValueError(f'images must be [b, H, W, c], not {list(x.shape)}')
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(
      f'images must be floats in [0, 1], not {x.dtype}: divide by 255'
    )
  if x.shape[-1] != channels:
    raise ValueError(
      f'images have {x.shape[-1]} channels, the encoder takes {channels}: '
      f'convert them (config.data.channels={channels} for image files) or set '
      f'in_channels={x.shape[-1]}'
    )


def check_divisible(
  size: tuple[int, int],
  patch_size: int,
  name: str = 'patch size',
  *,
  fields: Sequence[str] = (),
) -> None:
  """Raises ValueError with the nearest (height, width) that patches tile.

  Args:
    size: of the image, in pixels.
    patch_size: side of a patch.
    name: of that side in the message.
    fields: of a config that hold the size, to be named in the message.
  """
  if not (size[0] % patch_size or size[1] % patch_size):
    return
  lower = [max(s // patch_size, 1) * patch_size for s in size]
  upper = [-(-s // patch_size) * patch_size for s in size]
  if fields:
    what = ' and '.join(f'{field}={_value(size)}' for field in fields)
  else:
    what = f'image {size[0]}x{size[1]}'
  options = [_value(s) if fields else f'{s[0]}x{s[1]}' for s in (lower, upper)]
  options = dict.fromkeys(options)
  raise ValueError(
    f'{what} is not divisible by {name} {patch_size}; '
    f'nearest sizes that work: {", ".join(options)}'
  )


def _value(size: Sequence[int]) -> str:
  """A size as it is written in a config."""
  return str(size[0] if size[0] == size[1] else tuple(size))


def patchify(images: jax.Array, patch_size: int) -> jax.Array:
  """Cuts images into patches: [b, h*p, w*q, c] -> [b, h, w, p*q*c], p = q.

  Inside a patch the order is row, column, channel.

  Args:
    images: [b, H, W, c], any dtype.
    patch_size: side of a patch.

  Returns:
    [b, H / patch_size, W / patch_size, patch_size**2 * c], same dtype.

  Raises:
    ValueError: if the patches do not tile the image.
  """
  check_divisible(images.shape[1:3], patch_size)
  return rearrange(
    images,
    'b (h p) (w q) c -> b h w (p q c)',
    p=patch_size,
    q=patch_size,
  )


def unpatchify(patches: jax.Array, patch_size: int) -> jax.Array:
  """Undoes `patchify`: [b, h, w, p*q*c] -> [b, h*p, w*q, c], p = q.

  Args:
    patches: [b, h, w, patch_size**2 * c], any dtype.
    patch_size: side of a patch.

  Returns:
    [b, h * patch_size, w * patch_size, c], same dtype.

  Raises:
    ValueError: if the last axis is not a multiple of patch_size**2.
  """
  if patches.shape[-1] % patch_size**2:
    raise ValueError(
      f'patches of {patches.shape[-1]} values are not made of '
      f'{patch_size}x{patch_size} pixels: check patch_size'
    )
  return rearrange(
    patches,
    'b h w (p q c) -> b (h p) (w q) c',
    p=patch_size,
    q=patch_size,
  )


class PatchEmbed(nn.Module):
  """Linear map of flattened patches, [b, k, p*p*c] -> [b, k, width].

  The parameter `kernel` is [p, p, c, width] (a convolution's HWIO, so weights
  of others need only PyTorch's OIHW transposed); `bias` is [width]. A product
  over patches is that convolution, and can be given the visible patches only.

  `start` is MoCo v3's initialisation (arXiv:2104.02057, official code): kernel
  U(+-sqrt(6 / (p * p * c + width))), that is Xavier's over the flattened patch;
  bias 0. PyTorch's own is U(+-1/sqrt(p * p * c)) for both; MAE has the kernel
  of the one and the bias of the other.
  """

  patch_size: int
  in_channels: int
  width: int
  dtype: jnp.dtype = jnp.float32
  start: PatchInit = MOCO_PATCHES
  use_bias: bool = True

  @nn.compact
  def __call__(self, patches: jax.Array) -> jax.Array:
    """Embeds patches in the order of `patchify`; returns `dtype`."""
    p, c = self.patch_size, self.in_channels
    kernel = self.param('kernel', self.start.kernel, (p, p, c, self.width))
    flat = rearrange(kernel, 'p q c d -> (p q c) d').astype(self.dtype)
    product = flat_product(patches.astype(self.dtype), flat)
    if not self.use_bias:
      return product
    bias_init = nn.initializers.zeros
    if self.start.torch_bias:
      bias_init = torch_bias(p * p * c)
    bias = self.param('bias', bias_init, (self.width,))
    return product + bias.astype(self.dtype)
