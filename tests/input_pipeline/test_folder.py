import errno
import logging
import os
import socket
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

from input_pipeline import folder as module
from input_pipeline import hidden_images, listing, sources
from input_pipeline.decode import UnreadableError, decode


def load(root, split='train', **options):
  return sources.load('folder', data_dir=root, split=split, **options)


def test_any_nesting_in_the_order_of_bytes(tmp_path):
  paths = ['b.png', 'a/z/1.PNG', 'a.b/2.Jpg', 'a/y.jpeg', 'B/x.webp', 'a0.bmp']
  paths += ['ä/1.png', 'z/10.png', 'z/9.png', 'a/z.png', 'a/z-.png']
  write(tmp_path, *paths)
  source = load(tmp_path)
  expected = sorted(paths, key=os.fsencode)
  assert names(source) == expected
  assert first_pixels(source) == [paths.index(path) for path in expected]
  assert source.where(0) == f'{tmp_path}/B/x.webp'
  assert source.channels is None and source.cache_key is None
  for index in (-1, len(paths)):
    with pytest.raises(IndexError):
      source.read(index)


def test_the_order_is_not_that_of_the_listing(tmp_path, monkeypatch):
  write(tmp_path, *(f'{c}/{i}.png' for c in 'xyz' for i in range(5)))
  before = names(load(tmp_path))
  scandir = os.scandir

  class Reversed:
    def __init__(self, path):
      with scandir(path) as entries:
        self._entries = list(entries)[::-1]

    def __enter__(self):
      return iter(self._entries)

    def __exit__(self, *unused):
      pass

  monkeypatch.setattr(listing.os, 'scandir', Reversed)
  assert names(load(tmp_path)) == before


def test_what_is_no_image_file_is_left_out(tmp_path):
  write(tmp_path, 'a.jpg', 'dir.jpg/b.jpg', '.c.jpg', '._d.jpg', '.e/f.jpg')
  write(tmp_path, '__MACOSX/g.jpg', 'h.txt', 'i.jpg.part')
  os.mkfifo(tmp_path / 'pipe.jpg')
  os.symlink('nowhere.jpg', tmp_path / 'dangling.jpg')
  os.symlink('/dev/zero', tmp_path / 'device.jpg')
  os.symlink('a.jpg', tmp_path / 'linked.jpg')
  with socket.socket(socket.AF_UNIX) as server:
    here = os.getcwd()
    os.chdir(tmp_path)  # the names of sockets must be short
    server.bind('socket.jpg')
    os.chdir(here)
    assert names(load(tmp_path)) == ['a.jpg', 'dir.jpg/b.jpg', 'linked.jpg']


SYSTEM = [
  '@eaDir',
  '@EADIR/1.png',
  '#recycle',
  '#snapshot',
  '@Recycle',
  '$RECYCLE.BIN/S-1-5-18',
  '$Recycle.Bin',
  'RECYCLER/S-1-5-21-1-2-3-1001',
  'System Volume Information',
  'SYSTEM VOLUME INFORMATION',
  'lost+found',
  'FOUND.000',
  '__MACOSX',
  '__pycache__',
  '.Trash-1000/files',
  '.Trashes',
  '.@__thumb',
  '.AppleDouble',
  '.Spotlight-V100',
  '.fseventsd',
  '.ipynb_checkpoints',
  '.git',
  '.cache',
]
CLASSES = ['@home', '#hashtag', '$5', 'lost', 'recycle', 'Recycle Bin', 'tmp']


