r"""Features of any images as one file, for whatever comes after.

  python main.py --config=configs/embed.py:folder --config.checkpoint=RUN \
    --config.data.data_dir=FOLDER --workdir=runs/features
  python main.py --config=configs/embed.py:folder --config.checkpoint=RUN \
    --config.data.data_dir=FOLDER --config.embed.format=parquet \
    --config.features.level=-1 --workdir=runs/features_parquet

Words: data (folder, photos, cifar10, arrays); the encoder is that of the
checkpoint, a workdir or one of its checkpoints/STEP.

Every image once, in order: of a folder all images at any depth, of other data
`data.split`. Read with `numpy.load('features.npz')` (`path`, `features`; with
labels `label`, `class`, `classes`; `unreadable` names what was left out), or
with pandas.read_parquet. A stopped job goes on where it was.
"""

import ml_collections
from ml_collections import config_dict

from configs import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Fields of the job; others are those of `configs/common.py`."""
  config = common.downstream(
    'embed',
    common.parse(arg, data='folder').data,
    features=dict(
      blocks=1,  # the last ones, side by side
      pooling='auto',  # the encoder's own; 'cls', 'mean', 'cls_mean'
      level=config_dict.placeholder(int),  # mean over the map of one instead
    ),
    embed=dict(
      format='npz',  # or 'parquet', which needs pyarrow
      dtype='float32',  # or 'float16'
      per_part=10_000,  # images between two places to go on from
    ),
  )
  config.data.test_split = ''
  if config.data.name == 'folder':
    config.data.split = 'all'  # the part whose features are written
  return config
