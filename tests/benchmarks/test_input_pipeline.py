"""The input benchmark runs, on images of its own, and counts right."""

import json

import numpy as np
from PIL import Image

from benchmarks import input_pipeline


def test_rows_are_measured_and_written(tmp_path, capsys):
  out = tmp_path / 'out.jsonl'
  rows = ['mae once', 'moco_v3 threads', 'resident']
  input_pipeline.main(
    [
      'input_pipeline',
      f'--rows={",".join(rows)}',
      f'--out={out}',
      '--seconds=0.05',
      '--rounds=2',
      '--batch_size=4',
      '--workers=1',
    ]
  )
  found = [json.loads(line) for line in out.read_text().splitlines()]
  assert {row['name'] for row in found} == set(rows)
  for row in found:
    assert row['images_per_second'] > 0 and row['images'] == 200
    assert len(row['spread'].split()) == 2
    assert {'versions', 'commit', 'device_kind'} <= set(row)
  table = capsys.readouterr().out
  assert all(f'| {name} |' in table for name in rows)


def test_threads_make_what_the_stream_makes(tmp_path):
  """The comparison of the two is one of the same work."""
  input_pipeline.photo_jpegs(tmp_path, count=8)
  files = sorted(tmp_path.iterdir())
  with Image.open(files[0]) as image:
    assert image.size == (500, 375) and image.format == 'JPEG'
  input_pipeline.FLAGS(['', '--batch_size=4'])
  source = input_pipeline.from_folder(data_dir=tmp_path)
  ours = next(input_pipeline.threads(source, 'moco_v3'))
  theirs = next(input_pipeline.streamed(source, 'moco_v3', False))
  for array, name in zip(ours, ('view1', 'view2'), strict=True):
    np.testing.assert_array_equal(array, theirs[name])
