r"""Pictures of a trained encoder, and curves of runs.

  python main.py --config=configs/visualize.py:photos \
    --config.checkpoint=runs/quickstart --workdir=runs/pictures
  python main.py --config=configs/visualize.py:cifar10 \
    --config.data.data_dir=$HOME/tensorflow_datasets \
    --config.checkpoint=runs/repre --config.compare=runs/moco_v3 \
    --config.pictures=attention,tsne --workdir=runs/fig4
  python main.py --config=configs/visualize.py \
    --config.runs=runs/repre,runs/moco_v3 --workdir=runs/curves

Words: data (photos, cifar10, folder, arrays). The encoder is that of the run.

Two runs side by side (`compare`) are RePre's Fig. 4: attention of the last
layer, and t-SNE of 20 random classes. The paper states neither how heads are
put together (here: their mean) nor the numbers of t-SNE (here: see
`transfer/visualize/projections.py`). With `runs` alone no checkpoint is read.

The pictures are in images/, as PNG, PDF or SVG (`--config.format=pdf,svg`), and
in TensorBoard, the numbers behind them in figures.json and figures.npz. Classes
are called as `classes.json` in or beside the data says, else as their folders;
`--config.class_names=names.csv` names another table (class, name) or JSON.
"""

import ml_collections
from ml_collections import config_dict

from configs import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Every picture, of test images where there are some."""
  return common.downstream(
    'visualize',
    common.parse(arg, data='folder').data,
    batch_size=32,
    pictures=(
      'attention',
      'tsne',
      'pca',
      'reconstruction',
      'depth',
      'neighbors',
      'curves',
    ),  # which to draw; these are all there are
    format='png',  # or 'pdf', 'svg'; several with commas between
    class_names=config_dict.placeholder(str),  # a table; None: classes.json
    compare=config_dict.placeholder(str),  # a second run
    # Workdirs whose curves are drawn together, with commas between: on a
    # command line each path of a tuple would need quotes.
    runs=config_dict.placeholder(str),
    images=8,  # rows of the sheets
    blocks=(-1,),  # whose attention is drawn
    heads=6,  # at most so many maps of single heads
    mass=0.6,  # share of the attention that the marked patches hold
    points=1000,  # images of t-SNE and PCA
    classes=20,  # at most so many, drawn at random with config.seed
    depth_images=256,  # that NMI and attention distance are means over
    neighbors=8,  # nearest training images drawn for each image
    bank_images=5000,  # training images that neighbours are looked for in
  )
