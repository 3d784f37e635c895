import io
import logging
import os
import subprocess
import tarfile
import zipfile

import numpy as np
import pytest
from image_files import (
  first_pixels,
  names,
  png,
  read_by_threads,
  settle,
  write,
)

from input_pipeline import archives, folder, members, sources

PATHS = ('data/train/b/1.png', 'data/train/a/2.PNG', 'data/val/b/ü 3.png')


def load(path, split='train', **options):
  return sources.load('folder', data_dir=path, split=split, **options)


def make_zip(path, paths=PATHS, method=zipfile.ZIP_STORED, **more):
  with zipfile.ZipFile(path, 'w', method) as file:
    for number, name in enumerate(paths):
      file.writestr(name, png(number))
    for name, content in more.items():
      file.writestr(name, content)
  return path


def make_tar(path, paths=PATHS, style=tarfile.PAX_FORMAT):
  with tarfile.open(path, 'w', format=style) as file:
    for number, name in enumerate(paths):
      add(file, name, png(number))
  return path


def add(file, name, content=b'', **fields):
  info = tarfile.TarInfo(name)
  info.size = len(content)
  for key, value in fields.items():
    setattr(info, key, value)
  file.addfile(info, io.BytesIO(content))


def make(path, paths=PATHS):
  return (make_zip if path.suffix == '.zip' else make_tar)(path, paths)


both = pytest.mark.parametrize('name', ['x.zip', 'x.tar'])


@both
def test_as_the_folder(tmp_path, name):
  path = make(tmp_path / name)
  write(tmp_path, *PATHS)
  for split in ('train', 'test', 'val', 'all'):
    ours, theirs = load(path, split), load(tmp_path / 'data', split)
    assert names(ours) == names(theirs)
    assert first_pixels(ours) == first_pixels(theirs)
    assert ours.classes == theirs.classes == ('a', 'b')
    np.testing.assert_array_equal(ours.labels, theirs.labels)
  assert load(path).where(0) == f'{path}/data/train/a/2.PNG'
  assert folder.has_split(path, 'test') and not folder.has_split(path, 'x')


@both
def test_one_class_alone(tmp_path, name):
  path = make(tmp_path / name, ('top/cats/1.png', 'top/cats/2.png'))
  assert load(path, labels='folders').classes == ('cats',)


@pytest.mark.parametrize(
  'method',
  [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED],
  ids=['stored', 'deflate'],
)
def test_zip_methods(tmp_path, method):
  source = load(make_zip(tmp_path / 'x.zip', method=method), 'all')
  assert first_pixels(source) == [1, 0, 2]


def test_zip64(tmp_path):
  path = tmp_path / 'x.zip'
  with zipfile.ZipFile(path, 'w') as file:
    for number, name in enumerate(PATHS):
      with file.open(name, 'w', force_zip64=True) as member:
        member.write(png(number))
  assert first_pixels(load(path, 'all')) == [1, 0, 2]


def test_more_members_than_16_bits_count(tmp_path):
  path = tmp_path / 'x.zip'
  with zipfile.ZipFile(path, 'w') as file:
    for number in range(65536 + 3):
      file.writestr(f'{number}.png' if number % 9999 == 0 else f'{number}', b'')
    file.writestr('last.png', png(7))
  assert b'PK\6\6' in path.read_bytes()[-200:]  # zip64's record
  source = load(path)
  assert len(source) == 8
  assert source.read(names(source).index('last.png')) == png(7)


def test_wide_numbers_of_zip64(tmp_path, monkeypatch):
  """Sizes and offsets beyond 4 GiB, without writing as much."""
  monkeypatch.setattr(zipfile, 'ZIP64_LIMIT', 10)
  path = make_zip(tmp_path / 'x.zip')
  content = path.read_bytes()
  central = content[content.rfind(b'PK\1\2') :]
  assert central[20:28] == b'\xff' * 8 and central[42:46] == b'\xff' * 4
  assert first_pixels(load(path, 'all')) == [1, 0, 2]


def test_something_before_and_behind_a_zip(tmp_path):
  path = make_zip(tmp_path / 'x.zip')
  with zipfile.ZipFile(path, 'a') as file:
    file.comment = b'a note'
  path.write_bytes(b'#!/bin/sh\n' * 9 + path.read_bytes())
  assert first_pixels(load(path, 'all')) == [1, 0, 2]


