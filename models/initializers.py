"""How parameters start, where Flax has no word for it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

Initializer = nn.initializers.Initializer

# For a d x d matrix U(+-sqrt(6 / 2d)): MoCo v3 and the ViT paper.
XAVIER = nn.initializers.xavier_uniform()
# The same for a patch kernel [p, p, c, d], over the flattened patch.
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


class Init(NamedTuple):
  """How a ViT's parameters start."""

  kernel: Initializer  # of query, key, value, output and MLP
  cls: Initializer
  torch_patches: bool  # the patch embedding as PyTorch's default


VIT_INITS = {
  'moco_v3': Init(XAVIER, nn.initializers.normal(1e-6), torch_patches=False),
  'trunc_normal': Init(NORMAL_02, NORMAL_02, torch_patches=True),
}
