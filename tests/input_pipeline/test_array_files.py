"""`.npz` and `.npy` files that state more than they hold, and odd labels."""

import io
import struct
import zipfile

import numpy as np
import pytest

from input_pipeline import array_files, sources
from input_pipeline.decode import UnreadableError, decode, read_header

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)


def load(path, **options):
  return sources.load('arrays', data_dir=path, **options)


def save(folder, **content):
  np.savez(folder / 'data.npz', **content)
  return folder / 'data.npz'


def header(*shape, dtype='|u1'):
  file = io.BytesIO()
  about = dict(descr=dtype, fortran_order=False, shape=shape)
  np.lib.format.write_array_header_1_0(file, about)
  return file.getvalue()


def packed(folder, content, method=zipfile.ZIP_STORED):
  path = folder / 'data.npz'
  with zipfile.ZipFile(path, 'w', method) as file:
    file.writestr('images.npy', content)
  return path


@pytest.mark.parametrize(
  'labels, numbers, classes',
  [
    ([0, 5, 3_000_000_000], [0, 1, 2], ('0', '5', '3000000000')),
    (np.array([7, 0, 2**63 + 5], np.uint64), [1, 0, 2], None),
    (np.array([100, 0, 1], np.int8), [2, 0, 1], ('0', '1', '100')),
    (['owl', 'cat', 'dog'], [2, 0, 1], ('cat', 'dog', 'owl')),
    ([b'owl', b'cat', b'dog'], [2, 0, 1], ('cat', 'dog', 'owl')),
  ],
)
def test_classes_are_the_distinct_labels(tmp_path, labels, numbers, classes):
  path = save(tmp_path, images=IMAGES, labels=np.concatenate([labels] * 2))
  found = load(path)
  assert found.labels.tolist() == numbers * 2
  assert found.labels.dtype == np.int32
  expected = classes or ('0', '7', '9223372036854775813')
  assert found.classes == expected


def test_splits_number_their_classes_alike(tmp_path):
  path = save(
    tmp_path,
    train_images=IMAGES,
    train_labels=[10, 20, 30, 10, 20, 30],
    test_images=IMAGES[:2],
    test_labels=[30, 10],
    other_labels=[1, 2],  # of no images
  )
  train, test = load(path), load(path, split='test')
  assert train.classes == test.classes == ('10', '20', '30')
  assert train.labels.tolist() == [0, 1, 2] * 2
  assert test.labels.tolist() == [2, 0]


def test_names_as_labels_of_named_classes(tmp_path):
  labels, classes = ['b', 'a', 'c'] * 2, ['c', 'b', 'a']
  path = save(tmp_path, images=IMAGES, labels=labels, classes=classes)
  found = load(path)
  assert found.classes == ('c', 'b', 'a')
  assert found.labels.tolist() == [1, 2, 0] * 2


@pytest.mark.parametrize(
  'labels, message',
  [
    ([-1, 0, 1] * 2, r'labels -1\.\.1 are outside 0 and above; leave out'),
    ([0.0, 1.0, 2.0] * 2, r'must be integers, got float64; .*\.astype\(int\)'),
    ([np.nan, 1.0, 2.0] * 2, 'must be integers, got float64'),
    ([True, False] * 3, 'must be integers, got bool'),
    (np.eye(6), r'got \(6, 6\); save them with \.argmax\(axis=1\)'),
    (np.zeros((6, 1), int), r'got \(6, 1\); save them with \.reshape\(-1\)'),
    (np.array(3), r'need labels of shape \(6,\), got \(\)'),
    (np.array(['a', 1, None] * 2, object), "'labels': Object arrays cannot"),
  ],
)
def test_what_is_no_label(tmp_path, labels, message):
  path = save(tmp_path, images=IMAGES, labels=labels)
  with pytest.raises(ValueError, match=message) as caught:
    load(path)
  assert str(path) in str(caught.value)


@pytest.mark.parametrize(
  'labels, classes, message',
  [
    (
      [0, 1, 3_000_000_000] * 2,
      ['a'],
      'labels 0..3000000000 are outside the 1',
    ),
    (['a', 'b', 'x'] * 2, ['a', 'b'], "the label 'x' is none of the 2 classes"),
    ([0] * 6, 'a', r'classes must be names \[k\], got shape \(\)'),
  ],
)
def test_labels_that_no_class_has(tmp_path, labels, classes, message):
  path = save(tmp_path, images=IMAGES, labels=labels, classes=classes)
  with pytest.raises(ValueError, match=message):
    load(path)


