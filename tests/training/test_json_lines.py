"""Reports that a crash or a full disk damaged do not stop a run."""

import json

import pytest
from etils import epath

from training import json_lines

GOOD = [dict(step=step, loss=float(step)) for step in range(4)]
BAD = {
  'binary': b'\x00\xff\xfe\x80garbage',
  'half a line': b'{"step": 2, "lo',
  'no object': b'[1, 2]',
  'a number': b'17',
  'no step': b'{"loss": 1.0}',
  'a step in words': b'{"step": "2"}',
  'no UTF-8': b'{"step": 2, "\xff": 1}',
  'no number': b'{"step": 2, "loss": {"x": 1}}',
  'NUL bytes': bytes(64),
}


def lines(rows):
  return [json.dumps(row).encode() for row in rows]


@pytest.mark.parametrize('kind', BAD)
def test_damaged_lines_are_left_out_and_kept_beside(tmp_path, caplog, kind):
  path = epath.Path(tmp_path) / 'metrics.jsonl'
  before = lines(GOOD)
  content = b'\n'.join([*before[:2], BAD[kind], *before[2:]]) + b'\n'
  path.write_bytes(content)
  rows = json_lines.Rows(path, lambda row: row['step'] < 3)
  assert rows.all() == GOOD[:3]
  assert f'{path}: 1 damaged lines are left out, 4 are whole' in caplog.text
  assert (tmp_path / 'metrics.jsonl.damaged').read_bytes() == content
  rows.add(dict(step=9, loss=None))
  assert json_lines.read_rows(path) == [*GOOD[:3], dict(step=9, loss=None)]
  assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize('end', [b'', b'{"step": 7, "l', bytes(100)])
def test_a_last_line_cut_short_is_nothing_unusual(tmp_path, end):
  path = epath.Path(tmp_path) / 'metrics.jsonl'
  path.write_bytes(b'\n'.join([*lines(GOOD), end]))
  assert json_lines.Rows(path, lambda row: True).all() == GOOD
  assert [p.name for p in tmp_path.iterdir()] == ['metrics.jsonl']


def test_a_last_line_without_its_end_counts(tmp_path):
  path = epath.Path(tmp_path) / 'metrics.jsonl'
  path.write_bytes(b'\n'.join(lines(GOOD)))
  assert json_lines.read_rows(path) == GOOD


def test_a_folder_in_its_place_is_kept_beside(tmp_path):
  path = epath.Path(tmp_path) / 'metrics.jsonl'
  (path / 'inside').mkdir(parents=True)
  rows = json_lines.Rows(path, lambda row: True)
  rows.add(dict(step=1))
  assert json_lines.read_rows(path) == [dict(step=1)]
  assert (tmp_path / 'metrics.jsonl.damaged' / 'inside').is_dir()


def test_every_damaged_file_is_kept(tmp_path):
  path = epath.Path(tmp_path) / 'metrics.jsonl'
  for content in (b'one\n', b'two\n'):
    path.write_bytes(content)
    assert json_lines.Rows(path, lambda row: True).all() == []
  assert path.read_bytes() == b''
  kept = [tmp_path / f'metrics.jsonl.damaged{n}' for n in ('', '2')]
  assert [p.read_bytes() for p in kept] == [b'one\n', b'two\n']


def test_notes_hold_whatever_they_hold(tmp_path):
  path = epath.Path(tmp_path) / 'nonfinite.jsonl'
  note = dict(step=3, loss='nan', indices=[1, 2])
  path.write_text(f'{json.dumps(note)}\n"x"\n')
  rows = json_lines.Rows(path, lambda row: True, json_lines.is_note)
  assert rows.all() == [note]
