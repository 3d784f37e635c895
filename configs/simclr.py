r"""SimCLR, alone or with RePre (arXiv:2002.05709, 2201.06857).

  python main.py --config=configs/simclr.py:vit_s16,folder,repre \
    --config.data.data_dir=FOLDER --workdir=runs/simclr_repre
  python main.py --config=configs/simclr.py:vit_mini4,photos \
    --workdir=runs/simclr

Words: an encoder (vit_s16, swin_t), data (photos, cifar10, folder), repre,
masked, masked_local, masked_mimic, lars. With masked the encoder also learns
MAE's task on one view, with masked_local LocalMIM's, with masked_mimic MR-
MAE's; see config.method.masked.

On ViT the recipe is that of MoCo v3's comparison (arXiv:2104.02057, §6.1 and
Fig. 6): batch 4096, 300 epochs, AdamW with 2e-4 per 256 images, decay 0.1, 40
epochs of warm-up, the patch embedding as drawn. Its head is not told: ours is
MoCo v3's projector. The authors' own, for ResNet, is config.method.head=simclr
and the word lars: LARS with 0.3 per 256 images, decay 1e-4 and 10 epochs of
warm-up. Views are the authors', which are stronger than MoCo v3's. Published
linear top-1 with ViT-S/16: 69.0 %; with RePre 69.7 %. Not run here; for minutes
on photographs see docs/results.md.
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
  config.views = views.two_views(
    blur=(0.5, 0.5),
    solarize=(0.0, 0.0),
    strength=(0.8, 0.8, 0.8, 0.2),
    resample='bicubic',
  )
  config.method = dict(
    name='simclr',
    head='moco_v3',
    hidden=4096,
    out=256,
    layers=3,
    temperature=0.1,
    frozen_patch_embed=True,
  )
  config.optim = optim.adamw(base_lr=2e-4, decay=0.1, warmup_epochs=40.0)
  if words.lars:
    config.optim = optim.lars(
      base_lr=0.3, decay=1e-4, warmup_epochs=10.0, classic=True
    )
  config.method.update(common.small(config, words.data))
  beside.add(config, words)
  return config
