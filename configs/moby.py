r"""MoBY, alone or with RePre (arXiv:2105.04553, 2201.06857).

  python main.py --config=configs/moby.py:swin_t,folder,repre \
    --config.data.data_dir=FOLDER --workdir=runs/moby_repre
  python main.py --config=configs/moby.py:vit_mini4,photos --workdir=runs/moby

Words: an encoder (swin_t, vit_s16), data (photos, cifar10, folder), repre,
masked, masked_local, masked_mimic. With masked the encoder also learns MAE's
task on one view, with masked_local LocalMIM's, with masked_mimic MR-MAE's; see
config.method.masked.

The recipe is the authors': batch 512, 300 epochs, AdamW with 1e-3 per 512
images from 5e-7 over 5 epochs down to 5e-6, decay 0.05 on all but biases and
norms, gradients clipped to 5, paths dropped at 0.2 in the student. Their ViT is
DeiT's. Published linear top-1, 300 epochs: Swin-T 75.0 %, with RePre 76.1 %;
DeiT-S 72.8 %, with RePre 73.9 %. Not run here; for minutes on photographs see
docs/results.md.
"""

import ml_collections

from configs import automatic, beside, common, optim, views


@automatic.automatic
def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """The paper's recipe, and presets for small data."""
  flags = (*beside.REPRE, automatic.WORD, *beside.FLAGS)
  words = common.parse(arg, encoder='swin_t', data='arrays', flags=flags)
  config = common.base()
  config.batch_size, config.epochs = 512, 300.0
  config.dtype = 'bfloat16'
  config.data = automatic.data(words)
  config.encoder = common.deit(
    words.encoder, image_size=config.data.image_size, drop_path=0.2
  )
  config.views = views.moco_views()
  config.method = dict(
    name='moby',
    hidden=4096,
    out=256,
    queue=4096,
    temperature=0.2,
    momentum=0.99,
    frozen_patch_embed=False,
  )
  config.optim = optim.adamw(
    base_lr=1e-3,
    per=512,
    decay=0.05,
    warmup_epochs=5.0,
    schedule='moby',
    warmup_lr=5e-7,
    end_lr=5e-6,
    scale_end_lr=True,
    exclude_vectors=True,
    clip=5.0,
  )
  config.method.update(common.small(config, words.data))
  if words.data == 'photos':
    # There are 3570 images.
    config.method.queue = 1024
  beside.add(config, words)
  return config
