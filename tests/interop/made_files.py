"""Files of weights made by hand, well-formed or not."""

import io
import json
import pickle
import pickletools
import struct
import zipfile

STOP = b'.'


def name(module, attribute):
  return f'c{module}\n{attribute}\n'.encode()


def encode(value):
  """The instructions that push a plain value."""
  return pickletools.optimize(pickle.dumps(value, 2))[2:-1]


def call(module, attribute, *arguments):
  """Instructions that call with arguments, which are instructions."""
  return name(module, attribute) + b'(' + b''.join(arguments) + b'tR'


def storage(count, kind='FloatStorage', key='0', module='torch'):
  parts = encode('storage'), name(module, kind), encode(key), encode('cpu')
  return b'(' + b''.join(parts) + encode(count) + b'tQ'


def tensor(offset, shape, steps, flat=None, flags=None):
  """Instructions of one float32 tensor; its storage has 6 numbers."""
  more = () if flags is None else (encode(flags),)
  return call(
    'torch._utils',
    '_rebuild_tensor_v2',
    flat or storage(6),
    *map(encode, (offset, shape, steps, False, {})),
    *more,
  )


def pickled(*items, protocol=b'\x80\x02'):
  """A pickle of {'0': item, '1': item ...}, each given as instructions."""
  pairs = (encode(str(i)) + item for i, item in enumerate(items))
  return protocol + b'}(' + b''.join(pairs) + b'u' + STOP


def zipped(entries, method=zipfile.ZIP_STORED):
  """A zip archive of {name: bytes}."""
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w', method) as archive:
    for entry, data in entries.items():
      archive.writestr(entry, data)
  return buffer.getvalue()


SIX = struct.pack('<6f', 0, 1, 2, 3, 4, 5)


def torch_file(pickle_bytes, **kwargs):
  """A file of torch.save with one storage of six float32."""
  entries = {'a/data.pkl': pickle_bytes, 'a/data/0': SIX, 'a/version': b'3\n'}
  return zipped(entries, **kwargs)


def safetensors(header, data=b'', length=None):
  """A safetensors file with a header: a dict, or bytes as they are."""
  text = header if type(header) is bytes else json.dumps(header).encode()
  length = len(text) if length is None else length
  return struct.pack('<Q', length) + text + data


def floats(*offsets, dtype='F32', shape=(1,)):
  return dict(dtype=dtype, shape=list(shape), data_offsets=list(offsets))
