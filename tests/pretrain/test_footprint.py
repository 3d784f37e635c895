"""Estimates of a step beside what XLA's CPU compiler reserves.

MB of arguments and temporaries, by `memory_analysis`, and GFLOPs of the program
as it is written; 64 px (224 for vit_s16), float32 (docs/performance.md).
"""

import pytest

from configs import local_mim, mae, moco_v3, simmim
from pretrain.estimate import cost_of

COMPILED = {
  'moco_v3 vit_mini4': (moco_v3, 'vit_mini4', 16, 1, 1156, 69.9),
  'moco_v3 + repre': (moco_v3, 'vit_mini4,repre', 16, 1, 1170, 74.6),
  'moco_v3 in chunks': (moco_v3, 'vit_mini4,repre', 16, 4, 513, None),
  'moco_v3 swin_mini': (moco_v3, 'swin_mini', 32, 1, 1483, 69.4),
  'moco_v3 convvit_mini': (moco_v3, 'convvit_mini', 32, 1, 1831, 113.4),
  'mae vit_mini4': (mae, 'vit_mini4', 32, 1, 5435, 1363.1),
  'simmim swin_mini': (simmim, 'swin_mini', 32, 1, 527, 22.6),
  'local_mim vit_mini4': (local_mim, 'vit_mini4', 32, 1, 935, 194.8),
  'moco_v3 vit_s16': (moco_v3, 'vit_s16', 8, 1, 2702, 591.6),
}


@pytest.mark.parametrize('name', COMPILED)
def test_estimates_of_a_step(name):
  module, words, batch, chunks, megabytes, gflops = COMPILED[name]
  config = module.get_config(f'{words},folder,paper')
  config.update(dtype='float32', batch_size=batch, chunks=1)
  if 'vit_s16' not in words:
    config.data.image_size = 64
  if module is simmim:
    config.method.mask_unit = 8
  cost = cost_of(config, channels=3)
  most = 1.75 if module is local_mim else 1.5
  assert 1 / 1.1 < cost.step(batch, chunks) / 1e6 / megabytes < most
  if gflops:
    assert 0.75 < cost.flops * batch / 1e9 / gflops < 1.05
