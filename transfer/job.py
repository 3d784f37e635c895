"""What jobs on a frozen encoder share: opening it, its data and the workdir."""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from input_pipeline import feed
from input_pipeline.progress import progress_bar
from input_pipeline.source import Source, check_classes
from input_pipeline.views import View
from models.patches import check_divisible
from training import distributed, lock, sharding
from training import workdir as workdirs
from training.metrics import write_json
from transfer.backbone import Backbone, fresh_backbone, load_backbone
from transfer.extract import Extractor

ENCODED = 256  # images at a time, where the batch is one of training


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """A frozen encoder and images for it.

  Attributes:
    config: of the job.
    workdir: its folder, which exists.
    mesh: of all devices.
    backbone: the encoder.
    train: training images.
    test: test images, or None.
  """

  config: Any
  workdir: epath.Path
  mesh: Mesh
  backbone: Backbone
  train: Source
  test: Source | None

  def extractor(
    self, pick: Callable[[Any, jax.Array], Any] | None = None
  ) -> Extractor:
    """Encodes data sets with the frozen encoder.

    Args:
      pick: (encoder's parameters, its Features) -> what is wanted of them, a
        pytree of arrays [b, ...]; None for the pooled feature.
    """
    encoder = self.backbone.encoder

    def encode(variables, images):
      features = encoder.apply(variables, images.astype(jnp.float32) / 255)
      return features.pooled if pick is None else pick(variables, features)

    return self.extractor_of(encode)

  def extractor_of(self, encode: Callable[[Any, jax.Array], Any]) -> Extractor:
    """An `Extractor` of images that are cut as the config says."""
    data, batch = self.config.data, self.config.batch_size
    if 'views' in self.config:  # a batch of training, up to 16384 images
      batch = min(batch, ENCODED)
    return Extractor(
      encode,
      mesh=self.mesh,
      batch_size=batch,
      size=data.image_size,
      channels=self.backbone.encoder.in_channels,
      crop=data.eval_crop,
      resample=data.eval_resample,
    )

  def feed(self, view: str, *, repeats: int = 1) -> tuple[Any, str]:
    """Training batches of the config's view of that name, and a word on it.

    Args:
      view: its name.
      repeats: see `input_pipeline.order.batch_indices`.
    """
    config = self.config
    fields = {'size': config.data.image_size, **config.views[view]}
    return feed.make_feed(
      config.data,
      self.train,
      {view: View(**fields)},
      batch_size=config.batch_size,
      seed=config.seed,
      repeats=repeats,
      shardings=(
        sharding.over_batch(self.mesh),
        sharding.replicated(self.mesh),
      ),
      agree=lambda choice: distributed.on_lead(lambda: choice),
    )

  def features(
    self,
    extractor: Extractor,
    source: Source,
    *,
    what: str,
    indices: Sequence[int] | None = None,
  ) -> Iterator[tuple[Any, Mapping[str, np.ndarray]]]:
    """Features of a data set, batch by batch, with a progress bar.

    Args:
      extractor: of this job.
      source: the data set.
      what: names it on the bar.
      indices: which images; None for all.

    Yields:
      What the extractor finds of the readable images of a batch, and their
      {'index', 'label'} (labels where there are some).
    """
    weights = self.weights()
    total = len(source) if indices is None else len(indices)
    lead = jax.process_index() == 0
    with progress_bar(what, total, disable=not lead) as progress:
      for batch in extractor.batches(source, indices):
        found, keep = extractor(weights, batch)
        rows = {n: batch[n][keep] for n in ('index', 'label') if n in batch}
        yield jax.tree.map(lambda x, keep=keep: x[keep], found), rows
        progress.update(int(batch['valid'].sum()))

  def weights(self) -> Any:
    """The encoder's variables, whole on every device."""
    return jax.device_put(
      self.backbone.variables(), sharding.replicated(self.mesh)
    )


