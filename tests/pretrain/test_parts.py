"""Branches, weighting, collapse, windows: each against its own arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import moby
from models.decoders import FusionDecoder
from models.features import Features, Level
from models.masking import Mask
from pretrain import branch, collapse, figures
from pretrain.methods import from_config
from pretrain.targets import Pixels
from pretrain.weighting import (
  Balanced,
  Fixed,
  Uncertainty,
  far_from_optimum,
)
from training.state import Figure


@pytest.fixture(scope='module')
def features():
  keys = jax.random.split(jax.random.key(0), 4)
  levels = tuple(
    Level(jnp.zeros((4, 1, 8)), jax.random.normal(k, (4, 6, 8)), (2, 3))
    for k in keys
  )
  return Features(levels, levels[-1].tokens, jnp.zeros((4, 8)))


@pytest.fixture(scope='module')
def images():
  return jax.random.uniform(jax.random.key(9), (4, 4, 6, 3))


def pixels_branch(**fields):
  decoder = FusionDecoder(width=4, patch_size=2)
  return branch.Branch(
    **dict(levels=(0, 1, 2, 3), decoder=decoder, target=Pixels(2)) | fields
  )


def test_branch_is_the_mean_absolute_pixel_error(features, images):
  b = pixels_branch()
  params = b.init(jax.random.key(1), features)
  prediction = np.asarray(b.predict(params, features))
  # Unpatchified by hand: [4, 2, 3, 2·2·3] -> [4, 4, 6, 3].
  rebuilt = prediction.reshape(4, 2, 3, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5)
  want = np.abs(rebuilt.reshape(4, 4, 6, 3) - images).mean()
  np.testing.assert_allclose(b.loss(params, features, images), want, rtol=1e-6)


def test_pixels_beyond_an_image_continue_its_border():
  """A map of Swin's covers 8 x 8 of an image of 5 x 7."""
  image = np.random.default_rng(0).random((1, 5, 7, 3), np.float32)
  got = np.asarray(Pixels(4)(jnp.array(image)))
  whole = np.pad(image, ((0, 0), (0, 3), (0, 1), (0, 0)), mode='edge')
  np.testing.assert_array_equal(got, Pixels(4)(jnp.array(whole)))
  assert got.shape == (1, 2, 2, 48)


@pytest.mark.parametrize('single', [True, False])
def test_swin_rebuilds_images_that_its_stride_does_not_divide(single):
  """12 px at strides 2, 4, 8: the deepest map covers 16."""
  config = moby.get_config('swin_mini,photos,repre')
  config.data.image_size = 12
  config.batch_size = 4
  config.method.repre.levels = 1 if single else 3
  small = dict(width=8, depths=(1, 1, 1), num_heads=(1, 1, 1), window=2)
  method = from_config(config, channels=1, steps_per_epoch=2, total=4, **small)
  views = {n: jnp.full((4, 12, 12, 1), 0.5) for n in ('view1', 'view2')}
  params, state = jax.jit(method.init)(jax.random.key(0), views)
  drawn = jax.eval_shape(method.figures, params, state, views)
  assert drawn['reconstruction'].images.shape == (4, 3, 12, 12, 1)
  _, aux = jax.jit(method.loss)(params, state, views, jax.random.key(0), 0)
  # The decoder begins with the mean of the images, here 0.5.
  assert float(aux.metrics['loss_pixels']) < 0.05


@pytest.mark.parametrize('on', ['masked', 'visible'])
def test_branch_counts_where_it_should(features, images, on):
  hidden = np.zeros((4, 6), bool)
  hidden[:, :2] = True
  hidden[0] = ~hidden[0]  # rows may hide different numbers here
  mask = Mask(jnp.array(hidden), jnp.zeros((4, 4), jnp.int32), (2, 3))
  b = pixels_branch(on=on)
  params = b.init(jax.random.key(1), features)
  error = np.abs(b.predict(params, features) - b.target(images)).mean(-1)
  chosen = hidden if on == 'masked' else ~hidden
  want = error.reshape(4, 6)[chosen].mean()
  np.testing.assert_allclose(
    b.loss(params, features, images, mask), want, rtol=1e-6
  )


