"""The last lines of every job, from its config and its summary alone."""

import json

import ml_collections
import pytest

import main
from transfer import results

ROW = dict(top1=47.8, top5=88.1)
FEW = dict(
  images=40,
  draws=3,
  logistic={'0.1': dict(ROW, top1_std=1.5)},
  ridge={},
  best=ROW,
)
CASES = {
  'pretrain': (
    dict(
      knn_raw_pixels=24.05,
      knn_histogram=44.3,
      knn_untrained=34.9,
      knn_top1=47.8,
      weight_contrast=0.63,
      optimum_contrast=0.6252,
      weight_pixels=39.55,
      optimum_pixels=40.1,
      loss=1.5,
      steps=300,
      seconds=126.0,
      images_per_second=81.0,
    ),
    'k-NN top-1 in %: raw pixels 24.1 | histogram 44.3 | untrained 34.9 | '
    'trained 47.8',
  ),
  'knn': (
    dict(
      knn_k=20,
      bank_images=400,
      query_images=100,
      knn_top1_k10=40.0,
      knn_top5_k10=80.0,
      knn_top1_k20=47.8,
      knn_top5_k20=88.1,
      knn_raw_pixels=24.0,
    ),
    'k 20: top-1 47.80 %, top-5 88.10 % (best)',
  ),
  'linear_probe': (
    dict(ROW, best='last/mean/lr1', seconds=20.0, loss=359.7, steps=9),
    '  last/mean/lr1: top-1 47.80 %, top-5 88.10 %',
  ),
  'finetune': (
    dict(ROW, loss=0.5),
    'test images: top-1 47.80 %, top-5 88.10 %',
  ),
  'fewshot': (
    dict(fewshot={'10%': FEW}),
    '10% (40 images, 3 draws), logistic 0.1: top-1 47.80 ± 1.50 %, top-5 '
    '88.10 %',
  ),
  'embed': (
    dict(file='w/features.npz', images=400, width=96, unreadable=2),
    'features: 400 images x 96 numbers in w/features.npz',
  ),
  'visualize': (
    dict(pictures=['tsne'], formats=['png', 'pdf'], left_out={'pca': 'why'}),
    'left out: pca (the reasons are in summary.json)',
  ),
  'export': (
    dict(files=['w/timm/model.safetensors'], notes=['timm: a note']),
    'file: w/timm/model.safetensors',
  ),
  'check_data': (dict(mode='stream'), 'views: w/images/views.png'),
}


def test_every_job_has_an_ending():
  assert set(results.RESULTS) == set(main.TASKS) == set(CASES)


@pytest.mark.parametrize('task', CASES)
def test_results_files_and_the_next_command(task, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(
    'sys.argv',
    [
      'main.py',
      '--config=configs/mae.py:folder',
      '--config.task=check_data',
      '--workdir=w',
    ],
  )
  folder = tmp_path / 'w'
  folder.mkdir()
  (folder / 'summary.json').write_text('{}')
  (folder / 'grid.json').write_text(
    json.dumps([dict(ROW, probe='last/mean/lr1')])
  )
  summary, line = CASES[task]
  config = ml_collections.ConfigDict(
    dict(
      task=task,
      checkpoint='runs/a b' if task != 'pretrain' else None,
      data=dict(name='folder', data_dir='images', image_size=64),
    )
  )
  text = results.ending(config, summary, 'w')
  assert line in text.splitlines()
  assert 'files: w: summary.json, grid.json' in text
  assert 'next' in text
  assert max(map(len, text.splitlines())) <= 100 + len(results.sys.executable)
  if task == 'check_data':
    assert 'check_data' not in text and 'configs/mae.py:folder' in text
    assert '--workdir=w_run' in text and '--workdir=w ' not in text
  if task == 'pretrain':
    assert (
      'weights of the losses: contrast 0.63 (optimum 0.625), pixels 39.5 '
      '(optimum 40.1)'
    ) in text.splitlines()
    assert '0:02:06' in text and '81 images/s' in text
    for words in ('visualize.py:folder', '--config.checkpoint=w', '=images'):
      assert words in text
  if task == 'knn':
    assert "'--config.checkpoint=runs/a b'" in text
    assert 'raw pixels: top-1 24.00 %' in text
