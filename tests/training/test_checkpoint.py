import json
import logging
import pathlib
import random
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from training import sharding
from training.checkpoint import CheckpointError, Checkpoints, check_same_leaves
from training.checksum import checksum, checksums
from training.warm_start import load_params

DTYPES = {
  'float32': np.float32,
  'bfloat16': ml_dtypes.bfloat16,
  'float16': np.float16,
  'int8': np.int8,
  'uint16': np.uint16,
  'int32': np.int32,
}
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32}


def random_bits(dtype, shape, seed=0):
  """Any bits at all: NaNs, infinities and denormals among them."""
  word = UNSIGNED[np.dtype(dtype).itemsize]
  rng = np.random.default_rng(seed)
  bits = rng.integers(0, np.iinfo(word).max, shape, word, endpoint=True)
  return bits, word


def as_dtype(bits, dtype):
  return jax.lax.bitcast_convert_type(jnp.asarray(bits), dtype)


class TestChecksum:
  @pytest.mark.parametrize('shape', [(), (1,), (3, 5)])
  @pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
  def test_every_single_bit_counts(self, dtype, shape):
    bits, word = random_bits(dtype, shape)
    bits = np.asarray(bits, word)
    flips = []
    for i in range(bits.size):
      for bit in range(8 * bits.itemsize):
        flipped = bits.copy().reshape(-1)
        flipped[i] ^= word(1 << bit)
        flips.append(flipped.reshape(shape))
    original = int(checksum(as_dtype(bits, dtype)))
    found = jax.vmap(checksum)(as_dtype(np.stack(flips), dtype))
    assert original not in np.asarray(found).tolist()

  def test_bool(self):
    bits = np.random.default_rng(0).random(40) < 0.5
    flips = bits ^ np.eye(40, dtype=bool)
    original = int(checksum(jnp.asarray(bits)))
    assert original not in jax.vmap(checksum)(jnp.asarray(flips)).tolist()

  def test_the_order_counts(self):
    x = np.arange(64, dtype=np.float32)
    sums = {int(checksum(jnp.asarray(np.roll(x, n)))) for n in range(64)}
    assert len(sums) == 64

  def test_negative_zero_is_not_zero(self):
    assert int(checksum(jnp.zeros(3))) != int(checksum(-jnp.zeros(3)))

  def test_sharding_does_not_count(self):
    mesh = sharding.make_mesh(fsdp=2)
    bits, _ = random_bits(np.float32, (8, 12))
    x = as_dtype(bits, np.float32)
    wanted = int(checksum(x))
    for spec in ((), (('data', 'fsdp'),), (None, 'fsdp'), ('data', 'fsdp')):
      placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
      assert checksums({'x': placed}) == {'x': wanted}, spec


def state(offset=0.0):
  """Leaves of all kinds that a train state holds."""
  big = np.random.default_rng(0).normal(size=(256, 512)) + offset
  return dict(
    step=jnp.int32(7 + offset),
    params=dict(
      encoder=dict(kernel=jnp.asarray(big, jnp.float32), bias=jnp.ones(5)),
      head=jnp.arange(6, dtype=jnp.bfloat16) + jnp.bfloat16(offset),
    ),
    opt_state=(dict(mu=jnp.full((4, 8), 0.1 + offset)), jnp.uint32(3)),
    method_state=dict(flags=jnp.array([True, False]), small=jnp.int8([-3, 4])),
  )


def like(tree, mesh=None):
  mesh = mesh or sharding.make_mesh()
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    tree,
    sharding.state_shardings(mesh, tree),
  )


def save(workdir, steps=(1,), keep=3):
  """One checkpoint per step; the step is the offset of its values."""
  saved = Checkpoints(workdir, keep=keep)
  for step in steps:
    saved.save(state(step), step=step, meta=dict(seconds=1.5))
    saved.wait()
  saved.close()


def restore(workdir):
  saved = Checkpoints(workdir)
  try:
    return saved.restore(like(state()))
  finally:
    saved.close()


def assert_equal(found, wanted):
  assert jax.tree.structure(found) == jax.tree.structure(wanted)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.fixture(scope='module')
def three(tmp_path_factory):
  """A workdir with checkpoints 1, 2, 3; copy it before breaking it."""
  workdir = tmp_path_factory.mktemp('three')
  save(workdir, (1, 2, 3))
  return workdir


@pytest.fixture
def workdir(three, tmp_path):
  return pathlib.Path(shutil.copytree(three, tmp_path / 'run'))


