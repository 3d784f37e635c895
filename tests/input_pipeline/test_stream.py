"""Streamed batches: functions of (seed, step), whatever reads them."""

import io

import jax
import numpy as np
import pytest
from PIL import Image

from input_pipeline import order, stream
from input_pipeline.arrays import Arrays
from input_pipeline.decode import UnreadableError
from input_pipeline.resident import Resident
from input_pipeline.views import View
from training import sharding

PLAIN = dict(jitter=0.0, gray=0.0, blur=0.0)
VIEWS = dict(
  one=View(size=12, scale=(0.3, 1.0), **PLAIN),
  two=View(size=(6, 8), scale=(0.1, 0.5), resample='bicubic', **PLAIN),
)


def jpeg(image, **options):
  out = io.BytesIO()
  Image.fromarray(image).save(out, 'JPEG', quality=95, **options)
  return out.getvalue()


class Files:
  """A source of encoded images of several sizes, some of them broken."""

  name, classes, channels, cache_key = 'files', ('a', 'b', 'c'), None, None

  def __init__(self, count=20, broken=(), labelled=True):
    rng = np.random.default_rng(0)
    self.data = []
    for i in range(count):
      small = rng.integers(0, 255, (3, 3, 3), np.uint8)
      size = (20 + i, 44 - i)
      self.data.append(jpeg(np.asarray(Image.fromarray(small).resize(size))))
    for i in broken:
      self.data[i] = self.data[i][:60]
    self.labels = np.arange(count, dtype=np.int32) % 3 if labelled else None
    self.reads = []

  def __len__(self):
    return len(self.data)

  def read(self, index):
    self.reads.append(index)
    return self.data[index]

  def where(self, index):
    return f'files/{index}.jpg'


def make(source=None, views=VIEWS, **options):
  options = dict(batch_size=8, seed=3) | options
  return stream.Stream(source or Files(), views, **options)


def take(feed, start, count):
  """Some batches, on the host."""
  try:
    return [jax.device_get(feed.batch(start + i)) for i in range(count)]
  finally:
    feed.close()


def assert_same(ours, theirs):
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.fixture(scope='module')
def batches():
  """Steps 0 to 5: three epochs of twenty images."""
  return take(make(workers=1), 0, 6)


def test_batches_do_not_depend_on_threads_or_where_reading_starts(batches):
  assert_same(take(make(workers=4), 0, 6), batches)
  assert_same(take(make(prefetch=1), 4, 2), batches[4:])
  feed = make()
  for step in (3, 0, 1, 5):
    assert_same(jax.device_get(feed.batch(step)), batches[step])
  feed.close()


def test_another_seed_gives_other_images_and_other_crops(batches):
  (other,) = take(make(seed=4), 0, 1)
  assert (other['index'] != batches[0]['index']).any()
  # The same image in another epoch is cut elsewhere.
  first, again = batches[0], batches[2]
  shared = set(first['index']) & set(again['index'])
  assert shared
  for index in shared:
    views = [b['one'][b['index'] == index][0] for b in (first, again)]
    assert (views[0] != views[1]).any()


@pytest.mark.parametrize('processes', [2, 4])
def test_processes_read_their_rows_of_the_same_batch(batches, processes):
  for process in range(processes):
    feed = make(source=(source := Files()))
    rows = np.arange(8).reshape(processes, -1)[process]
    feed._rows.rows = rows
    found = next(feed.host_batches(2))
    whole = {k: v[rows] for k, v in batches[2].items()}
    assert_same(found, whole)
    # Read ahead, but never another process's rows.
    ahead = [feed.indices(step)[rows] for step in range(2, 12)]
    assert set(source.reads) <= set(np.concatenate(ahead))


def test_batches_are_spread_over_the_devices_in_order(batches):
  mesh = sharding.make_mesh()
  feed = make(sharding=sharding.over_batch(mesh))
  batch = feed.batch(0)
  feed.close()
  assert_same(jax.device_get(batch), batches[0])
  for name, array in batch.items():
    want = feed.spec[name]
    assert (array.shape, array.dtype) == (want.shape, want.dtype)
    assert array.sharding == want.sharding
    assert len(array.addressable_shards) == 4


def test_each_epoch_has_every_image_once_but_for_the_remainder(batches):
  feed = make()
  assert feed.steps_per_epoch == 2
  for epoch in range(3):
    pair = batches[2 * epoch : 2 * epoch + 2]
    seen = np.concatenate([batch['index'] for batch in pair])
    assert len(set(seen)) == 16
    np.testing.assert_array_equal(seen[:8], feed.indices(2 * epoch))


@pytest.mark.parametrize('processes', [1, 2])
def test_repeated_images_are_cropped_by_themselves(processes):
  """The same ones on any number of processes."""
  numbers = dict(size=20, batch_size=8, seed=3, repeats=3)
  wanted = order.batch_indices(1, **numbers)
  assert len(set(wanted.tolist())) < 5
  found = []
  for rows in np.arange(8).reshape(processes, -1):
    feed = make(repeats=3)
    feed._rows.rows = rows
    found.append(next(feed.host_batches(1)))
  index = np.concatenate([batch['index'] for batch in found])
  np.testing.assert_array_equal(index, wanted)
  views = np.concatenate([batch['one'] for batch in found])
  assert len(np.unique(views.reshape(8, -1), axis=0)) == 8


def test_labels_go_with_images(batches):
  for batch in batches:
    np.testing.assert_array_equal(batch['label'], batch['index'] % 3)
  (bare,) = take(make(Files(labelled=False)), 0, 1)
  assert 'label' not in bare


