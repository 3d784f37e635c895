"""Which masks a config's words mean, and several masks per image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import DECODER

from models.convvit import ConvViT
from models.masking import Mask
from models.swin import Swin
from models.vit import ViT
from pretrain.masks import choose_masking
from pretrain.methods.mae import mae
from pretrain.methods.simmim import simmim

VIT = ViT(patch_size=4, width=16, depth=1, num_heads=2)
SWIN = Swin(patch_size=2, width=8, depths=(1, 1), num_heads=(1, 2), window=2)
CONV = ConvViT(
  patch_sizes=(2, 2, 1), widths=(4, 8, 16), depths=(1, 1, 1), num_heads=2
)


def draw(masking, grid=(8, 8), batch=3, hints=None):
  return masking(jax.random.key(0), grid, hints, batch=batch)


def joins(mask):
  """Pairs of neighbours that are both hidden."""
  hidden = np.asarray(mask.hidden).reshape(-1, *mask.grid)
  down = (hidden[:, 1:] & hidden[:, :-1]).sum()
  return down + (hidden[:, :, 1:] & hidden[:, :, :-1]).sum()


@pytest.mark.parametrize('kind', ['random', 'blocks'])
@pytest.mark.parametrize(
  ('encoder', 'rows'),
  [(VIT, 3), (CONV, 3), (SWIN, 1), (SWIN.clone(mask_token=True), 3)],
)
def test_rows_and_counts(kind, encoder, rows):
  mask = draw(choose_masking(encoder, kind=kind, ratio=0.75))
  assert mask.hidden.shape == (rows, 64) and mask.visible.shape == (rows, 16)
  assert (mask.hidden.sum(1) == 48).all() and mask.grid == (8, 8)


def test_blocks_hang_together():
  random, blocks = (
    draw(choose_masking(VIT, kind=kind, ratio=0.5), batch=50)
    for kind in ('random', 'blocks')
  )
  assert joins(blocks) > 1.4 * joins(random)


def test_simmim_takes_blocks_of_its_cells():
  method = simmim(SWIN, None, mask_unit=2, masking='blocks', mask_ratio=0.5)
  mask = draw(method.masking, (4, 4))
  assert mask.grid == (8, 8) and len(mask.hidden) == 3


def test_attention_guides_where_it_is_asked_to():
  hints = jnp.tile(jnp.arange(64.0), (3, 1))
  masking = choose_masking(SWIN, ratio=0.75, focus='topk')
  mask = draw(masking, hints=hints)
  np.testing.assert_array_equal(
    mask.visible, np.tile(np.arange(48, 64), (3, 1))
  )


@pytest.mark.parametrize('encoder', [VIT, CONV], ids=['vit', 'convvit'])
def test_four_masks_of_an_image_cost_the_mean_of_each(encoder):
  """And are the parts of a whole."""
  four, one = (
    mae(encoder, None, decoder=DECODER, masks_per_image=n) for n in (4, 1)
  )
  batch = dict(view1=jax.random.uniform(jax.random.key(1), (2, 16, 16, 3)))
  params, _ = four.init(jax.random.key(0), batch)
  mask = four.masking(jax.random.key(2), (4, 4), None, batch=2)
  for image in np.asarray(mask.visible).reshape(2, -1):
    assert sorted(image) == list(range(16))

  @jax.jit
  def errors(images, mask):
    branch = one.branches['decoder']
    features = one.encode(params, images, mask)
    error = branch.errors(params['decoder'], features, images)
    return branch.mean(error, mask)

  @jax.jit
  def whole(params):
    return four.loss(params, {}, batch, jax.random.key(3), 0)

  loss, aux = whole(params)
  _, mask, images, _ = four._given({}, batch['view1'], jax.random.key(3))
  np.testing.assert_array_equal(images[:4], images[:1].repeat(4, 0))
  parts = [
    errors(
      images[i::4],
      Mask(mask.hidden[i::4], mask.visible[i::4], mask.grid),
    )
    for i in range(4)
  ]
  assert float(loss) == pytest.approx(float(np.mean(parts)), rel=1e-5)
  assert len(aux.features['view1'].pooled) == 2  # one for each label
  drawn = jax.eval_shape(four.figures, params, {}, batch)['reconstruction']
  assert drawn.images.shape == (2, 3, 16, 16, 3)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(kind='block'), "unknown method.masking 'block'"),
    (dict(focus='all'), "unknown method.focus 'all'"),
    (dict(masks_per_image=0), 'must be at least 1'),
    (dict(masks_per_image=3), 'set method.mask_ratio to 0.666667'),
    (dict(masks_per_image=4, kind='blocks'), 'each say what is hidden'),
    (dict(focus='topk', kind='blocks'), 'each say what is hidden'),
    (dict(focus='topk', masks_per_image=4), 'each say what is hidden'),
  ],
)
def test_errors_name_the_way_out(fields, message):
  with pytest.raises(ValueError, match=message):
    choose_masking(VIT, ratio=0.75, **fields)


def test_the_ratio_of_the_message_is_accepted():
  choose_masking(VIT, ratio=0.666667, masks_per_image=3)


def test_images_that_cells_do_not_tile_are_refused():
  method = mae(SWIN, None, decoder=DECODER)
  batch = dict(view1=jax.ShapeDtypeStruct((2, 18, 16, 3), jnp.float32))
  message = "18x16 is not divisible by a mask's cell 4; .* 16x16, 20x16"
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(method.init, jax.random.key(0), batch)
