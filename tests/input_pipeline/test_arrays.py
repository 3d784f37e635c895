import numpy as np
import pytest
from PIL import Image

from input_pipeline import arrays, sources

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def save(folder, **content):
  np.savez(folder / 'data.npz', **content)
  return folder / 'data.npz'


def test_images_and_labels(tmp_path):
  path = save(
    tmp_path, images=IMAGES, labels=LABELS, classes=['cat', 'dog', 'owl']
  )
  loaded = sources.load('arrays', data_dir=path)
  np.testing.assert_array_equal(loaded.images, IMAGES)
  np.testing.assert_array_equal(loaded.labels, LABELS)
  assert loaded.labels.dtype == np.int32
  assert loaded.classes == ('cat', 'dog', 'owl') and len(loaded) == 6


def test_splits_have_their_own_keys(tmp_path):
  path = save(
    tmp_path,
    train_images=IMAGES,
    train_labels=LABELS,
    test_images=IMAGES[:2, :, :, 0],
  )
  train = sources.load('arrays', data_dir=path)
  assert len(train) == 6 and train.classes == ('0', '1', '2')
  test = sources.load('arrays', data_dir=path, split='test')
  assert test.images.shape == (2, 8, 8, 1)
  assert test.labels is None and test.classes == ()


@pytest.mark.parametrize(
  'content, message',
  [
    (dict(pictures=IMAGES), r"no 'train_images' .* found \['pictures'\]"),
    (dict(images=IMAGES / 255), r'must be uint8, got float64; convert floats'),
    (dict(images=IMAGES.astype(np.uint16)), 'must be uint8, got uint16'),
    (dict(images=IMAGES[0, 0]), r'must be \[n, h, w, c\].*\(8, 3\)'),
    (dict(images=IMAGES[:0]), r'not empty, got shape \(0, 8, 8, 3\)'),
    (dict(images=IMAGES[:0], labels=LABELS[:0]), 'not empty'),
    (
      dict(images=IMAGES, labels=LABELS[:5]),
      r'6 images need labels of shape \(6,\), got \(5,\)',
    ),
    (dict(images=IMAGES, labels=LABELS / 2), 'must be integers, got float64'),
    (dict(images=IMAGES, labels=LABELS - 1), r'labels -1\.\.1 are outside'),
    (
      dict(images=IMAGES, labels=LABELS, classes=['a']),
      r'labels 0\.\.2 are outside the 1 classes',
    ),
    (
      dict(images=np.array([{}, {}]), labels=LABELS),
      'Object arrays cannot be loaded',
    ),
  ],
)
def test_bad_contents(tmp_path, content, message):
  with pytest.raises(ValueError, match=message):
    sources.load('arrays', data_dir=save(tmp_path, **content))


def test_images_without_a_split_are_for_training(tmp_path):
  path = save(tmp_path, images=IMAGES)
  with pytest.raises(ValueError, match="no 'test_images' for the split 'test'"):
    sources.load('arrays', data_dir=path, split='test')


@pytest.mark.parametrize('data_dir', [None, 'nowhere.npz'])
def test_missing_file(data_dir):
  with pytest.raises(FileNotFoundError, match='needs data_dir to be an .npz'):
    sources.load('arrays', data_dir=data_dir)


@pytest.mark.parametrize('content', [b'', b'not numpy at all', b'PK\3\4 cut'])
def test_not_an_npz_file(tmp_path, content):
  path = tmp_path / 'data.npz'
  path.write_bytes(content)
  with pytest.raises(ValueError, match='not a readable .npz file'):
    sources.load('arrays', data_dir=path)


def test_a_single_array_is_not_an_npz_file(tmp_path):
  path = tmp_path / 'data.npz'
  with path.open('wb') as file:
    np.save(file, IMAGES)
  with pytest.raises(ValueError, match='not a readable .npz file'):
    sources.load('arrays', data_dir=path)


def test_fit_is_a_central_crop_and_pillows_resize(photos, tmp_path):
  ours = arrays.fit(photos, 24)
  square = Image.fromarray(photos[1]).crop((16, 0, 112, 96))
  theirs = square.resize((24, 24), Image.Resampling.BILINEAR)
  np.testing.assert_array_equal(ours[1], theirs)
  for channels in (1, 4):
    planes = np.concatenate([photos, photos], axis=-1)[..., :channels]
    out = arrays.fit(planes, 24)
    np.testing.assert_array_equal(
      out, np.concatenate([ours, ours], axis=-1)[..., :channels]
    )
  loaded = sources.load(
    'arrays', data_dir=save(tmp_path, images=photos), image_size=24
  )
  np.testing.assert_array_equal(loaded.images, ours)
  assert arrays.fit(IMAGES, 8) is IMAGES


def test_unknown_data_set():
  with pytest.raises(
    ValueError, match=r"'cifar'; did you mean 'cifar10'\? Known: photos, arrays"
  ):
    sources.load('cifar')
