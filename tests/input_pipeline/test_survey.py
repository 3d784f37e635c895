"""What a survey says against what is there."""

import image_files
import numpy as np
import pytest
from PIL import Image

from input_pipeline import survey
from input_pipeline.arrays import Arrays
from input_pipeline.decode import UnreadableError
from input_pipeline.folder import from_folder
from input_pipeline.views import View


@pytest.fixture
def folder(tmp_path):
  """Six images of two classes, two of them broken, one turned, one moving."""
  image_files.write(tmp_path, *(f'{c}/{i}.png' for c in 'ab' for i in range(3)))
  (tmp_path / 'a' / '0.png').write_bytes(b'')
  (tmp_path / 'b' / '1.png').write_bytes(image_files.png(1)[:40])
  turn = Image.Exif()
  turn[0x0112] = 6
  Image.new('L', (10, 20), 100).save(tmp_path / 'b' / 't.jpg', exif=turn)
  frames = [Image.new('RGB', (6, 6), (90 * i, 9, 9)) for i in range(3)]
  frames[0].save(
    tmp_path / 'a' / 'm.gif', save_all=True, append_images=frames[1:]
  )
  return from_folder(data_dir=tmp_path)


def test_everything_is_counted(folder):
  found = survey.survey(folder, 3)
  assert found['images'] == found['examined'] == 8
  assert found['unreadable'] == 2
  names = list(found['unreadable_examples'])
  assert {n[-7:] for n in names} == {'a/0.png', 'b/1.png'}
  assert found['classes']['count'] == 2
  assert found['classes']['images'] == dict(a=4, b=4)
  assert found['formats'] == dict(PNG=4, JPEG=1, GIF=1)
  assert found['modes']['L'] == 1
  assert (found['turned_by_exif'], found['animated']) == (1, 1)
  assert found['height'] == [3, 3, 10] and found['width'] == [4, 4, 20]
  assert found['sizes'] == 3
  text = survey.as_text(found)
  for words in ('8 images', 'PNG 4', 'unreadable: 2', 'a/0.png', 'turned'):
    assert words in text


def test_mean_and_deviation_are_those_of_the_pixels():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 200, (30, 6, 6, 2), np.uint8)
  images[..., 1] //= 2
  found = survey.survey(Arrays(name='noise', images=images), 2)
  pixels = images.reshape(-1, 2) / 255
  np.testing.assert_allclose(found['mean'], pixels.mean(0), atol=1e-4)
  np.testing.assert_allclose(found['std'], pixels.std(0), atol=1e-4)
  assert found['classes'] is None


def test_of_many_images_a_few_are_looked_at():
  images = np.zeros((500, 2, 2, 1), np.uint8)
  source = Arrays(name='many', images=images)
  assert survey.survey(source, 1, images=20)['examined'] == 20
  assert survey.survey(source, 1, images=0)['examined'] == 500
  some = survey.survey(source, 1, seconds=-1.0)
  assert some['images'] == 500 and some['examined'] == 0
  assert 'examined: 0' in survey.as_text(some)


def test_views_are_drawn_beside_their_image(folder):
  views = dict(
    big=View(size=12, scale=(0.9, 1.0), blur=0.0),
    small=View(size=(4, 6), blur=0.0),
  )
  sheet, titles = survey.view_sheet(folder, views, channels=3, seed=0, rows=4)
  assert titles == ('image', 'big', 'small', 'big', 'small')
  assert sheet.shape == (4, 5, 12, 12, 3)
  assert sheet.dtype == np.float32 and 0 <= sheet.min() <= sheet.max() <= 1
  assert (sheet[:, 1] != sheet[:, 3]).any()
  again, _ = survey.view_sheet(folder, views, channels=3, seed=0, rows=4)
  np.testing.assert_array_equal(sheet, again)


def test_nothing_to_draw(tmp_path):
  (tmp_path / 'x.png').write_bytes(b'no')
  with pytest.raises(UnreadableError, match='no image can be read'):
    survey.view_sheet(
      from_folder(data_dir=tmp_path),
      dict(view=View(size=4)),
      channels=3,
      seed=0,
    )
