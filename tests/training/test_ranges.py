"""Every number and every word of every config is checked before data are."""

import dataclasses
import functools
import math
import numbers

import ml_collections
import pytest
from every_config import FILES, every_config

import main
import models
from configs import common
from input_pipeline import mode, rand_augment, sources, views
from models import (
  activations,
  attention,
  decoders,
  initializers,
  layers,
  vit,
  windows,
)
from models import relative as positions
from pretrain import branch, joint, masks, methods, mimic
from pretrain.methods.local_mim import TARGETS
from pretrain.methods.mae import DECODERS
from pretrain.methods.moco_v2 import HEADS as MOCO_HEADS
from pretrain.methods.repre import WEIGHTINGS
from pretrain.methods.simclr import HEADS
from training import optim, ranges, recipe, words
from training.fields import check_fields
from training.number_range import Range
from transfer import backbone, pooling
from transfer.embed.files import WRITERS
from transfer.finetune.classifier import POOLS
from transfer.visualize.pictures import PICTURES

NAN, INF = math.nan, math.inf
NUMERIC = (int, float, tuple, object)


def is_number(value):
  return isinstance(value, numbers.Real) and not isinstance(value, bool)


def numbers_in(config, prefix=''):
  """Names of all fields of a config that hold numbers.

  Also of those that are None now and may hold some.
  """
  for name in config:
    value, kind = config[name], config.get_type(name)
    if isinstance(value, ml_collections.ConfigDict):
      yield from numbers_in(value, f'{prefix}{name}.')
    elif isinstance(value, tuple):
      if not all(isinstance(x, str) for x in value) or not value:
        yield prefix + name
    elif is_number(value) or (value is None and kind in NUMERIC):
      yield prefix + name


def set_field(config, name, value):
  """A plain copy of a config with another value, of any type."""
  *groups, last = name.split('.')
  config = ml_collections.ConfigDict(config).to_dict()
  group = config
  for part in groups:
    group = group.setdefault(part, {})
  group[last] = value
  return config


@functools.cache
def holders():
  """{name in the table: (a config, its field)}."""
  found = {}
  for config in every_config().values():
    for name in numbers_in(config):
      known = name if name in ranges.RANGES else ranges.pattern(name)
      found.setdefault(known, (config, name))
  return found


def encoder_numbers():
  """Names of the numbers that an encoder may be given."""
  for encoder in models.BARE.values():
    for field in dataclasses.fields(encoder):
      kinds = str(field.type)
      if 'int' in kinds or 'float' in kinds:
        yield f'encoder.{field.name}'


def test_every_config_file_is_walked():
  assert {name.partition(':')[0] for name in every_config()} == set(FILES)
  assert len(every_config()) > 300


def test_every_number_has_a_range():
  missing = {
    name
    for config in every_config().values()
    for name in numbers_in(config)
    if ranges.find(name) is None
  }
  missing |= {name for name in encoder_numbers() if not ranges.find(name)}
  assert not missing, f'add these to training/ranges.py: {sorted(missing)}'


def test_every_range_has_a_number():
  """A name in the table that no config has is a misspelling."""
  known = {*holders(), *encoder_numbers()}
  known.add('views.*.threshold')  # of View, which no config sets
  assert not ranges.RANGES.keys() - known


def test_every_config_passes():
  for config in every_config().values():
    check_fields(config, main.TASKS)


def wrong_values(limit: Range):
  """Single numbers that no field of this range may hold."""
  yield from (NAN, INF, -INF, True, 1e300, 2**200, 'many')
  if math.isfinite(limit.low):
    yield limit.low if limit.above else limit.low - 1
    yield limit.low - 0.5
  if math.isfinite(limit.high):
    yield limit.high if limit.below else limit.high + 1
  if limit.above and limit.low == 0:
    yield 1e-300
  if limit.whole:
    yield 2.5
    yield 3.0
    yield 2**70


@pytest.mark.parametrize('name', sorted(ranges.RANGES))
def test_a_range_rejects_what_makes_no_sense(name):
  """Through the check of the entry point, where a config has the field."""
  limit = ranges.RANGES[name]
  # Some fields of encoders are set by no config.
  config, field = holders().get(name, ({}, name.replace('*', 'one')))
  for wrong in wrong_values(limit):
    values = [wrong] if None in limit.counts else []
    count = next((n for n in limit.counts if n), None)
    if count and wrong != 'many':
      values.append((wrong,) * count)
    for value in values:
      with pytest.raises(ValueError) as error:
        check_fields(set_field(config, field, value))
      line = str(error.value)
      assert f'config.{field}={value} must be {limit}' == line


def test_counts_of_numbers():
  config = every_config()['moco_v3:repre']
  for name, value in {
    'views.view1.scale': (0.5,),
    'views.view1.ratio': (0.5, 1.0, 2.0),
    'views.view2.sigma': 0.5,
    'views.view1.strength': (0.4, 0.4, 0.4),
    'method.repre.weights': (1.0,),
    'method.temperature': (0.2,),
    'method.repre.width': (),
  }.items():
    with pytest.raises(ValueError, match=f'config.{name}='):
      check_fields(set_field(config, name, value))


@pytest.mark.parametrize(
  'name, value',
  [
    ('views.view1.scale', (0.9, 0.1)),
    ('views.view1.ratio', (1.3, 0.7)),
    ('views.view2.sigma', (2.0, 0.1)),
  ],
)
def test_pairs_rise(name, value):
  config = every_config()['moco_v3:']
  with pytest.raises(ValueError, match='none below the one before it'):
    check_fields(set_field(config, name, value))


