"""Notebooks run from top to bottom, shortened, and are kept without outputs."""

import ast
import os

import nbclient
import nbformat
import numpy as np
import pytest
import tiny_run
from PIL import Image

FOLDER = tiny_run.ROOT / 'colab'
# In place of the cell that is tagged `parameters`.
SHORT = {
  'quickstart': dict(STEPS=4, PROBE_EPOCHS=1.0, STRIDE=64),
  'your_images': dict(STEPS=4, ENCODER='vit_mini8', SIZE=16, BATCH=16),
}


def read(name):
  return nbformat.read(FOLDER / f'{name}.ipynb', as_version=4)


def parameters(notebook):
  (cell,) = (
    c for c in notebook.cells if 'parameters' in c.metadata.get('tags', ())
  )
  return cell


def assigned(source):
  return {node.targets[0].id for node in ast.parse(source).body}


def execute(name, **changes):
  """What the cells print, after running all of them."""
  notebook = read(name)
  cell = parameters(notebook)
  assert set(changes) <= assigned(cell.source)
  cell.source += ''.join(f'\n{k} = {v!r}' for k, v in changes.items())
  place = dict(metadata=dict(path=str(FOLDER)))
  nbclient.NotebookClient(notebook, timeout=600, resources=place).execute()
  outputs = [out for c in notebook.cells for out in c.get('outputs', ())]
  text = ''.join(out.get('text', '') for out in outputs)
  images = [o for o in outputs if 'image/png' in o.get('data', {})]
  return text, images


@pytest.mark.parametrize('path', sorted(FOLDER.glob('*.ipynb')), ids=str)
def test_outputs_are_stripped(path):
  assert path.stem in SHORT
  for cell in read(path.stem).cells:
    assert not cell.get('outputs') and not cell.get('execution_count')


def test_quickstart(tmp_path):
  out = os.path.relpath(tmp_path / 'out', tiny_run.ROOT)
  text, images = execute('quickstart', OUT=out, **SHORT['quickstart'])
  assert 'step 4/4' in text and 'linear probe: top-1' in text
  assert len(images) >= 4
  assert (tmp_path / 'out/pretrain/summary.json').exists()


def test_your_images(tmp_path):
  rng = np.random.default_rng(0)
  for i in range(40):
    path = tmp_path / 'images' / f'set {i % 2}' / f'{i}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = rng.integers(0, 256, (4, 5, 3), np.uint8)
    Image.fromarray(coarse).resize((40 + i % 3, 36)).save(path)
  out = os.path.relpath(tmp_path / 'out', tiny_run.ROOT)
  fields = dict(SHORT['your_images'], FOLDER=str(tmp_path / 'images'))
  text, images = execute('your_images', OUT=out, **fields)
  assert '(40, 96) float32' in text
  assert len(images) >= 3
  assert Image.open(tmp_path / 'out/neighbours.png').size[0] > 1000
