"""Masked methods as rows to run: LocalMIM (2303.05251), MR-MAE (2303.05475).

What their papers compare, at equal epochs. Published numbers are fine-tuned
ImageNet accuracies (`--probe=finetune`), from the authors' repositories and, of
MR-MAE, its abstract; those of single ablations are nowhere to be found, so that
these rows have none. 100 epochs are where the lengths are not known.
"""

from benchmarks.rows import Row, Variant

# Runs that can be a teacher: the only variant of a row.
TEACHER_ROWS = dict(
  dino=Row(
    'teachers', 'dino', 'vit', 300, {'base': Variant()}, {}, ('crops6',)
  ),
  moco_v3=Row('teachers', 'moco_v3', 'vit', 300, {'base': Variant()}),
  # One step at rate 0, of what compiles fastest.
  untrained=Row(
    'teachers',
    'mae',
    'vit',
    1,
    {'base': Variant(fields={'steps': 1, 'optim.base_lr': 0.0})},
  ),
)
# The file of `--teacher`, or DINO's run where none is given.
DEFAULT = ('default',)
# The file alone: a variant that is left out where none is given.
GIVEN = ('given',)
EPOCHS = 100


def _change(**fields: object) -> Variant:
  """Fields of the method; `__` stands for a dot."""
  return Variant(
    fields={f'method.{k.replace("__", ".")}': v for k, v in fields.items()}
  )


def _local(topic: str, encoder: str, variants: dict, paper=None) -> Row:
  name = f'{encoder}-{topic}'
  return Row(
    'localmim', 'local_mim', encoder, EPOCHS, variants, paper or {}, topic=name
  )


MAE, SIMMIM = Variant(method='mae'), Variant(method='simmim')
LOCAL = Variant()
# Lengths, so that accuracies can be read at equal seconds.
LENGTHS = {
  f'{name} {epochs}': Variant(method=method, epochs=epochs)
  for name, method in (('MAE', 'mae'), ('LocalMIM', 'local_mim'))
  for epochs in (25, 50, 100)
}
TARGETS = {
  'HOG': LOCAL,
  'pixels': _change(target='pixels'),
  'pixels as they are': _change(target='pixels', normalize_pixels=False),
}
GRADIENTS = {'end to end': LOCAL, 'isolated': _change(isolate_gradients=True)}
# A place is 4, 8, 16 and 32 px wide; on patches of 4 px: 4, 4, 4 and 8. One
# scale: all as wide as a patch.
VIT_SCALES = {
  'multi-scale': LOCAL,
  'single scale': _change(scales=(1.0, 1.0, 1.0, 1.0)),
}
SWIN_SCALES = {
  'multi-scale': LOCAL,
  'single scale': _change(scales=(0.5, 1.0, 2.0, 2.0)),
}
VIT_LEVELS = {
  'all': LOCAL,
  'deep': _change(
    levels=dict(vit_b16=(10, 12), vit_mini4=(4, 6)), scales=(1.0, 0.5)
  ),
  'shallow': _change(
    levels=(2, 4), scales=dict(vit_b16=(4.0, 2.0), vit_mini4=(1.0, 1.0))
  ),
  'last': _change(levels=dict(vit_b16=(12,), vit_mini4=(6,)), scales=(0.5,)),
}
VIT_FUSING = {
  'local': LOCAL,
  'fused': _change(fuse=True, scales=(1.0,)),
}


def _stages(*levels: int, widths: tuple[int, ...], **fields) -> Variant:
  """Tasks of some of a Swin's stages; the mini one has a width for all."""
  return _change(levels=levels, decoder__width=dict(swin_b=widths), **fields)


# Levels of one grid can be fused: the last two.
SWIN_LEVELS = {
  'all': LOCAL,
  'deep': _stages(3, 4, widths=(128, 128)),
  'shallow': _stages(1, 2, widths=(64, 128)),
  'last': _stages(4, widths=(128,)),
  'deep, fused': _stages(3, 4, widths=(128,), fuse=True),
}

