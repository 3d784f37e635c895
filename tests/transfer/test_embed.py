"""Features as files: every image once, in order, also after a stop."""

import json
import pathlib

import frozen_jobs
import numpy as np
import pytest
import tiny_run

from input_pipeline.arrays import fit
from input_pipeline.decode import decode
from transfer import parts
from transfer.backbone import load_backbone
from transfer.embed import job as embed

pq = pytest.importorskip('pyarrow.parquet')


@pytest.fixture
def folder(tmp_path):
  """Eleven images, the second and the ninth broken."""
  return frozen_jobs.write_folder(tmp_path / 'data', broken=(1, 8))


def options(folder, **fields):
  """Parts of 8 images, a batch of the smallest jobs."""
  fields = dict(per_part=8) | fields
  words = [f'--config.embed.{name}={value}' for name, value in fields.items()]
  return [f'--config.data.data_dir={folder}', *words]


def read_npz(workdir):
  with np.load(pathlib.Path(workdir) / 'features.npz') as file:
    return dict(file)


def twin(paths, pick=lambda found: found.pooled):
  """Features of files, one by one."""
  backbone = load_backbone(tiny_run.finished())
  out = []
  for path in paths:
    image = decode(pathlib.Path(path).read_bytes(), 3)[None]
    image = fit(image, tiny_run.SIZE, resample='bicubic')
    found = backbone.encoder.apply(
      backbone.variables(), image.astype(np.float32) / 255
    )
    out.append(np.asarray(pick(found))[0])
  return np.stack(out)


def test_every_image_once_in_order(monkeypatch, tmp_path, folder):
  workdir = tmp_path / 'npz'
  summary = frozen_jobs.run(
    monkeypatch, 'embed.py:folder', workdir, *options(folder)
  )
  found = read_npz(workdir)
  names = [path.partition('/')[2][-14:] for path in found['path']]
  everything = sorted(folder.glob('*/*'))
  broken = [folder / 'class 1/01.png', folder / 'class 2/08.png']
  readable = [path for path in everything if path not in broken]
  assert names == [str(path)[-14:] for path in readable]
  assert [str(x)[-14:] for x in found['unreadable']] == [
    'class 1/01.png',
    'class 2/08.png',
  ]
  assert found['features'].dtype == np.float32
  np.testing.assert_allclose(found['features'], twin(readable), atol=1e-5)
  assert found['classes'].tolist() == ['class 0', 'class 1', 'class 2']
  assert found['class'].tolist() == [path.parent.name for path in readable]
  assert found['classes'][found['label']].tolist() == found['class'].tolist()
  assert (summary['images'], summary['width']) == (9, 32)
  assert summary['unreadable'] == 2
  assert summary['unreadable_images'] == found['unreadable'].tolist()
  assert summary['file'] == str(workdir / 'features.npz')
  assert not (workdir / 'parts').exists()
  # Once more: nothing is done.
  monkeypatch.setattr(embed, '_embed', None)
  again = frozen_jobs.run(
    monkeypatch, 'embed.py:folder', workdir, *options(folder)
  )
  assert again == summary


@pytest.mark.parametrize('kind', ['npz', 'parquet'])
def test_a_stopped_job_goes_on_byte_for_byte(
  monkeypatch, tmp_path, folder, kind
):
  words = options(folder, format=kind)
  whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
  frozen_jobs.run(monkeypatch, 'embed.py:folder', whole, *words)
  add = parts.Parts.add

  def once(self, *part):
    if self.count == 1:
      raise RuntimeError('the power is out')
    add(self, *part)

  with monkeypatch.context() as patched:
    patched.setattr(parts.Parts, 'add', once)
    line = frozen_jobs.refused(patched, 'embed.py:folder', stopped, *words)
  assert 'the power is out' in line
  kept = sorted(path.name for path in (stopped / 'parts').iterdir())
  assert kept == ['0000000.npz', 'about.json']
  # It died while writing the second.
  first = (stopped / 'parts' / '0000000.npz').read_bytes()
  (stopped / 'parts' / '0000001.npz.part').write_bytes(first[:99])
  read = []
  features = parts.features

  def watched(*args, indices, **kwargs):
    read.extend(indices)
    return features(*args, indices=indices, **kwargs)

  monkeypatch.setattr(parts, 'features', watched)
  frozen_jobs.run(monkeypatch, 'embed.py:folder', stopped, *words)
  assert read == [8, 9, 10]
  name = f'features.{kind}'
  assert (stopped / name).read_bytes() == (whole / name).read_bytes()


def test_a_damaged_part_is_made_again(monkeypatch, tmp_path, folder, caplog):
  words = options(folder)
  workdir = tmp_path / 'run'
  with monkeypatch.context() as patched:
    patched.setattr(parts.Parts, 'remove', lambda self: None)
    frozen_jobs.run(patched, 'embed.py:folder', workdir, *words)
  whole = (workdir / 'features.npz').read_bytes()
  path = workdir / 'parts' / '0000001.npz'
  content = bytearray(path.read_bytes())
  content[-200] ^= 255
  path.write_bytes(content)
  (workdir / 'features.npz').unlink()
  (workdir / 'summary.json').unlink()
  frozen_jobs.run(monkeypatch, 'embed.py:folder', workdir, *words)
  assert '0000001.npz is damaged' in caplog.text
  assert (workdir / 'features.npz').read_bytes() == whole


