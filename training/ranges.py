"""The range of every number of every config, in one table.

A field is named as on the command line, without `config.`; `*` stands for one
name. A masked branch beside a method has the ranges of a masked method, and a
teacher's `weights` and `encoder` have those of the config's own.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from training.number_range import (
  ABOVE_0,
  ANY,
  AT_LEAST_0,
  BELOW_1,
  COUNT,
  COUNT_OR_0,
  COUNTS,
  FINITE,
  INSIDE,
  LIST_OF_COUNTS,
  MEAN,
  PAIR,
  PART,
  SHARE,
  SIDES,
  SOME,
  STD,
  Range,
  several,
)

RANGES: Mapping[str, Range] = {
  # Of every job.
  'seed': Range(0, 2**32 - 1, whole=True),
  'batch_size': COUNT,
  'epochs': Range(0, 1e6, above=True),
  'steps': COUNT,
  'log_every': COUNT,
  'eval_every': COUNT_OR_0,
  'checkpoint_every': COUNT_OR_0,
  'keep_checkpoints': COUNT,
  'fsdp': COUNT,
  'chunks': COUNT,
  'check_images': COUNT_OR_0,
  'nonfinite_limit': COUNT,
  'watchdog': AT_LEAST_0,
  'hang_limit': AT_LEAST_0,
  'online_probe_lr': AT_LEAST_0,
  'knn.k': COUNT,
  'knn.temperature': ABOVE_0,
  'knn.batch_size': COUNT,
  'knn.bank_images': COUNT,
  'weights.num_heads': COUNT,
  'weights.image_size': several(COUNT, PAIR),
  'weights.norm_epsilon': ABOVE_0,
  'weights.mean': MEAN,
  'weights.std': STD,
  'weights.positions_offset': SHARE,
  'weights.window': COUNT,
  'weights.in_channels': COUNT,
  # Images.
  'data.image_size': COUNT,
  'data.eval_crop': PART,
  'data.resident_size': COUNT,
  'data.channels': COUNT,
  'data.workers': COUNT,
  'data.max_unreadable': SHARE,
  'data.tile': COUNT,
  'data.stride': COUNT,
  'views.*.size': SIDES,
  'views.*.scale': several(PART, PAIR, rising=True),
  'views.*.ratio': several(ABOVE_0, PAIR, rising=True),
  'views.*.sigma': several(ABOVE_0, PAIR, rising=True),
  'views.*.strength': several(AT_LEAST_0, (4,)),
  'views.*.flip': SHARE,
  'views.*.jitter': SHARE,
  'views.*.gray': SHARE,
  'views.*.blur': SHARE,
  'views.*.solarize': SHARE,
  'views.*.threshold': SHARE,
  # Encoders.
  'encoder.patch_size': COUNT,
  'encoder.patch_sizes': LIST_OF_COUNTS,
  'encoder.width': COUNT,
  'encoder.widths': LIST_OF_COUNTS,
  'encoder.depth': COUNT,
  'encoder.depths': LIST_OF_COUNTS,
  'encoder.num_heads': COUNTS,
  'encoder.mlp_ratio': ABOVE_0,
  'encoder.in_channels': COUNT,
  'encoder.positions_grid': SIDES,
  'encoder.positions_offset': SHARE,
  'encoder.positions_prefix': COUNT_OR_0,
  'encoder.native_size': several(COUNT, PAIR),
  'encoder.drop_path': BELOW_1,
  'encoder.mean': MEAN,
  'encoder.std': STD,
  'encoder.registers': COUNT_OR_0,
  'encoder.layer_scale': AT_LEAST_0,
  'encoder.norm_epsilon': ABOVE_0,
  'encoder.projection': COUNT_OR_0,
  'encoder.window': COUNT,
  # Contrastive methods.
  'method.hidden': COUNT,
  'method.out': COUNT,
  'method.bottleneck': COUNT,
  'method.layers': COUNT,
  'method.queue': COUNT,
  'method.temperature': ABOVE_0,
  'method.momentum': SHARE,
  'method.centre_momentum': SHARE,
  'method.student_temperature': ABOVE_0,
  'method.teacher_temperature': ABOVE_0,
  'method.warmup_teacher_temperature': ABOVE_0,
  'method.warmup_teacher_epochs': COUNT_OR_0,
  'method.freeze_last_epochs': COUNT_OR_0,
  'method.local_crops': COUNT_OR_0,
  'method.repre.width': COUNTS,
  'method.repre.levels': COUNT,
  'method.repre.fusion_layers': COUNT,
  'method.repre.weights': several(AT_LEAST_0, PAIR),
  'method.repre.weighting_lr': AT_LEAST_0,
  'method.repre.weighting_window': COUNT,
  'method.weighting_window': COUNT,  # of a masked branch
  # Masked methods, and masked branches beside contrastive ones.
  'method.mask_ratio': INSIDE,
  'method.mask_unit': COUNT,
  'method.masks_per_image': COUNT,
  'method.decoder.width': COUNTS,
  'method.decoder.depth': COUNT,
  'method.decoder.num_heads': COUNT,
  'method.decoder.levels': COUNT,
  'method.decoder.fusion_layers': COUNT,
  'method.levels': LIST_OF_COUNTS,
  'method.scales': several(ABOVE_0, SOME),
  'method.hog_bins': COUNT,
  'method.hog_offset': dataclasses.replace(
    FINITE, counts=PAIR, words=('random',)
  ),
  'method.pixel_weight': AT_LEAST_0,
  'method.mimic.weight': AT_LEAST_0,
  'method.teachers.*.weight': AT_LEAST_0,
  'method.teachers.*.size': COUNT,
  'method.masked.weight': AT_LEAST_0,
  'method.masked.contrast_weight': AT_LEAST_0,
  # Optimisers.
  'optim.base_lr': AT_LEAST_0,
  'optim.per': COUNT,
  'optim.decay': AT_LEAST_0,
  'optim.end_decay': AT_LEAST_0,
  'optim.warmup_epochs': AT_LEAST_0,
  'optim.warmup_lr': AT_LEAST_0,
  'optim.end_lr': AT_LEAST_0,
  'optim.milestones': several(PART, ANY, rising=True),
  'optim.step_factor': ABOVE_0,
  'optim.clip': AT_LEAST_0,
  'optim.hyper.b1': BELOW_1,
  'optim.hyper.b2': BELOW_1,
  'optim.hyper.eps': ABOVE_0,
  'optim.hyper.momentum': BELOW_1,
  'optim.hyper.trust': ABOVE_0,
  # Jobs on trained encoders.
  'features.blocks': COUNT,
  'features.level': Range(whole=True),
  'neighbors.k': LIST_OF_COUNTS,
  'neighbors.temperature': ABOVE_0,
  'probe.blocks': LIST_OF_COUNTS,
  'probe.lrs': several(ABOVE_0, ANY),
  'probe.init_std': AT_LEAST_0,
  'probe.smoothing': BELOW_1,
  'probe.drop_path': BELOW_1,
  'fewshot.shares': several(PART, ANY),
  'fewshot.shots': several(COUNT, ANY),
  'fewshot.draws': COUNT,
  'fewshot.logistic': several(ABOVE_0, ANY),
  'fewshot.ridge': several(ABOVE_0, ANY),
  'fewshot.iterations': COUNT,
  'embed.per_part': COUNT,
  'image_size': COUNT,
  'average': BELOW_1,
  'layer_decay': PART,
  'drop_path': BELOW_1,
  'head.std': AT_LEAST_0,
  'augment.rand_magnitude': Range(0, 10),
  'augment.rand_ops': COUNT,
  'augment.rand_std': AT_LEAST_0,
  'augment.rand_probability': SHARE,
  'augment.repeats': COUNT,
  'augment.erasing': SHARE,
  'augment.mixup': AT_LEAST_0,
  'augment.cutmix': AT_LEAST_0,
  'augment.switch': SHARE,
  'augment.mix_probability': SHARE,
  'augment.smoothing': BELOW_1,
  # Pictures.
  'images': COUNT,
  'blocks': dataclasses.replace(Range(whole=True), counts=SOME),
  'heads': COUNT,
  'mass': PART,
  'points': COUNT,
  'classes': COUNT,
  'depth_images': COUNT,
  'neighbors': COUNT,
  'bank_images': COUNT,
}


def find(name: str) -> Range | None:
  """The range of a field by its whole name, such as 'views.view1.blur'."""
  return RANGES.get(name) or RANGES.get(pattern(name))


def pattern(name: str) -> str:
  """The name under which tables of this package know a field."""
  name = re.sub(r'^views\.\w+\.', 'views.*.', name)
  if name.startswith('method.masked.'):
    if name in RANGES:
      return name  # of the branch beside a method
    name = name.replace('method.masked.', 'method.', 1)
  name = re.sub(r'^method\.teachers\.\w+\.', 'method.teachers.*.', name)
  return re.sub(r'^method\.teachers\.\*\.(weights|encoder)\.', r'\1.', name)


def leaves(config: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
  """(whole name, value) of every field of a config that is no group."""
  for name, value in config.items():
    if hasattr(value, 'items'):
      yield from leaves(value, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}', value


def check_numbers(config: Any) -> None:
  """Raises ValueError for the first number that is out of its range.

  Args:
    config: a config or a part of one. Fields that are None or have no range
      (those of other people's configs) pass.
  """
  for name, value in leaves(config):
    limit = find(name)
    if limit is not None and not limit.holds(value):
      raise ValueError(f'config.{name}={value} must be {limit}')