@pytest.mark.parametrize('method', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
  'content, message',
  [
    (header(10**6, 10**4, 10**4, 3), r'uint8 \[1000000, 10000, 10000, 3\]'),
    (header(2**62, 2**62, 3, 3), 'states uint8 .* at most . follow: cut off'),
    (header(10**9, 10**3, 3) + bytes(10**6), 'at most 1,000,000 follow'),
    (header(-1, -8, 8, 3), r'the header states \[-1, -8, 8, 3\]'),
    (header(6, 8, 8, 3) + IMAGES.tobytes()[:-5], 'at most 1,147 follow'),
    (header(6, 8, 8, 3) + IMAGES.tobytes() + b'x', 'more than its header'),
    (header(3, dtype='|O') + bytes(99), 'Object arrays cannot be loaded'),
    (b'\x93NUMPY\1\0\xff\xff', 'not a readable .npz file'),
    (b'\x93NUMPY\1\0' + struct.pack('<H', 60) + b'(' * 60, 'not a readable'),
    (b'\x93NUMPY\x09\0' + bytes(99), 'version'),
    (b'no array', 'not a readable .npz file'),
  ],
)
def test_a_false_header_takes_no_memory(
  tmp_path, monkeypatch, content, message, method
):
  path = packed(tmp_path, content, method)
  taken, empty = [], np.empty
  monkeypatch.setattr(
    np, 'empty', lambda n, *rest: taken.append(n) or empty(n, *rest)
  )
  with pytest.raises(ValueError, match=message) as caught:
    load(path)
  assert str(caught.value).startswith(str(path))
  assert '\n' not in str(caught.value) and sum(taken) < 10**4


def test_a_false_size_in_the_zip(tmp_path):
  content = header(200_000, 100, 100, 3) + bytes(1000)
  path = packed(tmp_path, content, zipfile.ZIP_DEFLATED)
  size, claimed = (struct.pack('<L', n) for n in (len(content), 2**32 - 2))
  path.write_bytes(path.read_bytes().replace(size, claimed))
  with pytest.raises(ValueError, match='6,000,000,000 bytes, but at most'):
    load(path)


def test_arrays_larger_than_the_memory(tmp_path, monkeypatch):
  path = packed(tmp_path, header(99, 99, 99) + bytes(99**3), 8)
  monkeypatch.setattr(array_files, '_memory', lambda: 99**3 - 1)
  with pytest.raises(
    ValueError, match="'images' takes 0.0 GiB, which does not"
  ):
    load(path)


def test_cut_off_anywhere_and_changed_anywhere(tmp_path):
  np.savez_compressed(tmp_path / 'whole.npz', images=IMAGES, labels=[0] * 6)
  whole = (tmp_path / 'whole.npz').read_bytes()
  path = tmp_path / 'data.npz'
  random = np.random.default_rng(0)
  for stop in random.integers(0, len(whole), 20):
    path.write_bytes(whole[:stop])
    with pytest.raises(ValueError, match=r'data\.npz'):
      load(path)
  for _ in range(200):
    broken = bytearray(whole)
    broken[random.integers(len(whole))] = random.integers(256)
    path.write_bytes(broken)
    try:
      load(path)
    except ValueError as error:
      assert str(path) in str(error)


def test_columns_first_and_read_only(tmp_path):
  path = save(tmp_path, images=np.asfortranarray(IMAGES))
  found = load(path).images
  np.testing.assert_array_equal(found, IMAGES)
  found[0] = 0  # is its own memory


@pytest.mark.parametrize(
  'data, message',
  [
    (header(10**6, 10**6, 3), 'at most 0 follow: cut off or damaged'),
    (header(2**40, 2**40, 3) + bytes(9), 'at most 9 follow'),
    (header(-1, -1), 'the header states'),
    (b'\x93NUMPY\x07\0' + bytes(99), 'version'),
  ],
)
def test_images_with_a_false_header(data, message):
  for read in (read_header, lambda data: decode(data, 3)):
    with pytest.raises(UnreadableError, match=message):
      read(data)
