r"""MR-MAE: mimic a teacher, reconstruct pixels (arXiv:2303.05475).

  python main.py --config=configs/mr_mae.py:vit_b16,folder \
    --config.data.data_dir=FOLDER --config.chunks=8 \
    --config.method.teachers.first.checkpoint=WEIGHTS --workdir=runs/mr_mae
  python main.py --config=configs/mr_mae.py:vit_mini4,photos \
    --config.method.teachers.first.checkpoint=RUN --workdir=runs/mr_mae

Words: an encoder (vit_b16, convvit_b, swin_b), data (photos, cifar10, folder).

The teacher is a file of others' weights (DINO's, CLIP's, timm's, Hugging
Face's; ViT-B/16 for a student with patches of 16 px) or a run of this project;
it is frozen, normalises images its own way and becomes part of the checkpoints.
The loss is MAE's on hidden patches and a distance to the teacher's features at
visible ones. The tricks of the paper, all off but for ConvViT's stages:

  visible where the teacher looks: --config.method.focus=sample (or topk)
  fused blocks: --config.method.mimic.fusion=sum (or multi)
  CLS mimics too: --config.method.mimic.class_token=True
  convolution stages: the word convvit_b, the paper's MR-MCMAE
  a second teacher: --config.method.teachers.second.checkpoint=...
  four masks of each image: --config.method.masks_per_image=4

The authors' code is not public and the paper's text leaves the optimiser open:
the recipe is MAE's and ConvMAE's (batch 4096, AdamW with 1.5e-4 per 256 images,
β2 0.95, decay 0.05 of all but biases and norms, crops of at least a fifth and
mirroring), 400 epochs, 40 of them warm-up, as the paper's best result. Equal
weights of both losses are our choice: their targets have unit variance.
Published, fine-tuned: ViT-B after 200 epochs 85.0 %, with convolution stages
after 400 epochs 85.8 %. Not run here; for minutes on photographs see
docs/results.md.
"""

import ml_collections
from ml_collections import config_dict

from configs import automatic, common, mae


@automatic.automatic
def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """MAE's recipe with a teacher, and presets for small data."""
  config = mae.recipe(arg)
  config.method.update(_teaching())
  if config.epochs == 800.0:  # the paper's recipe, no preset
    config.epochs = 400.0
  return config


def method(words: ml_collections.ConfigDict) -> dict:
  """MR-MAE's fields for an encoder and data."""
  return mae.method(words) | _teaching()


def _teaching() -> dict:
  """What MR-MAE adds to MAE's fields."""
  return dict(
    name='mr_mae',
    teachers={name: _teacher() for name in ('first', 'second', 'third')},
    pixel_weight=1.0,
    mimic=dict(
      weight=1.0,
      error='l2',  # or 'smooth_l1', 'cosine'
      at='encoder',  # 'decoder': an ablation
      on='visible',  # at the decoder also 'masked', 'all'
      fusion='none',  # or 'sum', 'multi'
      class_token=False,  # True: CLS mimics the teacher's too
    ),
    focus='none',  # or 'sample', 'topk'
    masks_per_image=1,
  )


def _teacher() -> dict:
  """One teacher; without a checkpoint it is not there."""
  return dict(
    checkpoint=config_dict.placeholder(str),  # a run, or a file of others
    which='auto',  # or 'student', 'teacher'
    weight=1.0,  # of its loss, beside mimic.weight
    size=config_dict.placeholder(int),  # None: such that the grids fit
    weights=common.weights(),  # what a file of others does not tell
    encoder=config_dict.placeholder(dict),  # the checkpoint's
  )
