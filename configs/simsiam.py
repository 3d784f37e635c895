r"""SimSiam, alone or with RePre (arXiv:2011.10566, 2201.06857).

  python main.py --config=configs/simsiam.py:vit_s16,folder,repre \
    --config.data.data_dir=FOLDER --workdir=runs/simsiam_repre
  python main.py --config=configs/simsiam.py:vit_mini4,photos \
    --workdir=runs/simsiam

Words: an encoder (vit_s16, swin_t), data (photos, cifar10, folder), repre,
masked, masked_local, masked_mimic. With masked the encoder also learns MAE's
task on one view, with masked_local LocalMIM's, with masked_mimic MR-MAE's; see
config.method.masked.

The authors trained ResNet only: batch 512, 100 epochs, SGD with 0.05 per 256
images and decay 1e-4 on everything, no warm-up, a constant rate for the
predictor. No recipe for ViT is published (RePre names SimSiam as an example and
has no number): ours is AdamW as BYOL's on ViT, with the predictor's rate
constant. Views and heads are the authors'. Not run here.
"""

import ml_collections

from configs import automatic, beside, common, optim, views


@automatic.automatic
def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """A recipe for ViT, and presets for small data."""
  flags = (*beside.REPRE, automatic.WORD, *beside.FLAGS)
  words = common.parse(arg, encoder='vit_s16', data='arrays', flags=flags)
  config = common.base()
  config.batch_size, config.epochs = 512, 100.0
  config.dtype = 'bfloat16'
  config.data = automatic.data(words)
  config.encoder = common.encoder(words.encoder)
  config.views = views.moco_v2_views()
  config.method = dict(
    name='simsiam',
    hidden=2048,
    out=2048,
    bottleneck=512,
    constant_predictor_lr=True,
    frozen_patch_embed=False,
  )
  config.optim = optim.adamw(base_lr=1e-4, decay=0.03, warmup_epochs=10.0)
  if head := common.small(config, words.data):
    wide = head['hidden'] // 2
    config.method.update(hidden=wide, out=wide, bottleneck=wide // 4)
  beside.add(config, words)
  return config
