"""Real photographs for the oracles; nothing is kept between tests."""

import numpy as np
import pytest
from PIL import Image
from skimage import data


@pytest.fixture(scope='session')
def photos():
  """Uint8 [3, 96, 128, 3]: a cat, a cup, a rocket; thumbnails keep contrast."""
  sources = (data.chelsea(), data.coffee(), data.rocket())
  return np.stack(
    [np.asarray(Image.fromarray(image).resize((128, 96))) for image in sources]
  )


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
  """Where lists and decoded images are kept: a folder of the test's own."""
  folder = tmp_path_factory.mktemp('cache')
  monkeypatch.setenv('REPRE_JAX_CACHE', str(folder))
  return folder
