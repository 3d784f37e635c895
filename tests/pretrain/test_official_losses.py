"""Losses of SimCLR, BYOL, SimSiam, MoCo v2, MoBY and DINO as recorded."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain import losses, queues
from training.sharding import make_mesh, over_batch

GOLDENS = pathlib.Path(__file__).parent.parent / 'goldens'


def load(name):
  with np.load(GOLDENS / f'{name}.npz') as file:
    values = {key: file[key] for key in file.files}
  return json.loads(str(values.pop('cfg'))), values


def assert_close(got, want, tolerance=2e-5):
  want = np.asarray(want)
  np.testing.assert_allclose(got, want, atol=tolerance * np.abs(want).max())


@pytest.mark.parametrize('temperature', [0.1, 0.2, 0.5])
def test_nt_xent(temperature):
  _, z = load('loss_simclr_ntxent')

  def loss(z1, z2):
    return losses.nt_xent(z1, z2, temperature=temperature)

  (value, hits), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(
    z['in/z1'], z['in/z2']
  )
  # Recorded is the mean over 2B anchors; the sum of two means is twice that.
  assert_close(value, 2 * z[f'out/T{temperature}/loss_solo'])
  for got, name in zip(grads, ('z1', 'z2'), strict=True):
    assert_close(got, 2 * z[f'grad/T{temperature}/{name}'])
  both = np.concatenate([z['in/z1'], z['in/z2']])
  both /= np.linalg.norm(both, axis=1, keepdims=True)
  nearest = (both @ both.T - 9 * np.eye(16)).argmax(axis=1)
  assert hits == (nearest == np.roll(np.arange(16), 8)).mean()


def test_nt_xent_of_a_sharded_batch_is_that_of_the_whole():
  _, z = load('loss_simclr_ntxent')
  rows = over_batch(make_mesh())

  @jax.jit
  def loss(z1, z2):
    def scalar(z1, z2):
      return losses.nt_xent(z1, z2, temperature=0.2)

    return jax.value_and_grad(scalar, (0, 1), has_aux=True)(z1, z2)

  one = loss(z['in/z1'], z['in/z2'])
  four = loss(*(jax.device_put(z[f'in/z{i}'], rows) for i in (1, 2)))
  assert len(four[1][0].sharding.device_set) == 4
  jax.tree.map(lambda a, b: assert_close(a, b, 1e-6), four, one)


def test_byol():
  _, z = load('loss_byol')

  def loss(p1, p2, z1, z2):
    first, second = losses.regression(p1, z2), losses.regression(p2, z1)
    return first + second, (first, second)

  inputs = [z[f'in/{name}'] for name in ('p1', 'p2', 'z1', 'z2')]
  (value, each), grads = jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True)(
    *inputs
  )
  assert_close(value, z['out/loss'])
  assert_close(each, [z['out/loss_p1z2'], z['out/loss_p2z1']])
  assert_close(grads[0], z['grad/p1'])
  assert_close(grads[1], z['grad/p2'])
  assert not np.any(grads[2]) and not np.any(grads[3])


def test_simsiam():
  _, z = load('loss_simsiam')

  def loss(p1, p2, z1, z2):
    cosine = losses.negative_cosine
    return 0.5 * (cosine(p1, z2) + cosine(p2, z1))

  inputs = [z[f'out/{name}'] for name in ('p1', 'p2', 'z1', 'z2')]
  value, grads = jax.value_and_grad(loss, (0, 1, 2, 3))(*inputs)
  assert_close(value, z['out/loss'])
  assert_close(grads[0], z['grad_act/p1'])
  assert_close(grads[1], z['grad_act/p2'])
  assert not np.any(grads[2]) and not np.any(grads[3])


def test_moby():
  cfg, z = load('loss_moby')
  # Their keys are columns.
  rows = {i: jnp.asarray(z[f'in/queue{i}'].T) for i in (1, 2)}

  def loss(p1, p2, z1, z2, queue1, queue2):
    def one(p, z, queue):
      return losses.queue_nce(p, z, queue, temperature=cfg['T'])[0]

    first, second = one(p1, z2, queue2), one(p2, z1, queue1)
    return first + second, (first, second)

  inputs = [z[f'in/{name}'] for name in ('p1', 'p2', 'z1', 'z2')]
  (value, each), grads = jax.value_and_grad(loss, range(6), has_aux=True)(
    *inputs, rows[1], rows[2]
  )
  assert_close(value, z['out/loss'])
  assert_close(each, [z['out/loss_p1z2'], z['out/loss_p2z1']])
  assert_close(grads[0], z['grad/p1'])
  assert_close(grads[1], z['grad/p2'])
  assert not any(np.any(grad) for grad in grads[2:])
  for i in (1, 2):
    queue, pointer = queues.enqueue(
      rows[i], jnp.int32(z['in/queue_ptr']), z[f'in/z{i}']
    )
    assert_close(queue.T, z[f'out/queue{i}_after'])
    assert pointer == z['out/queue_ptr_after']


def test_hits_of_a_queue_count_the_own_key():
  q = jnp.eye(4)
  keys = jnp.eye(4).at[1].set(jnp.array([1.0, 0.5, 0, 0]))
  queue = jnp.array([[0, 1.0, 0, 0], [0, 0, 0.6, 0.8]])
  _, hits = losses.queue_nce(q, keys, queue, temperature=0.2)
  assert hits == 0.75  # the second finds itself in the queue


def test_dino():
  cfg, z = load('loss_dino')
  temperatures = z['out/teacher_temp_schedule'][z['in/epoch']]

  @jax.jit
  def loss(student, teacher, centre, temperature):
    student = jnp.split(student, cfg['ncrops'])
    return losses.dino(
      student,
      jnp.split(teacher, 2),
      centre,
      student_temperature=cfg['student_temp'],
      teacher_temperature=temperature,
    )

  step = jax.value_and_grad(loss, (0, 1, 2))
  for i, temperature in enumerate(temperatures):
    centre, teacher = z['out/center_before'][i, 0], z['in/teacher'][i]
    value, grads = step(z['in/student'][i], teacher, centre, temperature)
    assert_close(value, z['out/loss'][i])
    assert_close(grads[0], z['grad/student'][i])
    assert not np.any(grads[1]) and not np.any(grads[2])
    moved = losses.update_centre(
      centre, jnp.split(jnp.asarray(teacher), 2), cfg['center_momentum']
    )
    assert_close(moved, z['out/center_after'][i, 0])


@pytest.mark.parametrize('students, teachers', [(1, 1), (1, 2), (2, 0)])
def test_dino_needs_pairs(students, teachers):
  crop = jnp.ones((2, 4))
  with pytest.raises(ValueError, match=f'{teachers} crops of the teacher'):
    losses.dino(
      [crop] * students,
      [crop] * teachers,
      jnp.zeros(4),
      student_temperature=0.1,
      teacher_temperature=0.04,
    )


def test_losses_survive_logits_that_overflow():
  far = 1e4 * jax.random.normal(jax.random.key(0), (4, 16))
  value, grad = jax.value_and_grad(
    lambda x: losses.dino(
      [x, -x],
      [far, x],
      jnp.zeros(16),
      student_temperature=0.1,
      teacher_temperature=0.04,
    )
  )(far)
  assert np.isfinite(value) and np.isfinite(grad).all()
  value, _ = losses.queue_nce(far, -far, far[:2], temperature=1e-3)
  assert np.isfinite(value)


def test_losses_at_random_are_logarithms():
  """Without information: ln(2B − 1) twice, ln(1 + K), ln K."""
  key1, key2, key3 = jax.random.split(jax.random.key(0), 3)
  z1 = jax.random.normal(key1, (256, 2048))
  z2 = jax.random.normal(key2, (256, 2048))
  value, _ = losses.nt_xent(z1, z2, temperature=0.2)
  np.testing.assert_allclose(value, 2 * np.log(511), rtol=0.01)
  queue = queues.init_queue(key3, 1024, 2048)
  value, _ = losses.queue_nce(z1, z2, queue, temperature=0.2)
  np.testing.assert_allclose(value, np.log(1025), rtol=0.01)
  value = losses.dino(
    [0.01 * z1, 0.01 * z2],
    [0.01 * z2, 0.01 * z1],
    jnp.zeros(2048),
    student_temperature=0.1,
    teacher_temperature=0.04,
  )
  np.testing.assert_allclose(value, np.log(2048), rtol=0.01)


# The queue.


def test_a_queue_starts_as_random_directions():
  queue = queues.init_queue(jax.random.key(0), 64, 8)
  np.testing.assert_allclose(jnp.linalg.norm(queue, axis=1), 1, rtol=1e-6)
  assert np.linalg.matrix_rank(queue) == 8
  assert abs(float(queue.mean())) < 0.05


def test_enqueue_goes_round_whatever_the_pointer():
  queue, pointer = jnp.zeros((5, 2)), jnp.int32(0)
  step = jax.jit(queues.enqueue)
  order = []
  for i in range(1, 5):
    angle = 0.1 * i + jnp.array([0, 0.05])
    keys = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    order += list(keys)
    queue, pointer = step(queue, pointer, 3 * keys)
  assert pointer == 8 % 5 and pointer.dtype == jnp.int32
  want = [order[5], order[6], order[7], order[3], order[4]]
  np.testing.assert_allclose(queue, jnp.stack(want), rtol=1e-6)


@pytest.mark.parametrize(
  'length, batch, message',
  [
    (100, 64, 'nearest lengths that work: 64, 128'),
    (10, 64, 'nearest lengths that work: 64$'),
    (0, 4, 'nearest lengths that work: 4$'),
    (64, 0, 'at least 1 key per step, not 0'),
  ],
)
def test_a_queue_is_filled_by_whole_batches(length, batch, message):
  queues.check_queue(4096, 512)
  with pytest.raises(ValueError, match=message):
    queues.check_queue(length, batch)
