"""SimMIM against the authors' code, on recorded steps; and what it refuses.

The ViT's record is whole: weights, features, prediction, loss, every gradient.
The Swin's begins with the last map, and every 48th row of its head is kept;
what a Swin makes of a mask token has tests of its own.
"""

import functools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax import traverse_util
from official_names import below

from configs import simmim as configs
from interop.vit_tables import BEIT
from models.convvit import ConvViT
from models.features import Features, Level
from models.masking import Mask, finer, mask_from_noise
from models.patches import patchify
from models.swin import Swin
from models.vit import ViT
from pretrain.methods.simmim import simmim

GOLDEN = pathlib.Path(__file__).parents[1] / 'goldens' / 'simmim.npz'
PLAIN = dict(mean=(0.0,), std=(1.0,))
UNIT = 16  # of the Swin's record, px
ROW = 48  # of the Swin's head each 48th row is recorded


@functools.cache
def record():
  z = dict(np.load(GOLDEN))
  return z, json.loads(str(z['cfg']))


def mask_of(hidden):
  """The mask of recorded ones [b, h, w], 1 = hidden."""
  flat = hidden.reshape(len(hidden), -1).astype(bool)
  visible = np.argsort(flat, axis=1, kind='stable')[:, : (~flat[0]).sum()]
  return Mask(
    hidden=jnp.asarray(flat),
    visible=jnp.asarray(visible),
    grid=hidden.shape[1:],
  )


def pixels_last(x):
  return jnp.asarray(x.transpose(0, 2, 3, 1))


def head(weight, bias, side):
  """The head's parameters: theirs counts channels first (PixelShuffle)."""

  def rows(x):
    x = x.reshape(3, side, side, *x.shape[1:])
    return np.moveaxis(x, 0, 2).reshape(-1, *x.shape[3:])

  return {
    'decoder/out/kernel': rows(weight[:, :, 0, 0]).T,
    'decoder/out/bias': rows(bias),
  }


class TestViT:
  @functools.cached_property
  def shape(self):
    return record()[1]['vit']

  def ours(self, encoder, weights):
    """{our path: array} of weights or of their gradients."""
    flat = {'encoder/mask_token/token': weights['encoder.mask_token']}
    for pair in BEIT.pairs(encoder):
      parts = pair.take(weights[f'encoder.{pair.theirs}'])
      for path, part in zip(pair.ours, parts, strict=True):
        flat[f'encoder/{path}'] = part
    return flat | head(
      weights['decoder.0.weight'],
      weights['decoder.0.bias'],
      self.shape['patch'],
    )

  @functools.cached_property
  def step(self):
    """(features, prediction, loss, gradients, theirs by our names)."""
    z, cfg = below(record()[0], 'vit_shared_rpb/'), self.shape
    encoder = ViT(
      patch_size=cfg['patch'],
      width=cfg['dim'],
      depth=cfg['depth'],
      num_heads=cfg['heads'],
      mlp_ratio=cfg['mlp_ratio'],
      positions='none',
      relative='shared',
      positions_grid=cfg['img'] // cfg['patch'],
      biases='qv',
      layer_scale=0.1,
      **PLAIN,
    )
    method = simmim(encoder, None, mask_unit=cfg['patch'])
    flat = self.ours(encoder, below(z, 'w/'))
    params = jax.tree.map(
      jnp.asarray, traverse_util.unflatten_dict(flat, sep='/')
    )
    images, mask = pixels_last(z['in/x']), mask_of(z['in/mask'])
    branch = method.branches['decoder']

    def loss(params):
      features = method.encode(params, images, mask)
      prediction = branch.predict(params['decoder'], features)
      errors = branch.errors(params['decoder'], features, images)
      return branch.mean(errors, mask), (features.tokens, prediction)

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, (tokens, prediction)), grads = run(params)
    return (
      tokens,
      prediction,
      value,
      grads,
      self.ours(encoder, below(z, 'grad/')),
    )

  def test_features_prediction_and_loss(self):
    z = below(record()[0], 'vit_shared_rpb/out/')
    tokens, prediction, value, *_ = self.step
    want = z['z'].transpose(0, 2, 3, 1).reshape(tokens.shape)
    np.testing.assert_allclose(tokens, want, atol=2e-5 * np.abs(want).max())
    want = patchify(pixels_last(z['x_rec']), self.shape['patch'])
    np.testing.assert_allclose(prediction, want, atol=2e-5 * np.abs(want).max())
    assert float(value) == pytest.approx(float(z['loss']), rel=2e-6)

  def test_gradients(self):
    *_, grads, want = self.step
    got = traverse_util.flatten_dict(grads, sep='/')
    assert got.keys() == want.keys()
    for name, leaf in want.items():
      error = np.abs(np.asarray(got[name]) - leaf).max()
      assert error <= 2e-5 * max(np.abs(leaf).max(), 1e-3), name


def in_tokens(x):
  """Units [b, 2h, 2w, f] by the tokens that predict them, [b, h, w, 4f]."""
  return rearrange(x, 'b (h p) (w q) f -> b h w (p q f)', p=2, q=2)


def in_units(x):
  return rearrange(x, 'b h w (p q f) -> b (h p) (w q) f', p=2, q=2)


