"""Open fields get numbers at the first start, and keep them."""

import json
import logging

import jax
import pytest

from configs import (
  automatic,
  dino,
  mae,
  moby,
  moco_v2,
  moco_v3,
  mr_mae,
  simclr,
  simmim,
)
from pretrain import estimate, first_start
from pretrain.sizing import Device
from training import sharding, workdir
from training.fields import get_field
from training.workdir import WorkdirError

SMALL = dict(width=16, depth=1, num_heads=2)
CPU = Device(memory=24 * 2**30, count=1, cores=2)
GPU = Device(memory=80 * 2**30, count=1)


def config(module=moco_v3, words='vit_mini4,folder', **fields):
  """A config with an encoder that is quick to trace."""
  out = module.get_config(words)
  out.encoder.update(SMALL)
  known = {'hidden': 32, 'out': 16, 'bottleneck': 8}
  out.method.update({k: v for k, v in known.items() if k in out.method})
  out.update_from_flattened_dict(
    {name.replace('__', '.'): value for name, value in fields.items()}
  )
  return out.lock()


def source(images):
  class Files(list):
    name, labels, channels = 'images', None, None

  return Files(range(images))


@pytest.fixture
def mesh():
  return jax.make_mesh(
    (1, 1),
    sharding.AXES,
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
    devices=jax.devices()[:1],
  )


@pytest.fixture
def settled(monkeypatch, mesh):
  def call(config, folder, images=205, device=CPU):
    for module in (estimate, first_start):
      monkeypatch.setattr(module, 'device_of', lambda mesh: device)
    return first_start.settled(
      config, folder, sources=(source(images), None), channels=3, mesh=mesh
    )

  return call


def begun(config, folder):
  """A workdir as a run leaves it that was stopped before it saved."""
  folder.mkdir(exist_ok=True)
  workdir.record(folder, config)
  return json.loads((folder / 'config.json').read_text())


def test_every_open_field_has_a_number(settled, tmp_path, capfd):
  found = settled(config(), tmp_path)
  assert 'paper' not in found
  for name in automatic.OPEN:
    value = get_field(found, name)
    assert value is not None or name.startswith('method.')
  assert found.steps > 0 and found.batch_size <= 102
  text = capfd.readouterr().err
  assert f'batch_size={found.batch_size}' in text
  assert '205 images' in text and 'about' in text


