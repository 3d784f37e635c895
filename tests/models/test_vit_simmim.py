"""ViT in SimMIM's flavour: where it starts."""

import jax.numpy as jnp
import numpy as np
from tiny_vit import images, initial

from models import make_encoder
from training.state import named_leaves

DEVIATION = 0.02
CUT_AT_ONE = 0.5396  # deviation of a normal distribution cut at +-1


def test_initialisation_is_simmims():
  encoder = make_encoder(
    'vit_mini4',
    depth=3,
    positions='none',
    relative='shared',
    positions_grid=8,
    biases='qv',
    layer_scale=0.1,
    init_scheme='simmim',
    mask_token=True,
  )
  params = named_leaves(initial(encoder, images(1, 32, 32, 3)))
  scaled = [name for name in params if 'layer_scale' in name]
  assert len(scaled) == 6
  for name in scaled:
    np.testing.assert_array_equal(params.pop(name), np.float32(0.1))
  drawn = {'patch_embed/kernel': 1.0, 'cls': 1.0, 'mask_token/token': 1.0}
  for block in range(3):
    at = f'block_{block}'
    for name in ('attention/query', 'attention/key', 'attention/value'):
      drawn[f'{at}/{name}/kernel'] = 1.0
    drawn[f'{at}/mlp/fc1/kernel'] = 1.0
    for name in ('attention/out', 'mlp/fc2'):
      drawn[f'{at}/{name}/kernel'] = 1 / np.sqrt(2 * (block + 1))
  for name, factor in drawn.items():
    leaf, cut = params.pop(name), DEVIATION * factor
    assert 0.9 * cut < float(jnp.abs(leaf).max()) <= cut, name
    # CLS and mask token are 96 numbers each.
    rtol = 0.2 if leaf.size < 1000 else 0.03
    np.testing.assert_allclose(leaf.std(), CUT_AT_ONE * cut, rtol=rtol)
  for name, leaf in params.items():
    start = 1 if name.endswith('scale') else 0
    np.testing.assert_array_equal(leaf, start, err_msg=name)
