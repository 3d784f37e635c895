"""Files that are damaged, something else, or made to do harm."""

import copyreg
import os
import pickle
import struct
import zipfile

import made_files
import numpy as np
import pytest
from made_files import call, encode, floats, name, pickled, storage, tensor
from test_files import RECORDED, some

from interop import files
from interop.files import WeightsError

GOOD = tensor(0, (2, 3), (3, 1))


def opened(data, tmp_path, file='weights.pth'):
  """What is in a file of these bytes, all of it read."""
  path = tmp_path / file
  path.write_bytes(data)
  tensors = files.open_weights(path).tensors
  return {k: tensor.read() for k, tensor in tensors.items()}


def refuse(data, tmp_path, match, file='weights.pth'):
  with pytest.raises(WeightsError, match=match) as caught:
    opened(data, tmp_path, file)
  assert '\n' not in str(caught.value) and len(str(caught.value)) < 600
  assert str(tmp_path / file) in str(caught.value)


def refuse_torch(pickle_bytes, tmp_path, match):
  refuse(made_files.torch_file(pickle_bytes), tmp_path, match)


def test_the_maker_of_these_files_makes_good_ones(tmp_path):
  data = made_files.torch_file(pickled(GOOD, tensor(0, (3, 2), (1, 3))))
  tensors = opened(data, tmp_path)
  np.testing.assert_array_equal(tensors['0'], [[0, 1, 2], [3, 4, 5]])
  assert tensors['1'].strides == (4, 12)


class Runs:
  def __init__(self, function, *arguments):
    self.reduced = function, arguments

  def __reduce__(self):
    return self.reduced


@pytest.mark.parametrize('protocol', range(6))
@pytest.mark.parametrize('function', [os.system, eval, exec, getattr])
def test_code_is_named_not_run(function, protocol, tmp_path):
  ran = tmp_path / 'ran'
  code = dict(exec=f'open({str(ran)!r}, "w")', system=f'touch {ran}')
  text = code.get(function.__name__, f'open({str(ran)!r}, "w")')
  data = pickle.dumps({'x': Runs(function, text)}, protocol)
  refuse_torch(data, tmp_path, 'refused')
  old = made_files.safetensors(data)  # and outside of any archive
  with pytest.raises(WeightsError):
    opened(old, tmp_path)
  with pytest.raises(WeightsError):
    opened(data, tmp_path)
  assert not ran.exists()


@pytest.mark.parametrize(
  'module, attribute',
  [
    ('builtins', 'eval'),
    ('__builtin__', 'getattr'),
    ('posix', 'system'),
    ('subprocess', 'Popen'),
    ('copyreg', '_reconstructor'),
    ('copy_reg', '__newobj__'),
    ('operator', 'attrgetter'),
    ('functools', 'partial'),
    ('torch', 'load'),
    ('torch.hub', 'load'),
    ('torch.storage', '_load_from_bytes'),
    ('torch.nn.modules.linear', 'Linear'),
    ('torch', '_utils._rebuild_tensor_v2'),
    ('torch._utils', '_rebuild_tensor_v2.__globals__'),
    ('collections', 'OrderedDict.fromkeys'),
    ('collections OrderedDict', ''),
    ('argparse', 'Namespace.__init__'),
    ('argparse', '_sys.modules'),
    ('interop.files', 'write_npz'),
    ('__torch__x', 'Module'),
    ('', ''),
  ],
)
def test_other_names_are_refused_by_name(module, attribute, tmp_path):
  """Whether they are called or only lie there."""
  message = f'refused: it wants .*{attribute}'
  byte = pickled(name(module, attribute))
  refuse_torch(byte, tmp_path, message)
  refuse_torch(pickled(GOOD, call(module, attribute)), tmp_path, message)
  stacked = encode(module) + encode(attribute) + b'\x93'
  refuse_torch(pickled(stacked, protocol=b'\x80\x04'), tmp_path, message)


