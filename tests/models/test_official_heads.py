"""Heads of SimCLR, BYOL, SimSiam, MoCo v2, MoBY and DINO as recorded."""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import heads
from models.heads import DINOHead
from pretrain import losses, queues

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'


def load(name):
  with np.load(GOLDENS / f'{name}.npz') as file:
    values = {key: file[key] for key in file.files}
  return json.loads(str(values.pop('cfg'))), values


def dense(z, name):
  """A torch Linear of [out, in]; the bias only if there is one."""
  params = {'kernel': z[f'{name}.weight'].T}
  if f'{name}.bias' in z:
    params['bias'] = z[f'{name}.bias']
  return params


def norm(z, name):
  return {'scale': z[f'{name}.weight'], 'bias': z[f'{name}.bias']}


def assert_close(got, want, tolerance=2e-5):
  want = np.asarray(want)
  error = np.abs(np.asarray(got) - want).max() / np.abs(want).max()
  assert error < tolerance


def assert_grads_close(got, want, quiet=()):
  """`quiet` are biases before a BatchNorm, whose gradient is 0."""
  for name in quiet:
    a, b = got[name].pop('bias'), want[name].pop('bias')
    scale = np.abs(want[name]['kernel']).max()
    assert max(np.abs(a).max(), np.abs(b).max()) < 2e-5 * scale
  jax.tree.map(assert_close, got, want)


def run(head, params, x, cotangent):
  """Result, gradients of the parameters and of the input."""

  def loss(params, x):
    y = head.apply({'params': params}, x)
    return (y * cotangent).sum(), y

  grads, y = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)
  return y, *grads


# MoBY.

MOBY = {
  'projector': (heads.moby_head(32, 16), 48),
  'predictor': (heads.moby_head(32, 16), 16),
  'deep3': (heads.moby_head(32, 16, layers=3), 48),
}


def moby_params(z, group, layers):
  params = {f'dense_{layers - 1}': dense(z, f'{group}/linear_out')}
  for i in range(layers - 1):
    params[f'dense_{i}'] = dense(z, f'{group}/linear_hidden.{3 * i + 1}')
    params[f'norm_{i}'] = norm(z, f'{group}/linear_hidden.{3 * i + 2}')
  return params


@pytest.mark.parametrize('name', MOBY)
def test_moby(name):
  _, z = load('heads_moby')
  head, _ = MOBY[name]
  params = moby_params(z, f'{name}/w', head.layers)
  x, cotangent = z[f'{name}/in/x'], z[f'{name}/in/cotangent']
  y, grads, grad_x = run(head, params, x, cotangent)
  assert_close(y, z[f'{name}/out/y'])
  assert_close(grad_x, z[f'{name}/grad_x/x'])
  quiet = [f'dense_{i}' for i in range(head.layers - 1)]
  want = moby_params(z, f'{name}/grad', head.layers)
  assert_grads_close(grads, want, quiet)


def test_byol_is_moby_without_the_last_bias():
  _, z = load('heads_moby')
  params = moby_params(z, 'projector/w', 2)
  bias = params['dense_1'].pop('bias')
  x, cotangent = z['projector/in/x'], z['projector/in/cotangent']
  y, grads, grad_x = run(heads.byol_head(32, 16), params, x, cotangent)
  assert_close(y + bias, z['projector/out/y'])
  assert_close(grad_x, z['projector/grad_x/x'])
  want = moby_params(z, 'projector/grad', 2)
  del want['dense_1']['bias']
  assert_grads_close(grads, want, ['dense_0'])


# SimCLR: MoCo v3's projector with a scale at the end.


def test_simclr_scales_what_moco_v3_returns():
  _, z = load('heads_mocov3')
  w, grad = 'projector/w', 'projector/grad'
  params = {f'dense_{i}': dense(z, f'{w}/{3 * i}') for i in range(3)}
  params |= {f'norm_{i}': norm(z, f'{w}/{3 * i + 1}') for i in range(2)}
  gamma = np.linspace(0.5, 2, 16, dtype=np.float32)
  params['norm_2'] = {'scale': gamma}
  cotangent = z['projector/in/cotangent']
  y, grads, grad_x = run(
    heads.simclr_head(64, 16), params, z['projector/in/x'], cotangent / gamma
  )
  assert_close(y, gamma * z['projector/out/y'])
  assert_close(grad_x, z['projector/grad_x/x'])
  last = grads.pop('norm_2')
  assert set(last) == {'scale'}
  assert_close(last['scale'], (cotangent * z['projector/out/y']).sum(0) / gamma)
  want = {f'dense_{i}': dense(z, f'{grad}/{3 * i}') for i in range(3)}
  want |= {f'norm_{i}': norm(z, f'{grad}/{3 * i + 1}') for i in range(2)}
  assert_grads_close(grads, want)