@pytest.mark.parametrize('kind', ['folder', 'zip'])
def test_folders_of_systems_are_no_classes(tmp_path, kind):
  root = tmp_path / 'data'
  write(root, *(f'train/{name}/1.png' for name in CLASSES), 'val/@home/2.png')
  write(root, *(f'train/{name}/3.png' for name in SYSTEM))
  write(root, *(f'train/@home/deep/{name}/4.png' for name in SYSTEM))
  write(root, *(f'{name}/train/5.png' for name in SYSTEM))
  write(root, 'train/@home/._1.png', 'train/@home/._2.png', 'val/.x.png')
  (root / 'train/Thumbs.db').touch()
  if kind == 'zip':
    path = tmp_path / 'x.zip'
    with zipfile.ZipFile(path, 'w') as file:
      for image in sorted(root.rglob('*.*')):
        file.write(image, image.relative_to(tmp_path))
    root = path
  train, test = load(root), load(root, 'test')
  assert sorted(train.classes) == sorted(CLASSES) and len(train) == len(CLASSES)
  assert len(test) == 1 and test.left_out.hidden == {'.*': 1}
  hidden = train.left_out.hidden
  assert hidden.pop('._*') == 2 and hidden['@eaDir'] == 2
  assert sum(hidden.values()) == 2 * len(SYSTEM)
  assert len(load(root, 'all')) == len(CLASSES) + 1
  with pytest.raises(ValueError, match="for the split '@eaDir'"):
    load(root, '@eaDir')


def test_a_folder_of_system_folders_alone(tmp_path):
  write(tmp_path, '@eaDir/1.png', '@eaDir/2.png')
  with pytest.raises(
    ValueError, match=r'left out: 2 images in hidden .*@eaDir 2\)'
  ):
    load(tmp_path)


def test_large_system_folders_are_looked_at_a_little(tmp_path, monkeypatch):
  write(tmp_path, 'a/1.png', *(f'@eaDir/{i}.png' for i in range(30)))
  monkeypatch.setattr(hidden_images, 'PER_FOLDER', 10)
  left_out = load(tmp_path).left_out
  assert left_out.hidden == {'@eaDir': 10}
  assert left_out.hidden_images().startswith('at least 10 images')


def test_linked_folders_are_followed_once(tmp_path):
  write(tmp_path / 'data', 'a/1.png', 'b/2.png')
  write(tmp_path / 'other', 'x/3.png')
  for link, target in (
    ('data/c', '../other'),
    ('data/loop', '.'),
    ('data/a/up', '..'),
    ('data/again', 'a'),
    ('other/back', '../data'),
  ):
    os.symlink(target, tmp_path / link)
  assert names(load(tmp_path / 'data')) == ['a/1.png', 'b/2.png', 'c/x/3.png']


def test_links_that_lead_nowhere(tmp_path, cache):
  """Or to themselves: the rest counts, and their target once it is there."""
  root = tmp_path / 'data'
  write(root, 'train/a/1.png', 'train/b/2.png')
  for link, target in (
    ('self.jpg', 'self.jpg'),
    ('train/b/me.png', 'me.png'),
    ('train/c', '../../later'),
  ):
    os.symlink(target, root / link)
  settle(root)
  assert names(load(root)) == ['a/1.png', 'b/2.png']
  assert names(load(root, 'all')) == ['train/a/1.png', 'train/b/2.png']
  assert not list(cache.iterdir())
  write(tmp_path, 'later/3.png')
  assert names(load(root)) == ['a/1.png', 'b/2.png', 'c/3.png']


def test_a_link_does_not_take_the_images_of_its_target(tmp_path):
  write(tmp_path, 'y/1.png', 'z/2.png', '.hidden/3.png')
  os.symlink('z', tmp_path / 'a')
  os.symlink('.hidden', tmp_path / 'h')
  source = load(tmp_path)
  assert source.classes == ('h', 'y', 'z')
  assert names(source) == ['h/3.png', 'y/1.png', 'z/2.png']


def test_another_folder_with_the_time_stamps_of_the_first(tmp_path):
  for name in ('one', 'two'):
    write(tmp_path / name, f'a/{name}.png')
  for folder in ('one/a', 'two/a', 'one', 'two'):
    os.utime(tmp_path / folder, (1e9, 1e9))
  (tmp_path / 'one').rename(tmp_path / 'data')
  assert names(load(tmp_path / 'data')) == ['a/one.png']
  (tmp_path / 'data').rename(tmp_path / 'old')
  (tmp_path / 'two').rename(tmp_path / 'data')
  assert names(load(tmp_path / 'data')) == ['a/two.png']