LOCAL_ROWS = (
  _local('methods', 'vit', {'MAE': MAE, 'SimMIM': SIMMIM, 'LocalMIM': LOCAL}),
  _local(
    'methods',
    'swin',
    {'GreenMIM': MAE, 'SimMIM': SIMMIM, 'LocalMIM': LOCAL},
    {'SimMIM': 82.8},
  ),
  _local('time', 'vit', LENGTHS),
  _local(
    'time',
    'swin',
    {k.replace('MAE', 'GreenMIM'): v for k, v in LENGTHS.items()},
  ),
  _local('fusing', 'vit', VIT_FUSING),
  _local('scales', 'vit', VIT_SCALES),
  _local('scales', 'swin', SWIN_SCALES),
  _local('levels', 'vit', VIT_LEVELS),
  _local('levels', 'swin', SWIN_LEVELS),
  _local('targets', 'vit', TARGETS),
  _local('targets', 'swin', TARGETS),
  _local('gradients', 'vit', GRADIENTS),
  _local('gradients', 'swin', GRADIENTS),
  Row(
    'localmim',
    'local_mim',
    'full_vit',
    1600,
    {'MAE': MAE, 'LocalMIM': LOCAL},
    {'MAE': 83.6, 'LocalMIM': 84.0},
    topic='published-vit',
  ),
  Row(
    'localmim',
    'local_mim',
    'full_swin',
    400,
    {
      'GreenMIM 800': Variant(method='mae', epochs=800),
      'LocalMIM': LOCAL,
      'LocalMIM, pixels': TARGETS['pixels'],
    },
    {'GreenMIM 800': 83.8, 'LocalMIM': 84.1, 'LocalMIM, pixels': 84.0},
    topic='published-swin',
  ),
)


def _mimic(teachers: tuple[str, ...] = DEFAULT, **fields: object) -> Variant:
  return Variant(teachers=teachers, fields=_change(**fields).fields)


def _mr(topic: str, encoder: str, variants: dict, paper=None) -> Row:
  name = f'{encoder}-{topic}'
  return Row(
    'mrmae', 'mr_mae', encoder, EPOCHS, variants, paper or {}, topic=name
  )


BOTH = _mimic()
MR_ROWS = (
  _mr(
    'teacher',
    'vit',
    {
      'MAE': MAE,
      'untrained': _mimic(('untrained',)),
      'DINO': _mimic(('dino',)),
      'MoCo v3': _mimic(('moco_v3',)),
      '--teacher': _mimic(GIVEN),
    },
  ),
  _mr(
    'two-teachers',
    'vit',
    {
      'DINO': _mimic(('dino',)),
      'MoCo v3': _mimic(('moco_v3',)),
      'DINO and MoCo v3': _mimic(('dino', 'moco_v3')),
    },
  ),
  _mr(
    'tricks',
    'vit',
    {
      'none': BOTH,
      'focus, sampled': _mimic(focus='sample'),
      'focus, top k': _mimic(focus='topk'),
      'fused blocks': _mimic(mimic__fusion='sum'),
      'many blocks': _mimic(mimic__fusion='multi'),
      'four masks per image': _mimic(masks_per_image=4),
      'ConvViT': Variant(encoder='convvit', teachers=DEFAULT),
      'ConvViT, focus, sampled': Variant(
        encoder='convvit', teachers=DEFAULT, fields={'method.focus': 'sample'}
      ),
    },
  ),
  _mr('conv', 'convvit', {'ConvMAE': MAE, 'MR-MCMAE': BOTH}),
  _mr(
    'error',
    'vit',
    {
      'l2': BOTH,
      'smooth l1': _mimic(mimic__error='smooth_l1'),
      'cosine': _mimic(mimic__error='cosine'),
    },
  ),
  _mr(
    'weight',
    'vit',
    {'1': BOTH} | {f'{w:g}': _mimic(mimic__weight=w) for w in (0.5, 2.0)},
  ),
  _mr(
    'place',
    'vit',
    {
      'mimic encoder, visible': BOTH,
      'decoder, hidden': _mimic(mimic__at='decoder', mimic__on='masked'),
      'decoder, all': _mimic(mimic__at='decoder', mimic__on='all'),
      'pixels alone': MAE,
      'encoder, no pixels': _mimic(pixel_weight=0.0),
      'decoder, hidden, no pixels': _mimic(
        mimic__at='decoder', mimic__on='masked', pixel_weight=0.0
      ),
    },
  ),
  Row(
    'mrmae',
    'mr_mae',
    'full_vit',
    200,
    {
      'MAE 1600': Variant(method='mae', epochs=1600),
      'MR-MAE': BOTH,
      'ConvMAE 1600': Variant(
        method='mae', encoder='full_convvit', epochs=1600
      ),
      'MR-MCMAE 400': Variant(
        encoder='full_convvit', epochs=400, teachers=DEFAULT
      ),
    },
    {
      'MAE 1600': 83.6,
      'MR-MAE': 85.0,
      'ConvMAE 1600': 85.0,
      'MR-MCMAE 400': 85.8,
    },
    topic='published',
  ),
)
ROWS = (*LOCAL_ROWS, *MR_ROWS)