# SimSiam and MoCo v2: heads and losses together, on the tanh(Wx + b) that
# stood for an encoder.


def backbone(params, x):
  return jnp.tanh(x @ params['kernel'] + params['bias'])


def simsiam_params(z, group):
  fc = f'{group}/encoder.fc'
  projector = {f'dense_{i}': dense(z, f'{fc}.{3 * i}') for i in range(2)}
  projector |= {f'norm_{i}': norm(z, f'{fc}.{3 * i + 1}') for i in range(2)}
  # Its bias is frozen, and the BatchNorm behind it ignores it.
  projector['dense_2'] = {'kernel': z[f'{fc}.6.weight'].T}
  return {
    'backbone': dense(z, f'{group}/encoder.f'),
    'projector': projector,
    'predictor': {
      'dense_0': dense(z, f'{group}/predictor.0'),
      'norm_0': norm(z, f'{group}/predictor.1'),
      'dense_1': dense(z, f'{group}/predictor.3'),
    },
  }


def test_simsiam():
  _, z = load('loss_simsiam')
  projector = heads.simsiam_projector(20, 24)
  predictor = heads.simsiam_predictor(10, 24)

  def loss(params):
    def both(x):
      y = backbone(params['backbone'], x)
      y = projector.apply({'params': params['projector']}, y)
      return predictor.apply({'params': params['predictor']}, y), y

    (p1, z1), (p2, z2) = both(z['in/x1']), both(z['in/x2'])
    cosine = losses.negative_cosine
    return 0.5 * (cosine(p1, z2) + cosine(p2, z1)), (p1, p2, z1, z2)

  (value, outputs), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
    simsiam_params(z, 'w')
  )
  assert_close(value, z['out/loss'])
  for got, name in zip(outputs, ('p1', 'p2', 'z1', 'z2'), strict=True):
    assert_close(got, z[f'out/{name}'])
  assert_grads_close(grads, simsiam_params(z, 'grad'))


def moco_v2_params(z, group):
  head = {f'dense_{i}': dense(z, f'{group}fc.{2 * i}') for i in range(2)}
  return {'backbone': dense(z, f'{group}f'), 'head': head}


@pytest.mark.parametrize('step', [0, 3])  # in the last the pointer goes round
def test_moco_v2(step):
  cfg, z = load('loss_mocov2_queue')
  head = heads.moco_v2_head(20, 16)
  now = f'step{step}'
  before = {0: 'w0/encoder_q.', 3: 'step2/encoder_q_after/'}[step]
  teacher = moco_v2_params(z, f'{now}/encoder_k_after/')
  queue = jnp.asarray(z[f'{now}/queue_before'].T)  # their keys are columns

  def encode(params, x):
    y = backbone(params['backbone'], x)
    return head.apply({'params': params['head']}, y)

  def loss(params):
    keys = encode(teacher, z[f'{now}/im_k'])
    queries = encode(params, z[f'{now}/im_q'])
    value, hits = losses.queue_nce(queries, keys, queue, temperature=cfg['T'])
    return value, (hits, keys)

  (value, (hits, keys)), grads = jax.jit(
    jax.value_and_grad(loss, has_aux=True)
  )(moco_v2_params(z, before))
  assert_close(value, z[f'{now}/loss'])
  assert hits == (z[f'{now}/logits'].argmax(axis=1) == 0).mean()
  assert_grads_close(grads, moco_v2_params(z, f'{now}/grad/encoder_q.'))
  queue, pointer = queues.enqueue(
    queue, jnp.asarray(z[f'{now}/ptr_before'][0], jnp.int32), keys
  )
  assert_close(queue.T, z[f'{now}/queue_after'])
  assert pointer == z[f'{now}/ptr_after'][0]


# DINO.

DINO = DINOHead(hidden=40, bottleneck=16, out=64)
DINO_CASES = {
  'norm_last_true': DINO,
  'norm_last_false': DINO,
  'bn': DINO.copy(use_bn=True),
  'one_layer': DINO.copy(layers=1),
}


def dino_params(z, group, head):
  stride = 3 if head.use_bn else 2
  params = {}
  for i in range(head.layers):
    name = f'{group}/mlp' if head.layers == 1 else f'{group}/mlp.{stride * i}'
    params[f'dense_{i}'] = dense(z, name)
    if head.use_bn and i < head.layers - 1:
      params[f'norm_{i}'] = norm(z, f'{group}/mlp.{stride * i + 1}')
  # Without a recorded gradient it is frozen.
  gain = z.get(f'{group}/last_layer.weight_g', np.zeros((64, 1), np.float32))
  v = z[f'{group}/last_layer.weight_v'].T
  return params | {'last': {'v': v, 'g': gain[:, 0]}}


