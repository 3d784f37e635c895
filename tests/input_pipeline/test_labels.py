import logging
import unicodedata
import zipfile

import numpy as np
import pytest
from image_files import first_pixels, names, write

from input_pipeline import sources
from input_pipeline.labels import number_classes


def load(root, labels='labels.csv', split='train'):
  return sources.load('folder', data_dir=root, split=split, labels=labels)


def labelled(source):
  """{path: name of its class}."""
  assert source.labels.dtype == np.int32
  classes = [source.classes[label] for label in source.labels]
  return dict(zip(names(source), classes, strict=True))


def test_classes_are_in_order():
  assert number_classes({'10', '9', '-1', '09'}) == ('-1', '09', '9', '10')
  assert number_classes({'10', '9', 'a'}) == ('10', '9', 'a')
  assert number_classes({'²', '1'}) == ('1', '²')


TABLES = {
  'with a header': 'path,label\na.png,cat\nd/b.png,dog\n',
  'without': 'a.png,cat\nd/b.png,dog\n',
  'other columns': 'id,label,path\n1,cat,a.png\n2,dog,d/b.png\n',
  'semicolons': 'Path; Label\na.png;cat\nd/b.png;dog\n',
  'tabs and Windows': '\ufefffilename\tclass\r\na.png\tcat\r\nd/b.png\tdog\r\n',
  'quotes and blanks': '"./a.png" ,"cat"\n\n"d//b.png", dog \n\n'.replace(
    '" ,', '",'
  ),
  'blank lines': 'a.png,cat\n   \n , \nd/b.png,dog\n',
  'backslashes': 'a.png,cat\n.\\d\\b.png,dog\n',
  'other words': 'image_id,target\na.png,cat\nd/b.png,dog\n',
  'capitals': 'IMAGE;CLASS\na.png;cat\nd/b.png;dog\n',
  'more columns': 'split,Class,file.name\n0,cat,a.png\n1,dog,d/b.png\n',
  'an index': ',img_path,category\n0,a.png,cat\n1,d/b.png,dog\n',
  'quoted header': '\ufeff"file";"label"\r\na.png;"cat"\r\nd/b.png;"dog"\r\n',
  'of Excel': 'sep=;\r\nfile;label\r\na.png;cat\r\nd/b.png;dog\r\n',
  'a comment': '# path, label\na.png,cat\nd/b.png,dog\n',
  'empty columns': 'a.png,cat,,\nd/b.png,dog,,\n',
  'no last newline': 'a.png,cat\nd/b.png,dog',
}


@pytest.mark.parametrize('table', TABLES.values(), ids=TABLES)
def test_spellings_of_a_table(tmp_path, table, caplog):
  write(tmp_path, 'a.png', 'd/b.png', 'd/c.png')
  (tmp_path / 'labels.csv').write_bytes(table.encode())
  with caplog.at_level(logging.INFO):
    source = load(tmp_path)
  assert labelled(source) == {'a.png': 'cat', 'd/b.png': 'dog'}
  assert source.classes == ('cat', 'dog')
  assert 'names 2 images; 1 others are left out' in caplog.text
  assert labelled(load(tmp_path, tmp_path / 'labels.csv')) == labelled(source)


def test_utf_16_and_names_of_any_bytes(tmp_path):
  write(tmp_path, 'ä,"b;\n.png', 'x\udcff.png')
  table = '"ä,""b;\n.png",größe\n'
  (tmp_path / 'labels.csv').write_bytes(table.encode('utf-16'))
  assert load(tmp_path).classes == ('größe',)
  (tmp_path / 'labels.csv').write_bytes(b'x\xff.png,a\xff\n')
  assert load(tmp_path).classes == ('a\\xff',)


@pytest.mark.parametrize('there, named', [('NFC', 'NFD'), ('NFD', 'NFC')])
def test_accents_of_other_systems(tmp_path, there, named):
  write(tmp_path, unicodedata.normalize(there, 'é.png'))
  path = unicodedata.normalize(named, 'é.png')
  (tmp_path / 'labels.csv').write_text(f'{path},a\n')
  assert load(tmp_path).labels.tolist() == [0]


def test_the_order_is_that_of_the_files(tmp_path):
  write(tmp_path, *(f'{i}.png' for i in range(5)))
  (tmp_path / 'labels.csv').write_text('4.png,b\n0.png,a\n2.png,b\n')
  source = load(tmp_path)
  assert list(labelled(source).items()) == [
    ('0.png', 'a'),
    ('2.png', 'b'),
    ('4.png', 'b'),
  ]