@pytest.mark.parametrize(
  'config, fields, told',
  [
    (
      'dino:',
      {'method.warmup_teacher_temperature': 0.1},
      'config.method.teacher_temperature=0.07',
    ),
    ('moco_v3:', {'views.view1.strength': (0.4, 0.4, 0.4, 0.6)}, 'hue'),
    (
      'moco_v3:repre',
      {
        'method.repre.weighting': 'fixed',
        'method.repre.weights': (0.0, 0.0),
      },
      'nothing is learned',
    ),
    (
      'moco_v3:masked',
      {'method.masked.weight': 0.0, 'method.masked.contrast_weight': 0.0},
      'nothing is learned',
    ),
    ('moco_v3:', {'optim.exclude': '(bias'}, 'regular expression'),
  ],
)
def test_fields_that_do_not_go_together(config, fields, told):
  config = every_config()[config]
  for name, value in fields.items():
    config = set_field(config, name, value)
  with pytest.raises(ValueError, match=told):
    check_fields(config)


def test_dino_without_a_warm_up_may_start_anywhere():
  config = every_config()['dino:']
  config = set_field(config, 'method.warmup_teacher_temperature', 0.1)
  check_fields(set_field(config, 'method.warmup_teacher_epochs', 0))


def test_configs_of_other_people_pass():
  check_fields(
    ml_collections.ConfigDict(
      dict(task='knn', mine=dict(number=-INF, word='x'), method=dict(name='k'))
    )
  )


def test_every_word_is_known_or_free():
  """A new field of words has to be added to `training/words.py`."""
  missing = set()
  for config in every_config().values():
    for name, value in ranges.leaves(config):
      if name not in words.WORDS:
        name = ranges.pattern(name)
      known = (*words.WORDS, *words.FREE)
      listed = value if isinstance(value, tuple) else (value,)
      if any(isinstance(x, str) for x in listed) and name not in known:
        if ranges.find(name) is None:
          missing.add(name)
  assert not missing


SOURCES = {
  'task': main.TASKS,
  'dtype': layers.DTYPES,
  'which': backbone.WHICH,
  'weights.activation': activations.ACTIVATIONS,
  'weights.pool': vit.POOLS,
  'data.name': sources.SOURCES,
  'data.mode': mode.MODES,
  'data.eval_resample': views.RESAMPLES,
  'views.*.resample': views.RESAMPLES,
  'encoder.pool': vit.POOLS,
  'encoder.positions': vit.POSITIONS,
  'encoder.relative': positions.RELATIVE,
  'encoder.init_scheme': initializers.VIT_INITS,
  'encoder.mlp': layers.MLPS,
  'encoder.padding': windows.PADDINGS,
  'encoder.attention_impl': attention.ATTENTION_IMPLS,
  'attention_impl': attention.ATTENTION_IMPLS,
  'method.name': methods.METHODS,
  'method.masked.name': methods.MASKED,
  'method.head': {*HEADS, *MOCO_HEADS},
  'method.weighting': joint.WEIGHTINGS,
  'method.repre.fusion': decoders.FUSIONS,
  'method.repre.weighting': WEIGHTINGS,
  'method.decoder.fusion': decoders.FUSIONS,
  'method.masking': masks.KINDS,
  'method.focus': masks.FOCUS,
  'method.target': TARGETS,
  'method.decoder.kind': DECODERS,
  'method.mimic.error': mimic.ERRORS,
  'method.mimic.at': mimic.PLACES,
  'method.mimic.on': branch.WHERE,
  'method.mimic.fusion': mimic.FUSIONS,
  'method.teachers.*.which': backbone.WHICH,
  'optim.name': optim.OPTIMIZERS,
  'optim.schedule': recipe.SCHEDULES,
  'features.pooling': pooling.POOLINGS,
  'probe.pooling': pooling.POOLINGS,
  'embed.format': WRITERS,
  'head.pool': POOLS,
  'augment.rand_resample': rand_augment.RESAMPLES,
  'pictures': PICTURES,
}


@pytest.mark.parametrize('name', sorted(SOURCES))
def test_words_are_those_of_the_code(name):
  assert set(words.WORDS[name]) == set(SOURCES[name])


def test_encoder_words_are_those_of_the_code():
  assert words.PATCHED == tuple(models.PATCHED) == common.VITS
  assert words.COMPLETE == tuple(models.COMPLETE) == common.COMPLETE
  assert tuple(common.DECODER_WIDTH) == common.ENCODERS
  assert words.BARE == tuple(models.BARE)


@pytest.mark.parametrize('name', sorted(words.WORDS))
def test_a_wrong_word_is_refused(name):
  config = set_field({}, name.replace('*', 'one'), 'qqqqqq')
  with pytest.raises(ValueError) as error:
    check_fields(config)
  line = str(error.value)
  assert line.startswith('unknown config.') and "'qqqqqq'. Known: " in line


def test_a_near_word_is_suggested():
  config = set_field(every_config()['moco_v3:'], 'data.mode', 'Residnt')
  with pytest.raises(ValueError) as error:
    check_fields(config)
  assert str(error.value) == (
    "unknown config.data.mode 'Residnt'; did you mean 'resident'? Known: auto, "
    'stream, resident'
  )
