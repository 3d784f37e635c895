r"""DINO, alone or with RePre (arXiv:2104.14294, 2201.06857).

  python main.py --config=configs/dino.py:vit_s16,folder,repre \
    --config.data.data_dir=FOLDER --workdir=runs/dino_repre
  python main.py --config=configs/dino.py:vit_mini4,photos --workdir=runs/dino

Words: an encoder (vit_s16, swin_t), data (photos, cifar10, folder), repre,
masked, masked_local, masked_mimic, crops6. With masked the encoder also learns
MAE's task on one view, with masked_local LocalMIM's, with masked_mimic MR-
MAE's; see config.method.masked.

The recipe is the paper's for ViT-S/16: batch 1024, AdamW with 5e-4 per 256
images, 10 epochs of warm-up, a cosine down to 1e-6, decay that rises from 0.04
to 0.4 on all but biases and norms, gradients of every tensor clipped to 3,
paths dropped at 0.1 in the student, teacher temperature 0.04 to 0.07 over 30
epochs, two crops of 224 and eight of 96 px. The words crops0, crops6 and
crops10 take another number of local crops (crops6 is that of the 300-epoch
result, crops0 draws the global ones from 0.14 of the area on). The teacher is
what is evaluated. Published linear top-1, 300 epochs: 75.9 % with six local
crops; with RePre 76.7 %. Not run here; for minutes on photographs see
docs/results.md.
"""

import ml_collections

from configs import automatic, beside, common, optim, views

# Words for other numbers of local crops than the preset's.
CROPS = dict(crops0=0, crops6=6, crops8=8, crops10=10)


@automatic.automatic
def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """The paper's recipe, and presets for small data."""
  flags = (*beside.REPRE, automatic.WORD, *beside.FLAGS, *CROPS)
  words = common.parse(arg, encoder='vit_s16', data='arrays', flags=flags)
  config = common.base()
  config.batch_size, config.epochs = 1024, 300.0
  config.dtype = 'bfloat16'
  config.data = automatic.data(words)
  config.knn.which = 'teacher'
  config.encoder = common.deit(
    words.encoder, image_size=config.data.image_size, drop_path=0.1
  )
  config.method = dict(
    name='dino',
    hidden=2048,
    bottleneck=256,
    out=65536,
    norm_last=True,
    local_crops=8,
    momentum=0.996,
    centre_momentum=0.9,
    student_temperature=0.1,
    teacher_temperature=0.07,
    warmup_teacher_temperature=0.04,
    warmup_teacher_epochs=30,
    freeze_last_epochs=1,
    frozen_patch_embed=False,
  )
  config.optim = optim.adamw(
    base_lr=5e-4,
    decay=0.04,
    end_decay=0.4,
    warmup_epochs=10.0,
    schedule='dino',
    end_lr=1e-6,
    exclude_vectors=True,
    clip=3.0,
    clip_per='tensor',
  )
  size = 96
  if words.data in ('cifar10', 'photos'):
    # 32-px images: few crops, few outputs.
    config.method.local_crops = 4
    size = config.data.image_size // 2
  asked = [word for word in CROPS if words[word]]
  if len(asked) > 1:
    raise ValueError(f'several numbers of crops: {", ".join(asked)}; give one')
  if asked:
    config.method.local_crops = CROPS[asked[0]]
  config.views = views.dino_views(config.method.local_crops, size=size)
  if not config.method.local_crops:  # the authors' advice for two crops alone
    for view in config.views.values():
      view.scale = (0.14, 1.0)
  if head := common.small(config, words.data):
    few = words.data == 'photos'  # epochs
    config.method.update(
      hidden=512,
      bottleneck=head['out'],
      out=1024 if few else 4096,
      warmup_teacher_epochs=1 if few else 10,
    )
  beside.add(config, words)
  return config
