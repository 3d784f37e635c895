"""Figures of images larger than the views a model was trained on."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from einops import rearrange

from training.state import Figure

Figures = Callable[[Any, Any, Mapping[str, jax.Array]], dict[str, Figure]]


def in_windows(figures: Figures, size: tuple[int, int]) -> Figures:
  """Shows a method large images through windows of the size it knows.

  Args:
    figures: `Method.figures`.
    size: (height, width) of a window.

  Returns:
    The same function for views [n, H, W, c], H and W multiples of `size`:
    every image is cut into windows, and the figures' cells, which must be as
    large as the windows, are put together again.
  """

  def draw(params, method_state, batch):
    some = next(iter(batch.values()))
    high, wide = some.shape[1] // size[0], some.shape[2] // size[1]

    def cut(x):
      cells = 'n (a h) (b w) c -> (n a b) h w c'
      return rearrange(x, cells, a=high, b=wide)

    def join(figure):
      cells = '(n a b) k h w c -> n k (a h) (b w) c'
      images = rearrange(figure.images, cells, a=high, b=wide)
      return figure.replace(images=images)

    windows = {name: cut(x) for name, x in batch.items()}
    drawn = figures(params, method_state, windows)
    return {name: join(figure) for name, figure in drawn.items()}

  return draw
