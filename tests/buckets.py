"""gs:// without a network: one bucket store in memory, seen from two sides.

etils and Orbax's bookkeeping reach it through fsspec, TensorStore through a
small part of Google's JSON API on this machine (cloud.google.com/storage/docs).
`python tests/buckets.py FOLDER --config=...` runs main.py with it, starting
from what is in FOLDER and leaving there what is in the store.
"""

import contextlib
import http.server
import importlib.machinery
import json
import os
import pathlib
import sys
import threading
import types
import urllib.parse

import fsspec
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem


class Bucket(MemoryFileSystem):
  """Objects are written whole; whoever appends is told off.

  Attributes:
    written: names of all objects that were written, in order.
  """

  protocol = ('gcs', 'gs')
  store = {}
  pseudo_dirs = ['']
  written = []

  @classmethod
  def _strip_protocol(cls, path):
    for name in cls.protocol:
      path = path.removeprefix(f'{name}://')
    return '/' + path.strip('/') if path.strip('/') else ''

  def _open(self, path, mode='rb', **kwargs):
    if 'a' in mode:
      raise NotImplementedError('objects cannot be appended to')
    if 'w' in mode:
      self.written.append(path)
    return super()._open(path, mode, **kwargs)


class _Api(http.server.BaseHTTPRequestHandler):
  """Reading, writing, listing and deleting objects."""

  protocol_version = 'HTTP/1.1'

  def _answer(self, code, data=b'', **headers):
    self.send_response(code)
    self.send_header('Content-Length', str(len(data)))
    for name, value in headers.items():
      self.send_header(name.replace('_', '-'), value)
    self.end_headers()
    self.wfile.write(data)

  def _parse(self):
    url = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(url.query))
    _, _, rest = url.path.partition('/b/')
    bucket, _, name = rest.partition('/o')
    return bucket, urllib.parse.unquote(name.removeprefix('/')), query

  def _describe(self, path, bucket):
    held = Bucket.store[path]
    return dict(
      kind='storage#object',
      name=path.removeprefix(f'/{bucket}/'),
      bucket=bucket,
      generation=str(held.generation),
      size=str(len(held.getvalue())),
      timeCreated='2026-01-01T00:00:00Z',
      updated='2026-01-01T00:00:00Z',
    )

  def do_GET(self):
    bucket, name, query = self._parse()
    if not name:
      start = f'/{bucket}/{query.get("prefix", "")}'
      names = sorted(path for path in Bucket.store if path.startswith(start))
      items = [self._describe(path, bucket) for path in names]
      self._answer(200, json.dumps(dict(items=items)).encode())
      return
    path = f'/{bucket}/{name}'
    held = Bucket.store.get(path)
    if held is None:
      self._answer(404)
      return
    known = query.get('ifGenerationNotMatch')
    if known == str(_generation(held)):
      self._answer(304)
      return
    _generation(held)
    if query.get('alt') != 'media':
      self._answer(200, json.dumps(self._describe(path, bucket)).encode())
      return
    data, tag = held.getvalue(), {'x_goog_generation': str(held.generation)}
    wanted = self.headers.get('Range')
    if wanted:
      first, _, last = wanted.removeprefix('bytes=').partition('-')
      first = int(first) if first else len(data) - int(last)
      last = min(int(last or len(data) - 1), len(data) - 1)
      tag['Content_Range'] = f'bytes {first}-{last}/{len(data)}'
      self._answer(206, data[first : last + 1], **tag)
      return
    self._answer(200, data, **tag)

  def do_POST(self):
    bucket, name, query = self._parse()
    data = self.rfile.read(int(self.headers.get('Content-Length', 0)))
    path = f'/{bucket}/{query.get("name", name)}'
    held = Bucket.store.get(path)
    wanted = query.get('ifGenerationMatch')
    if wanted is not None and wanted != str(held and _generation(held) or 0):
      self._answer(412)
      return
    Bucket().pipe_file(path, data)
    _generation(Bucket.store[path])
    self._answer(200, json.dumps(self._describe(path, bucket)).encode())

  def do_DELETE(self):
    bucket, name, _ = self._parse()
    found = Bucket.store.pop(f'/{bucket}/{name}', None)
    self._answer(204 if found else 404)

  def log_message(self, *unused):
    """Says nothing."""


_count = iter(range(1, 10**9))


def _generation(held):
  """A number per version of an object; every write makes a new `held`."""
  if not hasattr(held, 'generation'):
    held.generation = next(_count)
  return held.generation


@contextlib.contextmanager
def serving():
  """Google's API for as long as this is entered; TensorStore is told where."""
  server = http.server.ThreadingHTTPServer(('localhost', 0), _Api)
  server.daemon_threads = True
  threading.Thread(target=server.serve_forever, daemon=True).start()
  os.environ['TENSORSTORE_GCS_HTTP_URL'] = (
    f'http://localhost:{server.server_port}'
  )
  os.environ['GOOGLE_AUTH_TOKEN_FOR_TESTING'] = 'nobody'
  try:
    yield
  finally:
    server.shutdown()


class _Client:
  """Of google.cloud.storage, which Orbax asks what kind of bucket it is."""

  def get_bucket(self, name):
    return types.SimpleNamespace(name=name)


def install():
  """gs:// of etils and Orbax is the bucket from now on."""
  for name, fields in {
    'gcsfs': {},
    'google.cloud.storage': dict(Client=_Client),
  }.items():
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(module).update(fields)
    sys.modules[name] = module
  os.environ['EPATH_USE_TF'] = 'false'
  fsspec.register_implementation('gcs', Bucket, clobber=True)
  # What etils once found it keeps.
  epath.backend.fsspec_backend._get_filesystem = lambda _: Bucket()


def run(folder):
  """main.py in this process, the bucket taken from and left in a folder."""
  sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
  import main

  folder = pathlib.Path(folder)
  install()
  for path in folder.rglob('*'):
    if path.is_file():
      Bucket().pipe_file(f'/{path.relative_to(folder)}', path.read_bytes())
  with serving():
    code = main.run()
  for name, held in Bucket.store.items():
    path = folder / name[1:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(held.getvalue())
  return code


if __name__ == '__main__':
  sys.exit(run(sys.argv.pop(1)))
