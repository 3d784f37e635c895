r"""Classification with few labels on a frozen encoder.

  python main.py --config=configs/fewshot.py:folder --config.checkpoint=RUN \
    --config.data.data_dir=FOLDER --workdir=runs/fewshot
  python main.py --config=configs/fewshot.py:folder --config.checkpoint=RUN \
    --config.data.data_dir=IMAGENET --config.fewshot.list=1percent.txt \
    --workdir=runs/one_percent
  python main.py --config=configs/fewshot.py:photos \
    --config.checkpoint=runs/quickstart --workdir=runs/quickstart_fewshot

Words: data (photos, cifar10, folder, imagenet2012); the encoder is that of the
checkpoint, a workdir or one of its checkpoints/STEP.

Logistic regression as iBOT's (arXiv:2111.07832: unit length, λ of 0.01, 0.1, 1)
and ridge regression in closed form. λ is the penalty on the mean loss, C of
scikit-learn is 1 / (λ n); ridge has scikit-learn's alpha. The best penalty is
chosen by the test images, as iBOT's is; all are in the summary. SimCLR v2's
lists of 1 % and 10 % of ImageNet name images; with a list nothing is drawn.
"""

import ml_collections
from ml_collections import config_dict

from configs import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Fields of the job; others are those of `configs/common.py`."""
  return common.downstream(
    'fewshot',
    common.parse(arg, data='folder').data,
    features=dict(
      blocks=1,  # the last ones, side by side
      pooling='auto',  # the encoder's own; 'cls', 'mean', 'cls_mean'
    ),
    fewshot=dict(
      shares=(0.01, 0.1),  # of the labels
      shots=(1, 5, 10),  # images per class
      draws=3,  # of each, by `seed`
      list=config_dict.placeholder(str),  # a file that names images instead
      scale='unit',  # or 'standardize', 'none'
      logistic=(0.001, 0.01, 0.1, 1.0),  # penalties λ; () for none
      ridge=(0.001, 0.01, 0.1, 1.0, 10.0, 100.0),  # penalties alpha
      iterations=1000,  # of logistic regression, at most
    ),
  )
