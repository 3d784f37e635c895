"""Transformer block, stochastic depth and batch normalisation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from models.activations import ACTIVATIONS
from models.attention import Attention
from models.dense import Dense
from models.initializers import XAVIER, Initializer

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def compute_dtype(name: str) -> jnp.dtype:
  """Returns the dtype that a module computes in; parameters stay float32.

  Raises:
    ValueError: if the name is neither 'float32' nor 'bfloat16'.
  """
  if name not in DTYPES:
    raise ValueError(f'unknown dtype {name!r}; known: {", ".join(DTYPES)}')
  return DTYPES[name]


def check_word(name: str, word: str, known: tuple[str, ...]) -> None:
  """Raises ValueError for a word of a field that is not among the known."""
  if word not in known:
    words = ', '.join(map(repr, known))
    raise ValueError(f'unknown {name} {word!r}; known: {words}')


def drop_path_rates(depth: int, rate: float) -> tuple[float, ...]:
  """Rates of stochastic depth per block, linear from 0 to `rate`.

  Raises:
    ValueError: if the rate is outside [0, 1).
  """
  if not 0 <= rate < 1:
    raise ValueError(f'drop_path must be in [0, 1), not {rate}')
  return tuple(float(r) for r in np.linspace(0, rate, depth))


def check_noise(noise: jax.Array | None, batch: int, depth: int) -> None:
  """Raises ValueError for noise that stochastic depth cannot use."""
  if noise is not None and noise.shape != (batch, 2 * depth):
    raise ValueError(
      f'noise is {list(noise.shape)}, stochastic depth needs '
      f'[{batch}, {2 * depth}]'
    )


def resolve(index: int, count: int, name: str, kind: str = 'block') -> int:
  """Resolves the number of a block or stage that may count from the end.

  Args:
    index: the number as asked for.
    count: how many there are.
    name: of the argument, for the error.
    kind: what is counted, for the error.

  Returns:
    The number counted from 0.

  Raises:
    ValueError: if there is none of that number.
  """
  if not -count <= index < count:
    raise ValueError(
      f'{name} names {kind} {index}, but the encoder has {kind}s 0 to '
      f'{count - 1} (or -{count} to -1)'
    )
  return index % count


def drop_branch(
  x: jax.Array, noise: jax.Array | None, rate: float
) -> jax.Array:
  """Drops a residual branch for some examples (Huang et al., 1603.09382).

  The randomness is data, so that neither the number of devices nor running a
  batch in chunks can change it.

  Args:
    x: output of the branch, [b, n, d].
    noise: uniform numbers in [0, 1), [b]; None switches dropping off.
    rate: the branch survives where noise >= rate, scaled by 1 / (1 - rate).

  Returns:
    [b, n, d] in the dtype of x.
  """
  if noise is None or rate == 0:
    return x
  return jnp.where((noise >= rate)[:, None, None], x / (1 - rate), 0)


MLPS = (*ACTIVATIONS, 'swiglu')


class Mlp(nn.Module):
  """Dense, exact (erf) GELU, Dense; biases start at 0.

  Attributes:
    hidden: width between the two.
    dtype: compute dtype.
    kernel_init: how both kernels start.
    last_init: how the second one starts, if otherwise.
    kind: one of ACTIVATIONS, or 'swiglu': `fc1` makes two halves, and fc2 reads
      SiLU of the first times the second (Shazeer, arXiv:2002.05202; DINOv2).
  """

  hidden: int
  dtype: jnp.dtype = jnp.float32
  kernel_init: Initializer = XAVIER
  last_init: Initializer | None = None
  kind: str = 'gelu'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [b, n, d] to [b, n, d] in `dtype`.

    Raises:
      ValueError: for an unknown kind.
    """
    check_word('mlp', self.kind, MLPS)
    dense = functools.partial(Dense, dtype=self.dtype)
    first = functools.partial(dense, kernel_init=self.kernel_init, name='fc1')
    if self.kind == 'swiglu':
      gate, y = jnp.split(first(2 * self.hidden)(x), 2, axis=-1)
      y = jax.nn.silu(gate) * y
    else:
      y = ACTIVATIONS[self.kind](first(self.hidden)(x))
    last = self.last_init or self.kernel_init
    return dense(x.shape[-1], kernel_init=last, name='fc2')(y)


