"""What configs share: words, fields every config has, data presets."""

import ml_collections
from ml_collections import config_dict

from configs.data import DATA
from configs.words import COMPLETE, SWINS, VITS, family
from configs.words import CONVVITS as CONVVITS
from configs.words import ENCODERS as ENCODERS
from configs.words import parse as parse

# RePre's decoder width by encoder, for Swin one per fusion block: at most 4 %
# more FLOPs than MoCo v3 for Ti, S, B and Swin-T; the others in proportion.
DECODER_WIDTH = dict(
  vit_mini=48,
  vit_ti=64,
  vit_s=128,
  vit_b=256,
  vit_l=384,
  vit_h=512,
  swin_mini=(48, 24, 12),
  swin_t=(128, 64, 32),
  swin_s=(128, 64, 32),
  swin_b=(192, 96, 48),
  swin_l=(256, 128, 64),
  convvit_mini=(32, 32, 16),
  convvit_s=128,
  convvit_b=256,
)
SMALL = ('cifar10', 'photos')  # data that `small` is for
# Heads of DINO's and DeiT's ViT where MoCo v3's has others.
DEIT_HEADS = dict(vit_ti=3, vit_s=6)


def base() -> ml_collections.ConfigDict:
  """The fields that every config has.

  Returns:
    A config without data, encoder and method.
  """
  return ml_collections.ConfigDict(
    dict(
      task='pretrain',  # the job, see main.TASKS
      seed=0,  # of weights, order of images and augmentations
      batch_size=256,  # over all devices
      epochs=100.0,  # passes over the training images
      steps=config_dict.placeholder(int),  # wins over epochs
      log_every=50,  # steps between reports
      # Steps between evaluations, also before the first step; 0 never.
      eval_every=1000,
      # Steps between checkpoints, also at the end and on a signal; 0 never.
      checkpoint_every=1000,
      keep_checkpoints=3,  # of the newest
      init_from=config_dict.placeholder(str),  # workdir or file to start from
      checkpoint=config_dict.placeholder(str),  # downstream tasks: what to read
      resume='auto',  # 'force' continues a run with another config
      dtype='float32',  # 'bfloat16' computes; parameters stay float32
      fsdp=1,  # devices that share one copy of the parameters
      chunks=1,  # parts of the batch that pass the encoder one by one
      check_images=2000,  # that check_data looks at; 0 for all
      nonfinite_limit=20,  # so many bad steps in a row stop the run
      watchdog=600,  # seconds without a step until a report of where; 0 never
      hang_limit=0,  # seconds without a step until it exits; 0 never
      weights=weights(),
      online_probe_lr=0.0,  # above 0: a linear probe learns beside (1e-2)
      knn=dict(
        k=20,  # neighbours
        temperature=0.07,  # of their votes
        batch_size=256,  # images encoded at once
        bank_images=50_000,  # at most, of the training images
        which='student',  # or 'teacher'
      ),
    )
  )


def weights() -> dict:
  """What a file of others' weights does not tell; None: its config does.

  Read where `init_from` or `checkpoint` is such a file; see
  `interop.hints.Hints`.
  """
  kinds = dict(
    num_heads=int,
    image_size=tuple,
    norm_epsilon=float,
    activation=str,
    mean=tuple,
    std=tuple,
    positions_offset=float,
    window=int,
    in_channels=int,
    pool=str,
  )
  return {k: config_dict.placeholder(kind) for k, kind in kinds.items()}


def downstream(task: str, data: str, **fields) -> ml_collections.ConfigDict:
  """The fields of a job on a trained encoder.

  Args:
    task: its name.
    data: a data word.
    **fields: what to add or change.

  Returns:
    The config; `checkpoint` is to be set.
  """
  config = base()
  for ours in ('knn', 'online_probe_lr'):  # of pre-training
    del config[ours]
  config.task = task
  config.which = 'auto'  # or 'student', 'teacher'
  config.data = DATA[data]()
  config.method = dict(
    name=task,  # the method (--list=methods); downstream the task
  )
  config.optim = {}
  config.update(fields)
  return config


