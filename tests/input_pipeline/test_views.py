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


def test_the_config_holds_the_same_numbers():
  from configs.views import moco_views

  fields = moco_views()
  got = {name: views.View(size=224, **v) for name, v in fields.items()}
  assert got == views.moco_v3(224)
