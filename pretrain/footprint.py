"""What a step costs, from the shapes of its encoders: bytes and FLOPs.

An estimate to choose sizes by before anything is compiled. A block of n tokens
of width d with h heads that attend to m tokens keeps for its gradient

  bytes = s (28 n d + 1.5 h n m),   s = 4 (float32) or 2 (bfloat16),

where attention is the plain product, and with `remat` n d alone. Both factors
were fitted to the temporaries that XLA's CPU compiler reserves, which they meet
within a factor of 1.5, LocalMIM's within 2 (docs/performance.md has the table).
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from models.stages import Stage, stages
from pretrain.joint import Joint
from pretrain.masked_modeling import MaskedModeling
from pretrain.methods.repre import RePre
from pretrain.online_probe import OnlineProbe
from pretrain.siamese import Siamese

TOKEN, ATTENTION = 28, 1.5  # numbers a block keeps, see above
HEAD = 5  # numbers that a head keeps for each of its layers' outputs
VIEW = 3  # float copies of a view: rendered, normalised, in patches
REPRE = 1.04  # RePre's decoder, of memory and FLOPs; see docs/performance.md
GRADIENTS = 2.0  # of the parameters: gradients, and what moves them


@dataclasses.dataclass(frozen=True)
class Footprint:
  """Bytes and FLOPs of a method.

  Attributes:
    state: bytes of parameters, moments and the method's state.
    fixed: bytes of gradients and updates.
    chunked: bytes per image that `chunks` divide: what encoders keep.
    kept: bytes per image that the whole batch needs: views, heads, queues.
    flops: per image, of a step.
    encoding: bytes per image of an encoder's pass without a gradient.
    encoding_flops: of that pass.
  """

  state: float
  fixed: float
  chunked: float
  kept: float
  flops: float
  encoding: float
  encoding_flops: float

  def step(self, batch: int, chunks: int = 1) -> float:
    """Bytes of a step on a batch of one device, in so many chunks."""
    rows = self.kept + self.chunked / chunks
    return self.state + self.fixed + batch * rows


def footprint(
  method: Any,
  views: Mapping[str, Sequence[int]],
  *,
  channels: int,
  parameters: float,
  method_state: float,
  moments: int,
  visible: float,
) -> Footprint:
  """Estimates what a method costs.

  Args:
    method: of `pretrain.methods`.
    views: (height, width) in pixels by name.
    channels: of the images.
    parameters: their bytes.
    method_state: bytes of teachers, queues and the like.
    moments: copies of the parameters in the optimiser: 2 for AdamW.
    visible: share of the cells that masked methods show their encoder.

  Returns:
    The estimate, for one device.
  """
  chunked, kept, flops = _costs(method, views, visible)
  encoder = method.encoder
  pixels = sum(math.prod(size) for size in views.values())
  largest = max(views.values(), key=math.prod)
  blocks = stages(encoder, largest)
  return Footprint(
    state=parameters * (1 + moments) + method_state,
    fixed=GRADIENTS * parameters,
    chunked=chunked,
    kept=kept + 4 * VIEW * channels * pixels,
    flops=flops,
    encoding=max(_saved((s._replace(blocks=1),), encoder) for s in blocks),
    encoding_flops=sum(stage.flops() for stage in blocks),
  )


def _costs(method, views, visible) -> tuple[float, float, float]:
  """(bytes that chunks divide, other bytes, FLOPs), per image."""
  if isinstance(method, OnlineProbe):
    return _costs(method.base, views, visible)
  if isinstance(method, RePre):
    chunked, kept, flops = _costs(method.base, views, visible)
    # Levels that the decoder reads leave the chunks.
    level = stages(method.encoder, views[method.views[0]])[0]
    levels = 4 * len(method.branch.levels) * level.tokens * level.width
    return REPRE * chunked, kept + 2 * levels * len(views), REPRE * flops
  if isinstance(method, Joint):
    view = {'view1': views[method.view]}
    both = _costs(method.base, views, 1.0), _costs(method.masked, view, visible)
    return tuple(map(sum, zip(*both, strict=True)))
  if isinstance(method, MaskedModeling):
    return _masked(method, next(iter(views.values())), visible)
  return _siamese(method, views)


def _siamese(method: Siamese, views) -> tuple[float, float, float]:
  """Student on all views, a moving teacher on two."""
  encoder, passes = method.encoder, [views[name] for name in method.views]
  blocks = [stage for size in passes for stage in stages(encoder, size)]
  flops = 3 * sum(stage.flops() for stage in blocks)
  if method.momentum is not None:
    taught = [s for size in passes[:2] for s in stages(encoder, size)]
    flops += sum(stage.flops() for stage in taught)
  heads = 0.0
  for head in (method.projector, method.predictor):
    if head is not None:
      layers = getattr(head, 'layers', 3)
      heads += (layers - 1) * head.hidden + head.out
  queue = len(passes) * getattr(method, 'queue', 0)
  kept = 4 * (HEAD * heads * len(passes) + 3 * queue)
  return _saved(blocks, encoder), kept, flops


def _masked(method: MaskedModeling, size, visible) -> tuple[float, ...]:
  """One view and its masks; decoders work on all places."""
  encoder = method.encoder
  shown = 1.0 if getattr(encoder, 'mask_token', False) else visible
  blocks = list(stages(encoder, size, shown))
  for branch in method.branches.values():
    decoder = branch.decoder if hasattr(branch, 'decoder') else None
    blocks += _decoder(decoder, encoder, size, getattr(branch, 'levels', ()))
  chunked, flops = _saved(blocks, encoder), sum(s.flops() for s in blocks)
  taught = sum(
    stage.flops()
    for teacher in method.teachers.values()
    for stage in stages(teacher.encoder, size)
  )
  return method.copies * chunked, 0.0, 3 * method.copies * flops + taught


def _decoder(decoder, encoder, size, levels) -> list[Stage]:
  """A decoder's blocks, on the grid of what it reads."""
  width, depth = getattr(decoder, 'width', 0), getattr(decoder, 'depth', 1)
  if isinstance(width, Iterable):
    width = max(width)
  if not width:
    return []
  level, strides = (levels or ('final',))[0], tuple(encoder.strides)
  stride = strides[level] if isinstance(level, int) else strides[-1]
  tokens = math.prod(math.ceil(side / stride) for side in size)
  scale = getattr(decoder, 'scale', 1)
  heads = getattr(decoder, 'num_heads', 0)
  blocks = [Stage(depth, tokens, width, heads, tokens)]
  if scale > 1:  # deconvolutions to a finer grid
    blocks.append(Stage(1, tokens * scale**2, width // 4, 0, 0))
  return blocks


def _saved(blocks: Iterable[Stage], encoder: Any) -> float:
  """Bytes that blocks keep for their gradient."""
  size = 2 if encoder.dtype == 'bfloat16' else 4
  total = 0.0
  for stage in blocks:
    tokens = stage.tokens * stage.width
    weights = stage.heads * stage.tokens * stage.attended
    if encoder.remat:
      total += stage.blocks * tokens + TOKEN * tokens + ATTENTION * weights
    else:
      total += stage.blocks * (TOKEN * tokens + ATTENTION * weights)
  return size * total