HOSTILE = [
  'white space .png',
  'line\nbreak.png',
  '100%s %d.png',
  '\'quotes".png',
  'ünïcødé 猫.png',
  '-rf.png',
  '*?[a].png',
  'a\\b.png',
  'x' * 251 + '.png',
  'not UTF-8 \udcff\udcfe.png',
  '\u202eright to left.png',
]


def test_hostile_names(tmp_path, cache):
  write(tmp_path, *HOSTILE, *(f'{name}/x.png' for name in ['\udcff', 'a\nb']))
  settle(tmp_path)
  for _ in range(2):  # listed, then from the cache
    source = load(tmp_path)
    assert len(source) == len(HOSTILE) + 2
    assert sorted(first_pixels(source)) == sorted([*range(13)])
    for index in range(len(source)):
      where = source.where(index)
      assert where.isprintable() and where.encode()
  assert len(list(cache.iterdir())) == 1
  labelled = load(write_classes(tmp_path / 'sub'))
  assert labelled.classes == ('\\xff', 'a\\nb')


def write_classes(root):
  write(root, '\udcff/1.png', 'a\nb/2.png')
  return root


def test_split_folders(tmp_path):
  write(
    tmp_path, 'train/a/1.png', 'train/b/2.png', 'val/a/3.png', 'val/c/4.png'
  )
  write(tmp_path, 'extra/a/5.png')
  train, test = load(tmp_path), load(tmp_path, 'test')
  assert names(train) == ['a/1.png', 'b/2.png']
  assert names(test) == names(load(tmp_path, 'val')) == ['a/3.png', 'c/4.png']
  assert names(load(tmp_path, 'extra')) == ['a/5.png']
  # Numbers agree, though neither split has all the classes.
  assert train.classes == test.classes == ('a', 'b', 'c')
  assert train.labels.tolist() == [0, 1] and test.labels.tolist() == [0, 2]
  assert train.labels.dtype == np.int32
  assert len(load(tmp_path, 'all')) == 5
  assert load(tmp_path, 'all').labels is None  # 'extra' is no split
  with pytest.raises(ValueError, match="'folders', but extra/a/5.png is in no"):
    load(tmp_path, 'all', labels='folders')


@pytest.mark.parametrize(
  'folders, chosen',
  [
    (['train', 'test', 'val'], 'test'),
    (['train', 'validation', 'valid'], 'valid'),
    (['Train', 'VAL'], 'VAL'),
  ],
)
def test_which_folder_is_for_testing(tmp_path, folders, chosen):
  write(tmp_path, *(f'{name}/{name}.png' for name in folders))
  assert names(load(tmp_path, 'test')) == [f'{chosen}.png']
  assert names(load(tmp_path)) == [f'{folders[0]}.png']
  assert module.has_split(tmp_path, 'test')
  assert not module.has_split(tmp_path, 'holdout')


def test_the_whole_of_several_splits_has_their_classes(tmp_path):
  write(tmp_path, 'test/b/1.png', 'train/a/2.png', 'train/b/3.png')
  whole = load(tmp_path, 'all')
  assert names(whole)[0] == 'test/b/1.png'
  assert whole.classes == ('a', 'b') and whole.labels.tolist() == [1, 0, 1]


def test_train_may_be_a_class(tmp_path):
  write(tmp_path, 'car/1.png', 'train/2.png')
  source = load(tmp_path)
  assert source.classes == ('car', 'train') and len(source) == 2
  assert not module.has_split(tmp_path, 'test')
  (tmp_path / 'car').rename(tmp_path / 'valid')
  assert names(load(tmp_path)) == ['2.png']


def test_a_folder_too_high(tmp_path):
  write(tmp_path, 'x/y/train/a/1.png', 'x/y/train/b/2.png', 'x/y/val/b/3.png')
  (tmp_path / 'labels.csv').write_text('val/b/3.png,c\n')
  assert names(load(tmp_path)) == ['a/1.png', 'b/2.png']
  test = load(tmp_path, 'test')
  assert test.labels.tolist() == [1] and len(load(tmp_path, 'all')) == 3
  assert test.where(0) == f'{tmp_path}/x/y/val/b/3.png'
  assert load(tmp_path, 'test', labels='labels.csv').classes == ('c',)
  write(tmp_path, 'loose.png')
  assert len(load(tmp_path)) == 4


