import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from input_pipeline import augment, order, resident
from input_pipeline.arrays import Arrays
from input_pipeline.views import View, moco_v3


@pytest.fixture(scope='module')
def data(photos):
  tiles = [photos[:, y : y + 32, x : x + 32] for y in (0, 60) for x in (0, 90)]
  labels = np.tile(np.arange(3, dtype=np.int32), 4)
  return Arrays(
    name='tiles',
    images=np.concatenate(tiles),
    labels=labels,
    classes=('cat', 'cup', 'rocket'),
  )


@pytest.fixture(scope='module')
def shardings():
  mesh = jax.make_mesh(
    (2, 2), ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2
  )
  batch = NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))
  return batch, NamedSharding(mesh, PartitionSpec())


VIEWS = moco_v3(16)


def test_batches_follow_the_order(data):
  train = resident.Resident(data, VIEWS, batch_size=5, seed=3)
  assert (train.size, train.steps_per_epoch) == (12, 2)
  for step in (0, 1, 7):
    expected = order.batch_indices(step, size=12, batch_size=5, seed=3)
    batch = train.batch(step)
    np.testing.assert_array_equal(batch['index'], expected)
    np.testing.assert_array_equal(batch['row'], np.arange(5))
    np.testing.assert_array_equal(train.indices(step), expected)
    assert batch['index'].dtype == batch['row'].dtype == np.int32


def test_repeated_images_are_augmented_by_themselves(data):
  train = resident.Resident(data, VIEWS, batch_size=6, seed=3, repeats=3)
  index = train.indices(1)
  np.testing.assert_array_equal(index, index[::3].repeat(3))
  assert index[0] != index[3]
  views = jax.jit(train.render)(train.batch(1), jax.random.key(0))['view1']
  assert len(np.unique(np.asarray(views).mean(axis=(1, 2, 3)))) == 6


def test_the_images_are_put_on_the_device_once(data):
  train = resident.Resident(data, VIEWS, batch_size=4, seed=0)
  one, two = train.batch(0), train.batch(1)
  assert one['images'] is two['images'] and one['labels'] is two['labels']
  assert one['images'].dtype == np.uint8


def test_render_is_augment_with_keys_of_view_and_row(data):
  train = resident.Resident(data, VIEWS, batch_size=4, seed=0)
  rng = jax.random.key(5)
  out = jax.jit(train.render)(train.batch(2), rng)
  index = train.indices(2)
  assert set(out) == {'view1', 'view2', 'label', 'index'}
  np.testing.assert_array_equal(out['index'], index)
  np.testing.assert_array_equal(out['label'], data.labels[index])
  for number, (name, view) in enumerate(VIEWS.items()):
    for row in (0, 3):
      key = jax.random.fold_in(jax.random.fold_in(rng, number), row)
      image = data.images[index[row]][None]
      alone = jax.jit(augment.augment, static_argnums=1)(image, view, key[None])
      np.testing.assert_allclose(out[name][row], alone[0], atol=1e-5)


def test_without_labels(data):
  bare = Arrays(name='bare', images=data.images)
  train = resident.Resident(bare, VIEWS, batch_size=4, seed=0)
  batch = train.batch(0)
  assert set(batch) == {'images', 'index', 'row'}
  out = jax.eval_shape(train.render, batch, jax.random.key(0))
  assert set(out) == {'view1', 'view2', 'index'}


def test_devices_change_nothing_and_need_no_communication(data, shardings):
  one = resident.Resident(data, VIEWS, batch_size=8, seed=1)
  many = resident.Resident(
    data, VIEWS, batch_size=8, seed=1, shardings=shardings
  )
  rng = jax.random.key(0)
  expected = jax.jit(one.render)(one.batch(4), rng)
  render = jax.jit(many.render)
  rng = jax.device_put(rng, shardings[1])
  with jax.transfer_guard('disallow'):
    out = render(many.batch(4), rng)
  for name, value in expected.items():
    np.testing.assert_allclose(out[name], value, atol=1e-5)
    assert out[name].sharding.is_equivalent_to(shardings[0], value.ndim)
  program = render.lower(many.batch(4), rng).compile().as_text()
  for collective in ('all-gather', 'all-reduce', 'all-to-all', 'permute('):
    assert collective not in program


def test_one_compilation_for_many_steps(data, shardings):
  train = resident.Resident(
    data, VIEWS, batch_size=8, seed=1, shardings=shardings
  )
  render = jax.jit(train.render)
  rng = jax.device_put(jax.random.key(0), shardings[1])
  outs = [render(train.batch(step), rng) for step in range(3)]
  assert render._cache_size() == 1
  assert not np.array_equal(outs[0]['index'], outs[1]['index'])


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(batch_size=13), 'batch_size 13 is larger than .* 12 examples'),
    (dict(batch_size=0), 'at least 1, got 12 and 0'),
    (dict(views={}), 'at least one view'),
    (dict(views={'label': View(size=8)}), r"not be named \['label'\]"),
    (
      dict(views={'v': View(size=8, scale=(1e-4, 1.0))}),
      r"view 'v': crops of 0.0001 of 32x32 px have 0.32 px a side; .*0.00098",
    ),
  ],
)
def test_errors_before_compilation(data, change, message):
  arguments = dict(views=VIEWS, batch_size=4, seed=0) | change
  with pytest.raises(ValueError, match=message):
    resident.Resident(data, **arguments)


def test_a_replicated_batch_need_not_divide(data, shardings):
  _, replicated = shardings
  train = resident.Resident(
    data, VIEWS, batch_size=3, seed=0, shardings=(replicated, replicated)
  )
  assert train.batch(0)['index'].shape == (3,)