@pytest.mark.parametrize(
  'style', [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_tar_formats(tmp_path, style):
  long = 'f' * 90 + '/' + 'g' * 90 + '.png'
  if style != tarfile.USTAR_FORMAT:
    long = 'd' * 200 + '/' + long
  paths = ('a/1.png', 'ü.png', long)
  source = load(make_tar(tmp_path / 'x.tar', paths, style))
  assert set(names(source)) == set(paths)
  assert first_pixels(source) == [paths.index(name) for name in names(source)]


def test_tar_of_the_command(tmp_path):
  write(tmp_path / 'in', 'a.png', 'b/c.png')
  os.link(tmp_path / 'in/a.png', tmp_path / 'in/linked.png')
  with open(tmp_path / 'in/hole.png', 'wb') as file:
    file.truncate(2**20)
  path = tmp_path / 'x.tar'
  command = ['tar', '--sparse', '-cf', path, '-C', tmp_path / 'in', '.']
  subprocess.run(command, check=True)
  source = load(path)
  assert names(source) == ['a.png', 'b/c.png', 'linked.png']
  assert first_pixels(source) == [0, 1, 0]


def test_links_and_devices_in_a_tar(tmp_path, caplog):
  with tarfile.open(tmp_path / 'x.tar', 'w') as file:
    add(file, './a.png', png(5))
    add(file, 'hard.png', type=tarfile.LNKTYPE, linkname='./a.png')
    add(file, 'lost.png', type=tarfile.LNKTYPE, linkname='b.png')
    add(file, 'soft.png', type=tarfile.SYMTYPE, linkname='a.png')
    add(file, 'pipe.png', type=tarfile.FIFOTYPE)
    add(file, 'dir.png', type=tarfile.DIRTYPE)
  with caplog.at_level(logging.WARNING):
    source = load(tmp_path / 'x.tar')
  assert names(source) == ['a.png', 'hard.png']
  assert first_pixels(source) == [5, 5]
  assert 'left out: 2 links or devices, 1 links' in caplog.text


@both
def test_hostile_names(tmp_path, name, caplog):
  paths = ['/abs.png', '../up.png', 'a/../../b.png', './c.png', 'd//e.png']
  paths += ['.hidden.png', '__MACOSX/f.png', 'g\nh.png', 'dup.png', 'dup.png']
  paths += ['x.png/y.png', '%s.png']
  with caplog.at_level(logging.WARNING):
    with pytest.warns() if name == 'x.zip' else no_warning():
      path = make(tmp_path / name, paths)
    source = load(path)
  assert dict(zip(names(source), first_pixels(source), strict=True)) == {
    'abs.png': 0,
    'c.png': 3,
    'd/e.png': 4,
    'g\\nh.png': 7,
    'dup.png': 9,  # the last counts, as when unpacking
    'x.png/y.png': 10,
    '%s.png': 11,
  }
  assert "2 names with '..'" in caplog.text
  assert '1 members bear the name of a later one' in caplog.text


class no_warning:  # noqa: N801
  def __enter__(self):
    pass

  def __exit__(self, *unused):
    pass


def test_zip_names_of_any_encoding(tmp_path):
  path = make_zip(tmp_path / 'x.zip', ['u__.png', 'c_.png', 'd^e.png'])
  content = path.read_bytes()
  content = content.replace(b'u__', 'uü'.encode())  # flag not set
  content = content.replace(b'c_', b'c\x81')  # code page 437
  path.write_bytes(content)
  assert set(names(load(path))) == {'uü.png', 'cü.png', 'd^e.png'}


@pytest.mark.parametrize('system', [0, 3])  # FAT, Unix
def test_backslashes_of_windows(tmp_path, system):
  path = tmp_path / 'x.zip'
  with zipfile.ZipFile(path, 'w') as file:
    for member in ('d^e.png', 'a.png'):
      info = zipfile.ZipInfo(member)
      info.create_system = system
      file.writestr(info, png(0))
  path.write_bytes(path.read_bytes().replace(b'd^e', b'd\\e'))
  assert names(load(path)) == ['a.png', 'd/e.png']


@both
def test_splits_and_labels_behind_backslashes(tmp_path, name):
  paths = [
    '.\\data\\train\\a\\1.png',
    'data\\train\\b\\2.png',
    '\\data\\val\\b\\3.png',
    'data\\train\\@eaDir\\4.png',
    'data\\..\\5.png',
  ]
  path = make(tmp_path / name, paths)
  train, test = load(path), load(path, 'test')
  assert names(train) == ['a/1.png', 'b/2.png'] and names(test) == ['b/3.png']
  assert train.classes == test.classes == ('a', 'b')
  assert test.labels.tolist() == [1] and first_pixels(train) == [0, 1]
  assert train.left_out.hidden == {'@eaDir': 1}


def test_a_backslash_in_a_name_of_a_tar(tmp_path):
  path = make_tar(tmp_path / 'x.tar', ['d/a\\b.png', 'd/c.png'])
  assert names(load(path)) == ['d/a\\b.png', 'd/c.png']


def damage(path, old, new):
  content = path.read_bytes()
  assert old in content
  path.write_bytes(content.replace(old, new))


@pytest.mark.parametrize('method', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_wrong_checksum_is_noticed(tmp_path, method):
  path = make_zip(tmp_path / 'x.zip', method=method)
  with zipfile.ZipFile(path) as file:
    start = file.infolist()[1].header_offset + 30 + len(PATHS[1])
  content = bytearray(path.read_bytes())
  content[start + 45] ^= 1
  path.write_bytes(content)
  source = load(path)
  with pytest.raises(OSError, match='damaged in the archive'):
    source.read(0)
  assert source.read(1) == png(0)


def test_a_member_larger_than_it_says(tmp_path):
  with zipfile.ZipFile(tmp_path / 'x.zip', 'w', zipfile.ZIP_DEFLATED) as file:
    file.writestr('bomb.png', bytes(2**24))
  damage(tmp_path / 'x.zip', (2**24).to_bytes(4, 'little'), b'\0\1\0\0')
  with pytest.raises(OSError, match='length or checksum differs'):
    load(tmp_path / 'x.zip').read(0)


@pytest.mark.parametrize('kind', ['encrypted', 'bzip2', 'LZMA'])
def test_members_that_cannot_be_read(tmp_path, kind):
  path = tmp_path / 'x.zip'
  method = dict(bzip2=zipfile.ZIP_BZIP2, LZMA=zipfile.ZIP_LZMA).get(kind, 0)
  with zipfile.ZipFile(path, 'w') as file:
    file.writestr('a.png', png(1))
    file.writestr('b.png', png(2), method)
  if kind == 'encrypted':
    content = bytearray(path.read_bytes())
    content[content.rfind(b'PK\1\2') + 8] |= 1
    path.write_bytes(content)
  source = load(path)
  assert source.read(0) == png(1)
  with pytest.raises(OSError, match=f'{kind}.* cannot be read'):
    source.read(1)
  with zipfile.ZipFile(tmp_path / 'y.zip', 'w', method or 14) as file:
    file.writestr('b.png', png(2))
  with pytest.raises(ValueError, match='no image can be read: a member comp'):
    load(tmp_path / 'y.zip')


def test_damaged_zips(tmp_path):
  path = make_zip(tmp_path / 'x.zip')
  content = path.read_bytes()
  for bad in (
    content[:-30],
    content[: len(content) // 2],
    content[:-1],
    b'',
    b'PK\3\4',
    b'PK\5\6',
    content.replace(b'PK\1\2', b'PK\1\3', 1),
    content[:-16] + b'\xff' * 16,
    content[:-12] + b'\0\0\0\1' + content[-8:],
  ):
    path.write_bytes(bad)
    with pytest.raises(ValueError, match='x.zip: .* copy or pack it again'):
      load(path)


def test_random_damage_to_a_zip_raises_only_what_it_should(tmp_path):
  path = make_zip(tmp_path / 'x.zip', method=zipfile.ZIP_DEFLATED)
  content, random = path.read_bytes(), np.random.default_rng(0)
  for number in range(150):
    broken = bytearray(content)
    for place in random.integers(0, len(content), 3):
      broken[place] = random.integers(256)
    path = tmp_path / f'{number}.zip'
    path.write_bytes(broken)
    try:
      source = load(path, 'all')
    except ValueError:
      continue
    for index in range(len(source)):
      try:
        source.read(index)
      except OSError:
        pass


@pytest.mark.parametrize('cut', [-1024, 1600, 700, 100])
def test_a_tar_that_is_cut_off(tmp_path, cut, caplog):
  path = make_tar(tmp_path / 'x.tar', ['a.png', 'b.png'])
  load(path)
  assert not caplog.text
  content = path.read_bytes().rstrip(b'\0') + bytes(1024)
  path.write_bytes(content[:cut])
  if cut == -1024:  # only the end mark is missing, and what fills the block
    path.write_bytes(content[:-1024] + bytes(-len(content) % 512))
    assert len(load(path)) == 2
    assert 'no end mark; members may be cut off' in caplog.text
    return
  with pytest.raises(ValueError, match='x.tar: the .tar is .* copy or pack'):
    load(path)


def test_a_tar_damaged_in_the_middle(tmp_path):
  """Python's reader takes this for the end."""
  path = make_tar(tmp_path / 'x.tar', ['a.png', 'b.png', 'c.png'])
  damage(path, b'b.png\0', b'B.png\0')
  with pytest.raises(ValueError, match='damaged at byte 1024'):
    load(path)


def test_a_tar_cut_off_later(tmp_path):
  path = make_tar(tmp_path / 'x.tar', ['a.png', 'b.png'])
  source = load(path)
  with path.open('r+b') as file:
    file.truncate(1100)
  assert source.read(0) == png(0)
  with pytest.raises(OSError, match='cut off'):
    source.read(1)


@pytest.mark.parametrize('kind', ['gz', 'bz2', 'xz'])
def test_compressed_tars_are_refused(tmp_path, kind):
  path = tmp_path / f'x.tar.{kind}'
  with tarfile.open(path, f'w:{kind}') as file:
    add(file, 'a.png', png(0))
  for name in (path, path.rename(tmp_path / 'x.tar')):
    if name.exists():
      with pytest.raises(
        ValueError, match=r'cannot be read in place; unpack it, or pack .*\.zip'
      ):
        load(name)


def test_other_files_are_refused(tmp_path):
  np.savez(tmp_path / 'x.npz', images=np.zeros(3))
  with pytest.raises(ValueError, match="use the source 'arrays'"):
    load(tmp_path / 'x.npz')
  (tmp_path / 'x.tar').write_bytes(b'no tar at all' * 99)
  with pytest.raises(ValueError, match='the .tar is cut off or damaged'):
    load(tmp_path / 'x.tar')
  (tmp_path / 'x.jpg').write_bytes(png(0))
  with pytest.raises(ValueError, match='neither a folder of images nor a .zip'):
    load(tmp_path / 'x.jpg')


@both
def test_an_archive_without_images(tmp_path, name):
  path = make(tmp_path / name, ['a.txt', 'b/c.txt', 'd.heic'])
  with pytest.raises(ValueError, match=r'no images; .*seen: 2 \.txt, 1 \.heic'):
    load(path)
  path.unlink()
  with pytest.raises(ValueError, match='no files at all'):
    load(make(path, []))


@both
def test_the_index_is_kept_until_the_archive_changes(
  tmp_path, cache, name, monkeypatch
):
  path = make(tmp_path / name)
  load(path)
  assert not list(cache.iterdir())  # written just now: not to be trusted
  settle(tmp_path)
  first = load(path)
  (kept,) = cache.iterdir()
  with monkeypatch.context() as patch:
    for finder in ('zip_members', 'tar_members'):
      patch.setattr(members, finder, lambda *_: pytest.fail('read again'))
    again = load(path)
    assert names(again) == names(first)
    assert first_pixels(again) == first_pixels(first)
  kept.write_bytes(b'damaged')
  assert names(load(path)) == names(first)
  make(path, ['new.png'])
  settle(tmp_path, 50)
  assert names(load(path)) == ['new.png']
  assert list(cache.iterdir()) == [kept]


@both
def test_tables_in_the_archive_or_beside_it(tmp_path, name):
  table = 'images/1.png,b\nimages/2.png,a\n'
  path = tmp_path / name
  if name == 'x.zip':
    make_zip(path, ['top/images/1.png', 'top/images/2.png'])
    with zipfile.ZipFile(path, 'a') as file:
      file.writestr('top/labels.csv', table)
  else:
    make_tar(path, ['top/images/1.png', 'top/images/2.png'])
    with tarfile.open(path, 'a') as file:
      add(file, 'top/labels.csv', table.encode())
  source = load(path, labels='labels.csv')
  assert source.classes == ('a', 'b') and source.labels.tolist() == [1, 0]
  assert names(source) == ['images/1.png', 'images/2.png']
  (tmp_path / 'beside.csv').write_text('1.png,c\n')
  source = load(path, labels='beside.csv')
  assert source.classes == ('c',) and len(source) == 1
  with pytest.raises(ValueError, match='no table of labels'):
    load(path, labels='nowhere.csv')


@both
def test_many_threads_may_read(tmp_path, name):
  path = make(tmp_path / name, [f'{i:02}.png' for i in range(20)])
  source = load(path)
  assert not read_by_threads(source, [png(i) for i in range(20)])


def test_the_file_is_closed(tmp_path):
  path = make_zip(tmp_path / 'x.zip')
  before = len(os.listdir('/proc/self/fd'))
  for _ in range(5):
    archives.open_archive(str(path))
  assert len(os.listdir('/proc/self/fd')) == before
