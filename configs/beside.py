"""Masked branches beside a contrastive method, by words of its config."""

import ml_collections

from configs import common, local_mim, mae, mr_mae

WORDS = {
  'masked': mae.method,
  'masked_local': local_mim.method,
  'masked_mimic': mr_mae.method,
}
FLAGS = tuple(WORDS)


def add(
  config: ml_collections.ConfigDict, words: ml_collections.ConfigDict
) -> None:
  """Adds the branches that the words ask for.

  Args:
    config: gets `method.masked`: None, or the fields of MAE, LocalMIM or MR-MAE
      and how they join the method.
    words: of `common.parse`, with the flags that are keys of WORDS.

  Raises:
    ValueError: several of them.
  """
  config.method.masked = None
  asked = [word for word in WORDS if words[word]]
  if len(asked) > 1:
    raise ValueError(f'several words for masked branches: {", ".join(asked)}')
  for word in asked:
    config.method.masked = dict(
      WORDS[word](words),
      weighting='balanced',  # or 'fixed'
      weighting_window=10,  # steps of the mean, where weighting='balanced'
      weight=1.0,  # where weighting='fixed', as the next
      contrast_weight=1.0,
      view='view1',  # which is masked
    )
    common.whole_cells(config, words.encoder)
