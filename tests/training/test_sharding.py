"""Meshes, shardings of the state, and batches that do not fit."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from training import sharding


@pytest.mark.parametrize(
  'batch, chunks, near',
  [(6, 1, '4 or 8'), (3, 1, '4'), (12, 2, '8 or 16'), (0, 1, '4')],
)
def test_batches_that_do_not_divide_name_the_nearest(batch, chunks, near):
  mesh = sharding.make_mesh()
  with pytest.raises(ValueError, match=f'nearest: {near}$'):
    sharding.check_batch(batch, mesh, chunks)


def test_batches_that_divide():
  sharding.check_batch(16, sharding.make_mesh(2), 2)


def test_fsdp_must_divide_the_devices():
  with pytest.raises(ValueError, match=r'fsdp=3.* 4 devices.*\[1, 2, 4\]'):
    sharding.make_mesh(3)


def test_the_batch_is_split_over_all_devices():
  rows = sharding.over_batch(sharding.make_mesh(2))
  assert rows.shard_shape((8, 3)) == (2, 3)


def test_large_leaves_are_split_over_fsdp_and_others_repeated():
  mesh = sharding.make_mesh(2)
  state = dict(
    tall=jax.ShapeDtypeStruct((1024, 64), jnp.float32),
    odd=jax.ShapeDtypeStruct((1023, 65), jnp.float32),
    small=jax.ShapeDtypeStruct((64,), jnp.float32),
    scalar=jax.ShapeDtypeStruct((), jnp.int32),
  )
  specs = {k: s.spec for k, s in sharding.state_shardings(mesh, state).items()}
  assert specs['tall'] == PartitionSpec('fsdp', None)
  for name in ('odd', 'small', 'scalar'):
    assert specs[name] == PartitionSpec()
  single = sharding.state_shardings(sharding.make_mesh(), state)
  assert single['tall'].spec == PartitionSpec()
