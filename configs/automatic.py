"""Config fields whose values are chosen at the first start.

Fields that are None here are filled in by `pretrain.first_start` from the
number of images and the device's memory; a number on the command line or in a
config of your own stays.
"""

import functools
import json
from collections.abc import Callable
from typing import Any

import ml_collections
from ml_collections import config_dict

from configs import common
from configs.data import DATA

WORD = 'paper'  # the recipe as published, whatever the data
# Data words that do not say how many images there are.
DATA_WORDS = ('folder', 'imagenette', 'arrays', 'tfds')
DEFAULT = 'arrays'  # of all configs that pre-train
OPEN = (
  'batch_size',
  'epochs',
  'log_every',
  'eval_every',
  'checkpoint_every',
  'chunks',
  'dtype',
  'knn.batch_size',
  'knn.bank_images',
  'optim.base_lr',
  'optim.warmup_epochs',
  'method.queue',
  'method.warmup_teacher_epochs',
  'method.freeze_last_epochs',
)
LARGEST = 28  # patches along a side: a ViT-S/8 at 224 px
FINE = 16  # the same for patches below 8 px, and for mini encoders
MINI_SIZE = 64  # px for `swin_mini` and `convvit_mini`, made for 32 px
USUAL = 224  # px that the papers' local crops of 96 px are for
FINE_DETAIL = 96  # px below which blur and small crops wipe out what there is

GetConfig = Callable[[str | None], ml_collections.ConfigDict]


def chosen(words: ml_collections.ConfigDict) -> bool:
  """Whether the data and the device choose the recipe."""
  return words.data in DATA_WORDS and not words.get(WORD)


def data(words: ml_collections.ConfigDict) -> dict:
  """Fields of `config.data`, with images of a size that suits the encoder.

  A ViT gets at most 28 x 28 patches, one with patches below 8 px and the mini
  ones 16 x 16, and never more pixels than the data word says: 64 px for
  `vit_mini4`, 224 for `vit_s16`.

  Args:
    words: of `common.parse`.

  Raises:
    ValueError: the word `paper` for data with their own recipe.
  """
  if words.get(WORD) and words.data in common.SMALL:
    raise ValueError(
      f'{WORD} is for other data than {words.data}, which has a recipe of its '
      'own'
    )
  fields = DATA[words.data]()
  if chosen(words):
    fields['image_size'] = _side(words.encoder, fields['image_size'])
  return fields


def automatic(get_config: GetConfig) -> GetConfig:
  """Leaves open what the size of the data decides; decorates `get_config`.

  The config then has `paper`: JSON with the paper's numbers for open fields
  (`open`) and, for sizes that differ from the paper's, both (`fitted`).

  Args:
    get_config: of a config file that pre-trains; it knows the word `paper`.
  """

  @functools.wraps(get_config)
  def opened(arg: str | None = None) -> ml_collections.ConfigDict:
    config = get_config(arg)
    words = (arg or '').split(',')
    named = next((word for word in words if word in DATA), DEFAULT)
    if named not in DATA_WORDS or WORD in words:
      return config
    _fit_views(config)
    paper = get_config(','.join(filter(None, (*words, WORD))))
    theirs, ours = _flat(paper), _flat(config)
    # The square-root rule is Adam's; others keep the rate per image.
    adam = config.optim.name == 'adamw'
    left = {
      name: theirs[name]
      for name in OPEN
      if name in theirs and (adam or name != 'optim.base_lr')
    }
    fitted = {
      name: (theirs[name], value)
      for name, value in ours.items()
      if name in theirs and theirs[name] != value
    }
    for name, value in left.items():
      *path, last = name.split('.')
      part = functools.reduce(lambda part, key: part[key], path, config)
      part[last] = config_dict.placeholder(type(value))
    # The paper's numbers for fields that the first start chooses, as JSON.
    config.paper = json.dumps(dict(open=left, fitted=fitted))
    return config

  return opened


def as_published(
  config: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
  """The paper's numbers in all fields that are still open.

  Args:
    config: of a config file, locked or not; is changed.

  Returns:
    The config, without `paper`.
  """
  if config.get('paper'):
    with config.unlocked():
      for name, value in json.loads(config.paper)['open'].items():
        *path, last = name.split('.')
        part = functools.reduce(lambda part, key: part[key], path, config)
        if part[last] is None:
          part[last] = value
      del config.paper
  return config


def _flat(config: Any, above: str = '') -> dict[str, Any]:
  """Values by name with dots."""
  out = {}
  for key, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      out |= _flat(value, f'{above}{key}.')
    else:
      out[above + key] = value
  return out


def _patch(word: str) -> int:
  """Side in pixels that sides of images and local crops are multiples of."""
  family = common.family(word)
  if family in common.COMPLETE:
    return 8 if family.endswith('mini') else 32
  return int(word[len(family) :])


def _side(word: str, usual: int) -> int:
  """Pixels along a side that give an encoder a sensible number of tokens."""
  family = common.family(word)
  mini = family.endswith('mini')
  if family in common.COMPLETE:
    return MINI_SIZE if mini else usual
  patch = _patch(word)
  most = FINE if mini or patch < 8 else LARGEST
  return max(min(most * patch, usual) // patch, 1) * patch


def _fit_views(config: ml_collections.ConfigDict) -> None:
  """Local crops in proportion; of few pixels larger crops and no blur."""
  size, patch = config.data.image_size, _patch(config.encoder.name)
  for name, view in config.views.items():
    local = name.startswith('local')
    if local and size < USUAL:
      view.size = max(size * view.size // USUAL // patch, 1) * patch
    if size < FINE_DETAIL:
      view.blur = 0.0
      if not local:
        view.scale = (max(view.scale[0], 0.2), view.scale[1])
