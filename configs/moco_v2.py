r"""MoCo v2, alone or with RePre (arXiv:2003.04297, 2201.06857).

  python main.py --config=configs/moco_v2.py:vit_s16,folder,repre \
    --config.data.data_dir=FOLDER --workdir=runs/moco_v2_repre
  python main.py --config=configs/moco_v2.py:vit_mini4,photos \
    --workdir=runs/moco_v2

Words: an encoder (vit_s16, swin_t), data (photos, cifar10, folder), repre,
masked, masked_local, masked_mimic. With masked the encoder also learns MAE's
task on one view, with masked_local LocalMIM's, with masked_mimic MR-MAE's; see
config.method.masked.

The numbers on ViT that RePre compares with are those of DINO's authors, who
gave it a head of three layers with BatchNorm and 256 outputs (arXiv:2104.14294,
appendix B) and do not tell the optimiser: ours is MoCo v3's. Both directions,
as in RePre's Algorithm 1. As in the authors' code: config.method.head=official,
symmetric=False, out=128, hidden the encoder's width. Published linear top-1
with ViT-S/16, 300 epochs: 71.6 %; with RePre 72.1 %. Not run here; for minutes
on photographs see docs/results.md.
"""

import ml_collections

from configs import automatic, beside, common, optim, views


@automatic.automatic
def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """A recipe for ViT, and presets for small data."""
  flags = (*beside.REPRE, automatic.WORD, *beside.FLAGS)
  words = common.parse(arg, encoder='vit_s16', data='arrays', flags=flags)
  config = common.base()
  config.batch_size, config.epochs = 1024, 300.0
  config.dtype = 'bfloat16'
  config.data = automatic.data(words)
  config.encoder = common.encoder(words.encoder)
  config.views = views.moco_v2_views()
  config.method = dict(
    name='moco_v2',
    head='moco_v3',
    hidden=4096,
    out=256,
    queue=65536,
    temperature=0.2,
    momentum=0.999,
    symmetric=True,
    frozen_patch_embed=True,
  )
  config.optim = optim.adamw(base_lr=1.5e-4, decay=0.1, warmup_epochs=40.0)
  if head := common.small(config, words.data):
    # A queue of 65536 would hold every image of so small a set.
    queue = 8192 if words.data == 'cifar10' else 1024
    config.method.update(head, queue=queue)
    config.method.momentum = min(config.method.momentum, 0.99)
  beside.add(config, words)
  return config