def test_folders_without_images_beside_train(tmp_path):
  write(tmp_path, 'train/a/1.png', 'train/b/2.png', 'Annotations/a.xml')
  assert load(tmp_path).classes == ('a', 'b')


def test_labels_that_disappear_are_told(tmp_path, caplog):
  write(
    tmp_path, 'train/a/1.png', 'train/b/2.png', 'val/a/3.png', 'val/c/4.png'
  )
  load(tmp_path)
  assert not caplog.text
  load(tmp_path, 'val')
  assert '1 classes of val are not in train, such as c' in caplog.text
  write(tmp_path, 'train/preview.png')
  assert load(tmp_path).labels is None
  assert 'no labels, for train/preview.png is in no sub' in caplog.text


def test_an_empty_split_for_testing(tmp_path):
  write(tmp_path, 'train/a/1.png', 'test/a.txt')
  with pytest.raises(ValueError, match='1 .txt; .* --config.data.test_split='):
    load(tmp_path, 'test')


def test_train_alone_is_a_split(tmp_path):
  write(tmp_path, 'train/a/1.png', 'train/b/2.png')
  assert load(tmp_path).classes == ('a', 'b')


@pytest.mark.parametrize(
  'split, message',
  [
    (
      'test',
      "looked for .* train with test or val .*found a, b; 'all'",
    ),
    ('val', "the split 'val': looked for the sub-folders val, found a, b"),
    ('../a', 'nothing for the split'),
  ],
)
def test_a_split_that_is_not_there(tmp_path, split, message):
  write(tmp_path / 'x', 'a/1.png', 'b/2.png')
  with pytest.raises(ValueError, match=message):
    load(tmp_path / 'x', split)


def test_labels_by_folder(tmp_path):
  write(tmp_path, '10/a.png', '9/deep/b.png', '9/c.png', '-1/d.png')
  source = load(tmp_path)
  assert source.classes == ('-1', '9', '10')
  assert source.labels.tolist() == [0, 2, 1, 1]
  assert load(tmp_path, labels='none').labels is None
  write(tmp_path, 'loose.png')
  assert load(tmp_path).labels is None and load(tmp_path).classes == ()
  with pytest.raises(ValueError, match='loose.png is in no sub-folder'):
    load(tmp_path, labels='folders')


def test_one_folder_is_no_label(tmp_path):
  write(tmp_path, 'a/1.png', 'a/2.png')
  assert load(tmp_path).labels is None
  assert load(tmp_path, labels='folders').classes == ('a',)


def test_unlabelled_test_images(tmp_path):
  write(tmp_path, 'train/a/1.png', 'train/b/2.png', 'test/3.png', 'val/c/4.png')
  assert load(tmp_path, 'test').labels is None
  assert load(tmp_path).classes == load(tmp_path, 'val').classes == tuple('abc')


def test_the_list_is_kept_until_a_folder_changes(tmp_path, cache, monkeypatch):
  write(tmp_path, 'a/1.png', 'a/b/2.png', 'c/3.txt')
  settle(tmp_path)
  assert names(load(tmp_path)) == ['a/1.png', 'a/b/2.png']
  (kept,) = cache.iterdir()
  with monkeypatch.context() as patch:
    patch.setattr(listing._Walk, '_list', lambda *_: pytest.fail('again'))
    assert names(load(tmp_path)) == ['a/1.png', 'a/b/2.png']
  write(tmp_path, 'c/3.png')  # in a folder without images so far
  settle(tmp_path, 50)
  assert names(load(tmp_path)) == ['a/1.png', 'a/b/2.png', 'c/3.png']
  (tmp_path / 'a/b/2.png').unlink()
  assert names(load(tmp_path)) == ['a/1.png', 'c/3.png']
  assert list(cache.iterdir()) == [kept]


def test_a_folder_changed_just_now_is_not_trusted(tmp_path, cache):
  """Its time stamp may stay the same when it changes again."""
  write(tmp_path, 'a/1.png')
  load(tmp_path)
  assert not list(cache.iterdir())