def test_branch_uses_only_its_levels(features, images):
  b = pixels_branch(levels=(1, 3))
  params = b.init(jax.random.key(1), features)

  def loss(levels):
    return b.loss(params, features.replace(levels=levels), images)

  grads = jax.grad(loss)(features.levels)
  flows = [bool(np.any(level.tokens)) for level in grads]
  assert flows == [False, True, False, True]
  assert not any(np.any(level.prefix) for level in grads)


def test_branch_refuses_other_words():
  with pytest.raises(ValueError, match="Branch.on='hidden' must be one of"):
    pixels_branch(on='hidden')


def test_fixed_weights():
  losses = dict(contrast=3.0, pixels=4.0)
  weighed = Fixed({'contrast': 2.0, 'pixels': 0.5})({}, {}, losses)
  assert (weighed.total(losses), weighed.metrics) == (8.0, {})


def test_uncertainty_finds_the_inverse_of_each_loss():
  weighting = Uncertainty(('contrast', 'pixels'))
  losses = dict(contrast=jnp.array(2.0), pixels=jnp.array(0.05))
  s = weighting.init()
  gradient = jax.jit(jax.grad(lambda s: weighting(s, {}, losses).total(losses)))
  for _ in range(3000):
    s = jax.tree.map(lambda s, g: s - 0.02 * g, s, gradient(s))
  metrics = weighting(s, {}, losses).metrics
  np.testing.assert_allclose(metrics['weight_contrast'], 0.5, rtol=1e-3)
  np.testing.assert_allclose(metrics['weight_pixels'], 20.0, rtol=1e-3)


def test_uncertainty_value():
  weighting = Uncertainty(('a',), start=0.7)
  losses = {'a': jnp.float32(3.0)}
  total = weighting(weighting.init(), {}, losses).total(losses)
  np.testing.assert_allclose(total, 0.5 * (np.exp(-0.7) * 3 + 0.7), rtol=1e-6)


def test_balanced_follows_losses_over_its_window():
  """A plain mean at first, then one that forgets; 0 and negative are small."""
  weighting = Balanced(('a', 'b'), window=4)
  state = weighting.init_state()
  rng = np.random.default_rng(0)
  step = jax.jit(weighting)
  mean = np.zeros(2)
  for n, losses in enumerate(rng.uniform(0.5, 3.0, (12, 2)), start=1):
    mean += (losses - mean) * max(1 / n, 1 / 4)
    named = dict(a=jnp.float32(losses[0]), b=jnp.float32(losses[1]))
    weighed = step({}, state, named)
    state = weighed.state
    got = [weighed.metrics['weight_a'], weighed.metrics['weight_b']]
    np.testing.assert_allclose(got, 1 / mean, rtol=1e-5)
    assert weighed.factors['a'] == 1
    np.testing.assert_allclose(
      weighed.total(named), losses[0] + mean[0] / mean[1] * losses[1], rtol=1e-5
    )
  for loss in (0.0, -1.0):
    fresh = weighting.init_state()
    weighed = step({}, fresh, dict(a=jnp.float32(2.0), b=jnp.float32(loss)))
    assert float(weighed.metrics['weight_b']) == pytest.approx(1000)


def test_balanced_weights_are_at_kendalls_minimum():
  """The literal form's gradient in s is zero there."""
  losses = dict(contrast=jnp.float32(2.8), pixels=jnp.float32(0.028))
  weighting = Balanced(tuple(losses))
  weights = weighting({}, weighting.init_state(), losses).metrics
  s = {n: -jnp.log(weights[f'weight_{n}']) for n in losses}
  literal = Uncertainty(tuple(losses))
  slopes = jax.grad(lambda s: literal(s, {}, losses).total(losses))(s)
  np.testing.assert_allclose(list(slopes.values()), 0, atol=1e-6)


