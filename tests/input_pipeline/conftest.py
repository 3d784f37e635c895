"""Real photographs for the oracles."""

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