@pytest.mark.parametrize('damage', ['cut', 'flip', 'empty', 'other'])
def test_a_damaged_list_is_made_anew(tmp_path, cache, damage, caplog):
  write(tmp_path, 'a/1.png', 'a/2.png')
  settle(tmp_path)
  load(tmp_path)
  (kept,) = cache.iterdir()
  content = bytearray(kept.read_bytes())
  if damage == 'cut':
    kept.write_bytes(content[:-100])
  elif damage == 'flip':
    content[content.find(b'1.png')] ^= 1
    kept.write_bytes(content)
  elif damage == 'empty':
    kept.write_bytes(b'')
  else:
    np.savez(kept, something=np.zeros(3))
  with caplog.at_level(logging.WARNING):
    assert names(load(tmp_path)) == ['a/1.png', 'a/2.png']
  assert 'damaged, rebuilding' in caplog.text
  caplog.clear()
  load(tmp_path)
  assert not caplog.text


def test_a_folder_that_cannot_be_listed_is_told(
  tmp_path, cache, monkeypatch, caplog
):
  write(tmp_path, 'a/1.png', 'b/2.png')
  settle(tmp_path)
  scandir = os.scandir

  def refuse(path):
    if path.endswith(b'/b/'):
      raise PermissionError(errno.EACCES, 'Permission denied', path)
    return scandir(path)

  monkeypatch.setattr(listing.os, 'scandir', refuse)
  with caplog.at_level(logging.WARNING):
    assert names(load(tmp_path)) == ['a/1.png']
  assert 'Permission denied' in caplog.text and '/b/' in caplog.text
  assert not list(cache.iterdir())  # the next start tries again
  monkeypatch.undo()


def test_files_that_change_after_listing(tmp_path):
  write(tmp_path, 'gone.png', 'pipe.png', 'dir.png', 'empty.png', 'good.png')
  source = load(tmp_path)
  for name in ('gone', 'pipe', 'dir', 'empty'):
    (tmp_path / f'{name}.png').unlink()
  os.mkfifo(tmp_path / 'pipe.png')
  (tmp_path / 'dir.png').mkdir()
  (tmp_path / 'empty.png').write_bytes(b'')
  errors = {}
  for index, name in enumerate(names(source)):
    try:
      decode(source.read(index), 3)
    except (OSError, UnreadableError) as error:
      errors[name] = type(error)
  assert errors == {
    'dir.png': IsADirectoryError,
    'empty.png': UnreadableError,
    'gone.png': FileNotFoundError,
    'pipe.png': OSError,
  }


def test_many_threads_may_read(tmp_path):
  write(tmp_path, *(f'{i:02}.png' for i in range(20)))
  source = load(tmp_path)
  assert not read_by_threads(source, [png(i) for i in range(20)])


def test_nothing_to_find(tmp_path):
  with pytest.raises(ValueError, match='no images; .*seen: no files at all'):
    load(tmp_path)
  write(tmp_path, 'a.txt', 'b/c.TXT', 'd.heic', 'README')
  with pytest.raises(
    ValueError, match=r'looked for \.jpg .*seen: 2 \.txt, 1 \.heic, 1 no ext'
  ):
    load(tmp_path)
  with pytest.raises(FileNotFoundError, match='nowhere does not exist'):
    load(tmp_path / 'nowhere')
  with pytest.raises(FileNotFoundError, match='needs data_dir'):
    load(None)
  os.mkfifo(tmp_path / 'pipe')
  with pytest.raises(FileNotFoundError, match='pipe is no folder'):
    load(tmp_path / 'pipe')
  with pytest.raises(ValueError, match='neither a folder of images nor'):
    load(tmp_path / 'a.txt')
  with pytest.raises(ValueError, match=r"does not take the options \['label'"):
    load(tmp_path, label='none')


def test_a_relative_data_dir(tmp_path, monkeypatch):
  write(tmp_path, 'data/1.png')
  monkeypatch.chdir(tmp_path)
  source = load('data/')
  monkeypatch.chdir('/')
  assert first_pixels(source) == [0]
