r"""k-NN of a trained encoder, as DINO measures it (arXiv:2104.14294, F.1).

  python main.py --config=configs/knn.py:folder --config.checkpoint=RUN \
    --config.data.data_dir=FOLDER --workdir=runs/knn
  python main.py --config=configs/knn.py:photos \
    --config.checkpoint=runs/quickstart --workdir=runs/quickstart_knn

Words: data (photos, cifar10, folder, imagenet2012); the encoder is that of the
checkpoint, a workdir or one of its checkpoints/STEP.

The bank are all training images, the queries all test images, each the centre
of the image: 224 of 256 pixels unless `data` says otherwise. Several k are
measured at once. The best of them is chosen by the test images, as is usual.
The bank is not kept: 1.28 million images need no more memory than thousands.
"""

import ml_collections

from configs import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Fields of the job; others are those of `configs/common.py`."""
  return common.downstream(
    'knn',
    common.parse(arg, data='folder').data,
    features=dict(
      blocks=1,  # the last ones, side by side
      pooling='auto',  # the encoder's own; 'cls', 'mean', 'cls_mean'
    ),
    neighbors=dict(
      k=(10, 20, 100, 200),  # neighbours that vote; each is measured
      temperature=0.07,  # of the votes exp(cosine / temperature)
      raw_pixels=False,  # also without any encoder
    ),
  )
