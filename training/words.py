"""The words that fields of configs may hold, in one table.

Named as in `training.ranges`. The code that acts on a word has its own table; a
test compares the two. Here they are known before anything is imported that
takes seconds, and before data are read.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from input_pipeline.known import unknown
from training.ranges import leaves, pattern

TASKS = (
  'pretrain',
  'check_data',
  'linear_probe',
  'finetune',
  'knn',
  'fewshot',
  'embed',
  'visualize',
  'export',
)
CONTRASTIVE = (
  'simclr',
  'byol',
  'simsiam',
  'moco_v2',
  'moco_v3',
  'moby',
  'dino',
)
MASKED = ('mae', 'simmim', 'local_mim', 'mr_mae')
# A patch size follows the first; BARE come with all their fields.
PATCHED = ('vit_mini', 'vit_ti', 'vit_s', 'vit_b', 'vit_l', 'vit_h')
COMPLETE = (
  'swin_mini',
  'swin_t',
  'swin_s',
  'swin_b',
  'swin_l',
  'convvit_mini',
  'convvit_s',
  'convvit_b',
)
BARE = ('vit', 'swin', 'convvit')
ATTENTION = ('auto', 'einsum', 'xla', 'cudnn')
POOLS = ('cls', 'mean', 'norm_mean')
POOLINGS = ('auto', 'cls', 'mean', 'cls_mean')
ACTIVATIONS = ('gelu', 'gelu_tanh', 'quick_gelu')
DTYPES = ('float32', 'bfloat16')
RESAMPLES = ('bilinear', 'bicubic')
FUSIONS = ('conv', 'transformer')
WHICH = ('auto', 'student', 'teacher')

WORDS: Mapping[str, Sequence[str]] = {
  'task': TASKS,
  'resume': ('auto', 'force'),
  'dtype': DTYPES,
  'which': WHICH,
  'knn.which': ('student', 'teacher'),
  'weights.activation': ACTIVATIONS,
  'weights.pool': POOLS,
  'data.name': ('photos', 'arrays', 'folder', 'tfds', 'cifar10'),
  'data.mode': ('auto', 'stream', 'resident'),
  'data.eval_resample': RESAMPLES,
  'views.*.resample': RESAMPLES,
  'encoder.pool': POOLS,
  'encoder.positions': ('sincos', 'learned', 'none', 'mae_sincos'),
  'encoder.relative': ('none', 'shared', 'block'),
  'encoder.init_scheme': ('moco_v3', 'trunc_normal', 'mae', 'simmim'),
  'encoder.mlp': (*ACTIVATIONS, 'swiglu'),
  'encoder.padding': ('masked', 'zeros', 'timm'),
  'encoder.dtype': DTYPES,
  'encoder.attention_impl': ATTENTION,
  'method.name': (*CONTRASTIVE, *MASKED),
  'method.masked.name': MASKED,
  'method.head': ('simclr', 'moco_v3', 'official'),
  'method.repre.fusion': FUSIONS,
  'method.repre.view': ('view1', 'view2', 'both'),
  'method.repre.weighting': ('balanced', 'uncertainty', 'fixed'),
  'method.weighting': ('balanced', 'fixed'),  # of a masked branch
  'method.masking': ('random', 'blocks'),
  'method.focus': ('none', 'sample', 'topk'),
  'method.target': ('hog', 'pixels'),
  'method.decoder.kind': ('blocks', 'fusion'),
  'method.decoder.fusion': FUSIONS,
  'method.mimic.error': ('l2', 'smooth_l1', 'cosine'),
  'method.mimic.at': ('encoder', 'decoder'),
  'method.mimic.on': ('all', 'masked', 'visible'),
  'method.mimic.fusion': ('none', 'sum', 'multi'),
  'method.teachers.*.which': WHICH,
  'optim.name': ('adamw', 'sgd', 'lars'),
  'optim.schedule': ('cosine', 'epochs', 'dino', 'moby', 'steps'),
  'optim.clip_per': ('scope', 'tensor'),
  'attention_impl': ATTENTION,
  'features.pooling': POOLINGS,
  'probe.pooling': POOLINGS,
  'fewshot.scale': ('unit', 'standardize', 'none'),
  'embed.format': ('npz', 'parquet'),
  'embed.dtype': ('float32', 'float16'),
  'head.pool': ('auto', 'fc_norm'),
  'augment.rand_resample': (*RESAMPLES, 'random'),
  'formats': (
    'timm',
    'huggingface',
    'detectron2',
    'mmdet',
    'microsoft',
    'convmae',
    'npz',
  ),
  'pictures': (
    'attention',
    'tsne',
    'pca',
    'reconstruction',
    'depth',
    'neighbors',
    'curves',
  ),
}
# Strings of any content: names and paths of the user's, and patterns.
FREE = (
  'init_from',
  'checkpoint',
  'compare',
  'runs',
  'format',  # with commas between; see `transfer.visualize.job`
  'class_names',
  'data.data_dir',
  'data.split',
  'data.test_split',
  'data.tfds_name',
  'data.labels',
  'encoder.name',  # see `check_words`
  'encoder.biases',
  'fewshot.list',
  'method.view',  # of a masked branch
  'paper',  # JSON; see `configs.automatic`
  'method.teachers.*.checkpoint',
  'optim.exclude',
)
PATTERNS = ('optim.exclude',)  # regular expressions


def check_words(config: Any) -> None:
  """Raises ValueError for the first word that a field does not know.

  Args:
    config: a config or a part of one. Fields that are None or of no table
      (those of other people's configs) pass.
  """
  pretrains = config.get('task') in (None, 'pretrain')
  for name, value in leaves(config):
    if name == 'method.name' and not pretrains:
      continue  # the job's own
    for word in _listed(value):
      if name == 'encoder.name':
        _check_encoder(word)
      known = WORDS.get(name) or WORDS.get(pattern(name))
      if known and word not in known:
        raise unknown(f'config.{name}', word, known)
      if name in PATTERNS:
        _check_pattern(name, word)


def _listed(value: Any) -> Iterator[str]:
  """The words of a field; a tuple may be written with commas between."""
  for word in value if isinstance(value, tuple | list) else (value,):
    if isinstance(word, str):
      yield word


def _check_encoder(word: str) -> None:
  patched = re.fullmatch(r'(\w*[a-z])([1-9]\d*)', word)
  if word not in (*COMPLETE, *BARE) and not (patched and patched[1] in PATCHED):
    usual = [f'{name}{size}' for name in PATCHED for size in (4, 8, 14, 16)]
    raise unknown('config.encoder.name', word, (*usual, *COMPLETE))


def _check_pattern(name: str, text: str) -> None:
  try:
    re.compile(text)
  except re.error as error:
    raise ValueError(
      f'config.{name}={text!r} is not a regular expression: {error}'
    ) from error
