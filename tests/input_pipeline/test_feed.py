"""From a config's `data` to batches: which way, and why."""

import image_files
import jax
import ml_collections
import numpy as np
import pytest

from configs.data import folder
from input_pipeline import feed, machine, mode
from input_pipeline.arrays import Arrays
from input_pipeline.folder import from_folder
from input_pipeline.in_memory import SizesDiffer
from input_pipeline.resident import Resident
from input_pipeline.stream import Stream
from input_pipeline.views import View
from training import sharding

IMAGES = np.zeros((10, 8, 6, 3), np.uint8)
VIEWS = dict(view=View(size=4, scale=(0.5, 1.0)))


def config(**fields):
  return folder() | fields


def make(source, **fields):
  mesh = sharding.make_mesh()
  return feed.make_feed(
    ml_collections.ConfigDict(config(**fields)),
    source,
    VIEWS,
    batch_size=4,
    seed=0,
    shardings=(sharding.over_batch(mesh), sharding.replicated(mesh)),
  )


@pytest.fixture
def uneven(tmp_path):
  """Six images; the last one has another size."""
  image_files.write(tmp_path, *(f'{i}.png' for i in range(5)))
  (tmp_path / '5.png').write_bytes(image_files.png(9, size=(5, 7)))
  return from_folder(data_dir=tmp_path)


@pytest.fixture
def even(tmp_path):
  image_files.write(tmp_path, *(f'{i}.png' for i in range(6)))
  return from_folder(data_dir=tmp_path)


def test_small_images_of_one_size_are_resident(even):
  data, how = make(even)
  assert isinstance(data, Resident)
  assert 'resident: 6 images of 3 x 4 x 3' in how
  assert isinstance(data.source, Arrays)


def test_images_of_several_sizes_are_streamed(uneven):
  data, how = make(uneven)
  assert isinstance(data, Stream)
  assert 'stream: images have several sizes' in how
  assert data.source is uneven


def test_sizes_that_were_not_looked_at_are_noticed(uneven, monkeypatch):
  monkeypatch.setattr(mode, 'SAMPLES', 2)
  monkeypatch.setattr(mode, '_spread', lambda source: [0, 1])
  data, how = make(uneven)
  assert isinstance(data, Stream)
  assert 'stream' in how and '5.png' in how
  with pytest.raises(SizesDiffer):
    make(uneven, mode='resident')


def test_several_sizes_can_be_made_one(uneven):
  data, _ = make(uneven, mode='resident', resident_size=4)
  assert data.source.images.shape == (6, 4, 4, 3)


def test_images_that_do_not_fit_are_streamed(monkeypatch):
  source = Arrays(name='big', images=IMAGES)
  need = IMAGES.size
  monkeypatch.setattr(mode, 'device_room', lambda: need)
  assert mode.choose('auto', source, 3)[0] == 'resident'
  monkeypatch.setattr(mode, 'device_room', lambda: need - 1)
  chosen, why = mode.choose('auto', source, 3)
  assert chosen == 'stream' and '10 images of 8 x 6 x 3' in why


def test_room_on_cpus_is_shared_by_their_devices():
  total = machine.host_memory()
  shared = mode.SHARE * total / jax.local_device_count()
  assert mode.device_room() == pytest.approx(shared, abs=1)


def test_the_mode_can_be_chosen(even):
  data, how = make(even, mode='stream', workers=1)
  assert isinstance(data, Stream) and "mode='stream'" in how
  assert isinstance(make(even, mode='resident')[0], Resident)


def test_processes_follow_the_first(even):
  mesh = sharding.make_mesh()
  data, how = feed.make_feed(
    ml_collections.ConfigDict(config()),
    even,
    VIEWS,
    batch_size=4,
    seed=0,
    shardings=(sharding.over_batch(mesh), sharding.replicated(mesh)),
    agree=lambda choice: ('stream', f'not {choice[0]}'),
  )
  assert isinstance(data, Stream) and 'not resident' in how


def test_test_images_are_taken_where_there_are_some(tmp_path):
  for split in ('train', 'val'):
    paths = [f'{split}/{c}/{i}.png' for c in 'ab' for i in range(2)]
    image_files.write(tmp_path, *paths)
  fields = config(data_dir=str(tmp_path))
  open_sources = feed.open_sources
  train, test = open_sources(ml_collections.ConfigDict(fields))
  assert (len(train), len(test)) == (4, 4)
  assert train.classes == test.classes == ('a', 'b')
  fields['data_dir'] = str(tmp_path / 'train')
  train, test = open_sources(ml_collections.ConfigDict(fields))
  assert len(train) == 4 and test is None


def test_channels():
  source = Arrays(name='five', images=np.zeros((4, 8, 8, 5), np.uint8))
  data = ml_collections.ConfigDict(config())
  assert feed.channels_of(data, source) == 5
  data.channels = 3
  with pytest.raises(ValueError, match='channels=3, but five has 5'):
    feed.channels_of(data, source)


@pytest.mark.parametrize('channels', [None, 1, 4])
def test_files_are_decoded_to_the_channels_asked_for(even, channels):
  for how in ('stream', 'resident'):
    data, _ = make(even, mode=how, channels=channels)
    batch = data.batch(0)
    data.close()
    views = jax.jit(data.render)(batch, jax.random.key(0))
    assert views['view'].shape == (4, 4, 4, channels or 3)


def test_a_fingerprint_tells_data_sets_apart(tmp_path):
  paths = [f'{c}/{i}.png' for c in 'ab' for i in range(3)]
  image_files.write(tmp_path / 'one', *paths)
  found = [feed.fingerprint(from_folder(data_dir=tmp_path / 'one'))]
  image_files.write(tmp_path / 'moved', *paths)
  moved = feed.fingerprint(from_folder(data_dir=tmp_path / 'moved'))
  assert moved == found[0].replace('one', 'moved')
  assert found[0].startswith('6 images, ')
  image = tmp_path / 'moved' / 'a' / '1.png'
  for change in (
    lambda: image.rename(image.with_name('1b.png')),
    lambda: image.with_name('0.png').unlink(),
    lambda: (tmp_path / 'moved' / 'a').rename(tmp_path / 'moved' / 'c'),
  ):
    change()
    found.append(feed.fingerprint(from_folder(data_dir=tmp_path / 'moved')))
  source = Arrays(name='a', images=IMAGES)
  other = IMAGES.copy()
  other[0, 0, 0, 0] = 1
  found += [feed.fingerprint(source)]
  found += [feed.fingerprint(Arrays(name='a', images=other))]
  assert len(set(found)) == len(found) == 6