@pytest.mark.parametrize('name', DINO_CASES)
def test_dino(name):
  _, z = load('heads_dino')
  head = DINO_CASES[name]
  trains = f'{name}/grad/last_layer.weight_g' in z
  head = head.copy(norm_last=not trains)
  params = dino_params(z, f'{name}/w', head)
  y, grads, grad_x = run(head, params, z['in/x'], z['in/cotangent'])
  assert_close(y, z[f'{name}/out/y'])
  assert_close(grad_x, z[f'{name}/grad_x/x'])
  want = dino_params(z, f'{name}/grad', head)
  if not trains:
    assert not want['last'].pop('g').any()
    assert not grads['last'].pop('g').any()
  quiet = ['dense_0', 'dense_1'] if head.use_bn else []
  assert_grads_close(grads, want, quiet)


# What all of them create.

CREATED = {
  'simclr': (heads.simclr_head(24, 8), 24 * 24 * 2 + 24 * 8 + 4 * 24 + 8),
  'byol': (heads.byol_head(32, 8), 25 * 32 + 32 * 8 + 2 * 32),
  'simsiam': (heads.simsiam_projector(24, 8), 24 * 24 * 2 + 24 * 8 + 4 * 24),
  'predictor': (heads.simsiam_predictor(6, 24), 24 * 6 + 7 * 24 + 2 * 6),
  'moco_v2': (heads.moco_v2_head(24, 8), 25 * 24 + 25 * 8),
  'moby': (heads.moby_head(32, 8), 25 * 32 + 33 * 8 + 2 * 32),
  'dino': (
    DINOHead(hidden=16, bottleneck=4, out=8),
    25 * 16 + 17 * 16 + 17 * 4 + 5 * 8,
  ),
}


@pytest.mark.parametrize('name', CREATED)
def test_parameter_counts(name):
  head, count = CREATED[name]
  params = jax.eval_shape(head.init, jax.random.key(0), jnp.ones((2, 24)))
  assert set(params) == {'params'}
  assert sum(math.prod(x.shape) for x in jax.tree.leaves(params)) == count


def test_dinos_own_head():
  x = jax.ShapeDtypeStruct((2, 384), jnp.float32)
  params = jax.eval_shape(DINOHead().init, jax.random.key(0), x)['params']
  # 22.3 M products, and the biases and gains that go with them.
  assert params['last']['v'].shape == (256, 65536)
  assert params['last']['g'].shape == (65536,)
  kernels = [params[f'dense_{i}']['kernel'].shape for i in range(3)]
  assert kernels == [(384, 2048), (2048, 2048), (2048, 256)]


def test_biases_start_as_pytorch_does():
  head = heads.moby_head(400, 300)
  params = head.init(jax.random.key(0), jnp.ones((2, 64)))['params']
  for name, bound in (('dense_0', 1 / 8), ('dense_1', 1 / 20)):
    bias = params[name]['bias']
    assert 0.95 * bound < float(jnp.abs(bias).max()) <= bound
    np.testing.assert_allclose(bias.std(), bound / math.sqrt(3), rtol=0.1)


def test_simclr_starts_small():
  head = heads.simclr_head(100, 100)
  params = head.init(jax.random.key(0), jnp.ones((2, 100)))['params']
  np.testing.assert_allclose(params['dense_1']['kernel'].std(), 0.01, rtol=0.05)
  assert (params['norm_2']['scale'] == 1).all()


def test_dino_starts_as_its_authors_do():
  head = DINOHead(hidden=100, bottleneck=64, out=200)
  params = head.init(jax.random.key(0), jnp.ones((2, 100)))['params']
  kernel = params['dense_1']['kernel']
  np.testing.assert_allclose(kernel.std(), 0.02, rtol=0.05)
  assert float(jnp.abs(kernel).max()) > 0.05  # not cut at 2 deviations
  assert not params['dense_1']['bias'].any()
  assert (params['last']['g'] == 1).all()
  v = params['last']['v']
  assert 0.98 / 8 < float(jnp.abs(v).max()) <= 1 / 8


def test_dino_computes_in_bfloat16_and_returns_float32():
  x = jax.random.normal(jax.random.key(0), (6, 48))
  params = DINO.init(jax.random.key(1), x)
  half, full = (
    DINO.copy(dtype='bfloat16').apply(params, x),
    DINO.apply(params, x),
  )
  assert half.dtype == full.dtype == jnp.float32
  assert (half != full).any()
  assert_close(half, full, 0.05)


def test_dino_needs_a_layer():
  with pytest.raises(ValueError, match='at least 1 layer, not 0'):
    DINO.copy(layers=0).init(jax.random.key(0), jnp.ones((2, 4)))
