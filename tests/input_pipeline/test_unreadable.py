"""What is said of images that cannot be read, and when a run ends."""

import ml_collections
import numpy as np
import pytest

from input_pipeline import unreadable
from input_pipeline.unreadable import Unreadable


class Nothing:
  name = 'nothing'

  def where(self, index):
    return f'nothing/{index}'


def test_each_image_is_named_once_and_not_too_many(caplog):
  source = Nothing()
  for _ in range(2):
    for i in range(unreadable.NAMED + 30):
      unreadable.tell(source, i, OSError('gone'))
  lines = [record.getMessage() for record in caplog.records]
  assert len(lines) == unreadable.NAMED + 1
  assert lines[0] == "'nothing/0' cannot be read: gone"
  assert lines[-1] == 'nothing: more images cannot be read'
  unreadable.tell(Nothing(), 0, OSError('gone'))  # another source
  assert len(caplog.records) == len(lines) + 1


def watch(share, *, size, log_every=1):
  config = ml_collections.ConfigDict(
    dict(batch_size=10, log_every=log_every, data=dict(max_unreadable=share))
  )
  return Unreadable(config, size)


def test_one_image_of_many_ends_nothing():
  found = watch(0.01, size=10**6)
  found.check(dict(replaced=1.0))
  for _ in range(200):
    assert found.check(dict(replaced=0.0)) is None
  with pytest.raises(ValueError, match='could not be read'):
    for _ in range(30):
      found.check(dict(replaced=1.0))


@pytest.mark.parametrize('size, reports', [(10**6, 100), (48, 4), (10, 1)])
def test_too_many_end_it_after_enough_or_all_images(size, reports):
  found = watch(0.05, size=size)
  for _ in range(reports - 1):
    found.check(dict(replaced=1.0))
  with pytest.raises(ValueError, match=r'10.0% of .*max_unreadable=5.0%'):
    found.check(dict(replaced=1.0))


def test_reports_of_many_steps_count_for_more():
  found = watch(0.5, size=10**6, log_every=100)
  with pytest.raises(ValueError, match='60.0% of 1,000 images'):
    found.check(dict(replaced=np.float64(6.0)))
  watch(0.6, size=10**6, log_every=100).check(dict(replaced=6.0))
