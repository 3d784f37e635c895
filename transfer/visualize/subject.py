"""One encoder that is looked at: what it makes of chosen images."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from input_pipeline.eval_batches import eval_batches
from input_pipeline.source import Source
from transfer.extract import Extractor
from transfer.job import Job
from transfer.visualize.attention_depth import by_depth
from transfer.visualize.attention_maps import query_map, windows_of
from transfer.visualize.class_names import class_names
from transfer.visualize.projections import choose_images, tsne


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
  """An encoder and the images that are shown of it, each computed once.

  Computations of all processes, but for `tsne`.

  Attributes:
    name: of its run.
    job: its encoder and data.
    workdir: of its run.
    step: of its checkpoint, or None.
  """

  name: str
  job: Job
  workdir: str
  step: int | None

  @property
  def encoder(self) -> Any:
    """The module."""
    return self.job.backbone.encoder

  @property
  def source(self) -> Source:
    """Test images where there are some, else training images."""
    return self.job.train if self.job.test is None else self.job.test

  @functools.cached_property
  def classes(self) -> tuple[str, ...]:
    """Names of the classes of the images, as pictures show them."""
    return class_names(self.job.config, self.source.classes or ())

  def spread(self, count: int) -> np.ndarray:
    """Numbers of images from all over the data set."""
    total = len(self.source)
    return np.linspace(0, total - 1, min(count, total)).round().astype(int)

  def images(self, source: Source, indices: np.ndarray) -> np.ndarray:
    """Images as the encoder is given them, uint8 [n, size, size, c]."""
    data = self.job.config.data
    if not len(indices):
      size = data.image_size
      return np.zeros((0, size, size, self.encoder.in_channels), np.uint8)
    (batch,) = eval_batches(
      source,
      len(indices),
      size=data.image_size,
      channels=self.encoder.in_channels,
      indices=indices,
      crop=data.eval_crop,
      resample=data.eval_resample,
    )
    return batch['images']

  @functools.cached_property
  def attention(self) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """{block: maps [n, heads, h, w]} of `config.blocks`, and which images."""
    blocks, encoder = tuple(self.job.config.blocks), self.encoder

    def look(variables, images):
      images = images.astype(jnp.float32) / 255
      found = encoder.apply(variables, images, attention=blocks)
      return [
        query_map(
          found.attention[block],
          windows_of(encoder, block, images.shape[1:3]),
          cls=found.cls is not None,
        )
        for block in blocks
      ]

    rows = self.spread(self.job.config.images)
    maps, index = self._collect(look, self.source, rows, 'attention')
    names = [block % encoder.depth for block in blocks]
    return dict(zip(names, maps, strict=True)), index

  @functools.cached_property
  def depth(self) -> tuple[dict[str, list[np.ndarray]], int]:
    """NMI and attention distance by block [heads], and of how many images."""
    rows = self.spread(self.job.config.depth_images)
    found, index = self._collect(
      by_depth(self.encoder), self.source, rows, 'depth'
    )
    means = {
      name: [heads.mean(axis=0) for heads in blocks]
      for name, blocks in found.items()
    }
    return means, len(index)

  @functools.cached_property
  def _pooled(self) -> Extractor:
    return self.job.extractor()

  @functools.cached_property
  def features(self) -> tuple[np.ndarray, np.ndarray]:
    """Pooled features [n, d] of the images of the projections, and which."""
    config, source = self.job.config, self.source
    rows = choose_images(
      source.labels,
      len(source),
      images=config.points,
      classes=config.classes,
      seed=config.seed,
    )
    return self._collect(None, source, rows, 'features')

  @functools.cached_property
  def tsne(self) -> np.ndarray:
    """t-SNE of the features, [n, 2]; where it is drawn, after `features`."""
    return tsne(self.features[0], seed=self.job.config.seed)

  @functools.cached_property
  def queries(self) -> tuple[np.ndarray, np.ndarray]:
    """Pooled features [n, d] of the images of the sheets, and which."""
    rows = self.spread(self.job.config.images)
    return self._collect(None, self.source, rows, 'queries')

  @functools.cached_property
  def bank(self) -> tuple[np.ndarray, np.ndarray]:
    """Pooled features [n, d] of training images, and which."""
    total = len(self.job.train)
    count = min(self.job.config.bank_images, total)
    rows = np.linspace(0, total - 1, count).round().astype(int)
    return self._collect(None, self.job.train, rows, 'bank')

  def _collect(
    self,
    encode: Callable[[Any, Any], Any] | None,
    source: Source,
    rows: np.ndarray,
    what: str,
  ) -> tuple[Any, np.ndarray]:
    """What `encode` (None: the pooled feature) finds of the readable images."""
    job = self.job
    extractor = job.extractor_of(encode) if encode else self._pooled
    found, index = [], []
    for part, batch in self.job.features(
      extractor, source, what=f'{self.name}: {what}', indices=rows
    ):
      found.append(part)
      index.append(batch['index'])
    return _concatenate(found), np.concatenate(index)


def _concatenate(parts: list[Any]) -> Any:
  """Joins pytrees of batches, without a device."""
  if isinstance(parts[0], dict):
    return {k: _concatenate([part[k] for part in parts]) for k in parts[0]}
  if isinstance(parts[0], list | tuple):
    return [_concatenate(list(some)) for some in zip(*parts, strict=True)]
  return np.concatenate(parts)
