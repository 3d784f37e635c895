"""What a table is made of: rows of runs, and where they are run."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, eq=False)
class Variant:
  """What one run of a row changes.

  Attributes:
    words: config words.
    fields: of the config; a mapping says a value for each encoder word, and an
      encoder that is not there keeps its config's.
    method: a config file, in place of the row's.
    encoder: in place of the row's.
    epochs: in place of the row's.
    teachers: runs, or files, that become `method.teachers.first` and so on; see
      `masked_tables.TEACHERS`.
  """

  words: tuple[str, ...] = ()
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  method: str | None = None
  encoder: str | None = None
  epochs: int | None = None
  teachers: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
  """One line of a table.

  Attributes:
    table: of a paper, or a group of comparisons.
    method: a config file.
    encoder: the paper's, a key of `Preset.encoders`.
    epochs: of the paper.
    variants: by name; the first one is the base.
    paper: {variant: top-1 in %, as published}; what is not known is left out.
    words: config words of all variants.
    topic: what is compared; '' where method, encoder and epochs say it.
  """

  table: str
  method: str
  encoder: str
  epochs: int
  variants: Mapping[str, Variant]
  paper: Mapping[str, float] = dataclasses.field(default_factory=dict)
  words: tuple[str, ...] = ()
  topic: str = ''

  @property
  def name(self) -> str:
    """What `--rows` selects: table1/moby-swin_t-300, localmim/vit-targets."""
    if self.topic:
      return f'{self.table}/{self.topic}'
    return f'{self.table}/{self.method}-{self.encoder}-{self.epochs}'


@dataclasses.dataclass(frozen=True)
class Preset:
  """Where a table is run.

  Attributes:
    data: a data word; its config says batch and rates for small data.
    encoders: {the paper's encoder: word}; rows of others are left out.
    scale: epochs here per epoch of the paper.
    masked_scale: the same of masked methods, which learn more slowly; their
      comparisons have 100 epochs in the tables.
    fields: of the config that differ.
  """

  data: str
  encoders: Mapping[str, str]
  scale: float = 1.0
  masked_scale: float = 1.0
  fields: Mapping[str, object] = dataclasses.field(default_factory=dict)


PAPER = dict(vit_s='vit_s16', vit_b='vit_b16', swin_t='swin_t')
# What comparisons of masked methods run on; `full_` only at published sizes.
MASKED = dict(vit='vit_b16', swin='swin_b', convvit='convvit_b')
FULL = PAPER | MASKED | {f'full_{name}': word for name, word in MASKED.items()}
MINI = dict(vit='vit_mini4', swin='swin_mini', convvit='convvit_mini')
PRESETS: Mapping[str, Preset] = dict(
  # Minutes per run on two cores; 300 epochs of the paper are 300 steps, 100 of
  # a masked method 1200.
  photos=Preset(
    'photos',
    dict(vit_s='vit_mini4', swin_t='swin_mini', **MINI),
    scale=5.45 / 300,
    masked_scale=21.82 / 100,
  ),
  cifar10=Preset(
    'cifar10',
    dict(vit_s='vit_mini4', vit_b='vit_ti4', swin_t='swin_mini', **MINI),
    scale=2 / 3,
    masked_scale=2.0,
  ),
  # 18 steps are an epoch.
  imagenette=Preset(
    'imagenette', FULL, masked_scale=4.0, fields=dict(batch_size=512)
  ),
  imagenet2012=Preset('imagenet2012', FULL),
  folder=Preset('folder', FULL),
)
