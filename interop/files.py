"""Other people's weights as named tensors: lazily, and without running code.

    weights = files.open_weights('dino_deitsmall16_pretrain.pth')
    weights.tensors['cls_token'].read()

A file of PyTorch (.pth, .pt, .bin, .ckpt), safetensors or .npz, an index of
several (`*.index.json`), or a folder as the Hugging Face hub has them. What a
file is shows in its first bytes, not in its name.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from interop import archive, npz_files, safe_files, torch_files
from interop.mapped import Mapped, Tensor, WeightsError

SUFFIXES = '.safetensors .pth .pth.tar .pt .bin .ckpt .npz'.split()
INDEX = '.index.json'
# What a folder's weights are called, the safest first.
NAMES = (
  'model.safetensors',
  'model.safetensors.index.json',
  'open_clip_model.safetensors',
  'pytorch_model.bin',
  'pytorch_model.bin.index.json',
  'open_clip_pytorch_model.bin',
)
MAX_JSON = 2**26  # bytes
# torch itself reads its first format only by running what is in the file.
RESAVE = (
  'if torch wrote it before 2017 and you trust it: python -c "import sys, '
  "torch; torch.save(torch.load(sys.argv[1], map_location='cpu', "
  'weights_only=False), sys.argv[2])" OLD NEW'
)
_FIRST = 512  # bytes that show what a file is


@dataclasses.dataclass(frozen=True)
class Weights:
  """What a file, or the files of a folder, hold.

  Attributes:
    path: as it was given.
    tensors: by name; names of nested dicts are joined by '.', as in
      'teacher.backbone.norm.weight'.
    metadata: safetensors' own.
    config: of `config.json` beside the file; {} without.
    preprocessor: of `preprocessor_config.json` beside it; {} without.
  """

  path: str
  tensors: Mapping[str, Tensor]
  metadata: Mapping[str, str]
  config: Mapping[str, Any]
  preprocessor: Mapping[str, Any]


def is_weights(path: epath.PathLike) -> bool:
  """Whether `open_weights` would try: by names only, nothing is read."""
  place = _place(path)
  if place.name.endswith((*SUFFIXES, INDEX)):
    return place.exists() and not place.is_dir()
  return any((place / name).exists() for name in NAMES)


def open_weights(path: epath.PathLike) -> Weights:
  """The tensors of a file, an index or a folder; values are not read yet.

  Args:
    path: of a disk or an object store, of which a local copy is made.

  Raises:
    WeightsError: damaged, of an unknown kind, without tensors, or nothing but
      running code of others would open it.
    FileNotFoundError: there is nothing.
  """
  place = _place(path)
  if not place.exists():
    raise FileNotFoundError(f'{place}: no such file or folder')
  if place.is_dir():
    place = _in_folder(place)
  try:
    if place.name.endswith(INDEX):
      tensors, metadata = _open_index(place)
    else:
      tensors, metadata = _open_file(place)
    config = _read_json(place.parent / 'config.json')
    preprocessor = _read_json(place.parent / 'preprocessor_config.json')
  except WeightsError as error:
    raise WeightsError(f'{place}: {error}') from error
  return Weights(os.fspath(path), tensors, metadata, config, preprocessor)


def write_safetensors(
  path: epath.PathLike,
  tensors: Mapping[str, np.ndarray],
  metadata: Mapping[str, str],
) -> None:
  """Writes a safetensors file whole or not at all.

  Args:
    path: the file; an older one is replaced. Equal contents give equal bytes.
    tensors: arrays by name.
    metadata: strings by name.

  Raises:
    WeightsError: a type or a name that the format has not.
  """
  with _whole(path) as part:
    safe_files.write(part, tensors, metadata)


def write_npz(path: epath.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes an .npz file whole or not at all.

  Args:
    path: the file; an older one is replaced. Equal contents give equal bytes.
    tensors: arrays by name.

  Raises:
    WeightsError: a type that NumPy's own files have not (bfloat16).
  """
  with _whole(path) as part:
    npz_files.write(part, tensors)


def _place(path: epath.PathLike) -> epath.Path:
  # Unlike that of `pathlib` it leaves a path as it is where there is no home.
  return epath.Path(os.path.expanduser(path))


def _is_remote(place: epath.Path) -> bool:
  return '://' in os.fspath(place)


def _in_folder(folder: epath.Path) -> epath.Path:
  for name in NAMES:
    if (folder / name).exists():
      return folder / name
  seen = sorted(p.name for p in folder.iterdir())
  others = [name for name in seen if name.endswith((*SUFFIXES, INDEX))]
  raise WeightsError(
    f'{folder}: a folder without {NAMES[0]} or {NAMES[3]}; '
    + (f'name one of its files: {", ".join(others[:8])}' if others else '')
    + ('' if others else f'it has {len(seen)} files, none of weights')
  )