def test_one_table_for_all_splits(tmp_path):
  write(tmp_path, 'train/x/1.png', 'test/2.png', 'test/3.png')
  (tmp_path / 'labels.csv').write_text(
    f'train/x/1.png,b\ntest/2.png,a\n{tmp_path}/test/3.png,c\n'
  )
  train, test = load(tmp_path), load(tmp_path, split='test')
  assert labelled(train) == {'x/1.png': 'b'}
  assert labelled(test) == {'2.png': 'a', '3.png': 'c'}
  assert train.classes == test.classes == ('a', 'b', 'c')
  assert len(load(tmp_path, split='all')) == 3
  # Relative to the splits, some in one and some in the other.
  (tmp_path / 'labels.csv').write_text('x/1.png,b\n2.png,a\n3.png,c\n')
  assert labelled(load(tmp_path)) == labelled(train)
  assert labelled(load(tmp_path, split='test')) == labelled(test)


def test_a_table_for_each_split(tmp_path):
  write(tmp_path, 'train/1.png', 'val/1.png')
  (tmp_path / 'train/labels.csv').write_text('1.png,b\n')
  (tmp_path / 'val/labels.csv').write_text('1.png,a\n')
  train, test = load(tmp_path), load(tmp_path, split='test')
  assert labelled(train) == {'1.png': 'b'}
  assert labelled(test) == {'1.png': 'a'}
  assert train.classes == test.classes == ('a', 'b')


@pytest.mark.parametrize(
  'table, message',
  [
    ('a.png,1\nb.png,2\n', 'labels.csv: 1 of 2 files are not there .* b.png'),
    ('a.png,1\n./a.png,1\n', '1 paths occur more than once, such as a.png'),
    ('a.png,1\nd/c.png,\n', 'line 2; leave out files that have no label'),
    ('path,label\na.png, \n', '1 rows without a path or a label'),
    ('path,label\na.png\n', 'without a path or a label, such as line 2'),
    ('', "needs a header row with the columns 'path' and 'label'"),
    ('a.png\n', 'or two columns without a header'),
    ('path,label\n', 'no rows'),
    ('a.png,1,2\n', 'needs a header row'),
    ('"a.png,1\n' + 'x' * 2**21, 'not a table'),
    ('train/a.png,1\n', r'1 of 1 files are not there'),
    ('../x/a.png,1\n', r'1 of 1 files are not there'),
  ],
)
def test_bad_tables(tmp_path, table, message):
  write(tmp_path / 'x', 'a.png', 'd/c.png')
  (tmp_path / 'x/labels.csv').write_text(table)
  with pytest.raises(ValueError, match=message):
    load(tmp_path / 'x')


@pytest.mark.parametrize(
  'header, lacks, near',
  [
    ('path,lable', 'labels', "'label' for 'lable'"),
    ('pth;Label', 'paths', "'path' for 'pth'"),
    ('"Path"\tspecies', 'labels', ''),
    ('x,y', 'paths and none of labels', ''),
    ('0,1', 'paths and none of labels', ''),
    ('\ufeffpath,lable,split', 'labels', "'label' for 'lable'"),
  ],
)
def test_a_header_of_other_words(tmp_path, header, lacks, near):
  write(tmp_path, 'a.png', 'b.png')
  by = next(d for d in ',;\t' if d in header)
  rows = ''.join(f'{name}{by}1{by}2\r\n' for name in ('a.png', 'b.png'))
  (tmp_path / 'labels.csv').write_text(f'{header}\r\n{rows}')
  with pytest.raises(ValueError, match=r'^labels.csv: the header ') as error:
    load(tmp_path)
  message = str(error.value)
  words = header.strip('\ufeff').replace('"', '').replace(by, ',')
  assert f'header {words!r} names no column of {lacks}' in message
  assert (f'(did you mean {near}?)' if near else 'column') in message
  assert 'paths may be called path, file, filename' in message
  assert 'of labels label, class, target' in message


def test_a_first_row_that_is_no_header(tmp_path):
  """A missing file in the first row, or a label that is a word of headers."""
  write(tmp_path, 'a.png')
  for row in ('gone.png,1', 'gone.heic,1', 'd/gone,1'):
    (tmp_path / 'labels.csv').write_text(f'{row}\na.png,2\n')
    with pytest.raises(ValueError, match='1 of 2 files are not there .*gone'):
      load(tmp_path)
  (tmp_path / 'labels.csv').write_text('a.png,label\n')
  assert load(tmp_path).classes == ('label',)


