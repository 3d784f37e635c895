"""Runs from before a default changed go on as they began."""

import json

import ml_collections
import pytest

from configs import moco_v3
from pretrain.changed_defaults import as_begun
from training.workdir import check_config


@pytest.fixture
def workdir(tmp_path):
  (tmp_path / 'checkpoints' / '4').mkdir(parents=True)
  return tmp_path


def config_of(words):
  config = moco_v3.get_config(f'vit_mini4,photos,{words}')
  config.data.data_dir = None
  return config


def record(workdir, config):
  text = config.to_json_best_effort()
  (workdir / 'config.json').write_text(text)
  return json.loads(text)


def earlier(words):
  """As configs were when weights of losses were learned, or fixed at 1."""
  config = ml_collections.ConfigDict(config_of(words).to_dict())
  with config.unlocked():
    if config.method.repre:
      del config.method.repre.weighting_window
      config.method.repre.weighting = 'uncertainty'
    if config.method.masked:
      del config.method.masked.weighting_window
      del config.method.masked.weighting
  return config


@pytest.mark.parametrize('words', ['repre', 'repre,masked', 'masked'])
def test_an_earlier_run_continues_with_its_weighting(workdir, words):
  record(workdir, earlier(words))
  config = config_of(words)
  for _ in range(2):  # also once the new program has recorded its config
    begun = as_begun(config, workdir)
    method = begun.method
    assert not method.repre or method.repre.weighting == 'uncertainty'
    assert not method.masked or method.masked.weighting == 'fixed'
    check_config(workdir, begun)
    record(workdir, begun)
  assert not config.method.repre or config.method.repre.weighting == 'balanced'


def test_a_run_of_now_keeps_its_config(workdir):
  config = config_of('repre')
  assert as_begun(config, workdir) is config  # nothing is recorded
  record(workdir, config_of('repre_learned'))
  assert as_begun(config, workdir) is config
  with pytest.raises(ValueError, match='method.repre.weighting: uncertainty'):
    check_config(workdir, as_begun(config, workdir))
