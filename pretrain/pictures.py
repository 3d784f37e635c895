"""Pictures of what masked methods predict."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from models.masking import Mask
from pretrain.targets import NormalizedPixels
from training.state import Figure

GREY = 0.5  # of hidden patches
CAPTION = (
  'Grey patches are masked: the encoder does not see them. Predictions stand '
  'in their places; everything else is the input.'
)


def masked_picture(
  images: jax.Array,
  mask: Mask,
  predictions: Mapping[str, jax.Array],
  targets: Mapping[str, Any],
) -> Figure:
  """Input, what the encoder sees, and predictions in the hidden places.

  Predictions are pasted into the truth, which for pixels is the image itself;
  other targets (HOG) show the truth in a column of its own before.

  Args:
    images: [b, H, W, c] in [0, 1].
    mask: of all of them, a row each.
    predictions: [b, h, w, f] by branch.
    targets: of the branches; they can `restore`.

  Returns:
    A row for each image.
  """
  hidden = mask.share(images.shape[1:3])[..., None] > 0
  cells = {'input': images, 'visible': jnp.where(hidden, GREY, images)}
  for name, prediction in predictions.items():
    target, truth = targets[name], images
    label = 'reconstruction' if len(predictions) == 1 else name
    if not isinstance(target, NormalizedPixels):
      truth = jnp.clip(target.restore(target(images), images), 0, 1)
      cells[f'{label}: target'] = truth
    rebuilt = jnp.clip(target.restore(prediction, images), 0, 1)
    cells[label] = jnp.where(hidden, rebuilt, truth)
  return Figure(
    images=jnp.stack(list(cells.values()), axis=1),
    columns=tuple(cells),
    caption=CAPTION,
  )
