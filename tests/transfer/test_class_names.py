"""What classes are called in pictures, wherever that is written."""

import json
import zipfile

import pytest
from ml_collections import ConfigDict

from transfer.visualize.class_names import class_names, read_names

CLASSES = ('n01440764', 'n02102040', 'other')
TABLE = {'n01440764': 'tench', 'n02102040': 'English springer'}
NAMES = ('tench', 'English springer', 'other')


def config(data_dir=None, names=None):
  return ConfigDict(dict(class_names=names, data=dict(data_dir=data_dir)))


@pytest.mark.parametrize(
  'text',
  [
    json.dumps(TABLE),
    json.dumps({k: [v, 'fish'] for k, v in TABLE.items()}),
    json.dumps({str(i): [k, v] for i, (k, v) in enumerate(TABLE.items())}),
    'n01440764,tench\nn02102040,English springer\n',
    '\ufeffclass\tname\nn01440764\ttench\n\nn02102040\tEnglish springer\n',
    'n01440764 tench, Tinca tinca\nn02102040 English springer, springer\n',
  ],
)
def test_tables(tmp_path, text):
  path = tmp_path / 'names'
  path.write_text(text, encoding='utf-8')
  assert class_names(config(names=str(path)), CLASSES) == NAMES


@pytest.mark.parametrize('place', ['.', 'data', 'data/inner'])
def test_beside_and_within_a_folder(tmp_path, place):
  folder = tmp_path / 'data'
  (folder / 'inner').mkdir(parents=True)
  (tmp_path / place / 'classes.json').write_text(json.dumps(TABLE))
  assert class_names(config(str(folder)), CLASSES) == NAMES


@pytest.mark.parametrize('inside', [True, False])
def test_of_an_archive(tmp_path, inside):
  path = tmp_path / 'images.zip'
  with zipfile.ZipFile(path, 'w') as file:
    if inside:
      file.writestr('images/classes.json', json.dumps(TABLE))
  if not inside:
    (tmp_path / 'classes.json').write_text(json.dumps(TABLE))
  assert class_names(config(str(path)), CLASSES) == NAMES


@pytest.mark.parametrize('content', [b'[1, 2]', b'{"cat": "x"}', b'\xff{', b''])
def test_a_file_of_another_meaning_is_left_alone(tmp_path, content):
  (tmp_path / 'classes.json').write_bytes(content)
  assert class_names(config(str(tmp_path)), CLASSES) == CLASSES
  assert class_names(config(), ('a', 'b')) == ('a', 'b')


def test_a_table_that_was_asked_for_must_fit(tmp_path):
  with pytest.raises(FileNotFoundError, match='class_names is no file: .*gone'):
    class_names(config(names=str(tmp_path / 'gone')), CLASSES)
  path = tmp_path / 'names.json'
  path.write_text('{"cat": "Katze"}')
  with pytest.raises(ValueError, match='names none of the classes.*n01440764'):
    class_names(config(names=str(path)), CLASSES)
  path.write_text('{"cat": 3}')
  with pytest.raises(ValueError, match='neither JSON nor a table'):
    class_names(config(names=str(path)), CLASSES)


def test_lines_need_two_columns():
  with pytest.raises(ValueError, match='two columns'):
    read_names(b'cat\ndog\n')