def test_weights_far_from_their_optimum_are_warned_of():
  ended = dict(
    weight_contrast=0.7,
    optimum_contrast=0.36,
    weight_pixels=1.6,
    optimum_pixels=35.7,
    weight_decay=1.0,
  )
  (line,) = far_from_optimum(ended)
  assert line.startswith(
    'weight_pixels ended at 1.6, its optimum is 35.7: set '
    'config.method.repre.weighting=balanced'
  )
  assert far_from_optimum(dict(ended, weight_pixels=30.0)) == []
  for nothing in (None, 0.0, float('nan'), float('inf')):
    assert far_from_optimum(dict(ended, weight_pixels=nothing)) == []
    assert far_from_optimum(dict(ended, optimum_pixels=nothing)) == []
  (line,) = far_from_optimum(dict(weight_masked=1.0, optimum_masked=3.0))
  assert 'config.method.masked.weighting=balanced' in line


@pytest.mark.parametrize(
  'fields, told',
  [
    (dict(weighting='fix'), "unknown method.repre.weighting 'fix'.*'fixed'"),
    (dict(weights=(1.0,)), 'method.repre.weights are those of'),
    (
      dict(weights=(1.0, 100.0)),
      "weighting='balanced' replaces: set config.method.repre.weighting=fixed",
    ),
  ],
)
def test_weights_that_would_have_no_effect(fields, told):
  config = moby.get_config('swin_mini,photos,repre')
  config.method.repre.update(fields)
  with pytest.raises(ValueError, match=told):
    from_config(config, channels=1, steps_per_epoch=2, total=4)


@pytest.mark.parametrize('shape', [(64, 8), (8, 64)])
def test_monitor_twin(shape):
  x = np.random.default_rng(0).normal(size=shape).astype(np.float32) + 0.5
  z = x / np.linalg.norm(x, axis=1, keepdims=True)
  values = np.linalg.eigvalsh(np.cov(z.T, bias=True))
  cosine = z @ z.T
  n = len(z)
  got = jax.jit(collapse.monitor)(x)
  np.testing.assert_allclose(
    got['feature_std'], z.std(0).mean() * np.sqrt(shape[1]), rtol=1e-4
  )
  np.testing.assert_allclose(
    got['effective_rank'], values.sum() ** 2 / (values**2).sum(), rtol=1e-3
  )
  np.testing.assert_allclose(
    got['mean_cosine'], (cosine.sum() - n) / (n * (n - 1)), rtol=1e-3, atol=1e-5
  )


def test_monitor_has_no_gradient():
  x = jnp.ones((4, 3)) + jnp.arange(4.0)[:, None]
  grad = jax.grad(lambda x: sum(collapse.monitor(x).values()))(x)
  assert not np.any(grad)


def report(x):
  return {k: float(v) for k, v in collapse.monitor(x).items()}


def test_warnings_in_words():
  rng = np.random.default_rng(0)
  healthy = rng.normal(size=(256, 32)).astype(np.float32)
  assert collapse.warnings(report(healthy)) == []
  assert collapse.warnings({}) == []
  constant = np.ones((256, 32), np.float32) + 1e-3 * healthy
  texts = ' '.join(collapse.warnings(report(constant)))
  assert 'nearly constant' in texts and 'look alike' in texts
  line = rng.normal(size=(256, 1)) * np.ones((1, 32))
  texts = ' '.join(collapse.warnings(report(line.astype(np.float32))))
  assert 'dimensional collapse' in texts


def test_windows_cut_and_join():
  def double(params, method_state, batch):
    x = batch['view1']
    assert x.shape == (2 * 2 * 3, 4, 4, 1)
    return dict(pair=Figure(jnp.stack([x, 2 * x], 1), ('once', 'twice')))

  x = jax.random.uniform(jax.random.key(0), (2, 8, 12, 1))
  drawn = figures.in_windows(double, (4, 4))({}, {}, {'view1': x})
  np.testing.assert_array_equal(drawn['pair'].images[:, 0], x)
  np.testing.assert_array_equal(drawn['pair'].images[:, 1], 2 * x)
