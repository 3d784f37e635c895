"""Branches beside a contrastive method, by words of its config."""

import ml_collections

from configs import common, local_mim, mae, mr_mae

# Words for RePre; with the second its weights are learned, as in the paper.
REPRE = ('repre', 'repre_learned')
# Words for masked branches.
WORDS = {
  'masked': mae.method,
  'masked_local': local_mim.method,
  'masked_mimic': mr_mae.method,
}
FLAGS = tuple(WORDS)


def repre(words: ml_collections.ConfigDict) -> dict | None:
  """RePre's branch, with the decoder width that suits an encoder.

  Args:
    words: of `common.parse`, with the flags REPRE.

  Returns:
    Fields of `method.repre`; None without one of the words.
  """
  if not (words.repre or words.repre_learned):
    return None
  return dict(
    width=common.DECODER_WIDTH[common.family(words.encoder)],
    levels=4,  # 1: the deepest alone
    fusion='conv',  # or 'transformer'
    fusion_layers=2,
    lateral=True,
    view='view1',  # or 'view2', 'both'
    level_gradients=False,  # report which levels the decoder teaches
    # 'balanced': each loss over its mean; 'uncertainty': learned; 'fixed'
    weighting='uncertainty' if words.repre_learned else 'balanced',
    weighting_window=10,  # steps of the mean, where weighting='balanced'
    weighting_lr=1e-3,  # where weighting='uncertainty'
    weights=(1.0, 1.0),  # of contrast and pixels, where weighting='fixed'
  )


def add(
  config: ml_collections.ConfigDict, words: ml_collections.ConfigDict
) -> None:
  """Adds the branches that the words ask for.

  Args:
    config: gets `method.repre`, see `repre`, and `method.masked`: None, or the
      fields of MAE, LocalMIM or MR-MAE and how they join the method.
    words: of `common.parse`, with the flags REPRE and the keys of WORDS.

  Raises:
    ValueError: several masked branches.
  """
  config.method.repre = repre(words)  # RePre's branch; None: none
  config.method.masked = None  # a masked branch's fields; None: none
  asked = [word for word in WORDS if words[word]]
  if len(asked) > 1:
    raise ValueError(f'several words for masked branches: {", ".join(asked)}')
  for word in asked:
    config.method.masked = dict(
      WORDS[word](words),
      weighting='balanced',  # or 'fixed'
      weighting_window=10,  # steps of the mean, where weighting='balanced'
      weight=1.0,  # of the masked loss, where weighting='fixed'
      contrast_weight=1.0,  # of the method's loss, where weighting='fixed'
      view='view1',  # which is masked
    )
    common.whole_cells(config, words.encoder)