def test_a_token_predicts_several_units():
  decoder = simmim(Swin(), None, mask_unit=16).branches['decoder'].decoder
  x = jax.random.normal(jax.random.key(0), (1, 2, 2, 4))
  params = decoder.init(jax.random.key(1), (x,))
  got = decoder.apply(params, (x,))
  whole = decoder.clone(scale=1, out_features=3 * 32 * 32)
  np.testing.assert_array_equal(got, in_units(whole.apply(params, (x,))))


def test_the_head_and_the_loss_on_a_swin():
  z, cfg = record()
  z, cfg = below(z, 'swin/'), cfg['swin']
  side = cfg['stride']
  method = simmim(Swin(patch_size=4, **PLAIN), None, mask_unit=UNIT)
  branch = method.branches['decoder']
  tokens = pixels_last(z['out/z']).reshape(2, 4, -1)
  level = Level(tokens[:, :0], tokens, (2, 2))
  features = Features((level,), tokens, tokens.mean(1))
  # Rows of ours: (row and column of the unit, row, column, channel), of theirs:
  # (channel, row, column).
  order = np.arange(3 * side**2).reshape(3, 2, UNIT, 2, UNIT)
  order = order.transpose(1, 3, 2, 4, 0).reshape(-1)
  (mine,) = np.nonzero(order % ROW == 0)
  theirs = order[mine] // ROW
  params = dict(
    kernel=jnp.asarray(z['w/decoder.0.weight'][theirs].T),
    bias=jnp.asarray(z['w/decoder.0.bias'][theirs]),
  )
  images, mask = pixels_last(z['in/x']), mask_of(z['in/mask'][:, ::4, ::4])
  whole = in_tokens(patchify(pixels_last(z['out/x_rec']), UNIT))
  head = branch.decoder.clone(out_features=len(mine), scale=1)

  def loss(params):
    some = head.apply({'params': dict(out=params)}, branch.inputs(features))
    prediction = in_units(whole.at[..., mine].set(some))
    error = branch.error(prediction, branch.target(images))
    return branch.mean(error, mask), some

  (value, some), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  np.testing.assert_allclose(
    some, whole[..., mine], atol=2e-5 * np.abs(whole).max()
  )
  assert float(value) == pytest.approx(float(z['out/loss']), rel=2e-6)
  for name, want in (
    ('kernel', z['grad/decoder.0.weight'][theirs].T),
    ('bias', z['grad/decoder.0.bias'][theirs]),
  ):
    error = np.abs(grads[name] - want).max()
    assert error <= 2e-5 * np.abs(want).max(), name


@pytest.mark.parametrize(
  'case, encoder, size, unit',
  [
    ('swin192', Swin(), 192, 32),
    ('vit224', ViT(), 224, 32),
    ('r5', ViT(patch_size=4), 64, 16),
    ('r5', Swin(), 64, 16),
  ],
)
def test_masks_hide_what_theirs_hide(case, encoder, size, unit):
  """So many units, each as a whole, on the grid of our cells."""
  z = below(record()[0], f'maskgen_{case}/')
  count, order = int(z['mask_count']), z['permutation'].astype(int)
  hidden = z['mask'].astype(bool)
  method = simmim(
    encoder, None, mask_unit=unit, mask_ratio=0.5 if case == 'r5' else 0.6
  )
  cells = size // encoder.cell
  mask = method.masking(jax.random.key(0), (cells, cells), batch=3)
  per = (unit // (size // mask.grid[0])) ** 2
  np.testing.assert_array_equal(mask.hidden.sum(axis=1), count * per)
  # Theirs, with a noise of which the first of the permutation is the highest.
  n = len(order)
  side = math.isqrt(n)
  noise = np.empty((1, n))
  noise[0, order] = np.arange(n)[::-1]
  ours = mask_from_noise(jnp.asarray(noise), n - count, (side, side))
  ours = finer(ours, hidden.shape[0] // side).hidden.reshape(hidden.shape)
  np.testing.assert_array_equal(ours, hidden)


def test_units_that_are_not_made_of_cells_are_refused():
  with pytest.raises(
    ValueError, match='=32 px .* multiple of the 14 px .* hide$'
  ):
    simmim(ViT(patch_size=14), None, mask_unit=32)
  with pytest.raises(ValueError, match=r'32 px .* or one of \[4, 8, 16\]'):
    simmim(Swin(), None, mask_unit=12)


def test_a_convvit_is_refused():
  with pytest.raises(ValueError, match='no ConvViT has.* take a ViT or a Swin'):
    simmim(ConvViT(), None)


@pytest.mark.parametrize(
  ('words', 'epochs', 'schedule'),
  [
    ('swin_b,folder,paper', 100, 'moby'),
    ('swin_b,folder,paper,epochs800', 800, 'steps'),
    ('swin_l,folder,paper', 800, 'steps'),
    ('vit_b16,folder,paper', 800, 'steps'),
    ('vit_mini4,photos', 21.82, 'moby'),
  ],
)
def test_recipes_are_the_authors(words, epochs, schedule):
  config = configs.get_config(words)
  optim = config.optim
  assert (config.epochs, optim.schedule) == (epochs, schedule)
  if schedule == 'steps':
    assert [share * epochs for share in optim.milestones] == [700]
    assert (optim.base_lr, optim.per, optim.warmup_lr) == (1e-4, 512, 5e-7)
  starts = {'vit': 'simmim', 'swin': None}[words.partition('_')[0]]
  assert config.encoder.get('init_scheme') == starts


def test_the_longer_recipe_is_not_for_small_data():
  with pytest.raises(ValueError, match='epochs800 is for other data'):
    configs.get_config('swin_mini,photos,epochs800')
