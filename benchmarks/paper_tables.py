"""RePre's tables as rows to run: Wang et al., 2022, arXiv:2201.06857."""

import dataclasses
from collections.abc import Mapping

REPRE = dict(words=('repre',))


def _repre(**fields: object) -> dict:
  """RePre with some of its fields changed."""
  return REPRE | {f'method.repre.{k}': v for k, v in fields.items()}


# Table 4: from which levels; Table 5: fused by what, in how many layers.
SINGLE = {'Single': _repre(levels=1), 'Multi': REPRE}
FUSION = {
  f'{operator} {layers}': REPRE
  # The default, so that tables 1, 4 and 5 share its runs.
  if (operator, layers) == ('conv', 2)
  else _repre(fusion=operator, fusion_layers=layers)
  for operator in ('conv', 'transformer')
  for layers in (1, 2, 4)
}


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
  """One line of a table.

  Attributes:
    table: 1, 4 or 5.
    method: a config file.
    encoder: 'vit_s', 'vit_b' or 'swin_t'.
    epochs: of the paper.
    paper: {variant: linear top-1 in %, as printed}; the first one is the base.
    variants: {variant: what it changes}: config words, fields.
    words: config words of all variants.
  """

  table: int
  method: str
  encoder: str
  epochs: int
  paper: Mapping[str, float]
  variants: Mapping[str, Mapping[str, object]]
  words: tuple[str, ...] = ()

  @property
  def name(self) -> str:
    """What `--rows` selects: table1/moby-swin_t-300."""
    return f'table{self.table}/{self.method}-{self.encoder}-{self.epochs}'


def _one(method, encoder, epochs, base, repre, *words) -> Row:
  variants = {'base': {}, '+RePre': REPRE}
  paper = {'base': base, '+RePre': repre}
  return Row(1, method, encoder, epochs, paper, variants, words)


def _ablation(table, method, encoder, changes, numbers) -> Row:
  variants = {'base': {}} | changes
  paper = dict(zip(variants, numbers, strict=True))
  return Row(table, method, encoder, 300, paper, variants)


ROWS = (
  _one('simclr', 'vit_s', 300, 69.0, 69.7),
  _one('byol', 'vit_s', 300, 71.4, 72.2),
  _one('moco_v2', 'vit_s', 300, 71.6, 72.1),
  _one('moco_v2', 'vit_s', 800, 72.7, 73.4),
  _one('moco_v3', 'vit_s', 300, 72.5, 73.2),
  _one('moco_v3', 'vit_s', 600, 73.4, 73.9),
  _one('moby', 'vit_s', 300, 72.8, 73.9),
  # The numbers that the paper compares with had 6 and 10 local crops.
  _one('dino', 'vit_s', 300, 75.9, 76.7, 'crops6'),
  _one('dino', 'vit_s', 800, 77.0, 77.9, 'crops10'),
  _one('simclr', 'vit_b', 300, 73.9, 74.4),
  _one('byol', 'vit_b', 300, 73.9, 74.8),
  _one('moco_v3', 'vit_b', 300, 76.5, 77.2),
  _one('moco_v3', 'vit_b', 600, 76.7, 77.5),
  _one('dino', 'vit_b', 800, 78.2, 79.2, 'crops10'),
  _one('moco_v3', 'swin_t', 300, 75.4, 76.4),
  _one('moby', 'swin_t', 100, 70.9, 71.8),
  _one('moby', 'swin_t', 300, 75.0, 76.1),
  _ablation(4, 'moco_v3', 'vit_s', SINGLE, (72.5, 72.8, 73.2)),
  _ablation(4, 'moby', 'vit_s', SINGLE, (72.8, 73.1, 73.9)),
  _ablation(4, 'moco_v3', 'swin_t', SINGLE, (75.4, 75.7, 76.4)),
  _ablation(4, 'moby', 'swin_t', SINGLE, (75.0, 75.4, 76.1)),
  _ablation(
    5, 'moco_v3', 'vit_s', FUSION, (72.5, 73.0, 73.2, 73.2, 71.8, 72.0, 71.4)
  ),
  _ablation(
    5, 'moco_v3', 'swin_t', FUSION, (75.4, 76.1, 76.4, 76.2, 74.6, 75.2, 74.5)
  ),
)


@dataclasses.dataclass(frozen=True)
class Preset:
  """Where a table is run.

  Attributes:
    data: a data word; its config says batch and rates for small data.
    encoders: {the paper's encoder: word}; rows of others are left out.
    scale: epochs here per epoch of the paper.
    fields: of the config that differ.
  """

  data: str
  encoders: Mapping[str, str]
  scale: float = 1.0
  fields: Mapping[str, object] = dataclasses.field(default_factory=dict)


PAPER = dict(vit_s='vit_s16', vit_b='vit_b16', swin_t='swin_t')
PRESETS: Mapping[str, Preset] = dict(
  # Minutes per run on two cores; 300 epochs of the paper are 300 steps.
  photos=Preset(
    'photos', dict(vit_s='vit_mini4', swin_t='swin_mini'), scale=5.45 / 300
  ),
  cifar10=Preset(
    'cifar10',
    dict(vit_s='vit_mini4', vit_b='vit_ti4', swin_t='swin_mini'),
    scale=2 / 3,
  ),
  imagenette=Preset('imagenette', PAPER, fields=dict(batch_size=512)),
  imagenet2012=Preset('imagenet2012', PAPER),
  folder=Preset('folder', PAPER),
)
