"""A small Swin and what the tests of it share."""

import functools

from tiny_vit import away_from_zero, images, initial

from models.swin import Swin


def tiny(**fields):
  return Swin(
    **dict(
      patch_size=2,
      width=8,
      depths=(2, 1),
      num_heads=(2, 2),
      window=4,
      mlp_ratio=2,
    )
    | fields
  )


@functools.cache
def tiny_params():
  """Parameters of `tiny` with every one away from 0."""
  return away_from_zero(initial(tiny(), images(1, 8, 8, 3)))
