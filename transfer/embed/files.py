"""Files of features, written part by part: `.npz` and `.parquet`."""

import contextlib
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import numpy as np
from etils import epath

from input_pipeline.source import Source
from training import storage
from transfer.parts import Parts

# ((images, width), names of images that cannot be read)
Written = tuple[tuple[int, int], list[str]]


def write_npz(path: epath.Path, parts: Parts, source: Source) -> Written:
  """Arrays `path`, `features` and, with labels, `label`, `class`, `classes`.

  `unreadable` names the images that are left out. Nothing in it is pickled.

  Args:
    path: the file, written whole or not at all.
    parts: of the features.
    source: what they are of.

  Returns:
    See `Written`.

  Raises:
    ValueError: no features at all.
  """
  index, width, dtype, unreadable = _look(parts, source)
  shape = len(index), width
  arrays = {name: np.array(x) for name, x in _columns(source, index).items()}
  if source.labels is not None:
    arrays['classes'] = np.array(source.classes, str)
  arrays['unreadable'] = np.array(unreadable, str)
  with _whole(path) as file, zipfile.ZipFile(file, 'w') as out:
    for name, array in arrays.items():
      with out.open(f'{name}.npy', 'w', force_zip64=True) as member:
        np.lib.format.write_array(member, array, allow_pickle=False)
    with out.open('features.npy', 'w', force_zip64=True) as member:
      header = dict(
        descr=np.lib.format.dtype_to_descr(dtype),
        fortran_order=False,
        shape=shape,
      )
      np.lib.format.write_array_header_1_0(member, header)
      for _, values in parts:
        member.write(np.ascontiguousarray(values).tobytes())
  return shape, unreadable


def write_parquet(path: epath.Path, parts: Parts, source: Source) -> Written:
  """Columns as of `write_npz`, a row group per part.

  `features` is a list of fixed size; `classes` and `unreadable` are JSON lists
  in the metadata of the schema.

  Args:
    path: the file, written whole or not at all.
    parts: of the features.
    source: what they are of.

  Returns:
    See `Written`.

  Raises:
    ValueError: no features at all.
  """
  import pyarrow as pa
  import pyarrow.parquet

  index, width, dtype, unreadable = _look(parts, source)
  kinds = dict(
    path=pa.string(),
    label=pa.int32(),
    features=pa.list_(pa.from_numpy_dtype(dtype), width),
  )
  kinds['class'] = pa.dictionary(pa.int32(), pa.string())
  names = [*_columns(source, index[:0]), 'features']
  schema = pa.schema(
    [(name, kinds[name]) for name in names],
    metadata=dict(
      classes=json.dumps(source.classes), unreadable=json.dumps(unreadable)
    ),
  )
  with (
    _whole(path) as file,
    pyarrow.parquet.ParquetWriter(file, schema) as writer,
  ):
    for rows, values in parts:
      if not len(rows):
        continue
      columns = {
        name: pa.array(x, kinds[name])
        for name, x in _columns(source, rows).items()
      }
      columns['features'] = pa.FixedSizeListArray.from_arrays(
        pa.array(values.ravel()), type=kinds['features']
      )
      table = pa.table([columns[name] for name in names], schema=schema)
      writer.write_table(table, row_group_size=len(rows))
  return (len(index), width), unreadable


WRITERS: Mapping[str, Callable[[epath.Path, Parts, Source], Written]] = {
  'npz': write_npz,
  'parquet': write_parquet,
}


def _look(
  parts: Parts, source: Source
) -> tuple[np.ndarray, int, np.dtype, list[str]]:
  """Numbers of all images, width and dtype of the features, what is missing."""
  found = [(index, x.shape[1], x.dtype) for index, x in parts]
  index = np.concatenate([rows for rows, *_ in found])
  if not len(index):
    raise ValueError(f'no image of {source.name} could be read')
  missing = np.setdiff1d(np.arange(len(source)), index)
  return index, *found[0][1:], [source.where(i) for i in missing.tolist()]


def _columns(source: Source, index: np.ndarray) -> dict[str, Any]:
  """What is told of each image besides its features."""
  out = dict(path=[source.where(i) for i in index.tolist()])
  if source.labels is not None:
    out['label'] = source.labels[index].astype(np.int32)
    out['class'] = [source.classes[i] for i in out['label']]
  return out


@contextlib.contextmanager
def _whole(path: epath.Path) -> Iterator[IO[bytes]]:
  """A file that is there when it is written, or not at all."""
  if storage.is_remote(path):  # objects are whole anyway
    with path.open('wb') as file:
      yield file
    return
  part = path.with_name(path.name + '.part')
  with part.open('wb') as file:
    yield file
  part.replace(path)
