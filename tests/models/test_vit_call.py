"""What the call of a ViT promises: masks, cuts, stochastic depth, devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tiny_vit import (
  assert_close,
  encode,
  gradient,
  images,
  largest,
  tiny,
  tiny_params,
)

from models.masking import mask_from_noise, random_masking

# Masks.


def test_mask_that_hides_nothing_changes_nothing():
  x = images(2, 12, 12, 3)
  everything = mask_from_noise(images(2, 9), keep=9)
  plain = encode(tiny(), tiny_params(), x)
  masked = encode(tiny(), tiny_params(), x, mask=everything)
  assert_close(masked.tokens, plain.tokens, 1e-6)
  assert_close(masked.pooled, plain.pooled, 1e-6)


def test_hidden_pixels_never_leak():
  x = images(2, 12, 12, 3)
  mask = random_masking(jax.random.key(3), (3, 3), batch=2, ratio=0.5)
  hidden = mask.hidden.reshape(2, 3, 3)
  hidden = hidden.repeat(4, axis=1).repeat(4, axis=2)[..., None]
  other = jnp.where(hidden, images(2, 12, 12, 3, seed=1), x)
  a = encode(tiny(), tiny_params(), x, mask=mask, attention=(0,))
  b = encode(tiny(), tiny_params(), other, mask=mask, attention=(0,))
  jax.tree.map(np.testing.assert_array_equal, a, b)
  # Without the mask the same change is seen.
  seen = encode(tiny(), tiny_params(), other).pooled
  assert np.abs(seen - encode(tiny(), tiny_params(), x).pooled).max() > 0.01


def test_levels_report_where_visible_tokens_stand():
  """With silent blocks, a masked token equals the full map at its index."""
  params = {
    name: jax.tree.map(jnp.zeros_like, p) if 'block' in name else p
    for name, p in tiny_params().items()
  }
  x = images(2, 12, 20, 3)
  mask = random_masking(jax.random.key(0), (3, 5), batch=2, ratio=0.6)
  full = encode(tiny(), params, x).levels[-1].tokens
  level = encode(tiny(), params, x, mask=mask).levels[-1]
  assert level.tokens.shape == (2, 6, 16)
  np.testing.assert_array_equal(level.index, mask.visible)
  want = jnp.take_along_axis(full, level.index[..., None], axis=1)
  assert_close(level.tokens, want, 1e-6)
  with pytest.raises(ValueError, match='masked level has no full map'):
    level.map()


# Cuts.


def test_nothing_flows_back_across_a_cut():
  x = images(1, 8, 8, 3)

  def from_the_end(features):
    return (features.levels[-1].tokens ** 3).sum() + features.pooled.sum()

  got = gradient(tiny(), tiny_params(), x, from_the_end, cuts=(-2,))
  below = [got[k] for k in ('block_0', 'block_1', 'patch_embed', 'cls')]
  assert largest(below) == 0
  assert largest(got['block_2']) > 0.01

  def at_the_cut(features):
    return (features.levels[1].tokens ** 3).sum()

  # The level itself is not cut: its gradient is that of an uncut encoder.
  got = gradient(tiny(), tiny_params(), x, at_the_cut, cuts=(1,))
  want = gradient(tiny(), tiny_params(), x, at_the_cut)
  assert min(largest(got[k]) for k in ('block_0', 'block_1', 'cls')) > 0.01
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5), got, want
  )


def test_cuts_leave_values_alone():
  x = images(1, 8, 8, 3)
  plain = encode(tiny(), tiny_params(), x)
  cut = encode(tiny(), tiny_params(), x, cuts=(0, 1, 2))
  jax.tree.map(np.testing.assert_array_equal, plain, cut)


# Stochastic depth.


def test_stochastic_depth_rates_grow_linearly():
  encoder, x = tiny(drop_path=0.5), images(2, 8, 8, 3)
  none = encode(encoder, tiny_params(), x)
  # Rates are 0, 0.25, 0.5: a noise of 0 drops every block but the first.
  dropped = encode(encoder, tiny_params(), x, noise=jnp.zeros((2, 6)))
  np.testing.assert_array_equal(dropped.levels[0].tokens, none.levels[0].tokens)
  for level in dropped.levels[1:]:
    np.testing.assert_array_equal(level.tokens, none.levels[0].tokens)
  # 0.3 keeps the second block, scaled, and drops the third.
  some = encode(encoder, tiny_params(), x, noise=jnp.full((2, 6), 0.3)).levels
  assert (some[1].tokens != none.levels[1].tokens).any()
  assert (some[1].tokens != some[0].tokens).any()
  np.testing.assert_array_equal(some[2].tokens, some[1].tokens)


def test_stochastic_depth_columns_belong_to_branches():
  encoder, x = tiny(drop_path=0.5), images(1, 8, 8, 3)
  keep = jnp.ones((1, 6))
  kept = encode(encoder, tiny_params(), x, noise=keep).levels
  for column in (2, 3, 4, 5):
    noise = keep.at[:, column].set(0)
    got = encode(encoder, tiny_params(), x, noise=noise).levels
    changed = [
      (a.tokens != b.tokens).any() for a, b in zip(got, kept, strict=True)
    ]
    assert changed == [i >= column // 2 for i in range(3)]


def test_stochastic_depth_is_off_without_noise_or_rate():
  x, noise = images(2, 8, 8, 3), jnp.zeros((2, 6))
  plain = encode(tiny(), tiny_params(), x)
  off = encode(tiny(drop_path=0.5), tiny_params(), x)
  jax.tree.map(np.testing.assert_array_equal, plain, off)
  off = encode(tiny(), tiny_params(), x, noise=noise)
  jax.tree.map(np.testing.assert_array_equal, plain, off)


def test_rows_do_not_depend_on_each_other_or_on_chunks():
  encoder, x = tiny(drop_path=0.5), images(4, 8, 8, 3)
  noise = images(4, 6, seed=2)
  whole = encode(encoder, tiny_params(), x, noise=noise).pooled
  other = encode(encoder, tiny_params(), x, noise=noise.at[1].set(0)).pooled
  changed = (whole != other).any(axis=-1)
  np.testing.assert_array_equal(changed, [False, True, False, False])

  @jax.jit
  def chunked(params):
    def call(chunk):
      x, noise = chunk
      return encoder.apply({'params': params}, x, noise=noise).pooled

    chunks = x.reshape(2, 2, 8, 8, 3), noise.reshape(2, 2, 6)
    return jax.lax.map(call, chunks).reshape(4, 16)

  assert_close(chunked(tiny_params()), whole, 1e-5)


# Memory, precision, attention maps, devices.


def test_remat_changes_no_gradient():
  x, noise = images(2, 8, 8, 3), images(2, 6, seed=2)

  def scalar(features):
    return (features.pooled**2).sum() + (features.levels[0].tokens ** 2).sum()

  plain, remat = (
    gradient(
      tiny(drop_path=0.3, remat=r),
      tiny_params(),
      x,
      scalar,
      cuts=(0,),
      attention=(1,),
      noise=noise,
    )
    for r in (False, True)
  )
  assert jax.tree.structure(plain) == jax.tree.structure(remat)
  close = functools.partial(
    np.testing.assert_allclose, rtol=1e-4, atol=1e-5 * largest(plain)
  )
  jax.tree.map(close, remat, plain)
  text = str(
    jax.make_jaxpr(tiny(remat=True).apply)({'params': tiny_params()}, x)
  )
  assert text.count('remat') >= 3


def test_attention_maps_of_the_blocks_asked_for():
  x = images(2, 8, 12, 3)
  plain = encode(tiny(attention_impl='xla'), tiny_params(), x)
  asked = encode(
    tiny(attention_impl='xla'), tiny_params(), x, attention=(0, -1)
  )
  assert plain.attention == {}
  assert set(asked.attention) == {0, -1}
  for weights in asked.attention.values():
    assert weights.shape == (2, 2, 7, 7)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
    assert float(weights.std()) > 0.01
  assert (asked.attention[0] != asked.attention[-1]).any()
  assert_close(asked.pooled, plain.pooled)


@pytest.mark.parametrize('masked', [False, True])
def test_sharded_batch_needs_no_gather(masked):
  mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Auto,))
  rows = NamedSharding(mesh, PartitionSpec('data'))
  whole = NamedSharding(mesh, PartitionSpec())
  x = jax.device_put(images(8, 8, 8, 3), rows)

  def loss(params, x, rng):
    mask = None
    if masked:
      mask = random_masking(rng, (2, 2), batch=8, ratio=0.5)
    features = tiny().apply({'params': params}, x, mask=mask)
    return (features.tokens**3).mean()

  step = jax.jit(jax.value_and_grad(loss), in_shardings=(whole, rows, whole))
  args = tiny_params(), x, jax.random.key(0)
  text = step.lower(*args).compile().as_text()
  assert 'all-reduce' in text  # it is a program for four devices
  assert 'all-gather' not in text
  got, gradients = step(*args)
  want, expected = jax.jit(jax.value_and_grad(loss))(
    tiny_params(), images(8, 8, 8, 3), jax.random.key(0)
  )
  np.testing.assert_allclose(got, want, rtol=1e-5)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
    gradients,
    expected,
  )