@pytest.mark.parametrize(
  'item',
  [
    name('argparse', 'Namespace')
    + b')\x81'
    + encode({'__setstate__': 1})
    + b'b',
    name('argparse', 'Namespace') + b')\x81' + encode(({}, {'x': 1})) + b'b',
    name('argparse', 'Namespace') + b')}\x92' + encode(7) + b'b',
    call('collections', 'OrderedDict') + encode({'__class__': 1}) + b'b',
    call('collections', 'OrderedDict', encode([[1, 2]] * 3)),
    call('collections', 'defaultdict', name('builtins', 'list')),
    call('pathlib', 'PosixPath', encode('/etc/passwd')),
    call('torch', 'device', encode('cuda')),
    call('torch', 'Size', encode((1, 2))),
    call('builtins', 'bytearray', encode(2**60)),
    call('_codecs', 'encode', encode('x'), encode('zip')),
    name('torch', 'float32'),
    encode({1.5: {(1, 2): 3}}),
  ],
)
def test_harmless_things_stay_inert(item, tmp_path):
  """Nothing is made of them, whatever their arguments and state."""
  data = made_files.torch_file(pickled(item, GOOD))
  assert list(opened(data, tmp_path)) == ['1']
  data = made_files.torch_file(pickled(item))
  refuse(data, tmp_path, 'no named tensors in it; it is a dict of')


@pytest.mark.parametrize(
  'item, message',
  [
    (name('argparse', 'Namespace') + encode({}) + b'b', 'state to a plain'),
    (name('torch', 'FloatStorage') + encode({'a': 1}) + b'b', 'state'),
    (GOOD + encode({'a': 1}) + b'b', 'state'),
    (encode([]) + encode({'a': 1}) + b'b', 'state'),
    (encode('text') + b'(tR', 'calls what cannot be called'),
    (GOOD + b'(tR', 'calls what cannot be called'),
    (name('argparse', 'Namespace') + encode([1]) + b'R', 'cannot be called'),
    (call('argparse', 'Namespace') + b'(tR', 'cannot be called'),
    (encode([]) + encode('k') + encode(1) + b's', 'not a dict'),
    (GOOD + encode(1) + b'a', 'not a list'),
    (encode({}) + b'(' + encode(1) + b'u', 'not a dict'),
    (b'\x82\x01', 'refused: torch.save writes no EXT1'),
    (b'(ios\nsystem\n', 'refused: torch.save writes no INST'),
    (b'(' + name('argparse', 'Namespace') + b'o', 'writes no OBJ'),
    (b'Pid\n', 'refused: torch.save writes no PERSID'),
    (b'\x97', 'writes no NEXT_BUFFER'),
    (b'r\xff\xff\xff\x7f', 'damaged'),  # memory for 2^31 entries of the memo
    (b'j\xff\xff\xff\x7f', 'damaged'),
    (b'\x8e' + struct.pack('<Q', 2**40), 'damaged'),  # a terabyte of bytes
    (b'\x8b' + struct.pack('<i', 2**31 - 1), 'damaged'),  # a number as long
    (b'\x95' + struct.pack('<Q', 2**62), 'damaged'),
    (b'\xfe', 'damaged'),
    (b'', 'damaged|not a dict'),
    (b'0' * 3, 'refused'),
    (encode('module') + b'Q', 'more than numbers'),
    (encode(('storage', 1, '0', 'cpu', 6)) + b'Q', 'without type or name'),
    (call('torch._utils', '_rebuild_parameter'), 'damaged'),
    (call('torch._utils', '_rebuild_tensor_v2', encode(1)), 'damaged'),
    (call('torch._utils', '_rebuild_qtensor', GOOD), 'a quantised tensor'),
    (call('torch._utils', '_rebuild_sparse_tensor'), 'a sparse tensor'),
  ],
)
def test_hostile_instructions(item, message, tmp_path):
  refuse_torch(pickled(item), tmp_path, message)


def test_registered_extensions_are_not_asked(tmp_path):
  copyreg.add_extension('os', 'system', 0x7A)
  try:
    data = pickled(b'\x82\x7a' + encode(('true',)) + b'R')
    refuse_torch(data, tmp_path, 'EXT1')
  finally:
    copyreg.remove_extension('os', 'system', 0x7A)