def test_what_is_set_stays_set(settled, tmp_path):
  fields = dict(batch_size=24, steps=7, log_every=3, optim__base_lr=0.25)
  found = settled(config(**fields), tmp_path)
  assert (found.batch_size, found.steps, found.log_every) == (24, 7, 3)
  assert found.optim.base_lr == 0.25
  assert found.optim.warmup_epochs <= 0.1 * 7 / (205 // 24)


def test_the_same_command_keeps_it(settled, tmp_path, capfd):
  """The folder grew and the device is another one."""
  first = settled(config(), tmp_path)
  recorded = begun(first, tmp_path)
  again = settled(config(), tmp_path, images=50_000, device=GPU)
  assert begun(again, tmp_path / 'again') == recorded
  workdir.check_config(tmp_path, again)
  assert 'as at the first start' in capfd.readouterr().err
  # Another run in a folder where nothing was saved yet chooses its own.
  other = settled(config(encoder__depth=2), tmp_path, images=50_000, device=GPU)
  assert other.batch_size == 512


def test_only_chunks_are_chosen_again(settled, tmp_path):
  first = settled(config(), tmp_path, images=50_000, device=GPU)
  assert first.chunks == 1
  begun(first, tmp_path)
  small = Device(memory=2**30)
  again = settled(config(), tmp_path, images=50_000, device=small)
  assert again.chunks > 1 and again.batch_size == first.batch_size
  workdir.check_config(tmp_path, again)
  with pytest.raises(WorkdirError, match='batch_size'):
    other = config(batch_size=8)
    workdir.check_config(tmp_path, settled(other, tmp_path / 'x'))


def test_a_run_that_began_with_the_papers_numbers_continues(settled, tmp_path):
  """Its config.json has 224 px, batch 4096 and 300 epochs."""
  old = automatic.as_published(config(words='vit_mini4,folder,paper'))
  begun(old, tmp_path)
  again = settled(config(), tmp_path, images=5000)
  workdir.check_config(tmp_path, again)
  assert again.data.image_size == 224 and again.batch_size == 4096
  assert (again.epochs, again.steps) == (300.0, None)


@pytest.mark.parametrize('module', [moby, moco_v2])
def test_queues_are_filled_by_whole_batches(module, settled, tmp_path):
  found = settled(config(module), tmp_path)
  assert found.method.queue % found.batch_size == 0
  found = settled(config(module, method__queue=96), tmp_path)
  assert found.method.queue == 96 and 96 % found.batch_size == 0


def test_what_needs_no_pixels_is_checked(settled, tmp_path):
  cases = (
    (dict(batch_size=300), 'larger than the data set of 205'),
    (dict(data__image_size=63), 'nearest sizes that work'),
    (dict(batch_size=9, chunks=2), 'chunks'),
    (dict(dtype='fp16'), 'unknown dtype'),
    (dict(method__name='moco'), 'moco_v3'),
    (dict(optim__schedule='cosin'), 'unknown optim.schedule'),
    (dict(epochs=0.0), 'nothing to do'),
  )
  for fields, words in cases:
    with pytest.raises(ValueError, match=words):
      settled(config(**fields), tmp_path)
  with pytest.raises(ValueError, match='1 image.*mae'):
    settled(config(), tmp_path, images=1)
  with pytest.raises(ValueError, match=r'queue of 100.*batches of 16'):
    settled(config(moby, method__queue=100, batch_size=16), tmp_path)


def test_one_image_is_enough_to_reconstruct(settled, tmp_path):
  found = settled(config(mae), tmp_path, images=1)
  assert found.batch_size == 1 and found.steps >= 100


def test_a_step_that_is_too_large_is_named(settled, tmp_path, caplog):
  fields = dict(batch_size=128, chunks=1, dtype='float32')
  with caplog.at_level(logging.WARNING):
    settled(config(**fields), tmp_path, device=Device(memory=2**28))
  assert 'config.chunks=' in caplog.text and '0.25 GiB' in caplog.text


class TestConfigs:
  def test_images_have_a_sensible_number_of_tokens(self):
    sides = {
      'vit_s16': 224,
      'vit_b32': 224,
      'vit_l14': 224,
      'vit_s8': 224,
      'vit_mini4': 64,
      'vit_mini8': 128,
      'vit_s2': 32,
      'vit_s12': 216,
      'swin_t': 224,
      'swin_mini': 64,
      'convvit_mini': 64,
      'convvit_b': 224,
    }
    for word, side in sides.items():
      found = moco_v3.get_config(f'{word},folder').data.image_size
      assert found == side, word
    assert moco_v3.get_config('vit_s16,imagenette').data.image_size == 128
    assert moco_v3.get_config('vit_mini4,folder,paper').data.image_size == 224

  def test_local_crops_and_hidden_units_are_in_proportion(self):
    local = dino.get_config('vit_mini4,folder').views.local1
    assert (local.size, local.blur) == (24, 0.0)
    assert dino.get_config('vit_s16,folder').views.local1.size == 96
    assert dino.get_config('vit_s16,imagenette').views.local1.size == 48
    assert simmim.get_config('vit_mini4,folder').method.mask_unit == 8

  def test_the_word_paper_leaves_nothing_open(self):
    for module in (moco_v3, mae, simmim, dino, moby, mr_mae):
      words = 'swin_t' if module is simmim else 'vit_s16'
      found = module.get_config(f'{words},folder,paper')
      assert 'paper' not in found and found.batch_size >= 512
      published = automatic.as_published(module.get_config(f'{words},folder'))
      assert published.to_dict() == found.to_dict()

  def test_data_with_a_recipe_of_their_own_have_no_paper(self):
    with pytest.raises(ValueError, match='paper is for other data'):
      moco_v3.get_config('vit_mini4,photos,paper')

  def test_another_optimiser_keeps_its_rate(self):
    found = simclr.get_config('vit_s16,folder,lars')
    assert found.optim.base_lr == 0.3 and found.batch_size is None
