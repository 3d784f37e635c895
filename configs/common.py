"""What configs share: words, fields every config has, data presets."""

import difflib
import re

import ml_collections
from ml_collections import config_dict

# Sizes of `models.VARIANTS` with RePre's decoder width for each: at most 4 %
# more FLOPs than MoCo v3 for Ti, S and B; L goes on in proportion.
DECODER_WIDTH = dict(mini=48, ti=64, s=128, b=256, l=384)
ENCODERS = tuple(f'vit_{size}' for size in DECODER_WIDTH)


def base() -> ml_collections.ConfigDict:
  """The fields that every config has.

  Returns:
    A config without data, encoder and method.
  """
  return ml_collections.ConfigDict(
    dict(
      task='pretrain',
      seed=0,
      batch_size=256,  # over all devices
      epochs=100.0,
      steps=config_dict.placeholder(int),  # wins over epochs
      log_every=50,  # these three in steps
      eval_every=1000,  # also before the first step; 0 never
      checkpoint_every=1000,  # also at the end and on a signal
      keep_checkpoints=3,
      init_from=config_dict.placeholder(str),  # a workdir to start from
      checkpoint=config_dict.placeholder(str),  # downstream tasks: what to read
      resume='auto',  # 'force' continues a run with another config
      dtype='float32',  # 'bfloat16' computes; parameters stay float32
      fsdp=1,  # devices that share one copy of the parameters
      chunks=1,  # parts of the batch that pass the encoder one by one
      check_images=2000,  # that check_data looks at; 0 for all
      nonfinite_limit=20,  # so many bad steps in a row stop the run
      watchdog=600,  # seconds without a step until it says where; 0 never
      hang_limit=0,  # seconds without a step until it exits; 0 never
      knn=dict(
        k=20,
        temperature=0.07,
        batch_size=256,
        bank_images=50_000,
        which='student',
      ),
    )
  )


def parse(
  arg: str | None, *, encoder: str, data: str, flags: tuple[str, ...] = ()
) -> ml_collections.ConfigDict:
  """Reads the words behind the colon of `--config=FILE:words`.

  Args:
    arg: comma-separated words, in any order.
    encoder: the encoder word when none is given.
    data: the data word when none is given.
    flags: words that are on or off.

  Returns:
    {encoder, size, patch, data, **flags}.

  Raises:
    ValueError: a word that is none of these, with the nearest known one.
  """
  words = dict(encoder=encoder, data=data, **dict.fromkeys(flags, False))
  for word in filter(None, (arg or '').split(',')):
    if word in DATA:
      words['data'] = word
    elif word in flags:
      words[word] = True
    elif re.fullmatch(rf'({"|".join(ENCODERS)})[1-9]\d*', word):
      words['encoder'] = word
    else:
      known = [*DATA, *flags, *(f'{e}16' for e in ENCODERS)]
      near = difflib.get_close_matches(word, known, n=1, cutoff=0)[0]
      raise ValueError(
        f'unknown config word {word!r}; did you mean {near!r}? Known: data '
        f'{", ".join(DATA)}; encoders {", ".join(ENCODERS)} followed by the '
        f'patch size; flags {", ".join(flags) or "none"}'
      )
  size, patch = re.fullmatch(r'[a-z]+_([a-z]+)(\d+)', words['encoder']).groups()
  return ml_collections.ConfigDict(dict(words, size=size, patch=int(patch)))


def _data(name: str, **fields) -> dict:
  return (
    dict(
      name=name,
      data_dir=config_dict.placeholder(str),
      split='train',
      test_split='test',
      mode='auto',  # 'resident' on the device, 'stream' from the host
      image_size=224,
      resident_size=config_dict.placeholder(int),  # None: as they are
      channels=config_dict.placeholder(int),  # None: the source's, or RGB
      workers=config_dict.placeholder(int),  # threads that decode; None: all
      max_unreadable=0.01,  # of the images of a report; more stop the run
    )
    | fields
  )


def photos() -> dict:
  """Tiles of photographs that ship with scikit-image and scikit-learn."""
  return _data(
    'photos', image_size=32, tile=64, stride=8, gray=True, standardize=True
  )


def cifar10() -> dict:
  """CIFAR-10 through TFDS, prepared under `data_dir`."""
  return _data('cifar10', image_size=32)


def tfds() -> dict:
  """Any prepared TFDS classification set with images of one size."""
  return _data('tfds', tfds_name=config_dict.placeholder(str))


def arrays() -> dict:
  """An .npz file of your own, named by `data_dir`."""
  return _data('arrays', test_split='')


