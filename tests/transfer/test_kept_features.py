"""Which data kept features are of."""

import json

import numpy as np

from transfer.parts import Parts


def test_features_kept_before_contents_counted_are_used(tmp_path):
  parts = Parts(tmp_path)
  parts.open(dict(images='6 images, 01, 23', weights='w'))
  parts.add(np.arange(2), np.zeros((2, 3)))
  for images, count in (
    ('6 images, 01, 23 45', 1),  # of the same, known by more
    ('6 images, 01, 23 45', 1),
    ('6 images, 01, 23 46', 0),  # of other contents
  ):
    parts = Parts(tmp_path)
    parts.open(dict(images=images, weights='w'))
    assert parts.count == count
    kept = json.loads((tmp_path / 'about.json').read_text())
    assert kept['images'] == images
