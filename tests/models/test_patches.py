"""Pixels to patches and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.patches import PatchEmbed, patchify, unpatchify


@pytest.mark.parametrize('patch_size', [16, 4])
@pytest.mark.parametrize('channels', [3, 1])
def test_unpatchify_undoes_patchify(patch_size, channels):
  images = jax.random.uniform(jax.random.key(0), (2, 32, 48, channels))
  patches = patchify(images, patch_size)
  h, w = 32 // patch_size, 48 // patch_size
  assert patches.shape == (2, h, w, patch_size**2 * channels)
  np.testing.assert_array_equal(unpatchify(patches, patch_size), images)


def test_order_is_row_column_channel():
  images = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
  patches = patchify(jnp.asarray(images), 2)
  np.testing.assert_array_equal(
    patches[1, 0, 2], images[1, 0:2, 4:6].reshape(-1)
  )


def test_embedding_is_a_strided_convolution():
  images = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
  embed = PatchEmbed(patch_size=4, in_channels=3, width=5)
  patches = patchify(images, 4)
  params = embed.init(jax.random.key(1), patches)['params']
  params['bias'] += jnp.arange(5.0)
  want = params['bias'] + jax.lax.conv_general_dilated(
    images,
    params['kernel'],
    (4, 4),
    'VALID',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  got = embed.apply({'params': params}, patches)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_errors():
  with pytest.raises(ValueError, match='30x33 .* 16; nearest .*: 16x32, 32x48'):
    patchify(jnp.zeros((1, 30, 33, 3)), 16)
  with pytest.raises(ValueError, match='10 values are not made of 4x4 pixels'):
    unpatchify(jnp.zeros((1, 2, 2, 10)), 4)
