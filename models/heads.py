"""Projectors and predictors of contrastive methods."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from models.layers import BatchNorm, compute_dtype


class MLPHead(nn.Module):
  """Dense layers with BatchNorm, as MoCo v3's heads (arXiv:2104.02057, 4.1).

  Hidden layers are Dense, BatchNorm, ReLU; the last is Dense and, unless
  `last_norm` is off, a BatchNorm without scale and bias. No Dense has a bias.
  The paper's projector is `MLPHead(hidden=4096, out=256, layers=3)`, its
  predictor the same with `layers=2`.

  Parameters: `dense_i` (kernel) and `norm_i` (scale, bias), i from 0; the last
  norm has none. Nothing else is stored, so that `head.apply({'params': p}, x)`
  is a pure function. Kernels start as PyTorch's default U(+-1/sqrt(fan_in)),
  which is what the authors' heads keep.

  Attributes:
    hidden: width of the hidden layers.
    out: width of the result.
    layers: number of Dense layers.
    last_norm: normalise the result over the batch.
    dtype: 'float32' or 'bfloat16' for products; statistics are float32.
  """

  hidden: int
  out: int
  layers: int
  last_norm: bool = True
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps features [b, d] to [b, out] float32.

    Raises:
      ValueError: if `layers` is below 1, or the batch has one example only.
    """
    if self.layers < 1:
      raise ValueError(f'a head needs at least 1 layer, not {self.layers}')
    dtype = compute_dtype(self.dtype)
    init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
    last = self.layers - 1
    for i in range(self.layers):
      x = nn.Dense(
        self.out if i == last else self.hidden,
        use_bias=False,
        dtype=dtype,
        kernel_init=init,
        name=f'dense_{i}',
      )(x)
      if i < last:
        x = nn.relu(BatchNorm(dtype=dtype, name=f'norm_{i}')(x))
    if self.last_norm:
      x = BatchNorm(affine=False, name=f'norm_{last}')(x)
    return x.astype(jnp.float32)
