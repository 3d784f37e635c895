"""Projectors and predictors of contrastive methods, and DINO's head."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from models.activations import gelu
from models.initializers import NORMAL_02, TORCH, torch_bias
from models.layers import BatchNorm, compute_dtype

SIMCLR = nn.initializers.normal(0.01)


class MLPHead(nn.Module):
  """Dense layers with BatchNorm, as MoCo v3's heads (arXiv:2104.02057, 4.1).

  Hidden layers are Dense, BatchNorm, ReLU; the last is Dense and, unless
  `last_norm` is off, a BatchNorm without scale and bias. No Dense has a bias.
  The paper's projector is `MLPHead(hidden=4096, out=256, layers=3)`, its
  predictor the same with `layers=2`. The heads of other methods are below.

  Parameters: `dense_i` (kernel, bias if it has one) and `norm_i` (scale, bias),
  i from 0; the last norm has a scale at most. Nothing else is stored, so that
  `head.apply({'params': p}, x)` is a pure function. Kernels and biases start as
  PyTorch's default U(+-1/sqrt(fan_in)), which is what the authors' heads keep.

  Attributes:
    hidden: width of the hidden layers.
    out: width of the result.
    layers: number of Dense layers.
    hidden_bias: hidden Dense layers have a bias.
    last_bias: the last Dense has a bias.
    hidden_norm: normalise hidden layers over the batch.
    last_norm: normalise the result over the batch.
    last_scale: that normalisation learns a scale.
    kernel_init: how kernels start.
    dtype: 'float32' or 'bfloat16' for products; statistics are float32.
  """

  hidden: int
  out: int
  layers: int
  hidden_bias: bool = False
  last_bias: bool = False
  hidden_norm: bool = True
  last_norm: bool = True
  last_scale: bool = False
  kernel_init: nn.initializers.Initializer = TORCH
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps features [b, d] to [b, out] float32.

    Raises:
      ValueError: if `layers` is below 1, or a batch to be normalised has one
        example only.
    """
    _check_layers(self.layers)
    dtype = compute_dtype(self.dtype)
    last = self.layers - 1
    for i in range(self.layers):
      x = nn.Dense(
        self.out if i == last else self.hidden,
        use_bias=self.last_bias if i == last else self.hidden_bias,
        dtype=dtype,
        kernel_init=self.kernel_init,
        bias_init=torch_bias(x.shape[-1]),
        name=f'dense_{i}',
      )(x)
      if i < last:
        if self.hidden_norm:
          x = BatchNorm(dtype=dtype, name=f'norm_{i}')(x)
        x = nn.relu(x)
    if self.last_norm:
      norm = BatchNorm(affine=self.last_scale, bias=False, name=f'norm_{last}')
      x = norm(x)
    return x.astype(jnp.float32)


def _check_layers(layers: int) -> None:
  if layers < 1:
    raise ValueError(f'a head needs at least 1 layer, not {layers}')


def simclr_head(
  hidden: int, out: int = 128, *, layers: int = 3, dtype: str = 'float32'
) -> MLPHead:
  """SimCLR's projector (google-research/simclr, `model_util.py`).

  No Dense has a bias, the last BatchNorm has a scale and no bias, kernels start
  as N(0, 0.01²). Both views have to go through it as one batch.

  Args:
    hidden: width of the hidden layers; the encoder's in the authors' code.
    out: width of the result.
    layers: number of Dense layers; 2 in the paper.
    dtype: compute dtype.
  """
  return MLPHead(
    hidden, out, layers, last_scale=True, kernel_init=SIMCLR, dtype=dtype
  )


def byol_head(
  hidden: int = 4096, out: int = 256, *, layers: int = 2, dtype: str = 'float32'
) -> MLPHead:
  """BYOL's projector and predictor (arXiv:2006.07733, section 3.2).

  Hidden layers have a bias and BatchNorm, the last has neither.

  Differs from the authors' code: kernels start as PyTorch's do and not as
  # Haiku's truncated normal of the same fan_in.
  """
  return MLPHead(
    hidden, out, layers, hidden_bias=True, last_norm=False, dtype=dtype
  )


def simsiam_projector(
  hidden: int, out: int = 2048, *, layers: int = 3, dtype: str = 'float32'
) -> MLPHead:
  """SimSiam's projector (arXiv:2011.10566, section 3), that of MoCo v3.

  Args:
    hidden: width of the hidden layers; the encoder's in the authors' code.
    out: width of the result.
    layers: number of Dense layers.
    dtype: compute dtype.
  """
  return MLPHead(hidden, out, layers, dtype=dtype)