def need_measuring(config: Any) -> None:
  """Whether what is trained is also measured.

  Raises:
    ValueError: it is not.
  """
  if config.eval_every < 1:
    raise ValueError(
      f'config.eval_every={config.eval_every}: {config.task} would end without '
      'an accuracy; set it above zero (it is measured at the end in any case)'
    )


def need_labels(job: Job) -> None:
  """Whether a job that compares with labels has them.

  Raises:
    ValueError: no test images, no labels, or other classes in the test split.
  """
  if job.test is None:
    raise ValueError(
      f'{job.config.task} needs test images: set config.data.test_split'
    )
  for source in (job.train, job.test):
    if source.labels is None:
      raise ValueError(
        f'{job.config.task} needs labels; {source.name} has none'
      )
  check_classes(job.train, job.test)


def open_job(config: Any, workdir: epath.PathLike, **fields: Any) -> Job:
  """Reads the encoder and opens the data.

  Args:
    config: of the job. Without `checkpoint`, but with `encoder`, the encoder is
      that one, not trained.
    workdir: its folder.
    **fields: fields of the encoder that differ from those it was trained with.

  Raises:
    CheckpointError: see `load_backbone`.
    ValueError: images of another number of channels than the encoder's, or two
      places that the encoder should come from.
  """
  if config.init_from:
    raise ValueError(
      'config.init_from is what pre-training starts from; '
      f'{config.task} reads config.checkpoint'
    )
  if config.checkpoint and config.get('encoder'):
    raise ValueError(
      f'two encoders: that of config.checkpoint and {config.encoder.name}, not '
      'trained; leave out config.checkpoint or the config word'
    )
  mesh = sharding.make_mesh(config.fsdp)
  train, test = feed.open_sources(config.data)
  fields = dict(dtype=config.dtype) | fields
  if not config.checkpoint and config.get('encoder'):
    channels = feed.channels_of(config.data, train)
    backbone = fresh_backbone(config, in_channels=channels, **fields)
  else:
    backbone = load_backbone(
      config.checkpoint, which=config.which, weights=config.weights, **fields
    )
  channels = backbone.encoder.in_channels
  if train.channels not in (None, channels):
    raise ValueError(
      f'the encoder of {backbone.where} reads {channels} channels, the images '
      f'of {train.name} have {train.channels}; name other images with '
      'config.data.data_dir, or another encoder with config.checkpoint'
    )
  check_divisible(
    (config.data.image_size,) * 2,
    backbone.encoder.patch_size,
    fields=['config.data.image_size'],
  )
  return Job(
    config=config,
    workdir=workdirs.open_workdir(workdir),
    mesh=mesh,
    backbone=backbone,
    train=train,
    test=test,
  )


@lock.releasing()
def run_job(
  config: Any,
  workdir: epath.PathLike,
  work: Callable[[Job], Mapping[str, Any]],
) -> dict[str, Any]:
  """A job from its config to `summary.json`, once.

  Args:
    config: of the job.
    workdir: its folder; where it holds a summary of the same config, nothing is
      done again.
    work: what the job is; returns what the summary holds.

  Returns:
    The summary.

  Raises:
    WorkdirError: the folder holds another job.
    LockedError: another job works in it.
  """
  began = time.time()
  job = open_job(config, workdir)
  workdirs.check_config(job.workdir, config)
  path = job.workdir / 'summary.json'
  done = distributed.on_lead(lambda: workdirs.read_summary(job.workdir))
  if done is not None and config.resume != 'force':
    if jax.process_index() == 0:
      print(f'{job.workdir}: already finished', file=sys.stderr)
    return done
  workdirs.record(job.workdir, config)
  summary = dict(work(job), checkpoint=job.backbone.where)
  summary['which'] = job.backbone.which
  summary['seconds'] = round(time.time() - began, 1)
  distributed.on_lead(lambda: write_json(path, summary))
  return summary
