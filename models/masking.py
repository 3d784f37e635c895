"""Which patches an encoder does not see.

One convention, everywhere: `hidden` is True where a patch is hidden from the
encoder and has to be predicted, False where it is visible.
"""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Mask:
  """Hidden patches of a batch; every image shows the same number of them.

  Attributes:
    hidden: True = hidden, [b, n] bool, over the row-major patch grid.
    visible: positions of the visible patches, ascending, [b, k] int32.
  """

  hidden: jax.Array
  visible: jax.Array


def check_mask(
  mask: Mask | None, images: tuple[int, ...], patch_size: int
) -> None:
  """Raises ValueError for a mask of other images than [b, H, W, c]."""
  b, height, width, _ = images
  n = height * width // patch_size**2
  if mask is not None and mask.hidden.shape != (b, n):
    raise ValueError(
      f'mask is {list(mask.hidden.shape)}, the images have [{b}, {n}] patches'
    )


def mask_from_noise(noise: jax.Array, keep: int) -> Mask:
  """Keeps the `keep` patches of lowest noise of each row visible.

  MAE's shuffle (He et al., 2022, arXiv:2111.06377, section 3) with the visible
  patches put back into grid order, which attention does not notice.

  Args:
    noise: one number per patch, [b, n] float.
    keep: number of visible patches, 1..n.

  Returns:
    The Mask, [b, n] and [b, keep].

  Raises:
    ValueError: if `keep` is not in 1..n.
  """
  n = noise.shape[1]
  if not 1 <= keep <= n:
    raise ValueError(
      f'a mask must leave 1 to {n} of {n} patches visible, not {keep}: change '
      'the mask ratio'
    )
  order = jnp.argsort(noise, axis=1)
  visible = jnp.sort(order[:, :keep], axis=1)
  # By rank: a scatter over rows would make devices gather each other's.
  hidden = jnp.argsort(order, axis=1) >= keep
  return Mask(hidden=hidden, visible=visible.astype(jnp.int32))


def random_masking(
  rng: jax.Array,
  grid: tuple[int, int],
  hints: jax.Array | None = None,
  *,
  batch: int,
  ratio: float,
) -> Mask:
  """Hides a random set of patches, another one for each image, as MAE does.

  Row i depends on (rng, grid, i) alone, not on how many rows or devices
  there are (JAX's partitionable threefry counts elements).

  Args:
    rng: one key.
    grid: (h, w) in patches.
    hints: what a teacher says of the patches; ignored here.
    batch: number of images b.
    ratio: share of hidden patches; int(n * (1 - ratio)) stay visible.

  Returns:
    The Mask, [b, h * w] and [b, k].

  Raises:
    ValueError: if the ratio is outside [0, 1) or leaves no patch visible.
  """
  del hints
  if not 0 <= ratio < 1:
    raise ValueError(f'mask ratio must be in [0, 1), not {ratio}')
  n = grid[0] * grid[1]
  noise = jax.random.uniform(rng, (batch, n))
  return mask_from_noise(noise, int(n * (1 - ratio)))
