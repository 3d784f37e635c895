r"""MoCo v3, alone or with RePre (arXiv:2104.02057, 2201.06857).

  python main.py --config=configs/moco_v3.py:vit_s16,arrays,repre \
    --config.data.data_dir=images.npz --workdir=runs/moco_v3_repre
  python main.py --config=configs/moco_v3.py:vit_mini4,cifar10,repre \
    --config.data.data_dir=$HOME/tensorflow_datasets --workdir=runs/cifar10

Words: an encoder (vit_s16, swin_t), data (photos, cifar10, folder), repre,
masked, masked_local, masked_mimic. With masked the encoder also learns MAE's
task on one view, with masked_local LocalMIM's, with masked_mimic MR-MAE's; see
config.method.masked.

The recipe is the authors' for ImageNet: batch 4096, 300 epochs, AdamW with
1.5e-4 per 256 images and decay 0.1, 40 epochs of warm-up. Published linear
top-1 with ViT-S/16: 73.2 % (authors' repository), 72.5 % in the paper; with
RePre 73.2 % against 72.5 % (RePre, Table 1). Swin-T: 75.4 %, with RePre 76.4 %.
Not run here; for minutes on photographs see docs/results.md.
"""

import ml_collections

from configs import automatic, beside, common, optim, views


@automatic.automatic
def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """The paper's recipe, and presets for small data."""
  flags = (*beside.REPRE, automatic.WORD, *beside.FLAGS)
  words = common.parse(arg, encoder='vit_s16', data='arrays', flags=flags)
  config = common.base()
  config.batch_size, config.epochs = 4096, 300.0
  config.dtype = 'bfloat16'
  config.data = automatic.data(words)
  config.encoder = common.encoder(words.encoder)
  config.views = views.moco_views()
  config.method = dict(
    name='moco_v3',
    hidden=4096,
    out=256,
    temperature=0.2,
    momentum=0.99,
    frozen_patch_embed=True,
  )
  config.optim = optim.adamw(base_lr=1.5e-4, decay=0.1, warmup_epochs=40.0)
  # Fewer negatives and short runs want smaller heads and a higher rate.
  config.method.update(common.small(config, words.data))
  beside.add(config, words)
  return config
