r"""LocalMIM: local multi-scale reconstruction (arXiv:2303.05251).

  python main.py --config=configs/local_mim.py:vit_b16,folder \
    --config.data.data_dir=FOLDER --config.chunks=8 --workdir=runs/local_mim
  python main.py --config=configs/local_mim.py:vit_mini4,photos \
    --workdir=runs/local_mim

Words: an encoder (vit_b16, vit_l16, swin_b, convvit_b), data (photos, cifar10,
folder).

Four small decoders predict histograms of oriented gradients of what is hidden,
shallow ones in cells of 4 px, deep ones of up to 32; see `pretrain/methods/
local_mim.py` for the fields. The paper's variants:

  pixels instead of HOG: --config.method.target=pixels
  segments trained apart: --config.method.isolate_gradients=True
  one decoder on all levels: --config.method.fuse=True
  other levels: --config.method.levels=4,8,12 --config.method.scales=2.,1.,.5

The recipe is the authors' for ImageNet: AdamW with β2 0.95 and decay 0.05 of
all but biases and norms (Swin: nor position biases and mask tokens), 40 epochs
of warm-up, crops of at least a fifth and mirroring, 9 bins. ViT-B: 1600 epochs
of batch 2048 with 2e-4 per 256 images; ViT-L: 800, 4096, 1.5e-4; Swin-B: 400,
2048, 1e-4; Swin-L: 800, 4096, 1e-4, windows of 14; these three with 18 bins and
an offset of the gradients. Published, fine-tuned: ViT-B 84.0 %, ViT-L 85.8 %,
Swin-B 84.1 % (pixels: 84.0 %), Swin-L 85.6 % (authors' repository). Not run
here; for minutes on photographs see docs/results.md.

Small images have no cells below 4 px (our choice): on patches of 4 px the first
three decoders predict cells of 4, the last one of 8.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from configs import automatic, common, optim, views

SMALLEST = 4  # px of a cell
# What the authors leave out of decay on Swin, besides biases and norms.
TABLES = r'.*/(position_bias|mask_token)'
# Recipes that differ from ViT-B's.
ADDED = dict(hog_bins=18, hog_offset='random')
LARGE = dict(batch_size=4096, epochs=800.0)
RECIPES = dict(
  vit_l=dict(LARGE, base_lr=1.5e-4, end_lr=1e-6, **ADDED),
  swin_b=dict(batch_size=2048, epochs=400.0, base_lr=1e-4, **ADDED),
  swin_l=dict(LARGE, base_lr=1e-4, **ADDED),
)


@automatic.automatic
def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """The paper's recipe, and presets for small data."""
  words = common.parse(
    arg, encoder='vit_b16', data='arrays', flags=(automatic.WORD,)
  )
  family = common.family(words.encoder)
  swin = family in common.SWINS
  usual = RECIPES['swin_b'] if swin else dict(base_lr=2e-4, end_lr=1e-6)
  recipe = dict(batch_size=2048, epochs=1600.0, end_lr=0.0) | RECIPES.get(
    family, usual
  )
  config = common.base()
  config.batch_size, config.epochs = recipe['batch_size'], recipe['epochs']
  config.dtype = 'bfloat16'
  config.data = automatic.data(words)
  config.encoder = common.encoder(words.encoder)
  common.whole_cells(config, words.encoder)
  if family in common.VITS:
    config.encoder.update(positions='mae_sincos', init_scheme='mae')
  elif swin:
    config.encoder.norm_epsilon = 1e-6
  if family == 'swin_l':
    config.encoder.window = 14
  config.views = dict(view1=views.crop('bicubic'))
  config.views.view1.scale = (0.2, 1.0)
  config.method = method(words, recipe)
  config.optim = optim.adamw(
    base_lr=recipe['base_lr'],
    decay=0.05,
    warmup_epochs=40.0,
    b2=0.95,
    end_lr=recipe['end_lr'],
    exclude_vectors=True,
    exclude=TABLES if swin else '',
  )
  common.small(config, words.data)
  if words.data == 'photos':
    common.masked_minutes(config, base_lr=5e-3)
  return config


def method(
  words: ml_collections.ConfigDict, recipe: Mapping[str, Any] | None = None
) -> dict:
  """LocalMIM's fields for an encoder and data.

  Args:
    words: of `common.parse`.
    recipe: bins and offset of the gradients, if not the usual ones.
  """
  # The papers' bins are for the papers' images.
  recipe = {} if recipe is None or words.data in common.SMALL else recipe
  return dict(
    name='local_mim',
    levels=config_dict.placeholder(tuple),
    scales=_scales(words.encoder),
    target='hog',  # or 'pixels'
    hog_bins=recipe.get('hog_bins', 9),
    # None, two numbers added to the gradients, or 'random'.
    hog_offset=_either(recipe.get('hog_offset')),
    normalize_pixels=True,
    mask_ratio=0.75,
    masking='random',  # or 'blocks'
    isolate_gradients=False,
    fuse=False,  # the ablation: one decoder for all levels
    legacy_swin_geometry=False,  # True: as the released Swin was trained
    decoder=_decoder(words),
  )


def _either(value: Any) -> config_dict.FieldReference:
  """A field that holds numbers, a word or nothing."""
  return config_dict.FieldReference(value, field_type=object)


def _decoder(words: ml_collections.ConfigDict) -> dict:
  """Fields of the decoders; Swin has a width for each stage."""
  if words.data in common.SMALL:
    return dict(width=64, depth=1, num_heads=2)
  if words.encoder in common.SWINS:
    return dict(width=(64, 128, 128, 128), depth=1, num_heads=4)
  return dict(width=256, depth=1, num_heads=8)


def _scales(word: str) -> tuple[float, ...] | None:
  """The ViT's with cells of at least 4 px; None: the paper's."""
  patch = word.removeprefix(common.family(word))
  if not patch or int(patch) >= 4 * SMALLEST:
    return config_dict.placeholder(tuple)
  return tuple(min(s, int(patch) / SMALLEST) for s in (4.0, 2.0, 1.0, 0.5))
