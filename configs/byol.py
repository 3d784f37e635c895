r"""BYOL, alone or with RePre (arXiv:2006.07733, 2201.06857).

  python main.py --config=configs/byol.py:vit_s16,folder,repre \
    --config.data.data_dir=FOLDER --workdir=runs/byol_repre
  python main.py --config=configs/byol.py:vit_mini4,photos --workdir=runs/byol

Words: an encoder (vit_s16, swin_t), data (photos, cifar10, folder), repre,
masked, masked_local, masked_mimic, lars. With masked the encoder also learns
MAE's task on one view, with masked_local LocalMIM's, with masked_mimic MR-
MAE's; see config.method.masked.

On ViT the recipe is that of MoCo v3's comparison (arXiv:2104.02057, §6.1 and
Fig. 6): batch 4096, 300 epochs, AdamW with 1e-4 per 256 images, decay 0.03, 40
epochs of warm-up, the patch embedding as drawn, a teacher's momentum as MoCo
v3's. The word lars takes the authors' optimiser for ResNet at 300 epochs: LARS
with 0.3 per 256 images, decay 1e-6, 10 epochs of warm-up. The views are BYOL's
but for the brightness, which is a factor here and an addition there. Published
linear top-1 with ViT-S/16: 71.0 % (MoCo v3, Table 4), 71.4 % (DINO, Table 13);
with RePre 72.2 %. Not run here; for minutes on photographs see docs/results.md.
"""

import ml_collections

from configs import automatic, beside, common, optim, views


@automatic.automatic
def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """The paper's recipe, and presets for small data."""
  flags = (*beside.REPRE, automatic.WORD, *beside.FLAGS, 'lars')
  words = common.parse(arg, encoder='vit_s16', data='arrays', flags=flags)
  config = common.base()
  config.batch_size, config.epochs = 4096, 300.0
  config.dtype = 'bfloat16'
  config.data = automatic.data(words)
  config.encoder = common.encoder(words.encoder)
  config.views = views.two_views(resample='bicubic')
  config.method = dict(
    name='byol',
    hidden=4096,
    out=256,
    momentum=0.99,
    frozen_patch_embed=True,
  )
  config.optim = optim.adamw(base_lr=1e-4, decay=0.03, warmup_epochs=40.0)
  if words.lars:
    config.optim = optim.lars(base_lr=0.3, decay=1e-6, warmup_epochs=10.0)
  config.method.update(common.small(config, words.data))
  beside.add(config, words)
  return config