class LayerScale(nn.Module):
  """A learned factor per channel (Touvron et al., arXiv:2103.17239).

  Attributes:
    start: what the factors start with.
  """

  start: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Scales [..., d]; keeps the dtype."""
    init = nn.initializers.constant(self.start)
    return x * self.param('scale', init, x.shape[-1:]).astype(x.dtype)


def layer_norm(
  name: str, dtype: jnp.dtype = jnp.float32, epsilon: float = 1e-6
) -> nn.LayerNorm:
  """A LayerNorm with two-pass statistics in float32; a ViT's epsilon."""
  return nn.LayerNorm(
    epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name
  )


class Block(nn.Module):
  """Pre-norm transformer block (Dosovitskiy et al., arXiv:2010.11929).

  Attributes:
    num_heads: number of attention heads.
    mlp_ratio: hidden width of the MLP over the width.
    drop_path: rate of stochastic depth for both residual branches.
    dtype: compute dtype, also of the residual stream.
    attention_impl: see `Attention`.
    with_map: also return the attention weights.
    kernel_init: how all kernels start.
    qkv_init: how those of query, key and value start, if otherwise.
    last_init: how those that end the two branches start, if otherwise.
    mlp: kind of MLP, see `Mlp`.
    biases: which of query, key and value have a bias, by first letter.
    layer_scale: what the factors of both branches start with; 0: none.
    epsilon: of the two LayerNorms.
  """

  num_heads: int
  mlp_ratio: float = 4
  drop_path: float = 0.0
  dtype: jnp.dtype = jnp.float32
  attention_impl: str = 'auto'
  with_map: bool = False
  kernel_init: Initializer = XAVIER
  qkv_init: Initializer | None = None
  last_init: Initializer | None = None
  mlp: str = 'gelu'
  biases: str = 'qkv'
  layer_scale: float = 0.0
  epsilon: float = 1e-6

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    noise: jax.Array | None = None,
    bias: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array | None]:
    """Applies attention and MLP, each with its residual.

    Args:
      x: [b, n, d].
      noise: uniform numbers for the two branches, [b, 2]; None = keep both.
      bias: added to the logits of attention, float32; broadcasts to [b, heads,
        n, n].

    Returns:
      [b, n, d], and the attention weights [b, heads, n, n] float32 or None.
    """
    first, second = (None, None) if noise is None else noise.T
    y, weights = Attention(
      num_heads=self.num_heads,
      dtype=self.dtype,
      impl=self.attention_impl,
      with_map=self.with_map,
      kernel_init=self.last_init or self.kernel_init,
      qkv_init=self.qkv_init or self.kernel_init,
      biases=self.biases,
      name='attention',
    )(layer_norm('norm1', self.dtype, self.epsilon)(x), bias)
    x = x + drop_branch(self._scaled(y, 1), first, self.drop_path)
    y = Mlp(
      round(x.shape[-1] * self.mlp_ratio),
      dtype=self.dtype,
      kernel_init=self.kernel_init,
      last_init=self.last_init,
      kind=self.mlp,
      name='mlp',
    )(layer_norm('norm2', self.dtype, self.epsilon)(x))
    y = self._scaled(y, 2)
    return x + drop_branch(y, second, self.drop_path), weights

  def _scaled(self, y: jax.Array, branch: int) -> jax.Array:
    if not self.layer_scale:
      return y
    return LayerScale(self.layer_scale, name=f'layer_scale{branch}')(y)


class BatchNorm(nn.Module):
  """Normalises by the statistics of the batch and keeps no running averages.

  Self-supervised heads are thrown away after pre-training and teachers use
  their own batch, so running averages would never be read; without them the
  layer is a pure function of its parameters. In a program over a sharded
  batch the statistics are those of the whole batch (PyTorch's SyncBatchNorm).

  Attributes:
    affine: learn a scale and, unless `bias` is off, a bias.
    bias: off, the scale is all that is learned (SimCLR's last layer).
    epsilon: added to the (biased) variance.
    dtype: dtype of the result; statistics are float32.
  """

  affine: bool = True
  bias: bool = True
  epsilon: float = 1e-5
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalises [..., d] over all axes but the last.

    Raises:
      ValueError: if there is only one row, whose variance is 0.
    """
    if x.size == x.shape[-1]:
      raise ValueError(
        'BatchNorm needs at least 2 examples in the batch, not 1: set '
        'config.batch_size to 2 or more'
      )
    axes = tuple(range(x.ndim - 1))
    x = x.astype(jnp.float32)
    x = x - x.mean(axes)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(axes) + self.epsilon)
    if self.affine:
      shape = x.shape[-1:]
      x = x * self.param('scale', nn.initializers.ones, shape)
      if self.bias:
        x = x + self.param('bias', nn.initializers.zeros, shape)
    return x.astype(self.dtype)
