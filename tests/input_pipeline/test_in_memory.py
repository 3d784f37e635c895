import dataclasses
import logging
import threading

import numpy as np
import pytest
from image_files import png

from input_pipeline import in_memory
from input_pipeline.arrays import Arrays, fit
from input_pipeline.in_memory import SizesDiffer, to_arrays


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('REPRE_JAX_CACHE', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


@dataclasses.dataclass
class Source:
  """Contents by number; exceptions are raised."""

  contents: list
  labels: np.ndarray | None = None
  classes: tuple[str, ...] = ()
  cache_key: str | None = None
  channels: int | None = None
  name: str = 'some'

  def __len__(self):
    return len(self.contents)

  def read(self, index):
    content = self.contents[index]
    if isinstance(content, Exception):
      raise content
    return content

  def where(self, index):
    return f'file {index}'


def labelled(contents, **fields):
  labels = np.arange(len(contents), dtype=np.int32)
  return Source(contents, labels, tuple(map(str, labels)), **fields)


def values(arrays):
  return arrays.images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize('workers', [None, 1, 7])
def test_every_image_is_in_its_place(workers):
  count = 3 * in_memory._CHUNK + 5
  source = labelled([png(i) for i in range(count)])
  arrays = to_arrays(source, channels=3, workers=workers)
  assert values(arrays) == list(range(count))
  assert arrays.images.shape == (count, 3, 4, 3)
  np.testing.assert_array_equal(arrays.labels, source.labels)
  assert arrays.classes == source.classes and arrays.name == 'some'


def test_threads_work_side_by_side():
  """Two reads that wait for each other: one thread would wait for ever."""
  both = threading.Barrier(2, timeout=20)

  class Waiting(Source):
    def read(self, index):
      if index % in_memory._CHUNK == 1:
        both.wait()
      return super().read(index)

  source = Waiting([png(0)] * (in_memory._CHUNK + 2))
  assert len(to_arrays(source, channels=1, workers=2)) == len(source)


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_channels(channels):
  source = Source([png(7, mode=mode) for mode in ('L', 'RGB', 'RGBA')])
  images = to_arrays(source, channels=channels).images
  assert images.shape == (3, 3, 4, channels)
  assert images[1].min() == 7


def test_one_size_is_needed():
  source = Source([OSError(), png(0), png(1), png(2, size=(5, 3))])
  with pytest.raises(
    SizesDiffer, match=r'file 1 \(3 x 4\) and file 3 \(3 x 5\)'
  ):
    to_arrays(source, channels=3)
  assert issubclass(SizesDiffer, ValueError)
  images = to_arrays(source, channels=3, size=2).images
  assert images.shape == (4, 2, 2, 3)


def test_fitting_is_that_of_arrays(photos):
  source = Source(list(photos), channels=3)
  arrays = to_arrays(source, channels=3, size=24)
  np.testing.assert_array_equal(arrays.images, fit(photos, 24))


def test_unreadable_images_are_replaced(caplog):
  contents = [png(i) for i in range(6)]
  contents[1] = OSError('gone')
  contents[2] = contents[2][:-30]
  contents[5] = b''
  with caplog.at_level(logging.WARNING):
    arrays = to_arrays(labelled(contents), channels=3)
  assert values(arrays) == [0, 3, 3, 3, 4, 0]  # the first follows the last
  assert arrays.labels.tolist() == values(arrays)
  assert caplog.text.count('file 1 cannot be read and is replaced: gone') == 1
  assert 'file 5' in caplog.text
  assert '3 of 6 images cannot be read' in caplog.text


def test_a_few_unreadable_images_are_named(caplog):
  source = Source([b''] * 50 + [png(9)])
  with caplog.at_level(logging.WARNING):
    arrays = to_arrays(source, channels=3)
  assert values(arrays) == [9] * 51 and arrays.labels is None
  assert caplog.text.count('is replaced:') == in_memory._NAMED
  assert '50 of 51 images' in caplog.text


def test_nothing_can_be_read():
  source = Source([b'', OSError('gone')])
  with pytest.raises(ValueError, match='none of the 2 images .* file 0: not'):
    to_arrays(source, channels=3)


def test_other_errors_are_not_hidden():
  with pytest.raises(KeyError):
    to_arrays(Source([png(0), KeyError('a bug')]), channels=3)


def test_arrays_pass_through():
  images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)
  arrays = Arrays(name='x', images=images)
  assert to_arrays(arrays, channels=3).images is images
  assert to_arrays(arrays, channels=3, size=2).images.shape == (3, 2, 2, 3)
  grey = Arrays(name='x', images=images[..., :1])
  assert to_arrays(grey, channels=3).images.shape == (3, 4, 4, 3)
  with pytest.raises(ValueError, match='3 channels, not 1'):
    to_arrays(arrays, channels=1)


def test_arrays_are_a_source():
  images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 2), np.uint8)
  arrays = Arrays(name='x', images=images)
  assert arrays.channels == 2 and arrays.cache_key is None
  assert arrays.where(1) == 'x[1]'
  np.testing.assert_array_equal(arrays.read(1), images[1])


def test_what_has_a_key_is_decoded_once(cache):
  source = labelled([png(i) for i in range(3)], cache_key='key')
  first = to_arrays(source, channels=3)
  assert len(list(cache.iterdir())) == 1
  forgetful = dataclasses.replace(source, contents=[b''] * 3, labels=None)
  again = to_arrays(forgetful, channels=3)
  assert values(again) == [0, 1, 2]
  np.testing.assert_array_equal(again.labels, first.labels)
  assert again.classes == first.classes == ('0', '1', '2')
  to_arrays(source, channels=1)
  to_arrays(source, channels=3, size=2)
  to_arrays(dataclasses.replace(source, cache_key='other'), channels=3)
  assert len(list(cache.iterdir())) == 4


def test_no_labels_are_kept_too():
  source = Source([png(1)], cache_key='key')
  for _ in range(2):
    arrays = to_arrays(source, channels=3)
    assert arrays.labels is None and arrays.classes == ()


def test_what_may_change_is_not_kept(cache):
  to_arrays(labelled([png(0)]), channels=3)
  to_arrays(labelled([png(0), b''], cache_key='key'), channels=3)
  assert not cache.exists()
