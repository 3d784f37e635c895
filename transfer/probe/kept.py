"""Features of linear probes, computed once and kept."""

import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from input_pipeline import mode
from input_pipeline.source import Source
from training import distributed, storage
from transfer.job import Job
from transfer.parts import Parts, keep_features
from transfer.probe.cached import CachedFeatures, Columns, StreamedFeatures
from transfer.probe.heads import LinearProbes

PART_BYTES = 2**28  # of a file, roughly; it is in memory while it is made

# ({probe's name: float32 [n, d] or `Columns`}, labels int32 [n])
Cached = tuple[Mapping[str, Any], np.ndarray]


def kept_data(
  job: Job, method: LinearProbes
) -> tuple[CachedFeatures | StreamedFeatures, Cached, str]:
  """Training batches of features, and those of the test images.

  The features are float32, as they are found: rounded ones would be other
  training. They lie in the workdir, in parts, after which a stopped job goes
  on. They are on every device where it has room for all, else on the host:
  every process maps the files and reads the rows of its own devices (of an
  object store it first copies all to a disk of its own).

  Args:
    job: read here: the encoder, the images, `config.data.mode` ('auto', or
      where features are), `batch_size` and `seed`.
    method: its probes are read.

  Returns:
    (training batches, test features and labels, a word on where they are).

  Raises:
    ValueError: see `keep_features`; or no image can be read.
  """
  widths = _widths(job, method)
  parts = [
    _keep(job, method, widths, source, folder)
    for source, folder in ((job.train, 'train'), (job.test, 'test'))
  ]
  need = 4 * sum(widths.values()) * len(job.train)
  room, wanted = mode.device_room(), job.config.data.mode
  resident = need <= room if wanted == 'auto' else wanted == 'resident'
  resident = distributed.on_lead(lambda: resident)
  train, test = (
    _read(source, part, widths, whole=resident)
    for source, part in zip((job.train, job.test), parts, strict=True)
  )
  where = 'on the device' if resident else 'read from the host'
  # Images that could not be read are missing from a batch of all.
  readable, devices = len(train[1]), job.mesh.size
  data = (CachedFeatures if resident else StreamedFeatures)(
    *train,
    batch_size=min(job.config.batch_size, readable // devices * devices),
    seed=job.config.seed,
    mesh=job.mesh,
  )
  how = (
    f'{job.train.name}: features of {len(train[1]):,} images ({need / 1e9:.3g} '
    f'GB), {where}'
  )
  return data, test, how


def _widths(job: Job, method: LinearProbes) -> dict[str, int]:
  """How many numbers each probe reads of an image."""
  encoder, size = job.backbone.encoder, job.config.data.image_size

  def one(variables):
    image = jnp.zeros((1, size, size, encoder.in_channels))
    return method.pick(variables['params'], encoder.apply(variables, image))

  found = jax.eval_shape(one, job.backbone.variables())
  return {name: x.shape[-1] for name, x in found.items()}


def _keep(
  job: Job,
  method: LinearProbes,
  widths: Mapping[str, int],
  source: Source,
  folder: str,
) -> Parts:
  """All features of the readable images side by side, not augmented."""

  def pick(variables, features):
    found = method.pick(variables['params'], features)
    return jnp.concatenate([found[name] for name in widths], axis=-1)

  return keep_features(
    job,
    source,
    job.workdir / 'features' / folder,
    what=f'{folder} images',
    per_part=max(1, PART_BYTES // (4 * sum(widths.values()))),
    pick=pick,
    options=dict(probes=list(widths)),
  )


def _read(
  source: Source, parts: Parts, widths: Mapping[str, int], *, whole: bool
) -> Cached:
  """The features by probe, in memory or where they lie."""
  if storage.is_remote(parts.folder):
    # What is mapped outlives the file's name.
    with tempfile.TemporaryDirectory(prefix='features') as scratch:
      index, tables = parts.copy(epath.Path(scratch)).mapped()
  else:
    index, tables = parts.mapped()
  if not len(index):
    raise ValueError(f'no image of {source.name} could be read')
  ends = np.cumsum(list(widths.values()))
  found = {
    name: Columns(tables, slice(end - widths[name], end))
    for name, end in zip(widths, ends, strict=True)
  }
  if whole:
    found = {name: columns.whole() for name, columns in found.items()}
  return found, source.labels[index].astype(np.int32)