def flip_bit(path, position):
  """Flips one bit of a file, counted from its beginning."""
  content = bytearray(path.read_bytes())
  content[position // 8] ^= 1 << position % 8
  path.write_bytes(content)


def data_files(folder):
  """The arrays, largest file first; some hold copies that nobody reads."""
  files = [p for p in folder.glob('state/**/d/*') if p.is_file()]
  return sorted(files, key=lambda p: (-p.stat().st_size, p.name))


def flip_one_bit_each(folder):
  for path in data_files(folder):
    flip_bit(path, 8 * (path.stat().st_size // 10))


def truncate(folder):
  for path in data_files(folder):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def meta_file(folder):
  return folder / 'meta' / 'metadata'


def tamper(path, change):
  """Edits the JSON of a checkpoint's record."""
  content = json.loads(path.read_text())
  change(content['record'])
  path.write_text(json.dumps(content))


DAMAGES = {
  'flipped bit': flip_one_bit_each,
  'truncated arrays': truncate,
  'no arrays': lambda f: [path.unlink() for path in data_files(f)],
  'no folder of arrays': lambda f: shutil.rmtree(f / 'state'),
  'garbage metadata': lambda f: meta_file(f).write_bytes(b'\x00\xffnothing'),
  'empty metadata': lambda f: meta_file(f).write_bytes(b''),
  'metadata of another kind': lambda f: meta_file(f).write_text('[1, 2]'),
  'missing metadata': lambda f: shutil.rmtree(f / 'meta'),
  'changed number': lambda f: tamper(
    meta_file(f), lambda record: record.update(seconds=99.0)
  ),
  'changed step': lambda f: tamper(
    meta_file(f), lambda record: record.update(step=2)
  ),
  'changed checksum': lambda f: tamper(
    meta_file(f), lambda record: record['leaves']['step'].update(checksum=1)
  ),
}


class TestRoundTrip:
  def test_nothing_there(self, tmp_path):
    assert restore(tmp_path) is None
    assert list(tmp_path.iterdir()) == []

  def test_values_kinds_and_meta(self, workdir):
    found, meta = restore(workdir)
    assert_equal(found, state(3))
    assert meta['step'] == 3
    assert meta['seconds'] == 1.5

  @pytest.mark.parametrize('fsdp', [1, 2, 4])
  def test_onto_other_shardings(self, workdir, fsdp):
    wanted = like(state(), sharding.make_mesh(fsdp))
    found, _ = Checkpoints(workdir).restore(wanted)
    assert_equal(found, state(3))
    kernel = found['params']['encoder']['kernel']
    assert kernel.addressable_shards[0].data.shape == (256, 512 // fsdp)

  def test_onto_fewer_devices(self, tmp_path):
    four = sharding.make_mesh(fsdp=4)
    placed = jax.device_put(state(1), sharding.state_shardings(four, state(1)))
    saved = Checkpoints(tmp_path)
    saved.save(placed, step=1, meta={})
    saved.close()
    one = jax.make_mesh((1, 1), sharding.AXES, devices=jax.devices()[2:3])
    found, _ = Checkpoints(tmp_path).restore(like(state(), one))
    assert_equal(found, state(1))
    assert all(
      leaf.devices() == {jax.devices()[2]} for leaf in jax.tree.leaves(found)
    )

  def test_only_the_newest_are_kept(self, tmp_path):
    save(tmp_path, (2, 4, 6, 8), keep=2)
    assert Checkpoints(tmp_path).steps() == [6, 8]

  def test_steps_are_numbers_not_words(self, tmp_path):
    save(tmp_path, (9, 10))
    assert restore(tmp_path)[1]['step'] == 10


class TestDamage:
  @pytest.mark.parametrize('damage', DAMAGES.values(), ids=DAMAGES)
  def test_the_one_before_is_used(self, workdir, damage, caplog):
    damage(workdir / 'checkpoints' / '3')
    with caplog.at_level(logging.WARNING):
      found, meta = restore(workdir)
    assert_equal(found, state(2))
    assert meta['step'] == 2
    assert 'Checkpoint 3 is damaged' in caplog.text
    assert str(workdir / 'damaged' / '3') in caplog.text
    assert (workdir / 'damaged' / '3').is_dir()
    assert Checkpoints(workdir).steps() == [1, 2]

  def test_back_to_the_oldest(self, workdir):
    DAMAGES['flipped bit'](workdir / 'checkpoints' / '3')
    DAMAGES['garbage metadata'](workdir / 'checkpoints' / '2')
    found, meta = restore(workdir)
    assert_equal(found, state(1))
    assert meta['step'] == 1
    assert sorted(p.name for p in (workdir / 'damaged').iterdir()) == ['2', '3']

  def test_none_left(self, workdir):
    for step in (1, 2, 3):
      DAMAGES['flipped bit'](workdir / 'checkpoints' / str(step))
    # Again and again: a job that restarts itself must not start from scratch.
    for _ in range(2):
      with pytest.raises(CheckpointError, match=r'\[1, 2, 3\].*is intact'):
        restore(workdir)
    assert not (workdir / 'damaged').exists()

  def test_damaged_twice_keeps_both(self, workdir):
    DAMAGES['flipped bit'](workdir / 'checkpoints' / '3')
    restore(workdir)
    save(workdir, (3,))
    DAMAGES['garbage metadata'](workdir / 'checkpoints' / '3')
    assert_equal(restore(workdir)[0], state(2))
    assert len(list((workdir / 'damaged').iterdir())) == 2

  def test_any_bit_of_any_file(self, three, tmp_path):
    """The newest or the one before, never anything else."""
    rng = random.Random(0)
    folder = three / 'checkpoints' / '3'
    files = sorted(p for p in folder.rglob('*') if p.stat().st_size)
    files = [p for p in files if p.is_file()]
    arrays = data_files(folder)[0]
    damaged = 0
    for i, path in enumerate([arrays] * 10 + rng.sample(files, 10)):
      copy = pathlib.Path(shutil.copytree(three, tmp_path / str(i)))
      place = rng.randrange(8 * path.stat().st_size)
      flip_bit(copy / path.relative_to(three), place)
      found, meta = restore(copy)
      assert_equal(found, state(meta['step']))
      assert meta['step'] in (2, 3)
      damaged += meta['step'] == 2
    assert damaged

  def test_half_written_is_ignored_and_the_rest_stays(self, workdir):
    half = workdir / 'checkpoints' / '4.orbax-checkpoint-tmp'
    shutil.copytree(workdir / 'checkpoints' / '3' / 'state', half / 'state')
    found, meta = restore(workdir)
    assert_equal(found, state(3))
    assert meta['step'] == 3
    assert Checkpoints(workdir).steps() == [1, 2, 3]
    assert not (workdir / 'damaged').exists()


class TestArchitecture:
  def test_lists_all_three_kinds(self, workdir):
    other = state()
    other['params']['encoder']['extra'] = other['params'].pop('head')
    other['params']['encoder']['bias'] = jnp.ones(6)
    with pytest.raises(CheckpointError) as error:
      Checkpoints(workdir).restore(like(other))
    message = str(error.value)
    assert 'missing: params/encoder/extra;' in message
    assert 'unexpected: params/head;' in message
    assert 'params/encoder/bias is float32[5] there, float32[6] here' in message
    assert str(workdir / 'checkpoints' / '3') in message
    assert not (workdir / 'damaged').exists()

  def test_another_dtype_is_no_damage(self, workdir):
    other = state()
    other['params']['head'] = other['params']['head'].astype(jnp.float32)
    with pytest.raises(CheckpointError, match='params/head'):
      Checkpoints(workdir).restore(like(other))
    assert not (workdir / 'damaged').exists()

  def test_long_lists_are_cut(self):
    wanted = {f'leaf_{i:02}': jnp.ones(1) for i in range(30)}
    with pytest.raises(CheckpointError, match='leaf_07 and 22 more;'):
      check_same_leaves(wanted, {}, what='it')

  def test_equal_trees_pass(self):
    check_same_leaves(
      {'a': jnp.ones((2, 3))},
      {'a': {'shape': [2, 3], 'dtype': 'float32'}},
      what='',
    )


class TestLoadParams:
  @pytest.mark.parametrize('folder', ['', 'checkpoints/2'])
  def test_a_workdir_or_a_checkpoint(self, workdir, folder):
    found = load_params(workdir / folder)
    wanted = state(2 if folder else 3)['params']
    assert set(found) == {'encoder/kernel', 'encoder/bias', 'head'}
    assert_equal(found['encoder/kernel'], wanted['encoder']['kernel'])
    assert_equal(found['head'], wanted['head'])

  def test_nothing_there(self, tmp_path):
    with pytest.raises(CheckpointError, match=str(tmp_path / 'none')):
      load_params(tmp_path / 'none')
    assert list(tmp_path.iterdir()) == []

  def test_a_folder_without_checkpoints(self, tmp_path):
    with pytest.raises(CheckpointError, match='neither a workdir'):
      load_params(tmp_path)

  def test_a_damaged_checkpoint_is_named(self, workdir):
    folder = workdir / 'checkpoints' / '3'
    DAMAGES['flipped bit'](folder)
    with pytest.raises(CheckpointError, match=f'{folder} is damaged'):
      load_params(folder)
    assert folder.is_dir()

  def test_reading_changes_nothing(self, workdir):
    """The other run may be writing its next checkpoint just now."""
    half = workdir / 'checkpoints' / '4.orbax-checkpoint-tmp'
    shutil.copytree(workdir / 'checkpoints' / '3', half)
    before = sorted(workdir.rglob('*'))
    load_params(workdir)
    assert sorted(workdir.rglob('*')) == before
