import dataclasses

import pytest

from input_pipeline import views


@pytest.mark.parametrize(
  'field, value, message',
  [
    ('size', 0, 'View.size'),
    ('size', (4, 5, 6), 'View.size'),
    ('size', (4, 5.5), 'View.size'),
    ('scale', (0.0, 1.0), 'View.scale'),
    ('scale', (0.5, 0.2), 'View.scale'),
    ('scale', (0.5, 1.5), 'View.scale must not exceed 1'),
    ('ratio', (1.0,), 'View.ratio'),
    ('flip', 1.1, 'View.flip must be within'),
    ('jitter', -0.1, 'View.jitter'),
    ('strength', (1, 1, 1), 'View.strength must hold 4'),
    ('strength', (1, 1, -1, 0), 'View.strength must hold 4'),
    ('strength', (0, 0, 0, 0.6), 'hue must be at most 0.5'),
    ('gray', 2, 'View.gray'),
    ('blur', 2, 'View.blur'),
    ('sigma', (2.0, 1.0), 'View.sigma'),
    ('solarize', 2, 'View.solarize'),
    ('threshold', 128, 'View.threshold'),
    ('resample', 'nearest', 'View.resample must be one of'),
  ],
)
def test_bad_fields_are_named(field, value, message):
  with pytest.raises(ValueError, match=message):
    views.View(**{'size': 8} | {field: value})


def test_a_typo_is_an_error():
  with pytest.raises(TypeError, match='solarise'):
    views.View(size=8, solarise=0.1)


def test_lists_from_a_config_are_hashable():
  view = views.View(size=[8, 9], scale=[0.5, 1.0], strength=[0, 0, 0, 0])
  assert view == views.View(
    size=(8, 9), scale=(0.5, 1.0), strength=(0, 0, 0, 0)
  )
  assert hash(view) is not None
  assert views.View(size=8).size == (8, 8)


def test_moco_v3_numbers():
  first, second = views.moco_v3(224).values()
  assert first == views.View(
    size=224,
    scale=(0.08, 1.0),
    strength=(0.4, 0.4, 0.2, 0.1),
    jitter=0.8,
    gray=0.2,
    blur=1.0,
  )
  assert second == dataclasses.replace(first, blur=0.1, solarize=0.2)


def test_recipes_differ_where_the_papers_do():
  assert views.byol()['view1'].resample == 'bicubic'
  assert views.moco_v2()['view1'].strength == (0.4, 0.4, 0.4, 0.1)
  assert views.moco_v2()['view1'].scale == (0.2, 1.0)
  assert views.simclr(32, strength=0.5)['view2'].strength == (
    0.4,
    0.4,
    0.4,
    0.1,
  )
  dino = views.dino(local_count=2)
  assert list(dino) == ['global1', 'global2', 'local1', 'local2']
  assert dino['local2'].size == (96, 96)
  assert dino['local2'].scale == (0.05, 0.4)
  assert dino['global1'].scale == (0.4, 1.0)
  plain = views.crop_only()['image']
  assert (plain.jitter, plain.gray, plain.blur, plain.solarize) == (0, 0, 0, 0)
