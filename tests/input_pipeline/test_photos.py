import pathlib
import subprocess
import sys

import numpy as np
import pytest

from input_pipeline import photos, sources


@pytest.mark.parametrize('gray, classes', [(True, 17), (False, 10)])
def test_sizes(gray, classes):
  train = sources.load('photos', gray=gray, image_size=32)
  test = sources.load('photos', gray=gray, image_size=32, split='test')
  channels = 1 if gray else 3
  assert train.images.shape == (256 * classes, 32, 32, channels)
  assert test.images.shape == (64 * classes, 32, 32, channels)
  for loaded in train, test:
    assert len(loaded.classes) == classes == len(set(loaded.classes))
    assert len(set(np.bincount(loaded.labels))) == 1


def test_always_the_same():
  one, two = (sources.load('photos', tile=48, split='test') for _ in range(2))
  np.testing.assert_array_equal(one.images, two.images)


@pytest.mark.parametrize('tile', [16, 64, 150])
def test_splits_share_no_pixel(tile):
  for size in ((384, 303), (451, 300), (1411, 1411)):
    seen = {}
    for split in ('train', 'test'):
      canvas = np.zeros(size[::-1], bool)
      corners = photos.tile_corners(size, split, tile, stride=8)
      assert len(corners)
      for x, y in corners:
        part = canvas[y : y + tile, x : x + tile]
        assert part.shape == (tile, tile)
        part[...] = True
      seen[split] = canvas
    assert not (seen['train'] & seen['test']).any()
    last = np.flatnonzero(seen['train'].any(axis=0))[-1]
    first = np.flatnonzero(seen['test'].any(axis=0))[0]
    assert first - last > photos.GAP


def test_tiles_come_from_their_part(monkeypatch):
  """A marked right quarter never shows up in training, always in testing."""
  read = photos.open_photo

  def marked(file, mode):
    photo = read(file, mode)
    cut = photo.width - max(photo.width // 4, 64)
    photo.paste(255, (cut, 0, photo.width, photo.height))
    photo.paste(0, (0, 0, cut, photo.height))
    return photo

  monkeypatch.setattr(photos, 'open_photo', marked)
  assert sources.load('photos', gray=True).images.max() == 0
  test = sources.load('photos', gray=True, split='test')
  assert test.images.min() == 255


def test_labels_name_the_photograph():
  train = sources.load('photos', tile=48, gray=True)
  label = train.classes.index('coins')
  photo = np.asarray(photos.open_photo('skimage/data/coins.png', 'L'))
  windows = np.lib.stride_tricks.sliding_window_view(photo, (48, 48))
  tile = train.images[train.labels == label][0, ..., 0]
  places = windows[::8, ::8]
  assert (places == tile).all(axis=(2, 3)).any()


@pytest.mark.parametrize(
  'options, message',
  [
    (dict(split='val'), "must be 'train' or 'test', got 'val'"),
    (dict(tile=200, gray=True), 'tile 200 does not fit .* use at most 188'),
    (dict(tile=0), 'at least 1, got 0 and 8'),
    (dict(stride=0), 'at least 1, got 64 and 0'),
  ],
)
def test_bad_options(options, message):
  with pytest.raises(ValueError, match=message):
    sources.load('photos', **options)


def test_the_largest_tile_fits():
  test = sources.load('photos', tile=188, gray=True, split='test')
  assert test.images.shape[1] == 188


def test_a_missing_package_is_named(monkeypatch):
  monkeypatch.setattr(photos.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ImportError, match='pip install scikit-image'):
    sources.load('photos')


def test_tensorflow_is_not_imported(tmp_path):
  np.savez(tmp_path / 'data.npz', images=np.zeros((4, 8, 8, 3), np.uint8))
  program = f"""
import sys
from input_pipeline import resident, sources, views
data = sources.load('photos', tile=64, image_size=8, split='test')
resident.Resident(data, views.moco_v3(8), batch_size=4, seed=0).batch(0)
sources.load('arrays', data_dir={str(tmp_path / 'data.npz')!r})
heavy = {{'tensorflow', 'tensorflow_datasets', 'skimage', 'sklearn'}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
  root = pathlib.Path(photos.__file__).parent.parent
  subprocess.run([sys.executable, '-c', program], check=True, cwd=root)
