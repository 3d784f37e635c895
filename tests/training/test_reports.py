"""metrics.jsonl, TensorBoard files and pictures, read back by others."""

import io
import json

import numpy as np
import pytest
from etils import epath
from PIL import Image
from tensorboard.backend.event_processing import event_accumulator

from training import figures, metrics, tensorboard
from training.state import Figure


def reporter(workdir, start=0):
  return metrics.Reporter(
    epath.Path(workdir), start=start, total=10, batch_size=4
  )


def test_every_line_is_json_also_with_nan(tmp_path, capsys):
  reports = reporter(tmp_path)
  reports.write(1, dict(loss=0.5, bad=float('nan'), worse=float('inf')))
  (line,) = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert json.loads(line) == dict(step=1, loss=0.5, bad=None, worse=None)
  assert 'step 1/10 | loss 0.5' in capsys.readouterr().err


def test_later_reports_are_cut_back_and_a_torn_line_dropped(tmp_path):
  first = reporter(tmp_path)
  for step in (1, 2, 3):
    first.write(step, dict(loss=float(step)))
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 4, "lo')
  again = reporter(tmp_path, start=2)
  assert [row['step'] for row in again.rows()] == [1, 2]
  again.write(3, dict(loss=3.5))
  assert [row['loss'] for row in again.rows()] == [1.0, 2.0, 3.5]


def test_averages_leave_out_what_is_not_finite():
  steps = [dict(a=1.0, b=np.nan), dict(a=3.0, b=np.nan), dict(a=np.inf, b=1.0)]
  assert metrics.average(steps) == dict(a=2.0, b=1.0)
  assert np.isnan(metrics.average([dict(a=np.nan)])['a'])


def test_pauses_do_not_count_as_training(tmp_path, monkeypatch):
  now = [100.0]
  monkeypatch.setattr(metrics.time, 'time', lambda: now[0])
  reports = reporter(tmp_path)
  assert reports.speed(0) == {}
  with reports.paused():
    now[0] += 50
  now[0] += 2
  speed = reports.speed(5)
  assert speed == dict(images_per_second=10.0, seconds_per_step=0.4)


def test_tensorboard_reads_what_is_written(tmp_path):
  events = tensorboard.Events(epath.Path(tmp_path))
  png = figures.to_png(Figure(np.ones((1, 1, 8, 8, 1)), ('one',)))
  for step in (1, 2, 3):
    events.scalars(step, dict(loss=step / 2))
  events.image(3, 'picture', png)
  events.close()
  # A run that continues from step 2 hides step 3 of the first.
  events = tensorboard.Events(epath.Path(tmp_path), start=3)
  events.scalars(3, dict(loss=7.0))
  events.close()
  reader = event_accumulator.EventAccumulator(str(tmp_path / 'tensorboard'))
  reader.Reload()
  found = [(e.step, e.value) for e in reader.Scalars('loss')]
  assert found == [(1, 0.5), (2, 1.0), (3, 7.0)]


def test_errors_are_amplified_and_say_so():
  cells = np.zeros((2, 2, 16, 16, 1))
  cells[1, 1, 3:] = 0.2
  titles = []
  drawn = figures.ImageDraw.ImageDraw.text

  def text(self, place, words, **options):
    titles.append(words)
    return drawn(self, place, words, **options)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(figures.ImageDraw.ImageDraw, 'text', text)
    caption = 'Nothing is masked: the encoder sees the whole image, all of it.'
    png = figures.to_png(Figure(cells, ('input', 'error'), caption))
  assert titles[-2:] == ['input', 'error, white: 0.2']
  assert ' '.join(titles[:-2]) == caption and len(titles) > 3  # in lines
  sheet = np.asarray(Image.open(io.BytesIO(png)))
  assert sheet[figures.TITLE : 300].max() == 255
  assert cells.max() == 0.2  # the caller's stay as they are


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_pictures_have_titles_gaps_and_exact_pixels(channels):
  cells = np.random.default_rng(0).random((2, 3, 16, 8, channels))
  png = figures.to_png(Figure(cells, ('a', 'b', 'c')))
  sheet = np.asarray(Image.open(io.BytesIO(png)))
  factor = -(-figures.CELL // 8)
  h, w = 16 * factor, 8 * factor
  gap, title = figures.GAP, figures.TITLE
  assert sheet.shape == (title + 2 * (h + gap) + gap, 3 * (w + gap) + gap, 3)
  cell = sheet[title + gap :, gap:][:h, :w]
  want = np.round(cells[0, 0] * 255)
  want = want.repeat(3, -1) if channels == 1 else want[..., :3]
  np.testing.assert_array_equal(cell[::factor, ::factor], want)
  assert (sheet[:title] < 128).any()  # letters
  assert (sheet[:, :gap] == 255).all()
