"""Whether a job's images have the labels that it compares with."""

import types

import numpy as np
import pytest

from input_pipeline.arrays import Arrays
from transfer.job import need_labels


def job(train, test):
  """Of two splits, one image of each class."""
  splits = (
    Arrays(
      name=name,
      images=np.zeros((len(classes), 2, 2, 3), np.uint8),
      labels=np.arange(len(classes)),
      classes=tuple(classes),
    )
    for name, classes in (('train', train), ('test', test))
  )
  config = types.SimpleNamespace(task='knn')
  train, test = splits
  return types.SimpleNamespace(config=config, train=train, test=test)


@pytest.mark.parametrize('classes', ['abc', 'ab'])
def test_a_test_split_may_lack_the_last_classes(classes):
  found = job('abc', classes)
  need_labels(found)
  named = [found.train.classes[i] for i in found.test.labels]
  assert named == list(classes)  # the numbers mean the same


@pytest.mark.parametrize(
  'classes, told', [('abd', 'c, d'), ('bac', 'the order differs'), ('ac', 'b')]
)
def test_numbers_of_classes_mean_the_same(classes, told):
  with pytest.raises(ValueError, match=f'not the same classes: {told}$'):
    need_labels(job('abc', classes))