def folder() -> dict:
  """Images in a folder, a .zip or a .tar, named by `data_dir`.

  `labels`: 'folders', 'none', 'auto', or a table of paths and labels.
  """
  return _data('folder', test_split='auto', labels='auto')


def imagenette() -> dict:
  """Imagenette (or Imagewoof) as a folder or archive with train and val."""
  return _data('folder', image_size=128, test_split='val', labels='folders')


DATA = dict(
  photos=photos,
  cifar10=cifar10,
  tfds=tfds,
  arrays=arrays,
  folder=folder,
  imagenette=imagenette,
)


def encoder(word: str, **fields) -> dict:
  """Fields of the encoder; see `models.vit.ViT`."""
  return (
    dict(
      name=word,
      pool='cls',
      drop_path=0.0,
      remat=False,
      attention_impl='auto',
      mean=config_dict.placeholder(tuple),  # of the images in [0, 1]; None:
      std=config_dict.placeholder(tuple),  # ImageNet's, or 0.5 if not RGB
    )
    | fields
  )


def repre(size: str, **fields) -> dict:
  """RePre's branch, with the decoder width that suits an encoder size."""
  return (
    dict(
      width=DECODER_WIDTH[size],
      levels=4,
      fusion_layers=2,
      view='view1',
      weighting='uncertainty',
      weights=(1.0, 1.0),  # of contrast and pixels, where weighting='fixed'
      weighting_lr=1e-3,
    )
    | fields
  )


def optim(
  name: str,
  *,
  base_lr: float,
  decay: float,
  warmup_epochs: float,
  per: int = 256,
  schedule: str = 'cosine',
  warmup_lr: float = 0.0,
  end_lr: float = 0.0,
  scale_end_lr: bool = False,
  end_decay: float | None = None,
  exclude_vectors: bool = False,
  clip: float = 0.0,
  clip_per: str = 'scope',
  **hyper: float,
) -> dict:
  """How the run is optimised; see `pretrain.recipe`.

  Args:
    name: 'adamw', 'sgd' or 'lars'.
    base_lr: highest rate per `per` images: the rate is base_lr · batch / per.
    decay: weight decay.
    warmup_epochs: length of the warm-up.
    per: see `base_lr`.
    schedule: one of `pretrain.recipe.SCHEDULES`.
    warmup_lr: rate at the beginning of the warm-up, per `per` images.
    end_lr: rate at the end.
    scale_end_lr: `end_lr` is per `per` images too.
    end_decay: decay at the end of a cosine from `decay`; None: constant.
    exclude_vectors: biases and scales do not decay (LARS: nor adapt).
    clip: gradients are clipped to this norm; 0: not.
    clip_per: 'scope', one norm over all parameters, or 'tensor'.
    **hyper: numbers of the optimiser itself.
  """
  placeholder = config_dict.placeholder(float)
  return dict(
    name=name,
    base_lr=base_lr,
    per=per,
    decay=decay,
    end_decay=placeholder if end_decay is None else end_decay,
    exclude_vectors=exclude_vectors,
    schedule=schedule,
    warmup_epochs=warmup_epochs,
    warmup_lr=warmup_lr,
    end_lr=end_lr,
    scale_end_lr=scale_end_lr,
    clip=clip,
    clip_per=clip_per,
    hyper=hyper,
  )


def adamw(**fields) -> dict:
  """AdamW with PyTorch's numbers; see `optim`."""
  return optim('adamw', **dict(b1=0.9, b2=0.999, eps=1e-8) | fields)


def moco_views(*, min_scale: float = 0.08, blur: bool = True) -> dict:
  """MoCo v3's two views (authors' code, `main_moco.py`).

  Args:
    min_scale: smallest area of the crop.
    blur: off for small images, whose detail a σ of 2 pixels wipes out.

  Returns:
    Fields of `input_pipeline.views.View` by view name; their size is
    `data.image_size`.
  """
  shared = dict(
    scale=(min_scale, 1.0),
    ratio=(3 / 4, 4 / 3),
    flip=0.5,
    jitter=0.8,
    strength=(0.4, 0.4, 0.2, 0.1),  # brightness, contrast, saturation, hue
    gray=0.2,
    sigma=(0.1, 2.0),
    resample='bilinear',
  )
  return dict(
    view1=dict(shared, blur=1.0 if blur else 0.0, solarize=0.0),
    view2=dict(shared, blur=0.1 if blur else 0.0, solarize=0.2),
  )
