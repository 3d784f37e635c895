"""Linear probes: the papers' arithmetic, side by side as if each were alone."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

import main
from configs import linear_probe as configs
from training import optim, sharding
from training.recipe import make_recipe
from training.schedules import constant
from training.step import Run
from training.warm_start import load_params
from transfer.accuracy import Accuracy, strongest
from transfer.probe.cached import CachedExtractor, CachedFeatures
from transfer.probe.heads import LinearProbes, Probe

RATES = (0.1, 0.5, 2.0)
CLASSES, DIM, COUNT = 3, 5, 48


@pytest.fixture(scope='module')
def features():
  """Three separable clouds, in two readings."""
  rng = np.random.default_rng(0)
  labels = np.arange(COUNT) % CLASSES
  centres = 4 * rng.normal(size=(CLASSES, DIM))
  x = (centres[labels] + rng.normal(size=(COUNT, DIM))).astype(np.float32)
  return {'cls_1': x, 'mean_1': x[:, :2].copy()}, labels.astype(np.int32)


def probes(**fields):
  made = dict(
    encoder=None,
    probes=(Probe(1, 'cls'), Probe(1, 'mean')),
    rates=RATES,
    schedule=constant(1.0),
    classes=CLASSES,
  )
  return LinearProbes(**made | fields)


def train(method, features, steps, name='sgd', **hyper):
  """(params, method_state) after some steps, as a run makes them."""
  config = configs.get_config('photos')
  config.batch_size = 16
  config.optim.update(name=name)
  config.optim.hyper = hyper or dict(momentum=0.9)
  mesh = sharding.make_mesh(1)
  data = CachedFeatures(*features, batch_size=16, seed=0, mesh=mesh)
  run = Run(config, mesh=mesh, method=method, data=data)
  state = run.init()
  first = jax.device_get(state.params['probes'])
  for step in range(steps):
    state, report = run.step(state, data.batch(step))
  order = [data.indices(step) for step in range(steps)]
  return (
    jax.device_get((state.params, state.method_state)),
    first,
    order,
    report,
  )


def softmax(z):
  z = np.exp(z - z.max(-1, keepdims=True))
  return z / z.sum(-1, keepdims=True)


class TestArithmetic:
  @pytest.mark.parametrize('name', ['sgd', 'lars', 'clipped'])
  def test_every_classifier_is_as_if_alone(self, features, name):
    """A NumPy twin of one rate at a time: momentum, trust ratio, clipping."""
    lars, clip = name == 'lars', 0.5 if name == 'clipped' else 0.0
    method = probes(decay=0.01, clip=clip, smoothing=0.1)
    (params, _), first, order, _ = train(
      method, features, 4, name='lars' if lars else 'sgd'
    )
    xs, labels = features
    targets = np.eye(CLASSES)[labels] * 0.9 + 0.1 / CLASSES
    for probe, x in xs.items():
      for i, rate in enumerate(RATES):
        w = first[probe]['kernel'][i].astype(np.float64)
        b = first[probe]['bias'][i].astype(np.float64)
        vw, vb = np.zeros_like(w), np.zeros_like(b)
        for rows in order:
          error = (softmax(x[rows] @ w + b) - targets[rows]) / len(rows)
          gw, gb = x[rows].T @ error, error.sum(0)
          if clip:
            norm = np.sqrt((gw**2).sum() + (gb**2).sum())
            gw, gb = (g * min(1, clip / (norm + 1e-6)) for g in (gw, gb))
          gw, gb = gw + 0.01 * w, gb + 0.01 * b
          if lars:  # what has one axis is not adapted
            gw = gw * 1e-3 * np.linalg.norm(w) / np.linalg.norm(gw)
          vw, vb = 0.9 * vw + gw, 0.9 * vb + gb
          w, b = w - rate * vw, b - rate * vb
        found = params['probes'][probe]
        np.testing.assert_allclose(found['kernel'][i], w, atol=2e-5)
        np.testing.assert_allclose(found['bias'][i], b, atol=2e-5)

  def test_batch_norm_as_pytorch_s(self, features):
    """Statistics of the batch in training, running ones (unbiased) in use."""
    method = probes(batch_norm=True)
    (params, state), _, order, _ = train(method, features, 3)
    x = features[0]['cls_1'].astype(np.float64)
    mean, var = np.zeros(DIM), np.ones(DIM)
    for rows in order:
      mean = 0.9 * mean + 0.1 * x[rows].mean(0)
      var = 0.9 * var + 0.1 * x[rows].var(0, ddof=1)
    np.testing.assert_allclose(state['cls_1']['mean'], mean, atol=1e-5)
    np.testing.assert_allclose(state['cls_1']['var'], var, rtol=1e-5)
    batch = {'features': features[0]}
    logits = method.predict(params, state, batch)['cls_1']
    probe = params['probes']['cls_1']
    normed = (x - mean) / np.sqrt(var + 1e-6)
    want = np.einsum('bd,rdc->rbc', normed, probe['kernel'])
    np.testing.assert_allclose(logits, want + probe['bias'][:, None], atol=1e-4)

  def test_one_that_diverges_does_not_stop_the_others(self, features):
    (alone, _), *_ = train(probes(rates=(0.1,)), features, 4)
    method = probes(rates=(0.1, 1e38))
    (beside, _), _, _, report = train(method, features, 4)
    assert int(report['bad_steps']) == 0
    for name, probe in alone['probes'].items():
      found = beside['probes'][name]
      assert not (np.abs(found['kernel'][1]) < 1e10).all()
      np.testing.assert_allclose(
        found['kernel'][0], probe['kernel'][0], atol=1e-5
      )

  def test_separable_classes_are_told_apart(self, features):
    method = probes()
    weights, _, _, report = train(method, features, 60)
    extractor = CachedExtractor(
      *features,
      lambda w, x: jax.tree.map(strongest, method.predict(*w, {'features': x})),
      mesh=sharding.make_mesh(1),
      batch_size=20,  # the last batch is not full
    )
    accuracy = Accuracy(extractor, None, lambda n, i: f'{n}/lr{RATES[i]:g}')
    accuracy.start(0)
    for batch in accuracy.batches():
      accuracy.update(*weights, batch)
    found = accuracy.finish()
    assert found['top1'] == found['top1/cls_1/lr0.5'] == 100
    assert len([k for k in found if k.startswith('top1/')]) == 6
    assert float(report['loss_best']) < 0.05

  def test_rates_of_their_own_do_not_mix(self):
    """copies: the same as one optimiser for each slice."""
    rng = np.random.default_rng(1)
    params = {'w': jnp.array(rng.normal(size=(3, 4, 2)), jnp.float32)}
    grads = {'w': jnp.array(rng.normal(size=(3, 4, 2)), jnp.float32)}
    clip = optim.Clip(norm=1.0)
    rates = jnp.array([0.1, 0.2, 0.3])
    rule = optim.Rule(lr=lambda _: rates, decay=0.1, copies=3, clip=clip)
    together = optim.make_optimizer(params, (('.*', rule),), name='lars')
    moved, _ = together.update(
      grads, together.init(params), params, step=jnp.array(0)
    )
    for i in range(3):
      one, grad = ({'w': x['w'][i]} for x in (params, grads))
      rule = optim.Rule(lr=float(rates[i]), decay=0.1, clip=clip)
      alone = optim.make_optimizer(one, (('.*', rule),), name='lars')
      want, _ = alone.update(grad, alone.init(one), one, step=jnp.array(0))
      np.testing.assert_allclose(moved['w'][i], want['w'], rtol=1e-5)


class TestStrongest:
  def test_classes_by_logit(self):
    logits = jnp.array([[[0.0, 3.0, 1.0], [9.0, 0.0, 1.0]]])
    found = strongest(logits)
    assert found.shape == (2, 1, 3)
    np.testing.assert_array_equal(found[:, 0], [[1, 2, 0], [0, 2, 1]])


def config(words='arrays', **fields):
  out = configs.get_config(words)
  out.data.update(data_dir=tiny_run.data(), test_split='test', image_size=16)
  out.data.update(eval_crop=1.0)
  out.update(checkpoint=str(tiny_run.finished()), batch_size=16, epochs=3.0)
  out.update(log_every=1, eval_every=3, checkpoint_every=2)
  names = {name.replace('__', '.'): value for name, value in fields.items()}
  out.update_from_flattened_dict(names)
  return out.lock()


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  path = tmp_path_factory.mktemp('probe') / 'run'
  main.TASKS['linear_probe'](
    config('arrays,sweep', probe__blocks=(1, 2)), str(path)
  )
  return path


class TestJob:
  def test_the_best_beside_the_whole_grid(self, workdir):
    summary = json.loads((workdir / 'summary.json').read_text())
    grid = json.loads((workdir / 'grid.json').read_text())
    assert len(grid) == 12 * 2 * 2
    assert grid[0]['probe'] == summary['best']
    assert grid[0]['top1'] == summary['top1'] == max(g['top1'] for g in grid)
    # Colours of three classes: a linear probe has to find them.
    assert summary['top1'] > 60
    assert summary['which'] == 'student'
    assert tiny_run.saved_steps(workdir)

  def test_the_encoder_is_the_checkpoint_s_bit_for_bit(self, workdir):
    was, now = load_params(tiny_run.finished()), load_params(workdir)
    names = [n for n in now if n.startswith('encoder/')]
    assert len(names) == len([n for n in was if n.startswith('encoder/')]) > 20
    for name in names:
      assert was[name].tobytes() == now[name].tobytes(), name

  def test_continued_it_ends_the_same(self, workdir, tmp_path):
    again = tiny_run.copy(workdir, tmp_path / 'run')
    last = tiny_run.saved_steps(again)[-1]
    tiny_run.shutil.rmtree(again / 'checkpoints' / str(last))
    (again / 'summary.json').unlink()
    main.TASKS['linear_probe'](
      config('arrays,sweep', probe__blocks=(1, 2)), str(again)
    )
    assert tiny_run.checksums(again, last) == tiny_run.checksums(workdir, last)

  @pytest.mark.parametrize('protocol', configs.PROTOCOLS)
  def test_protocols_are_the_papers(self, protocol):
    found = configs.get_config(f'imagenet2012,{protocol}')
    rate = found.optim.base_lr * found.batch_size / found.optim.per
    want = dict(
      moco_v3=(12.0, 90, 'sgd', (1,)),
      dino=(0.004, 100, 'sgd', (4,)),
      mae=(6.4, 90, 'lars', (1,)),
      moby=(2.0, 100, 'sgd', (1,)),
    )[protocol]
    assert rate == pytest.approx(want[0])
    assert (found.epochs, found.optim.name) == want[1:3]
    assert found.probe.blocks == want[3]
    assert found.optim.decay == 0 and found.optim.hyper.momentum == 0.9
    assert found.probe.batch_norm == (protocol == 'mae')
    assert found.views.view1.retry == (protocol != 'mae')
    assert (found.data.eval_resample == 'bilinear') == (protocol == 'moco_v3')

  @pytest.mark.parametrize(
    'fields, told',
    [
      (dict(data__test_split=''), 'needs test images'),
      (dict(checkpoint=''), 'set config.checkpoint'),
      (dict(eval_every=0), 'would end without an accuracy'),
      (dict(init_from='runs/mine'), 'reads config.checkpoint'),
      (dict(probe__pooling=()), 'at least one of config.probe'),
      (dict(probe__blocks=(3,)), r'blocks=3 must be within 1\.\.2'),
      (dict(probe__lrs=(0.1, 0.0)), r'probe.lrs=\(0.1, 0.0\) must be above 0'),
      (dict(probe__smoothing=1.0), 'must be at least 0 and below 1'),
      (dict(probe__drop_path=-0.1), 'must be at least 0 and below 1'),
    ],
  )
  def test_what_cannot_be_probed(self, tmp_path, fields, told):
    with pytest.raises(ValueError, match=told):
      main.TASKS['linear_probe'](config(**fields), str(tmp_path / 'run'))

  def test_one_protocol_at_a_time(self):
    with pytest.raises(ValueError, match='one protocol at a time'):
      configs.get_config('mae,dino')
    with pytest.raises(
      ValueError, match=r"word 'vit_s16'.*Known: data [^;]*; flags"
    ):
      configs.get_config('vit_s16')


def test_schedule_at_whole_epochs():
  found = configs.get_config('imagenet2012,moco_v3').optim.to_dict()
  recipe = make_recipe(found, batch_size=256, steps_per_epoch=10, total=100)
  assert recipe.lr(9) == recipe.lr(0) == 3.0
  np.testing.assert_allclose(
    recipe.lr(19), 1.5 * (1 + np.cos(np.pi / 10)), rtol=1e-6
  )
