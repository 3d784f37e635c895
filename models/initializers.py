"""How parameters start, where Flax has no word for it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

Initializer = nn.initializers.Initializer

# For a d x d matrix U(+-sqrt(6 / 2d)): MoCo v3 and the ViT paper.
XAVIER = nn.initializers.xavier_uniform()
# The bound of one d x 3d matrix for each of query, key and value, which are one
# in MAE's and ConvMAE's code: U(+-sqrt(6 / 4d)).
XAVIER_FUSED = nn.initializers.variance_scaling(0.5, 'fan_avg', 'uniform')
# Xavier for a patch kernel [p, p, c, d], over the flattened patch.
XAVIER_PATCH = nn.initializers.xavier_uniform(in_axis=(0, 1, 2), out_axis=3)
# PyTorch's default of a Linear's or a convolution's kernel,
# U(+-1/sqrt(fan_in)); the last two axes are in and out.
TORCH = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
# The same for a patch kernel.
TORCH_PATCH = nn.initializers.variance_scaling(
  1 / 3, 'fan_in', 'uniform', in_axis=(0, 1, 2), out_axis=3
)
# PyTorch's `trunc_normal_(std=.02)` cuts at +-2 and not at 2 standard
# deviations: of a hundred of them nothing is cut.
NORMAL_02 = nn.initializers.normal(0.02)


def torch_bias(fan_in: int) -> Initializer:
  """PyTorch's default of a bias, U(+-1/sqrt(fan_in)) like its kernel's."""

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -1) * fan_in**-0.5

  return init


class PatchInit(NamedTuple):
  """How a patch embedding starts."""

  kernel: Initializer
  torch_bias: bool  # PyTorch's default; else 0


class Init(NamedTuple):
  """How a ViT's parameters start."""

  kernel: Initializer  # of output and MLP
  qkv: Initializer  # of query, key and value
  token: Initializer  # of CLS and a mask token
  patches: PatchInit
  relative: Initializer = NORMAL_02  # of biases by relative position
  shrinks: bool = False  # see `last`

  def last(self, block: int) -> Initializer:
    """Of the kernels that end the two branches of a block, counted from 0.

    BEiT divides them by the square root of the number of branches so far.
    """
    if not self.shrinks:
      return self.kernel
    factor = (2 * (block + 1)) ** -0.5

    def init(key, shape, dtype=jnp.float32):
      return self.kernel(key, shape, dtype) * factor

    return init


MOCO_PATCHES = PatchInit(XAVIER_PATCH, torch_bias=False)
TORCH_PATCHES = PatchInit(TORCH_PATCH, torch_bias=True)
# MAE's code redraws the kernel and leaves the bias.
MAE_PATCHES = PatchInit(XAVIER_PATCH, torch_bias=True)
# SimMIM's ViT (arXiv:2111.09886, authors' code) cuts at one standard deviation;
# its biases and relative positions start at 0.
SIMMIM = nn.initializers.truncated_normal(0.02, lower=-1.0, upper=1.0)
VIT_INITS = {
  'moco_v3': Init(XAVIER, XAVIER, nn.initializers.normal(1e-6), MOCO_PATCHES),
  'trunc_normal': Init(NORMAL_02, NORMAL_02, NORMAL_02, TORCH_PATCHES),
  'mae': Init(XAVIER, XAVIER_FUSED, NORMAL_02, MAE_PATCHES),
  'simmim': Init(
    SIMMIM,
    SIMMIM,
    SIMMIM,
    PatchInit(SIMMIM, torch_bias=False),
    relative=nn.initializers.zeros,
    shrinks=True,
  ),
}