@pytest.mark.parametrize(
  'item',
  [
    tensor(1, (2, 3), (3, 1)),
    tensor(0, (7,), (1,)),
    tensor(6, (), ()),
    tensor(-1, (2,), (1,)),
    tensor(2, (2,), (-1,)),
    tensor(0, (-2,), (1,)),
    tensor(0, (-2, -3), (3, 1)),
    tensor(0, (2, 3), (3,)),
    tensor(0, (2**40, 2**40), (0, 0)),
    tensor(0, (2**32, 2**32), (1, 1)),
    tensor(0, (2**63,), (0,)),
    tensor(2**64 - 4, (2,), (1,)),
    tensor(0, (2,), (2**63,)),
    tensor(0, (0, 2**62), (1, 1)),
    tensor(0, (1,) * 33, (1,) * 33),
    tensor(0, (10**5000,), (0,)),
    tensor(0, (100_000,), (0,)),  # more than the file has
    tensor(0, (2.0,), (1,)),
    tensor(0, (True,), (1,)),
    tensor('0', (2,), (1,)),
    tensor(0, [2], [1]),
    tensor(0, (2,), (1,), storage(2**60)),
    tensor(0, (2,), (1,), storage(-1)),
    tensor(0, (7,), (1,), storage(7)),
    tensor(0, (6,), (1,), storage(6, 'DoubleStorage')),
    tensor(0, (6,), (1,), storage(6, key='1')),
    tensor(0, (6,), (1,), storage(6, key='../data/0')),
    tensor(0, (6,), (1,), storage(6, key='/etc/passwd')),
    tensor(0, (6,), (1,), storage(6, 'QInt8Storage')),
    tensor(
      0, (6,), (1,), storage(24, 'UntypedStorage', module='torch.storage')
    ),
    tensor(0, (6,), (1,), flags={'neg': True}),
    GOOD[:-1] + b'R' + tensor(0, (6,), (1,), storage(5)),
  ],
)
def test_views_that_no_tensor_has(item, tmp_path):
  refuse_torch(pickled(GOOD, item), tmp_path, 'damaged|refused|not complete')


def test_nesting(tmp_path):
  for deep in (b']' * 100_000 + b'a' * 99_999, b')' + b'\x85' * 100_000):
    refuse_torch(pickled(deep), tmp_path, 'nested too deeply')
  deep = (
    b'}'
    + encode('x') * 0
    + b''.join(encode('x') + b'}' for _ in range(50_000))
    + b's' * 50_000
  )
  refuse_torch(pickled(deep), tmp_path, 'nested too deeply')
  itself = b'}q\x00' + encode('x') + b'h\x00s'
  refuse_torch(pickled(itself), tmp_path, 'nested too deeply')
  # 100 lists in 100 lists in ..., by a few hundred instructions.
  doubled = GOOD
  for _ in range(20):
    doubled = b'](' + doubled + b'q\x00' + b'h\x00' * 99 + b'e'
  refuse_torch(pickled(doubled), tmp_path, 'too often')


def test_absurd_pickles(tmp_path, monkeypatch):
  from interop import pickled as machine
  from interop import torch_files

  data = made_files.torch_file(pickled(GOOD))
  monkeypatch.setattr(machine, 'MAX_STEPS', 20)
  refuse(data, tmp_path, 'absurdly long')
  monkeypatch.undo()
  monkeypatch.setattr(torch_files, 'MAX_PICKLE', 50)
  refuse(data, tmp_path, r'no such data\.pkl')


def test_two_tensors_of_one_name(tmp_path):
  inside = b'}' + encode('b') + GOOD + b's'
  both = b'\x80\x02}(' + encode('a') + inside + encode('a.b') + GOOD + b'u.'
  refuse_torch(both, tmp_path, r"two tensors are called 'a\.b'")


@pytest.mark.parametrize('protocol', [2, 4])
def test_without_tensors_it_says_what_is_there(protocol, tmp_path):
  data = pickle.dumps({'epoch': 3, 'args': {}, 'x' * 99: None}, protocol)
  refuse_torch(data, tmp_path, r"a dict of 'epoch' \(int\), 'args' \(dict\)")
  refuse_torch(b'\x80\x02' + GOOD + b'.', tmp_path, 'it is view alone')
  refuse_torch(pickle.dumps({}, protocol), tmp_path, 'an empty dict')
  namespace = call('argparse', 'Namespace')
  refuse_torch(b'\x80\x02' + namespace + b'.', tmp_path, 'argparse.Namespace')