def _open_index(
  place: epath.Path,
) -> tuple[dict[str, Tensor], dict[str, str]]:
  """The tensors of several files, of which one lists where each is."""
  shards = _read_json(place).get('weight_map')
  if type(shards) is not dict or not shards:
    raise WeightsError("not an index: it has no 'weight_map'")
  opened = {}
  for shard in dict.fromkeys(shards.values()):
    # A name alone: neither a folder above nor another disk.
    if type(shard) is not str or shard != pathlib.PurePath(shard).name:
      raise WeightsError(f'refused: {str(shard)[:80]!r} is not beside it')
    file = place.parent / shard
    if not file.exists() or file.is_dir():
      raise WeightsError(f'it names {shard!r}, which is missing: download it')
    try:
      opened[shard] = _open_file(file)
    except WeightsError as error:
      raise WeightsError(f'{shard}: {error}') from error
  lost = [
    name for name, shard in shards.items() if name not in opened[shard][0]
  ]
  if lost:
    raise WeightsError(
      f'{len(lost)} tensors are not in the files it names, as {lost[0][:80]!r} '
      f'in {shards[lost[0]]}: download it again'
    )
  tensors = {name: opened[shard][0][name] for name, shard in shards.items()}
  metadata = {}
  for _, more in opened.values():
    metadata |= more
  return tensors, metadata


def _open_file(
  place: epath.Path,
) -> tuple[dict[str, Tensor], dict[str, str]]:
  """({name: Tensor}, metadata) of one file."""
  with _local(place) as path:
    file = Mapped(path, os.fspath(place))
    start = file.data[:_FIRST]
    if start.startswith(b'PK'):
      found = archive.entries(file)
      if torch_files.is_torch(found):
        return torch_files.read_zip(file, found), {}
      if npz_files.is_npz(found):
        return npz_files.read(file, found), {}
      raise WeightsError(
        'a zip archive, but neither of torch nor of NumPy: unpack it'
      )
    if start.startswith(torch_files.OLD_MAGIC):
      return torch_files.read_old(file), {}
    reason = _no_weights(start)
    if reason:
      raise WeightsError(reason)
    if start[8:9] == b'{' or place.suffix == '.safetensors':
      return safe_files.read(path, file)
    raise WeightsError(
      'neither safetensors nor torch nor npz by its first bytes '
      f'({start[:4].hex(" ")}): copy or download it again'
    )


def _no_weights(start: bytes) -> str:
  """What else a file is that begins so; '' if that does not show."""
  text = start.lstrip(b'\xef\xbb\xbf \t\r\n').lower()
  if text.startswith(b'version https://git-lfs'):
    return "only a pointer of Git LFS: run 'git lfs pull' in its repository"
  if text.startswith((b'<!doctype', b'<html', b'<?xml', b'<head')):
    return 'a web page, not weights: the download went wrong, try again'
  if start[257:262] == b'ustar':
    return f'a tar archive: unpack it; {RESAVE}'
  if start.startswith(b'\x1f\x8b'):
    return 'compressed with gzip: unpack it (gunzip, tar xzf)'
  if start.startswith(b'\x89HDF'):
    return 'an HDF5 file of Keras; ask for safetensors'
  if start[:1] == b'\x80' and start[1:2] in b'\2\3\4\5':
    return (
      'refused: a plain pickle, which may run any code; ask for safetensors, '
      'or for a file of torch.save'
    )
  if all(32 <= byte < 127 or byte in b'\t\r\n' for byte in start):
    return f'a text file, not weights; it begins {start[:40].decode()!r}'
  return ''


@contextlib.contextmanager
def _local(place: epath.Path) -> Iterator[pathlib.Path]:
  """A local file with the contents; a copy may go once it is mapped."""
  if not _is_remote(place):
    yield pathlib.Path(place)
    return
  with tempfile.TemporaryDirectory() as folder:
    copy = pathlib.Path(folder) / place.name
    with place.open('rb') as source, copy.open('wb') as target:
      shutil.copyfileobj(source, target, 2**24)
    yield copy


@contextlib.contextmanager
def _whole(path: epath.PathLike) -> Iterator[pathlib.Path]:
  """A file to write, which takes its place when it is complete."""
  place = _place(path)
  if _is_remote(place):  # where an object appears only when it is complete
    with tempfile.TemporaryDirectory() as folder:
      part = pathlib.Path(folder) / place.name
      yield part
      with part.open('rb') as source, place.open('wb') as target:
        shutil.copyfileobj(source, target, 2**24)
    return
  part = pathlib.Path(place.with_name(place.name + '.part'))
  try:
    yield part
    part.replace(place)
  finally:
    part.unlink(missing_ok=True)


def _read_json(place: epath.Path) -> dict[str, Any]:
  if not place.exists():
    return {}
  try:
    if place.stat().length > MAX_JSON:
      raise ValueError('it is absurdly long')
    value = json.loads(place.read_text())
  except (ValueError, RecursionError) as error:
    raise WeightsError(f'{place.name} cannot be read: {error}') from error
  if type(value) is not dict:
    raise WeightsError(f'{place.name} is not a JSON object')
  return value