def test_an_unreadable_image_is_replaced_by_the_next(batches, caplog):
  broken = (5, 6, 11)
  source = Files(broken=broken)
  found = take(make(source), 0, 6)
  for ours, whole in zip(found, batches, strict=True):
    hit = np.isin(whole['index'], broken)
    np.testing.assert_array_equal(ours['replaced'], hit)
    after = {5: 7, 6: 7, 11: 12}
    want = [after.get(i, i) for i in whole['index']]
    np.testing.assert_array_equal(ours['index'], want)
    np.testing.assert_array_equal(ours['label'], np.array(want) % 3)
    # What is not replaced is as if nothing had happened.
    for name in VIEWS:
      np.testing.assert_array_equal(ours[name][~hit], whole[name][~hit])
  assert sum(batch['replaced'].sum() for batch in found) > 0
  named = [r.getMessage() for r in caplog.records]
  for index in broken:
    assert sum(f'files/{index}.jpg' in line for line in named) == 1
  assert_same(take(make(Files(broken=broken), workers=3), 0, 6), found)


def test_nothing_but_unreadable_images_is_an_error_in_one_line():
  feed = make(Files(broken=range(20)))
  with pytest.raises(UnreadableError, match='20 images in a row') as error:
    feed.batch(0)
  assert '\n' not in str(error.value)
  feed.close()


def test_other_errors_come_through_as_they_are():
  source = Files()

  def read(index):
    raise RuntimeError('out of luck')

  source.read = read
  feed = make(source)
  with pytest.raises(RuntimeError, match='^out of luck$'):
    feed.batch(0)
  feed.close()


def test_a_file_that_vanished_is_replaced():
  source = Files()
  data = dict(enumerate(source.data))
  del data[4]

  def read(index):
    if index not in data:
      raise FileNotFoundError(index)
    return data[index]

  source.read = read
  found = take(make(source), 0, 2)
  assert 4 not in np.concatenate([batch['index'] for batch in found])


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_files_in_other_numbers_of_channels(channels):
  feed = make(channels=channels)
  (batch,) = take(feed, 0, 1)
  assert batch['one'].shape == (8, 12, 12, channels)
  if channels == 4:
    assert (batch['one'][..., 3] == 255).all()


def test_arrays_of_many_channels_stream_too():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 255, (10, 9, 7, 5), np.uint8)
  source = Arrays(name='five', images=images)
  feed = make(source, channels=5)
  (batch,) = take(feed, 0, 1)
  views = feed.render(batch, jax.random.key(0))
  assert views['two'].shape == (8, 6, 8, 5)
  # Of a bilinear crop no value is outside those of its image.
  for i, index in enumerate(batch['index']):
    low, high = images[index].min((0, 1)), images[index].max((0, 1))
    assert (batch['one'][i] >= low).all() and (batch['one'][i] <= high).all()


def test_fused_decoding_differs_at_the_border_of_a_crop_at_most():
  once = take(make(fused=False), 0, 2)
  fused = take(make(fused=True), 0, 2)
  for ours, theirs in zip(fused, once, strict=True):
    np.testing.assert_array_equal(ours['index'], theirs['index'])
    for name in VIEWS:
      off = np.abs(ours[name].astype(int) - theirs[name])
      assert off.mean() < 1.0
      assert off[:, 2:-2, 2:-2].max() <= 12


def test_one_view_of_a_large_image_decodes_fused(monkeypatch):
  parts = []

  def decode_part(data, box, channels, whole=stream._decode_part):
    parts.append(box)
    return whole(data, box, channels)

  monkeypatch.setattr(stream, '_decode_part', decode_part)
  one = dict(one=VIEWS['one'])
  take(make(views=one, workers=1), 0, 1)
  assert not parts
  monkeypatch.setattr(stream, 'FUSED_PIXELS', 20 * 40)
  take(make(workers=1), 0, 1)
  assert not parts
  take(make(views=one, workers=1), 0, 1)
  assert parts


def test_resident_and_streamed_views_have_one_distribution():
  """Mean and spread of crops of one image, over many draws."""
  rng = np.random.default_rng(1)
  small = rng.integers(0, 255, (4, 5, 3), np.uint8)
  image = np.asarray(Image.fromarray(small).resize((50, 40)))
  source = Arrays(name='same', images=np.stack([image] * 512))
  views = dict(
    view=View(size=8, scale=(0.1, 1.0), solarize=0.3, **PLAIN),
  )
  numbers = dict(batch_size=512, seed=0)
  found = []
  for feed in (
    stream.Stream(source, views, **numbers),
    Resident(source, views, **numbers),
  ):
    key = jax.random.key(0)
    found.append(np.asarray(feed.render(feed.batch(0), key)['view']))
    feed.close()
  ours, theirs = found
  assert ours.dtype == np.float32 and ours.max() <= 1
  # 512 draws: the means differ by about std · sqrt(2 / 512) = 0.06 std.
  spread = theirs.std(0)
  assert (np.abs(ours.mean(0) - theirs.mean(0)) < 0.25 * spread).all()
  assert 0.85 < (ours.std(0) / spread).mean() < 1.15


def test_tensorflow_is_kept_off_accelerators(monkeypatch):
  import tensorflow as tf

  hidden = []
  monkeypatch.setattr(
    tf.config,
    'set_visible_devices',
    lambda devices, kind: hidden.append((devices, kind)),
  )
  stream._tensorflow()
  assert ([], 'GPU') in hidden and ([], 'TPU') in hidden


def test_bad_views_and_batches():
  with pytest.raises(ValueError, match='at least one view'):
    make(views={})
  with pytest.raises(ValueError, match=r"must not be named \['row'\]"):
    make(views=dict(row=VIEWS['one']))
  with pytest.raises(ValueError, match='batch_size 32 is larger than .* 20'):
    make(batch_size=32)