def simsiam_predictor(
  hidden: int = 512, out: int = 2048, *, dtype: str = 'float32'
) -> MLPHead:
  """SimSiam's predictor: the last layer has a bias and no BatchNorm."""
  return MLPHead(hidden, out, 2, last_bias=True, last_norm=False, dtype=dtype)


def moco_v2_head(
  hidden: int, out: int = 128, *, dtype: str = 'float32'
) -> MLPHead:
  """MoCo v2's head (arXiv:2003.04297): biases and no BatchNorm anywhere.

  Args:
    hidden: width of the hidden layer; the encoder's in the authors' code.
    out: width of the result.
    dtype: compute dtype.
  """
  return MLPHead(
    hidden,
    out,
    2,
    hidden_bias=True,
    last_bias=True,
    hidden_norm=False,
    last_norm=False,
    dtype=dtype,
  )


def moby_head(
  hidden: int = 4096, out: int = 256, *, layers: int = 2, dtype: str = 'float32'
) -> MLPHead:
  """MoBY's projector and predictor (arXiv:2105.04553, section 3).

  Every Dense has a bias, hidden layers have BatchNorm, the last has not.
  """
  return MLPHead(
    hidden,
    out,
    layers,
    hidden_bias=True,
    last_bias=True,
    last_norm=False,
    dtype=dtype,
  )


class DINOHead(nn.Module):
  """DINO's head (Caron et al., arXiv:2104.14294, appendix C).

  Dense and GELU, the last Dense to a bottleneck, ℓ2-normalisation, and a layer
  without bias whose output i is g_i v_i·x / ‖v_i‖ (weight normalisation).

  Parameters: `dense_i` (kernel N(0, 0.02²), bias 0), with `use_bn` `norm_i`
  (scale, bias), and `last` with v [bottleneck, out], U(+-1/sqrt(bottleneck)),
  and g [out], ones. A teacher's moving average takes v and g apart.

  `last/g` is there whether it trains or not: who does not train it has to keep
  the optimiser away from it as well, decay included. Who does has to know that
  the authors' g is [out, 1] and therefore decays, unlike biases and norms.

  Attributes:
    hidden: width of the hidden layers.
    bottleneck: width of what is normalised.
    out: number of outputs k.
    layers: number of Dense layers before the last layer.
    use_bn: BatchNorm before each GELU.
    norm_last: g gets no gradient; off, it trains.
    dtype: 'float32' or 'bfloat16' for products; norms are float32.
  """

  hidden: int = 2048
  bottleneck: int = 256
  out: int = 65536
  layers: int = 3
  use_bn: bool = False
  norm_last: bool = True
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps features [b, d] to logits [b, out] float32.

    Raises:
      ValueError: if `layers` is below 1.
    """
    _check_layers(self.layers)
    dtype = compute_dtype(self.dtype)
    last = self.layers - 1
    for i in range(self.layers):
      x = nn.Dense(
        self.bottleneck if i == last else self.hidden,
        dtype=dtype,
        kernel_init=NORMAL_02,
        name=f'dense_{i}',
      )(x)
      if i < last:
        if self.use_bn:
          x = BatchNorm(dtype=dtype, name=f'norm_{i}')(x)
        x = gelu(x)
    return WeightNormDense(
      self.out, frozen_gain=self.norm_last, dtype=dtype, name='last'
    )(_unit(x, axis=-1))


class WeightNormDense(nn.Module):
  """A Dense whose kernel is g v / ‖v‖ by output (arXiv:1602.07868, eq. 2).

  Attributes:
    out: number of outputs.
    frozen_gain: g gets no gradient.
    dtype: what the product is computed in; the result is float32.
  """

  out: int
  frozen_gain: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [b, d] to [b, out] float32."""
    v = self.param('v', TORCH, (x.shape[-1], self.out))
    g = self.param('g', nn.initializers.ones, (self.out,))
    if self.frozen_gain:
      g = jax.lax.stop_gradient(g)
    kernel = _unit(v, axis=0) * g
    return jnp.matmul(
      x.astype(self.dtype),
      kernel.astype(self.dtype),
      preferred_element_type=jnp.float32,
    )


def _unit(x: jax.Array, axis: int) -> jax.Array:
  """X / ‖x‖₂ along an axis, float32; a zero vector stays zero."""
  x = x.astype(jnp.float32)
  square = jnp.sum(jnp.square(x), axis=axis, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
