"""SimCLR: each view against all other images of the batch; no teacher.

Chen, Kornblith, Norouzi, Hinton: A Simple Framework for Contrastive Learning of
Visual Representations, 2020 (arXiv:2002.05709).
"""

import dataclasses
from typing import Any

from models.heads import MLPHead, simclr_head
from pretrain.losses import nt_xent
from pretrain.siamese import Siamese
from training.recipe import Recipe
from training.state import Aux

HEADS = ('simclr', 'moco_v3')


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimCLR(Siamese):
  """Algorithm 1 of the paper; see `losses.nt_xent`.

  Both views go through the head as one batch: BatchNorm's statistics are those
  of all 2b rows (authors' code).

  Attributes:
    temperature: τ.
  """

  temperature: float = 0.1

  def loss(self, params, method_state, batch, rng, step) -> tuple[Any, Aux]:
    """See the class."""
    images, students = self.students(params, batch, rng)
    z1, z2 = self.project_all(params, students)
    loss, hits = nt_xent(z1, z2, temperature=self.temperature)
    metrics = dict(contrast_accuracy=hits)
    return loss, self.report(loss, students, images, step, metrics=metrics)


def simclr(
  encoder: Any,
  recipe: Recipe,
  *,
  head: str = 'moco_v3',
  hidden: int = 4096,
  out: int = 256,
  layers: int = 3,
  temperature: float = 0.1,
  frozen_patch_embed: bool = True,
  dtype: str = 'float32',
  chunks: int = 1,
) -> SimCLR:
  """SimCLR; on ViT as in MoCo v3's comparison (arXiv:2104.02057, §6.1).

  That comparison, whose numbers RePre's Table 1 starts from, does not say which
  head it took: ours is MoCo v3's projector unless `head` says otherwise.

  Args:
    encoder: an encoder of `models`.
    recipe: rates and decay.
    head: 'moco_v3', or 'simclr' for the authors' (its last BatchNorm has a
      scale, its kernels start as N(0, 0.01²); they take the encoder's width for
      `hidden` and 128 for `out`).
    hidden: width of its hidden layers.
    out: width of its output.
    layers: number of its layers; 2 in the paper, 3 in the authors' code.
    temperature: τ.
    frozen_patch_embed: whether the patch embedding is never trained.
    dtype: compute dtype of the head.
    chunks: into how many parts the encoder's batch is cut.

  Returns:
    The method.

  Raises:
    ValueError: an unknown head.
  """
  if head not in HEADS:
    raise ValueError(f'unknown method.head {head!r}; known: {", ".join(HEADS)}')
  if head == 'simclr':
    projector = simclr_head(hidden, out, layers=layers, dtype=dtype)
  else:
    projector = MLPHead(hidden, out, layers, dtype=dtype)
  return SimCLR(
    encoder=encoder,
    projector=projector,
    recipe=recipe,
    temperature=temperature,
    frozen_patch_embed=frozen_patch_embed,
    chunks=chunks,
  )