def test_archives_of_something_else(tmp_path):
  files_of = made_files.zipped
  refuse(files_of({'a.txt': b'x'}), tmp_path, 'neither of torch nor of NumPy')
  refuse(files_of({}), tmp_path, 'zip archive')
  two = {'a/data.pkl': pickled(GOOD), 'b/data.pkl': pickled(GOOD)}
  refuse(files_of(two), tmp_path, '2 pickles')
  big = {'a/data.pkl': pickled(GOOD), 'a/byteorder': b'big'}
  refuse(files_of(big), tmp_path, 'big-endian')
  packed = made_files.torch_file(pickled(GOOD), method=zipfile.ZIP_DEFLATED)
  refuse(packed, tmp_path, r'writes no such data\.pkl')
  lzma = made_files.torch_file(pickled(GOOD), method=zipfile.ZIP_LZMA)
  refuse(lzma, tmp_path, 'unknown compression')


def test_changed_numbers_are_noticed_when_they_are_read(tmp_path):
  data = made_files.torch_file(pickled(GOOD))
  path = tmp_path / 'weights.pth'
  changed = data.replace(made_files.SIX, made_files.SIX[::-1])
  path.write_bytes(changed)
  one = files.open_weights(path).tensors['0']
  with pytest.raises(WeightsError, match=r"weights\.pth: entry 'a/data/0'"):
    one.read()
  # torch can leave checksums out (set_crc32_options): they are 0 then.
  assert list(opened(edit(data, 'crc', 0), tmp_path)) == ['0']
  refuse(edit(data, 'crc', 1), tmp_path, r"entry 'a/data\.pkl' is damaged")


def test_a_dict_that_is_its_own_kind_is_looked_into(tmp_path):
  kept = call('collections', 'defaultdict') + encode('x') + GOOD + b's'
  data = made_files.torch_file(pickled(kept))
  assert list(opened(data, tmp_path)) == ['0.x']


def edit(data, field, value):
  """Writes into the first entry of the central directory (APPNOTE 4.3.12)."""
  at = data.index(b'PK\1\2')
  place, form = dict(
    crc=(16, '<I'),
    method=(10, '<H'),
    packed=(20, '<I'),
    size=(24, '<I'),
    start=(42, '<I'),
  )[field]
  new = bytearray(data)
  struct.pack_into(form, new, at + place, value)
  return bytes(new)


@pytest.mark.parametrize(
  'field, value',
  [
    ('method', 8),
    ('method', 99),
    ('packed', 2**31),
    ('packed', 0),
    ('size', 2**32 - 2),
    ('size', 0),
    ('start', 2**31),
    ('start', 7),
    ('start', 2**32 - 2),
  ],
)
def test_a_directory_that_lies(field, value, tmp_path):
  message = 'damaged|no such data.pkl|unknown compression'
  good = made_files.torch_file(pickled(GOOD))
  refuse(edit(good, field, value), tmp_path, message)
  npz = made_files.zipped({'x.npy': b'\x93NUMPY'}, zipfile.ZIP_DEFLATED)
  refuse(edit(npz, field, value), tmp_path, message)


def test_a_bomb_of_zeros(tmp_path):
  """A header that promises more than the entry has, and the other way round."""
  head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%s,), }\n"
  for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    for count in (b'2', b'4', b'1099511627776', b'-3', b'3.0'):
      text = head % count
      npy = b'\x93NUMPY\1\0' + struct.pack('<H', len(text)) + text + bytes(12)
      data = made_files.zipped({'x.npy': npy}, method)
      refuse(data, tmp_path, r"'x\.npy' is damaged", 'x.npz')


def test_npz_with_objects(tmp_path):
  path = tmp_path / 'x.npz'
  np.savez(path, x=np.ones(3), bad=np.array([{}, None]))
  with pytest.raises(WeightsError, match="'bad.npy' holds Python objects"):
    files.open_weights(path)
  np.savez(path, name=np.array('vit'))
  with pytest.raises(WeightsError, match='no numbers in it, only name'):
    files.open_weights(path)


