"""Features of a folder of images as one file, for whatever comes after."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from training import distributed, lock, process, storage
from training.fields import check_fields
from transfer.embed.files import WRITERS
from transfer.job import Job, run_job
from transfer.parts import Parts, keep_features

NAMED = 20  # images that cannot be read, in the summary


@lock.releasing()
def embed(config: Any, workdir: epath.PathLike) -> dict[str, Any]:
  """Encodes every image once, in order; see `configs/embed.py`.

  Args:
    config: of `configs/embed.py`.
    workdir: gets summary.json and features.npz or features.parquet; while the
      job runs also `parts/`, after which a stopped one goes on.

  Returns:
    The summary: `file`, `images`, `width`, and `unreadable` with the names of
    some in `unreadable_images`.

  Raises:
    ValueError: unknown words, no pyarrow, or no image that can be read.
  """
  _check(config)
  summary = run_job(config, workdir, _embed)
  # Not before there is a summary: until then a job may be stopped.
  parts = Parts(storage.resolve(workdir) / 'parts')
  distributed.on_lead(parts.remove)
  return summary


def _check(config: Any) -> None:
  check_fields(config)
  if config.embed.format == 'parquet' and not process.installed('pyarrow'):
    raise ValueError(
      "config.embed.format='parquet' needs pyarrow: pip install pyarrow, or "
      "choose 'npz'"
    )


def _embed(job: Job) -> Mapping[str, Any]:
  options = job.config.embed
  parts = keep_features(
    job,
    job.train,
    job.workdir / 'parts',
    what='images',
    per_part=options.per_part,
    dtype=options.dtype,
  )
  path = job.workdir / f'features.{options.format}'

  def write():
    return WRITERS[options.format](path, parts, job.train)

  shape, unreadable = distributed.on_lead(write)
  return dict(
    file=str(path),
    images=shape[0],
    width=shape[1],
    unreadable=len(unreadable),
    unreadable_images=unreadable[:NAMED],
  )
