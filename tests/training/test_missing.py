"""Paths of runs and of weights that are not there."""

import pytest
from etils import epath

from training.checkpoint import CheckpointError
from training.missing import check_folder
from training.warm_start import load_params
from transfer.backbone import load_backbone


@pytest.fixture
def folder(tmp_path):
  for name in ('dino_vits16.pth', 'mae_vitb16.safetensors', 'notes.txt'):
    (tmp_path / name).write_text('')
  return epath.Path(tmp_path)


@pytest.mark.parametrize('read', [load_backbone, load_params])
def test_a_missing_file_of_weights(folder, read):
  with pytest.raises(CheckpointError) as error:
    read(folder / 'dino_vits_16.pth')
  line = str(error.value)
  assert f'{folder}/dino_vits_16.pth is neither a workdir nor' in line
  assert 'it does not exist; did you mean' in line
  assert f'did you mean {folder}/dino_vits16.pth?' in line
  assert 'mae_vitb16.safetensors, notes.txt' in line
  assert 'config.json' not in line


def test_a_far_name_and_a_missing_folder(folder):
  with pytest.raises(CheckpointError) as error:
    check_folder(folder / 'qqqqqqq')
  assert 'did you mean' not in str(error.value)
  assert f'In {folder}: dino_vits16.pth, mae' in str(error.value)
  with pytest.raises(CheckpointError, match=f'only {folder} does'):
    check_folder(folder / 'a' / 'b' / 'c')


def test_a_file_of_another_kind(folder):
  with pytest.raises(CheckpointError, match=r'it is a file, .* \.pth'):
    load_backbone(folder / 'notes.txt')
  check_folder(folder)
