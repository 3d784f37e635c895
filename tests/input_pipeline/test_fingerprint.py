"""What a data set is known by: which changes show, and which do not matter."""

import hashlib
import logging
import os
import shutil
import tarfile
import time
import types
import zipfile

import image_files
import numpy as np
import pytest

from input_pipeline import fingerprint as module
from input_pipeline import tree
from input_pipeline.arrays import Arrays
from input_pipeline.fingerprint import fingerprint, same, with_times
from input_pipeline.folder import from_folder
from input_pipeline.left_out import LeftOut
from input_pipeline.names import Listing, Names
from training import workdir as workdirs

PATHS = [f'{c}/{i}.png' for c in 'ab' for i in range(20)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('REPRE_JAX_CACHE', str(tmp_path / 'cache'))


@pytest.fixture
def data(tmp_path):
  image_files.write(tmp_path / 'data', *PATHS)
  return tmp_path / 'data'


def known(path, **options):
  source = from_folder(data_dir=path, **options)
  return with_times(fingerprint(source), source)


def change(path, value=99):
  """Other pixels in as many bytes, and the time stamp of before."""
  status, content = path.stat(), bytearray(path.read_bytes())
  content[-20] ^= value
  path.write_bytes(content)
  os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
  assert path.stat().st_size == status.st_size


def test_every_pixel_of_an_array_counts():
  images = np.zeros((96, 8, 8, 3), np.uint8)
  found = {fingerprint(Arrays(name='a', images=images))}
  for row in range(96):
    other = images.copy()
    other[row, 7, 3, 1] = 1
    found.add(fingerprint(Arrays(name='a', images=other)))
  assert len(found) == 97
  flat = images.reshape(96, 4, 16, 3)
  assert fingerprint(Arrays(name='a', images=flat)) not in found


def test_parts_of_an_array_are_hashed_in_order(monkeypatch):
  images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), np.uint8)
  monkeypatch.setattr(module, '_PART', 3 * 192)
  turned = np.concatenate([images[3:], images[:3]])
  assert fingerprint(Arrays(name='a', images=images[::-1])) == fingerprint(
    Arrays(name='b', images=images[::-1].copy())
  )
  assert fingerprint(Arrays(name='a', images=images)) != fingerprint(
    Arrays(name='a', images=turned)
  )


@pytest.mark.parametrize('path', [PATHS[0], PATHS[7], PATHS[-1]])
def test_any_changed_file_of_a_small_folder_shows(data, path):
  before = known(data)
  assert known(data) == before
  change(data / path)
  assert not same(before, known(data))


def test_of_a_large_folder_sizes_and_a_sample_show(data, monkeypatch):
  monkeypatch.setattr(module, 'READ', 10)
  monkeypatch.setattr(module, 'FEW', 5)
  before = known(data)
  change(data / PATHS[0])  # the first is always read
  after = known(data)
  assert not same(before, after)
  change(data / PATHS[1])  # in silence: neither size, nor time, nor read
  assert same(after, known(data))
  later = time.time() + 5
  os.utime(data / PATHS[1], (later, later))
  touched = known(data)
  assert same(after, touched) and module.changed_times(after, touched)
  with (data / PATHS[1]).open('ab') as file:
    file.write(b'\0')
  assert not same(after, known(data))


def test_a_copy_is_the_same_data(data, tmp_path):
  shutil.copytree(data, tmp_path / 'copy', copy_function=shutil.copyfile)
  image_files.settle(tmp_path / 'copy')
  before, after = known(data), known(tmp_path / 'copy')
  assert before != after and same(before, after)
  assert module.changed_times(before, after)


@pytest.mark.parametrize('kind', ['zip', 'tar'])
def test_archives(data, tmp_path, kind):
  def pack(name):
    path = tmp_path / f'{name}.{kind}'
    if kind == 'zip':
      with zipfile.ZipFile(path, 'w') as file:
        for one in PATHS:
          file.write(data / one, one)
    else:
      with tarfile.open(path, 'w') as file:
        for one in PATHS:
          file.add(data / one, one)
    return known(path)

  before = pack('one')
  assert same(before, pack('two'))
  change(data / PATHS[13])
  assert not same(before, pack('three'))


def test_only_the_files_of_a_table_count(data):
  (data / 'labels.csv').write_text(f'{PATHS[2]},x\n{PATHS[30]},y\n')
  before = known(data, labels='labels.csv')
  change(data / PATHS[3])
  assert known(data, labels='labels.csv') == before
  change(data / PATHS[30])
  assert not same(before, known(data, labels='labels.csv'))


def former(source):
  """As checkpoints kept it before contents counted."""
  names = [os.path.basename(source.where(i)) for i in range(len(source))]
  content = hashlib.sha256(repr(names).encode())
  content.update(repr(source.classes).encode())
  content.update(source.labels.astype('<i4').tobytes())
  return f'{len(source):,} images, {content.hexdigest()[:16]}'


def test_runs_with_a_former_fingerprint_continue(data, tmp_path, caplog):
  config = types.SimpleNamespace(resume='auto')
  source = from_folder(data_dir=data)
  old, now = former(source), known(data)
  with caplog.at_level(logging.WARNING):
    workdirs.check_data(tmp_path, config, old, now)
    workdirs.check_data(tmp_path, config, now, now)
    workdirs.check_data(tmp_path, config, None, now)
  assert not caplog.text
  image_files.settle(data)
  with caplog.at_level(logging.WARNING):
    workdirs.check_data(tmp_path, config, now, known(data))
  assert 'other time stamps' in caplog.text
  change(data / PATHS[5])
  with pytest.raises(workdirs.WorkdirError, match='the contents of the images'):
    workdirs.check_data(tmp_path, config, now, known(data))
  (data / PATHS[5]).rename(data / 'a' / 'other.png')
  for then in (old, now):
    with pytest.raises(workdirs.WorkdirError, match='names, labels or classes'):
      workdirs.check_data(tmp_path, config, then, known(data))
  config.resume = 'force'
  workdirs.check_data(tmp_path, config, now, known(data))


def test_many_files_are_looked_at_fast(tmp_path):
  count = 100_000
  names = Names.of(f'{i // 1000:04}/{i:08}.JPEG'.encode() for i in range(count))
  images = Listing(names, LeftOut())
  assert [*images][99] == images[99] and len([*images]) == count
  within = images.within(b'0042')
  assert [*within][:2] == [b'00042000.JPEG', b'00042001.JPEG']
  began = time.process_time()
  found = tree.stamps_of(os.fsencode(tmp_path), images, np.arange(1, count))
  assert time.process_time() - began < 10  # a tenth of this on an idle core
  assert found.content.shape == (count - 1,) and found.size == 0
  assert (found.content == -1).all()  # none of them is there