def encoder(word: str, **fields) -> dict:
  """Fields of the encoder; see `ViT`, `Swin` and `ConvViT` in `models`.

  Args:
    word: an encoder word.
    **fields: what to change, of those that this encoder has.
  """
  out = dict(
    name=word,  # as in --list=encoders, a ViT with its patch size
    drop_path=0.0,
    remat=False,
    attention_impl='auto',
    mean=config_dict.placeholder(tuple),
    std=config_dict.placeholder(tuple),
  )
  if family(word) in VITS:
    out.update(pool='cls')
  return out | fields


def deit(word: str, *, image_size: int, **fields) -> dict:
  """As `encoder`, ViTs with DeiT's heads, positions and start (DINO, MoBY).

  Args:
    word: an encoder word; Swin and ConvViT are the same everywhere.
    image_size: side of the images that the positions are learned for.
    **fields: what to change.
  """
  name = family(word)
  if name in COMPLETE:
    return encoder(word, **fields)
  learned = dict(
    positions='learned',
    positions_grid=max(image_size // int(word[len(name) :]), 1),
    init_scheme='trunc_normal',
  )
  if name in DEIT_HEADS:
    learned.update(num_heads=DEIT_HEADS[name])
  return encoder(word, **learned | fields)


def whole_cells(config: ml_collections.ConfigDict, word: str) -> None:
  """Brings images to at least 3 x 3 of the units that a Swin can hide."""
  if word in SWINS:
    cell = 16 if word == 'swin_mini' else 32
    side = config.data.image_size
    config.data.image_size = max(-(-side // cell), 3) * cell


def small(config: ml_collections.ConfigDict, data: str) -> dict:
  """What small images and small batches change, whatever the method.

  Our choices, not the papers'. For `cifar10`: larger crops, no blur, batch 512,
  200 epochs, a shorter warm-up, 5e-4 per 256 images. For `photos`, minutes on a
  CPU: the quickstart's batch, views and rate. LARS keeps its rate, other data
  the paper's recipe.

  Args:
    config: is changed.
    data: the data word.

  Returns:
    Sizes of small heads, {hidden, out}; empty where the paper's recipe stands.
  """
  if data not in SMALL:
    return {}
  per = config.optim.per / 256
  if data == 'cifar10':
    _gentle(config)
    base_lr = 5e-4 * per
  else:
    _minutes(config)
    base_lr = 1e-2 * per
  if config.optim.name != 'lars':
    config.optim.base_lr = base_lr
  sizes = dict(cifar10=(1024, 128), photos=(512, 64))
  return dict(zip(('hidden', 'out'), sizes[data], strict=True))


def _minutes(config: ml_collections.ConfigDict) -> None:
  """300 steps of 64 tiles, in float32: CPUs have no half precision."""
  config.batch_size, config.epochs, config.dtype = 64, 5.45, 'float32'
  config.log_every = 25
  config.eval_every = config.checkpoint_every = 100
  # Mean and standard deviation of the standardised tiles, roughly.
  config.encoder.update(mean=(0.5,), std=(0.19,), drop_path=0.0)
  config.optim.warmup_epochs = 0.5  # 27 of the 300 steps
  if 'momentum' in config.method:
    config.method.momentum = (
      0.95  # 0.99 averages over a third of so short a run
    )
  for view in config.views.values():
    view.update(strength=(0.2, 0.2, 0.1, 0.05), blur=0.0, solarize=0.0)
    if view.scale[1] == 1.0:
      view.scale = (max(view.scale[0], 0.3), 1.0)


def masked_minutes(
  config: ml_collections.ConfigDict, *, base_lr: float
) -> None:
  """1200 steps of tiles, four times what contrast takes; patches are read."""
  config.epochs = 21.82
  config.optim.base_lr = base_lr
  if 'pool' in config.encoder:
    config.encoder.pool = 'mean'


def _gentle(config: ml_collections.ConfigDict) -> None:
  config.batch_size, config.epochs = 512, 200.0
  config.encoder.drop_path = 0.0
  config.optim.warmup_epochs = min(config.optim.warmup_epochs, 10.0)
  for view in config.views.values():
    view.blur = 0.0
    if view.scale[1] == 1.0:
      view.scale = (max(view.scale[0], 0.2), 1.0)
