"""Every config that trains, started as `main.py` starts it, for two steps.

Sizes are tiny, and views are cropped and flipped only: colours take long to
compile and have tests of their own. The rest is what the file says.
"""

import importlib
import math

import jax
import jax.numpy as jnp
import pytest
import tiny_run

import main
from configs import common, moco_v3, quickstart
from training.fields import check_fields
from training.state import named_leaves
from training.warm_start import load_params, matching
from transfer.backbone import load_backbone

STEPS, SIZE, LOCAL = 2, 16, 8
SMALL = dict(hidden=32, out=16, bottleneck=8, queue=64)
ENCODERS = dict(
  vit_mini4=dict(width=16, depth=2, num_heads=2),
  swin_mini=dict(width=8, depths=(1, 1), num_heads=(1, 2), window=2),
  convvit_mini=dict(widths=(4, 8, 16), depths=(1, 1, 1), num_heads=2),
)
# Every file once, every kind of word somewhere: compiling takes half a minute
# each. All words are built in test_main.py, both encoders take steps with every
# method in tests/pretrain/test_methods.py.
CASES = [
  ('simclr', 'vit_mini4,lars'),
  ('byol', 'vit_mini4,repre'),
  ('simsiam', 'vit_mini4,masked'),
  ('moco_v2', 'vit_mini4'),
  ('moco_v3', 'swin_mini,repre'),
  ('moby', 'vit_mini4'),
  ('dino', 'vit_mini4,crops6'),
  ('mae', 'vit_mini4'),
  ('mae', 'convvit_mini'),
]


def small(name, words, **method):
  """The config with the sizes above; `method` changes more of it."""
  module = importlib.import_module(f'configs.{name}')
  config = module.get_config(words)
  word = config.encoder.name
  config.encoder.update(ENCODERS[word], mlp_ratio=2)
  if 'positions_grid' in config.encoder:
    config.encoder.positions_grid = SIZE // 4
  known = {k: v for k, v in SMALL.items() if k in config.method}
  config.method.update(known | method)
  for part in (config.method, config.method.get('masked') or {}):
    if 'decoder' in part:
      part.decoder.update(width=16, depth=1, num_heads=2)
  if config.method.get('repre'):
    width = (8,) if word in common.COMPLETE else 8
    config.method.repre.update(width=width, levels=2)
  for view in config.views.values():
    view.update(jitter=0.0, gray=0.0, blur=0.0)
    if 'size' in view:
      view.size = LOCAL
  config.data.image_size = SIZE
  config.update(batch_size=tiny_run.BATCH, steps=STEPS)
  config.update(log_every=1, eval_every=0, checkpoint_every=0)
  if config.data.name == 'arrays':
    config.data.update(data_dir=tiny_run.data(), test_split='test')
  return config


def trained(config, workdir):
  """The summary, after a look at what the run left behind."""
  check_fields(config, main.TASKS)
  summary = main.pretrain(config.lock(), str(workdir))
  assert summary['steps'] == STEPS
  assert tiny_run.saved_steps(workdir) == [STEPS]
  assert (workdir / 'summary.json').exists()
  rows = tiny_run.losses(workdir)
  assert list(rows) == [1, 2]
  for row in rows.values():
    assert all(math.isfinite(value) for value in row.values()), row
    assert row['bad_steps'] == 0 and row['grad_norm'] > 0
    assert ('loss_pixels' in row) == bool(config.method.get('repre'))
    assert ('loss_masked' in row) == bool(config.method.get('masked'))
  return summary


@pytest.mark.parametrize(
  ('name', 'words'), CASES, ids=lambda x: x.replace(',', '-')
)
def test_two_steps(name, words, tmp_path):
  config = small(name, words)
  if (name, words) != CASES[0]:  # k-NN knows nothing of methods
    config.data.test_split = ''
  trained(config, tmp_path)


def test_a_mask_token_stays_with_the_task(tmp_path):
  """Who reads the encoder gets it without; others start from it."""
  trained(small('simmim', 'vit_mini4', mask_unit=8), tmp_path)
  found, backbone = load_params(tmp_path), load_backbone(tmp_path)
  token = 'encoder/mask_token/token'
  encoder = {name for name in found if name.startswith('encoder/')}
  assert encoder - backbone.params.keys() == {token}
  image = jnp.zeros((1, SIZE, SIZE, 3))
  wanted = jax.eval_shape(backbone.encoder.init, jax.random.key(0), image)
  assert set(named_leaves(dict(encoder=wanted['params']))) == encoder - {token}
  mask_token = dict(token=found[token])
  for theirs in (
    wanted['params'],
    wanted['params'] | dict(mask_token=mask_token),
  ):
    params = dict(encoder=theirs)
    taken = matching(found, params, what='SimMIM')
    assert taken.keys() == set(named_leaves(params))
  del found[token]
  assert token not in matching(found, params, what='a run without')


def test_two_steps_at_two_levels(tmp_path):
  """Of two blocks; the paper's levels are of more."""
  where = dict(levels=(1, 2), scales=(1.0, 0.5))
  trained(small('local_mim', 'vit_mini4', **where), tmp_path)


def test_the_quickstart_is_moco_v3_on_photographs():
  config = quickstart.get_config()
  wanted = moco_v3.get_config('vit_mini4,photos,repre')
  wanted.steps = config.steps
  assert config.to_json_best_effort() == wanted.to_json_best_effort()


def test_nothing_that_trains_is_left_out():
  trains = set()
  for file in (tiny_run.ROOT / 'configs').glob('[a-z]*.py'):
    module = importlib.import_module(f'configs.{file.stem}')
    get_config = vars(module).get('get_config')
    if get_config is not None and get_config().task == 'pretrain':
      trains.add(file.stem)
  # Those with a test of their own: MR-MAE's is in transfer/test_teachers.py.
  others = {'simmim', 'local_mim', 'mr_mae', 'quickstart'}
  assert trains == {*dict(CASES), *others}
