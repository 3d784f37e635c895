"""Attention by depth: how much it depends on the query, how far it reaches.

Normalised mutual information of query and key, and mean attention distance, as
in Park et al.: What Do Self-Supervised Vision Transformers Learn?, 2023
(arXiv:2305.00729), over patches alone. Blocks with windows are measured inside
their windows, and these, where a shift brings together what lies apart, inside
the parts that may attend to each other: else the mask alone would look like
attention that depends on the query.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from models.windows import Windows, attention_mask
from transfer.visualize.attention_maps import (
  among_patches,
  attending,
  in_image,
  stride_of,
  windows_of,
)

SMALL = 1e-8  # added to every weight, so that logarithms exist


def mutual_information(weights: jax.Array, windows: Windows) -> jax.Array:
  """Normalised mutual information of query and key patches.

  With queries equally likely, p(k|q) the weights of a row and p(k) their mean
  over rows, I(q; k) / sqrt(H(q) H(k)): 0 where all queries look alike, 1 where
  each looks at a patch of its own.

  Args:
    weights: a block's, see `attention_maps.among_patches`.
    windows: how the block cuts its map.

  Returns:
    [b, heads] float32, the mean over windows of at least two patches, each with
    the weight of its patches; NaN where there is none.
  """
  of, member = neighbourhoods(windows)
  if not len(of):
    heads = weights.shape[-3]
    return jnp.full((weights.shape[0], heads), jnp.nan, jnp.float32)
  count = member.sum(axis=1, keepdims=True).astype(np.float32)
  pairs = (member[:, :, None] & member[:, None, :])[:, None]
  joint = among_patches(weights, windows)[:, of]
  joint = jnp.where(pairs, joint + SMALL, 0)
  total = joint.sum(axis=-1, keepdims=True)
  joint = joint / jnp.where(total > 0, total, 1)  # p(k|q)
  key = joint.sum(axis=-2) / count[:, :, None]  # p(k)
  ratio = jnp.where(pairs, joint, 1) / jnp.where(pairs, key[..., None, :], 1)
  information = (joint * jnp.log(ratio)).sum(axis=(-2, -1)) / count
  entropy = -(key * jnp.log(jnp.where(key > 0, key, 1))).sum(axis=-1)
  # Where every query looks at one patch alone H(k) is 0, and so is I.
  scale = jnp.sqrt(jnp.log(count) * entropy)
  found = information / jnp.maximum(scale, SMALL)
  return (found * count).sum(axis=1) / count.sum()


def neighbourhoods(windows: Windows) -> tuple[np.ndarray, np.ndarray]:
  """Sets of at least two patches that may attend to each other.

  Returns:
    int [g], the window of each set, and bool [g, p * q], its patches.
  """
  real = in_image(windows)
  forbidden = attention_mask(windows)
  of, member = [], []
  for window, patches in enumerate(real):
    together = np.broadcast_to(patches, (len(patches),) * 2)
    if forbidden is not None:
      together = together & ~forbidden[window]
    for row in np.unique(together[patches], axis=0):
      if row.sum() > 1:
        of.append(window)
        member.append(row)
  shape = (len(of), real.shape[1])
  return np.array(of, int), np.array(member, bool).reshape(shape)


def attention_distance(
  weights: jax.Array, windows: Windows, stride: int
) -> jax.Array:
  """How far from its query the attention lies, in pixels, in the mean.

  Args:
    weights: a block's, see `attention_maps.among_patches`.
    windows: how the block cuts its map.
    stride: pixels between neighbouring patches.

  Returns:
    [b, heads] float32, the mean over all query patches.
  """
  places = np.stack(np.indices(windows.grid), axis=-1).astype(np.float32)
  with jax.ensure_compile_time_eval():
    places = np.asarray(windows.partition(jnp.asarray(places)[None]))[0]
  apart = np.linalg.norm(places[:, :, None] - places[:, None, :], axis=-1)
  patches = among_patches(weights, windows)
  total = patches.sum(axis=-1)
  length = (patches * (stride * apart)[:, None]).sum(axis=-1)
  mean = length / jnp.where(total > 0, total, 1)
  return (
    rearrange(mean, 'b k a n -> b a (k n)').sum(-1) / in_image(windows).sum()
  )


def by_depth(encoder: Any) -> Callable[[Any, jax.Array], dict[str, list]]:
  """Measures all blocks of an encoder.

  Args:
    encoder: the module.

  Returns:
    (variables, uint8 images [b, h, w, c]) -> {'nmi', 'distance'}, each a list
    by block that attends of [b, heads]; distances in pixels.
  """
  blocks = tuple(attending(encoder))

  def measure(variables, images):
    images = images.astype(jnp.float32) / 255
    weights = encoder.apply(variables, images, attention=blocks).attention
    out = dict(nmi=[], distance=[])
    for block in blocks:
      windows = windows_of(encoder, block, images.shape[1:3])
      stride = stride_of(encoder, block)
      out['nmi'].append(mutual_information(weights[block], windows))
      out['distance'].append(
        attention_distance(weights[block], windows, stride)
      )
    return out

  return measure
