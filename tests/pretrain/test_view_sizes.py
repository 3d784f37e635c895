"""Sizes that patches do not tile are named by their fields."""

import pytest

from configs import dino, moco_v3, simmim
from pretrain.methods import from_config


@pytest.mark.parametrize(
  'config, fields, message',
  [
    (
      dino.get_config('vit_mini4,photos'),
      {'views.local1.size': 14},
      r'^config\.views\.local1\.size=14 is not divisible by patch size 4; '
      'nearest sizes that work: 12, 16$',
    ),
    (
      dino.get_config('vit_mini4,photos'),
      {'views.local2.size': 2, 'views.local4.size': 2},
      r'local2\.size=2 and config\.views\.local4\.size=2 is .* work: 4$',
    ),
    (
      dino.get_config('vit_mini4,photos'),
      {'views.view2.size': (32, 30)},
      r'view2\.size=\(32, 30\) is .* work: \(32, 28\), 32$',
    ),
    (
      simmim.get_config('swin_mini,photos'),
      {'data.image_size': 36},
      r"config\.data\.image_size=36 is not .* a mask's cell 16; .*: 32, 48$",
    ),
    (
      moco_v3.get_config('swin_mini,photos,masked'),
      {'views.view1.size': 36},
      r"config\.views\.view1\.size=36 is not divisible by a mask's cell 16",
    ),
  ],
)
def test_the_field_and_sizes_that_work(config, fields, message):
  for field, value in fields.items():
    *above, last = field.split('.')
    place = config
    for name in above:
      place = place[name]
    place[last] = value
  with pytest.raises(ValueError, match=message):
    from_config(config, channels=3, steps_per_epoch=1, total=9)
