"""RePre's tables as rows to run: Wang et al., 2022, arXiv:2201.06857."""

from benchmarks.rows import Row, Variant

REPRE = Variant(words=('repre',))


def _repre(**fields: object) -> Variant:
  """RePre with some of its fields changed."""
  fields = {f'method.repre.{k}': v for k, v in fields.items()}
  return Variant(words=REPRE.words, fields=fields)


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


def _one(method, encoder, epochs, base, repre, *words) -> Row:
  variants = {'base': Variant(), '+RePre': REPRE}
  paper = {'base': base, '+RePre': repre}
  return Row('table1', method, encoder, epochs, variants, paper, words)


def _ablation(table, method, encoder, changes, numbers) -> Row:
  variants = {'base': Variant()} | changes
  paper = dict(zip(variants, numbers, strict=True))
  return Row(f'table{table}', method, encoder, 300, variants, paper)


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