NFC, NFD = (unicodedata.normalize(f, 'caf\xe9') for f in ('NFC', 'NFD'))


def test_one_class_in_two_unicode_forms(tmp_path, caplog):
  write(tmp_path, f'train/{NFD}/1.png', f'train/{NFC}/2.png', 'train/b/3.png')
  write(tmp_path, f'val/{NFC}/4.png', 'val/Caf\xe9/5.png')
  train, test = load(tmp_path, 'auto'), load(tmp_path, 'auto', 'test')
  # Upper and lower case are different classes.
  assert train.classes == test.classes == ('Caf\xe9', 'b', NFC)
  assert train.labels.tolist() == [1, 2, 2]
  assert sorted(test.labels.tolist()) == [0, 2]
  assert f'such as Caf\xe9 ({NFC} is)' in caplog.text
  assert sorted(first_pixels(train)) == [0, 1, 2]  # paths are byte for byte
  assert labelled(load(tmp_path, 'auto', 'all')).keys() >= {f'val/{NFC}/4.png'}


def test_a_class_is_shown_as_it_is_written(tmp_path):
  write(tmp_path, f'{NFD}/1.png', 'b/2.png')
  assert load(tmp_path, 'auto').classes == ('b', NFD)


def test_one_class_of_a_table_in_two_forms(tmp_path):
  write(tmp_path, '1.png', '2.png', '3.png')
  (tmp_path / 'labels.csv').write_text(f'1.png,{NFD}\n2.png,b\n3.png,{NFC}\n')
  source = load(tmp_path)
  assert source.classes == ('b', NFC) and source.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize('form', ['NFC', 'NFD'])
@pytest.mark.parametrize('archive', [False, True])
def test_paths_of_a_table_in_another_form(tmp_path, form, archive):
  """On disk a folder in one form and a file in the other."""
  root, there = tmp_path / NFD, f'{NFD}/x/{NFC} 1.png'
  write(root, there, 'b/2.png')
  path = root
  if archive:
    path = tmp_path / f'{NFC}.zip'
    with zipfile.ZipFile(path, 'w') as file:
      for name in (there, 'b/2.png'):
        file.write(root / name, name)
  table = tmp_path / 'labels.csv'
  for above in ('', '' if archive else f'{root}/'):
    named = unicodedata.normalize(form, f'{above}{there}')
    table.write_text(f'{named},1\nb/2.png,2\n')
    source = load(path, str(table))
    assert labelled(source) == {there: '1', 'b/2.png': '2'}
    assert sorted(first_pixels(source)) == [0, 1]


def test_a_split_in_another_form(tmp_path):
  write(tmp_path, f'{NFD}/a/1.png', 'x/a/2.png')
  assert len(load(tmp_path, 'auto', NFC)) == 1
  write(tmp_path, f'{NFC}/a/3.png')
  with pytest.raises(ValueError, match='2 sub-folders are named .* Unicode'):
    load(tmp_path, 'auto', NFC)


def test_a_file_named_in_two_ways(tmp_path):
  write(tmp_path, 'a.png')
  (tmp_path / 'labels.csv').write_text(f'a.png,1\n{tmp_path}/a.png,1\n')
  with pytest.raises(ValueError, match='a.png occurs more than once'):
    load(tmp_path)


def test_a_table_that_is_not_there(tmp_path):
  write(tmp_path, 'train/1.png', 'val/1.png')
  with pytest.raises(ValueError, match="no table of labels 'folder' in"):
    load(tmp_path, 'folder')
  with pytest.raises(ValueError, match="'/nowhere/labels.csv': No such file"):
    load(tmp_path, '/nowhere/labels.csv')
  (tmp_path / 'val/labels.csv').write_text('1.png,a\n')
  with pytest.raises(ValueError, match='no table of labels'):
    load(tmp_path)
  with pytest.raises(
    ValueError, match="labels 'val': Is a directory; .*'auto'"
  ):
    load(tmp_path, 'val')
  with pytest.raises(ValueError, match="labels are empty; they may be 'auto'"):
    load(tmp_path, '')


def test_a_table_that_names_no_image_of_the_split(tmp_path):
  write(tmp_path, 'train/1.png', 'val/2.png')
  (tmp_path / 'labels.csv').write_text('val/2.png,a\n')
  with pytest.raises(ValueError, match='names none of the 1 images'):
    load(tmp_path)
