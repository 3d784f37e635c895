"""Formats that are read, and what is said of those that are not."""

import io
import logging
import sys
import tarfile
import types
import zipfile

import numpy as np
import pytest
from image_files import names, write
from PIL import Image

from input_pipeline import formats, sources, survey
from input_pipeline.decode import UnreadableError, decode, read_header

PIXELS = np.full((6, 8, 3), 90, np.uint8)
HEIC = b'\0\0\0\x18ftypheic' + bytes(100)


def saved(kind):
  file = io.BytesIO()
  Image.fromarray(PIXELS).save(file, kind)
  return file.getvalue()


def load(root, split='train'):
  return sources.load('folder', data_dir=root, split=split)


def mixed(root):
  """Images of many formats, some that are not read, and other files."""
  root.mkdir()
  for name in ('a.jp2', 'b.J2K', 'c.avif', 'd.jpg', 'e.mpo', 'f.jpx'):
    kind = {'.jpg': 'JPEG', '.mpo': 'JPEG', '.avif': 'AVIF'}
    content = saved(kind.get(name[1:], 'JPEG2000'))
    (root / name).write_bytes(content)
  for name in ('1.heic', '2.HEIC', '3.cr2', '4.mp4', '5.svg', '6.txt', '7'):
    (root / name).write_bytes(HEIC)
  return root


def as_tree(root, kind, tmp_path):
  if kind == 'folder':
    return root
  path = tmp_path / f'x.{kind}'
  if kind == 'zip':
    with zipfile.ZipFile(path, 'w') as file:
      for image in root.iterdir():
        file.write(image, image.name)
  else:
    with tarfile.open(path, 'w') as file:
      file.add(root, '.')
  return path


@pytest.mark.parametrize('kind', ['folder', 'zip', 'tar'])
def test_what_is_read_and_what_is_not(tmp_path, kind, caplog):
  root = as_tree(mixed(tmp_path / 'x'), kind, tmp_path)
  with caplog.at_level(logging.WARNING):
    source = load(root)
  found = ['a.jp2', 'b.J2K', 'c.avif', 'd.jpg', 'e.mpo', 'f.jpx']
  assert names(source) == found
  for index in range(len(source)):
    pixels = decode(source.read(index), 3).astype(int)
    assert pixels.shape == PIXELS.shape and abs(pixels - 90).max() < 4
  assert source.left_out.kinds == {
    '.heic': 2,
    '.cr2': 1,
    '.mp4': 1,
    '.svg': 1,
    '.txt': 1,
    'no extension': 1,
  }
  assert 'left out: 2 .heic, 1 .cr2, 1 .mp4, 1 .svg; for .heic' in caplog.text
  assert 'pip install pillow-heif' in caplog.text
  found = survey.survey(source, 3)
  assert found['not_read']['.heic'] == 2
  assert 'left out: 2 .heic' in survey.as_text(found)


def test_only_what_needs_a_plug_in(tmp_path):
  (tmp_path / 'a.heic').write_bytes(HEIC)
  with pytest.raises(
    ValueError,
    match='seen: 1 .heic; for .heic Pillow needs the plug-in pillow-heif',
  ):
    load(tmp_path)


def test_files_without_pictures_are_not_warned_of(tmp_path, caplog):
  write(tmp_path, 'a.png')
  (tmp_path / 'b.txt').write_text('')
  load(tmp_path)
  assert not caplog.text


def test_kinds_are_counted_in_bounded_memory(tmp_path):
  write(tmp_path, 'a.png')
  for number in range(300):
    (tmp_path / f'x.{number}').touch()
  counted = load(tmp_path).left_out.kinds
  assert len(counted) == 101 and counted['others'] == 200


def test_a_plug_in_that_is_there_is_used(monkeypatch):
  plugin = types.ModuleType('pillow_heif')
  registered = []
  plugin.register_heif_opener = lambda: (
    registered.append(1),
    monkeypatch.setitem(Image.OPEN, 'HEIF', (None, None)),
  )
  heif = next(f for f in formats.FORMATS if f.name == 'HEIF')
  monkeypatch.setitem(sys.modules, 'pillow_heif', plugin)
  assert formats._is_readable(heif) and registered
  monkeypatch.setitem(sys.modules, 'pillow_heif', None)
  monkeypatch.delitem(Image.OPEN, 'HEIF')
  assert not formats._is_readable(heif)


def test_a_build_of_pillow_without_a_format(monkeypatch):
  monkeypatch.setattr(formats.features, 'check', lambda _: False)
  unread = [f.name for f in formats.FORMATS if not formats._is_readable(f)]
  assert unread == ['WEBP', 'JPEG2000', 'AVIF', 'HEIF']


def test_the_content_counts_and_not_the_name():
  assert read_header(saved('AVIF')).format == 'AVIF'
  assert decode(saved('AVIF'), 3).shape == PIXELS.shape


@pytest.mark.parametrize(
  'content, message',
  [
    (HEIC, 'a HEIC image; Pillow needs the plug-in pillow-heif'),
    (b'\0\0\0\x18ftypqt  ' + bytes(50), 'a film'),
    (b'\n<!DOCTYPE HTML><html>not found</html>', 'an HTML page'),
    (b'<?xml version="1.0"?><svg></svg>', 'an SVG drawing'),
    (b'version https://git-lfs.github.com/spec/v1\n', 'run git lfs pull'),
    (b'', 'an empty file'),
    (bytes(500), 'only zeros'),
    (b'anything', 'not an image of a known format$'),
  ],
)
def test_files_that_bear_the_name_of_an_image(content, message):
  with pytest.raises(UnreadableError, match=message):
    decode(content, 3)
  with pytest.raises(UnreadableError, match=message):
    read_header(content)
