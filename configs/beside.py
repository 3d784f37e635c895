"""Masked branches beside a contrastive method, by words of its config."""

import ml_collections

from configs import common, local_mim, mae

WORDS = {'masked': mae.method, 'masked_local': local_mim.method}
FLAGS = tuple(WORDS)


def add(
  config: ml_collections.ConfigDict, words: ml_collections.ConfigDict
) -> None:
  """Adds the branches that the words ask for.

  Args:
    config: gets `method.masked`: None, or MAE's or LocalMIM's fields and how
      they join the method.
    words: of `common.parse`, with the flags `masked` and `masked_local`.

  Raises:
    ValueError: both words.
  """
  config.method.masked = None
  asked = [word for word in WORDS if words[word]]
  if len(asked) > 1:
    raise ValueError(f'several words for masked branches: {", ".join(asked)}')
  for word in asked:
    config.method.masked = dict(
      WORDS[word](words),
      weight=1.0,
      contrast_weight=1.0,
      view='view1',  # which is masked
    )
    common.whole_cells(config, words.encoder)
