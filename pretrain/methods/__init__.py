"""Methods by name."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from pretrain.methods.moco_v3 import moco_v3
from pretrain.methods.repre import repre
from training.protocols import Method
from training.schedules import Schedule

METHODS: Mapping[str, Callable[..., Method]] = {'moco_v3': moco_v3}


def make_method(
  encoder: Any,
  config: Mapping[str, Any],
  *,
  lr: Schedule,
  decay: float,
  total: int,
  dtype: str,
  chunks: int,
) -> Method:
  """The method of a config, wrapped in RePre where the config says so.

  Args:
    encoder: an encoder of `models`.
    config: `config.method` as a plain dict: `name`, `repre` (None or a dict)
      and the arguments of the method.
    lr: learning rate by step.
    decay: weight decay.
    total: length of the run in steps.
    dtype: compute dtype of heads and decoder.
    chunks: into how many parts per-example work is cut.

  Returns:
    The method.

  Raises:
    ValueError: an unknown method.
    TypeError: an argument that the method does not have.
  """
  fields = dict(config)
  name, added = fields.pop('name'), fields.pop('repre')
  if name not in METHODS:
    near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0)[0]
    raise ValueError(
      f'unknown method {name!r}; did you mean {near!r}? Known: '
      f'{", ".join(METHODS)}'
    )
  common = dict(lr=lr, decay=decay, dtype=dtype, chunks=chunks)
  method = METHODS[name](encoder, total=total, **common, **fields)
  return repre(method, **common, **added) if added else method
