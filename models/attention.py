"""Multi-head self-attention."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from models.dense import Dense
from models.initializers import XAVIER, Initializer

ATTENTION_IMPLS = ('auto', 'einsum', 'xla', 'cudnn')


class Attention(nn.Module):
  """Multi-head self-attention.

  Three Dense of d x d rather than one of d x 3d, because MoCo v3 takes
  Xavier's bound of each; all biases start at 0.

  Leading axes beyond the batch (windows) attend apart.

  Attributes:
    num_heads: number of heads; divides the width.
    dtype: what products are computed in; the softmax is always float32.
    impl: 'einsum' (plain, on [b, heads, n, d]), 'xla' or 'cudnn' (forms of
      `jax.nn.dot_product_attention`), or 'auto': 'einsum' if the default
      backend at trace time is a CPU (forward + backward on two cores: 30
      against 43 ms at 128 x 65 x 96 with 3 heads, 68 against 79 ms at
      8 x 197 x 384 with 12), elsewhere what JAX itself chooses.
    with_map: also return the attention weights; takes the plain path.
    kernel_init: how the four kernels start.
    qkv_init: how those of query, key and value start, if otherwise.
    biases: which of query, key and value have a bias, by first letter: BEiT's
      key has none, some have none at all. The output has one in any case.
  """

  num_heads: int
  dtype: jnp.dtype = jnp.float32
  impl: str = 'auto'
  with_map: bool = False
  kernel_init: Initializer = XAVIER
  qkv_init: Initializer | None = None
  biases: str = 'qkv'

  @nn.compact
  def __call__(
    self, x: jax.Array, bias: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array | None]:
    """Attends among the tokens of each example.

    Args:
      x: [..., n, d].
      bias: added to the logits, float32; broadcasts to [..., heads, n, n].

    Returns:
      [..., n, d] in `dtype`, and the weights [..., heads, n, n] float32 or
      None.

    Raises:
      ValueError: for a width that the heads do not divide, an unknown
        implementation, or 'cudnn' in float32.
    """
    width = x.shape[-1]
    if width % self.num_heads:
      raise ValueError(
        f'width {width} is not divisible by num_heads {self.num_heads}'
      )
    impl = self._implementation()

    def dense(name):
      init = self.kernel_init if name == 'out' else self.qkv_init
      return Dense(
        width,
        dtype=self.dtype,
        kernel_init=init or self.kernel_init,
        use_bias=name == 'out' or name[0] in self.biases,
        name=name,
      )

    q, k, v = dense('query')(x), dense('key')(x), dense('value')(x)
    if impl == 'einsum':
      y, weights = self._plain(q, k, v, bias)
      return dense('out')(y), weights
    *leading, n, _ = x.shape
    if bias is not None:
      bias = jnp.broadcast_to(bias, (*leading, self.num_heads, n, n))
      bias = bias.reshape(-1, self.num_heads, n, n)
    q, k, v = (
      t.reshape(-1, n, self.num_heads, width // self.num_heads)
      for t in (q, k, v)
    )
    chosen = None if impl == 'auto' else impl
    y = jax.nn.dot_product_attention(q, k, v, bias, implementation=chosen)
    return dense('out')(y.reshape(x.shape)), None

  def _plain(self, q, k, v, bias):
    """Attention on [..., heads, n, e]; the weights only if they are wanted."""
    # Heads before tokens: each product is then a plain batched matrix product.
    split = '... n (h e) -> ... h n e'
    q, k, v = (rearrange(t, split, h=self.num_heads) for t in (q, k, v))
    weights = attention_weights(q, k, bias) if self.with_map else None
    y = attend(q, k, v, bias)
    return rearrange(y, '... h n e -> ... n (h e)'), weights

  def _implementation(self) -> str:
    if self.impl not in ATTENTION_IMPLS:
      raise ValueError(
        f'unknown attention_impl {self.impl!r}; known: '
        f'{", ".join(ATTENTION_IMPLS)}'
      )
    if self.impl == 'cudnn' and self.dtype == jnp.float32:
      raise ValueError(
        "attention_impl 'cudnn' computes in 16 bits: set dtype='bfloat16' or "
        "attention_impl='xla'"
      )
    plain = self.impl == 'auto' and jax.default_backend() == 'cpu'
    return 'einsum' if plain or self.with_map else self.impl


def attention_weights(
  q: jax.Array, k: jax.Array, bias: jax.Array | None = None
) -> jax.Array:
  """Softmax(q k^T / sqrt(e) + bias).

  Args:
    q: queries [..., heads, n, e].
    k: keys, same shape.
    bias: float32; broadcasts to [..., heads, n, n].

  Returns:
    [..., heads, n, n] float32.
  """
  return jax.nn.softmax(_logits(q, k, bias), axis=-1)


@jax.custom_vjp
def attend(
  q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None = None
) -> jax.Array:
  """Softmax(q k^T / sqrt(e) + bias) v per head, written out.

  As in FlashAttention (Dao et al., arXiv:2205.14135, appendix B), without its
  tiles: the sums of the softmax divide its product with v and not the n x n
  weights, and the gradient of the softmax needs sum(w dw) by row, which is
  sum(y dy), a sum over e and not over all keys. On two cores forward and
  backward together take 0.55 of what autodiff makes of `attention_weights`
  (16 x 6 x 197 x 64).

  Args:
    q: queries [..., heads, n, e].
    k: keys, same shape.
    v: values, same shape.
    bias: float32; broadcasts to [..., heads, n, n].

  Returns:
    [..., heads, n, e] in the dtype of v.
  """
  return _attend_forward(q, k, v, bias)[0]


def _attend_forward(q, k, v, bias):
  logits = _logits(q, k, bias)
  # At most 1 and at least one 1 by row: nothing overflows, no sum is 0.
  weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
  total = weights.sum(axis=-1)[..., None]
  y = _product('...nm,...me->...ne', weights.astype(v.dtype), v) / total
  y = y.astype(v.dtype)
  return y, (q, k, v, bias, weights, total, y)


def _attend_backward(kept, dy):
  q, k, v, bias, weights, total, y = kept
  scale = q.shape[-1] ** -0.5
  dy = dy / total
  row = _product('...ne,...ne->...n', dy, y)[..., None]
  dy = dy.astype(v.dtype)
  dv = jnp.einsum('...nm,...ne->...me', weights.astype(v.dtype), dy)
  dlogits = weights * (_product('...ne,...me->...nm', dy, v) - row)
  dbias = None if bias is None else _sum_to(dlogits, bias.shape)
  dlogits = dlogits.astype(q.dtype)
  dq = jnp.einsum('...nm,...me->...ne', dlogits, k) * scale
  dk = jnp.einsum('...nm,...ne->...me', dlogits, q * scale)
  return dq, dk, dv, dbias


def _logits(q: jax.Array, k: jax.Array, bias: jax.Array | None) -> jax.Array:
  logits = _product('...ne,...me->...nm', q * q.shape[-1] ** -0.5, k)
  return logits if bias is None else logits + bias


def _sum_to(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Sums x over the axes that broadcasting from `shape` made."""
  missing = x.ndim - len(shape)
  axes = [
    axis
    for axis, size in enumerate(x.shape)
    if axis < missing or shape[axis - missing] != size
  ]
  return x.sum(axis=axes).reshape(shape)


def _product(axes: str, x: jax.Array, y: jax.Array) -> jax.Array:
  """An einsum whose sums and result are float32."""
  return jnp.einsum(axes, x, y, preferred_element_type=jnp.float32)


attend.defvjp(_attend_forward, _attend_backward)