@pytest.mark.parametrize(
  'data',
  [
    made_files.safetensors({}, length=2**60),
    made_files.safetensors({}, length=2**64 - 1),
    made_files.safetensors(b'{"a":'),
    made_files.safetensors(b'{"a":1}'),
    made_files.safetensors(b'\xff\xfe{}'),
    made_files.safetensors(b'[' * 10_000),
    made_files.safetensors(b'{"a":' * 10_000),
    made_files.safetensors({}),
    made_files.safetensors({'__metadata__': {'a': 'b'}}),
    made_files.safetensors({'__metadata__': {'a': 1}}),
    made_files.safetensors({'a': floats(0, 4)}, b'123'),
    made_files.safetensors({'a': floats(0, 4)}, b'12345'),
    made_files.safetensors({'a': floats(4, 8)}, b'12345678'),
    made_files.safetensors({'a': floats(4, 0)}, b'1234'),
    made_files.safetensors({'a': floats(-4, 0)}, b'1234'),
    made_files.safetensors({'a': floats(0, 2**63)}, b'1234'),
    made_files.safetensors({'a': floats(0, 4), 'b': floats(0, 4)}, b'1234'),
    made_files.safetensors({'a': floats(0, 4, dtype='F64')}, b'1234'),
    made_files.safetensors({'a': floats(0, 4, dtype='X9')}, b'1234'),
    made_files.safetensors(
      {'a': floats(0, 4, dtype='F4', shape=(8,))}, b'1234'
    ),
    made_files.safetensors({'a': floats(0, 4, shape=(2,))}, b'1234'),
    made_files.safetensors({'a': floats(0, 4, shape=(2**33, 2**33))}, b'1234'),
    made_files.safetensors({'a': floats(0, 0, shape=(0, 2**62))}),
    made_files.safetensors({'a': floats(0, 0, shape=[0] * 60)}),
    made_files.safetensors(
      b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
      b'"a":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}}',
      b'1234',
    ),
  ],
)
def test_hostile_safetensors(data, tmp_path):
  refuse(data, tmp_path, 'weights', 'weights.safetensors')


@pytest.mark.parametrize(
  'data, message',
  [
    (b'', 'empty: copy or download it again'),
    (b'\0', 'by its first bytes'),
    (b'\0' * 5000, 'by its first bytes'),
    (b'\n<!DOCTYPE html><html>', 'a web page, not weights'),
    (b'\xef\xbb\xbf<html lang="en">', 'a web page'),
    (b'Not Found', "a text file, not weights; it begins 'Not Found'"),
    (b'{"error": "no access"}', 'a text file'),
    (b'version https://git-lfs.github.com/spec/v1\noid', 'git lfs pull'),
    (b'\x1f\x8b\x08\0', 'gunzip'),
    (b'\x89HDF\r\n', 'HDF5'),
    (b'a' * 257 + b'ustar\0', 'tar archive'),
    (pickle.dumps({'a': 1}), 'a plain pickle'),
    (b'PK\3\4' + b'\0' * 100, 'damaged or not complete'),
    (b'PK', 'damaged or not complete'),
  ],
)
@pytest.mark.parametrize('file', ['weights.pth', 'weights.bin', 'weights.npz'])
def test_files_of_something_else(data, message, file, tmp_path):
  refuse(data, tmp_path, message, file)


def every_kind(tmp_path):
  yield (RECORDED / 'torch_zip.pth').read_bytes()
  yield (RECORDED / 'torch_old.pth').read_bytes()
  yield (RECORDED / 'torch_script.pt').read_bytes()
  files.write_safetensors(tmp_path / 'x', some(), {'format': 'np'})
  yield (tmp_path / 'x').read_bytes()
  files.write_npz(tmp_path / 'x', some())
  yield (tmp_path / 'x').read_bytes()
  np.savez_compressed(tmp_path / 'x.npz', **some())
  yield (tmp_path / 'x.npz').read_bytes()


def test_whatever_is_cut_off_is_noticed(tmp_path):
  for data in every_kind(tmp_path):
    step = len(data) // 60
    for length in (*range(0, len(data), step), len(data) - 1):
      with pytest.raises(WeightsError):
        opened(data[:length], tmp_path)


@pytest.mark.filterwarnings('ignore:invalid escape:DeprecationWarning')
def test_a_changed_bit_is_noticed_or_without_effect(tmp_path):
  """Of archives, which have checksums; others at least do not crash."""
  rng = np.random.default_rng(0)
  for data in every_kind(tmp_path):
    good = opened(data, tmp_path)
    # The directory at the end of an archive is where most can go wrong.
    places = rng.integers(0, len(data), 150)
    ends = rng.integers(max(len(data) - 1500, 0), len(data), 150)
    for place in (*places, *ends):
      changed = bytearray(data)
      changed[place] ^= 1 << rng.integers(8)
      try:
        found = opened(bytes(changed), tmp_path)
      except WeightsError:
        continue
      if data.startswith(b'PK'):
        assert sorted(found) == sorted(good), place
        for key, x in good.items():
          np.testing.assert_array_equal(found[key], x)
