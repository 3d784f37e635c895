"""Images for evaluation: each once, in order, padded."""

import image_files
import numpy as np
import pytest

from input_pipeline.arrays import Arrays, fit
from input_pipeline.decode import decode
from input_pipeline.eval_batches import eval_batches
from input_pipeline.folder import from_folder

IMAGES = np.random.default_rng(0).integers(0, 255, (12, 32, 32, 3), np.uint8)
LABELS = np.arange(12, dtype=np.int32) % 3
DATA = Arrays(
  name='noise', images=IMAGES, labels=LABELS, classes=('a', 'b', 'c')
)


def join(batches):
  batches = list(batches)
  return {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}


@pytest.fixture
def folder(tmp_path):
  """Seven images of two classes, the third of them broken."""
  image_files.write(tmp_path, *(f'{"ab"[i % 2]}/{i}.png' for i in range(7)))
  (tmp_path / 'a' / '2.png').write_bytes(b'not an image')
  return from_folder(data_dir=tmp_path)


def test_everything_comes_once_in_order():
  found = join(eval_batches(DATA, 5, size=32))
  valid = found['valid']
  np.testing.assert_array_equal(valid, np.arange(15) < 12)
  np.testing.assert_array_equal(found['images'][valid], IMAGES)
  np.testing.assert_array_equal(found['label'][valid], LABELS)
  np.testing.assert_array_equal(found['index'][valid], np.arange(12))
  assert found['images'][~valid].max() == 0


def test_images_are_resized():
  bare = Arrays(name='bare', images=IMAGES)
  (batch,) = eval_batches(bare, 12, size=20)
  np.testing.assert_array_equal(batch['images'], fit(IMAGES, 20))
  assert 'label' not in batch
  with pytest.raises(ValueError, match='at least 1, got 0 and 20'):
    next(eval_batches(bare, 0, size=20))


def test_files_are_decoded_and_broken_ones_are_black(folder, caplog):
  found = join(eval_batches(folder, 3, size=8))
  for i in range(7):
    image, path = found['images'][i], folder.where(i)
    if path.endswith('2.png'):
      assert image.max() == 0
    else:
      want = fit(decode(folder.read(i), 3)[None], 8)[0]
      np.testing.assert_array_equal(image, want)
  assert [r for r in caplog.records if '2.png' in r.getMessage()]
  np.testing.assert_array_equal(found['label'][:7], folder.labels)


def test_some_of_the_images_in_the_order_asked_for():
  found = join(eval_batches(DATA, 4, size=32, indices=[7, 3, 3, 11, 0]))
  np.testing.assert_array_equal(found['index'][:5], [7, 3, 3, 11, 0])
  np.testing.assert_array_equal(found['images'][:5], IMAGES[[7, 3, 3, 11, 0]])


@pytest.mark.parametrize('source', ['arrays', 'folder'])
def test_processes_read_their_rows(source, folder):
  data = DATA if source == 'arrays' else folder
  whole = list(eval_batches(data, 4, size=16))
  for rows in ([0, 1], [2, 3]):
    part = list(eval_batches(data, 4, size=16, rows=rows))
    for ours, all_of_it in zip(part, whole, strict=True):
      np.testing.assert_array_equal(ours['images'], all_of_it['images'][rows])
      np.testing.assert_array_equal(ours['valid'], all_of_it['valid'])
