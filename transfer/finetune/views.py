"""What supervised training does to a batch of crops, on the device."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from input_pipeline.augment import row_keys
from input_pipeline.mixing import mix
from input_pipeline.rand_augment import rand_augment
from input_pipeline.random_erasing import random_erasing
from models.patches import IMAGENET_MEAN, IMAGENET_STD, per_channel
from transfer.finetune.classifier import Augment


def make_augment(
  config: Mapping[str, Any], classes: int, encoder: Any
) -> Augment:
  """RandAugment, random erasing, then mixup or CutMix: timm's order.

  Args:
    config: `augment` of `configs/finetune.py`.
    classes: number of classes.
    encoder: its mean and standard deviation colour what is moved in, and scale
      the noise of what is erased.

  Returns:
    (images [b, h, w, c] in [0, 1], labels int [b], key) -> (images, soft labels
    float32 [b, classes]). A row's draws depend on its place in the global batch
    alone.
  """
  channels = encoder.in_channels
  mean = per_channel('mean', encoder.mean, IMAGENET_MEAN, channels)
  std = per_channel('std', encoder.std, IMAGENET_STD, channels)
  mean, std = (tuple(float(x) for x in values) for values in (mean, std))

  def augment(images, labels, rng):
    keys = row_keys(rng, 0, jnp.arange(len(images)))
    if config['rand_magnitude']:
      images = rand_augment(
        images,
        keys,
        fill=mean,
        magnitude=config['rand_magnitude'],
        num_ops=config['rand_ops'],
        std=config['rand_std'],
        probability=config['rand_probability'],
        resample=config['rand_resample'],
      )
    if config['erasing']:
      images = random_erasing(
        images, keys, mean=mean, std=std, probability=config['erasing']
      )
    return mix(
      images,
      labels,
      jax.random.fold_in(rng, 1),
      classes=classes,
      mixup=config['mixup'],
      cutmix=config['cutmix'],
      switch=config['switch'],
      probability=config['mix_probability'],
      smoothing=config['smoothing'],
    )

  return augment