def test_other_images_are_not_mixed_in(monkeypatch, tmp_path, folder, caplog):
  words = options(folder)
  workdir = tmp_path / 'run'
  with monkeypatch.context() as patched:
    patched.setattr(embed, 'WRITERS', dict(npz=None))
    line = frozen_jobs.refused(patched, 'embed.py:folder', workdir, *words)
  assert 'not callable' in line
  assert len(list((workdir / 'parts').glob('*.npz'))) == 2
  new = folder / 'class 0' / '000.png'
  new.write_bytes((folder / 'class 2' / '02.png').read_bytes())
  frozen_jobs.run(monkeypatch, 'embed.py:folder', workdir, *words)
  assert 'kept features are of other images, chosen' in caplog.text
  found = read_npz(workdir)
  assert len(found['path']) == 10
  same = [str(x).endswith(('/000.png', '/02.png')) for x in found['path']]
  copies = found['features'][same]
  np.testing.assert_allclose(copies[0], copies[1], atol=1e-5)


def test_parquet_holds_what_npz_holds(monkeypatch, tmp_path, folder):
  """In half precision, of a level's mean, grey, and without labels too."""
  for kind in ('npz', 'parquet'):
    frozen_jobs.run(
      monkeypatch,
      'embed.py:folder',
      tmp_path / kind,
      *options(folder, format=kind, dtype='float16'),
      '--config.features.level=0',
    )
  want = read_npz(tmp_path / 'npz')
  table = pq.read_table(tmp_path / 'parquet' / 'features.parquet')
  assert table.schema.names == ['path', 'label', 'class', 'features']
  for name in ('path', 'label', 'class'):
    assert table[name].to_pylist() == want[name].tolist()
  assert table.schema.field('features').type.list_size == 32
  values = np.array(table['features'].to_pylist())
  assert want['features'].dtype == np.float16
  np.testing.assert_array_equal(values, want['features'])
  metadata = {k: json.loads(v) for k, v in table.schema.metadata.items()}
  assert metadata[b'classes'] == want['classes'].tolist()
  assert metadata[b'unreadable'] == want['unreadable'].tolist()
  readable = [
    path for path in sorted(folder.glob('*/*')) if len(path.read_bytes()) > 10
  ]
  mean = twin(readable, lambda found: found.levels[0].tokens.mean(1))
  np.testing.assert_allclose(values, mean, rtol=2e-3, atol=2e-3)


def test_no_labels_are_needed(monkeypatch, tmp_path):
  folder = frozen_jobs.write_folder(tmp_path / 'data', count=3, mode='L')
  for path in sorted(folder.glob('*/*')):
    path.rename(folder / path.name)
  for kind in ('npz', 'parquet'):
    frozen_jobs.run(
      monkeypatch,
      'embed.py:folder',
      tmp_path / kind,
      *options(folder, format=kind),
    )
  assert read_npz(tmp_path / 'npz').keys() == {
    'path',
    'features',
    'unreadable',
  }
  table = pq.read_table(tmp_path / 'parquet' / 'features.parquet')
  assert table.schema.names == ['path', 'features']
  assert table.num_rows == 3


@pytest.mark.parametrize(
  'words, told',
  [
    (
      ['--config.embed.format=csv'],
      "config.embed.format 'csv'. Known: npz, parquet",
    ),
    (
      ['--config.embed.dtype=int8'],
      "config.embed.dtype 'int8'. Known: float32, ",
    ),
    (['--config.embed.per_part=0'], 'config.embed.per_part=0 must be at least'),
    (['--config.features.level=2'], 'level=2 must be within 0..1'),
    (['--config.data.split=tain'], "nothing for the split 'tain'"),
  ],
)
def test_what_is_refused(monkeypatch, tmp_path, folder, words, told):
  line = frozen_jobs.refused(
    monkeypatch, 'embed.py:folder', tmp_path / 'x', *options(folder), *words
  )
  assert told in line
  assert not list((tmp_path / 'x').glob('features*'))


def test_nothing_readable(monkeypatch, tmp_path):
  folder = frozen_jobs.write_folder(tmp_path / 'data', 3, broken=(0, 1, 2))
  line = frozen_jobs.refused(
    monkeypatch, 'embed.py:folder', tmp_path / 'x', *options(folder)
  )
  assert 'no image of' in line and 'could be read' in line


def test_without_pyarrow(monkeypatch, tmp_path, folder):
  monkeypatch.setattr(embed.process, 'installed', lambda name: False)
  line = frozen_jobs.refused(
    monkeypatch,
    'embed.py:folder',
    tmp_path / 'x',
    *options(folder, format='parquet'),
  )
  assert 'needs pyarrow: pip install pyarrow' in line
  assert not (tmp_path / 'x').exists()


def test_half_precision_that_overflows():
  with pytest.raises(ValueError, match='up to 1e.05 do not fit into float16'):
    parts._cast(np.array([[1.0, -1e5]], np.float32), 'float16')
