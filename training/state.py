"""Everything that changes between two steps."""

from typing import Any

import flax
import jax
import optax


@flax.struct.dataclass
class TrainState:
  """The whole state of a run; what is not here is a function of (seed, step).

  Attributes:
    step: int32 scalar, updates tried so far (skipped ones count).
    bad_steps: int32 scalar, consecutive non-finite steps up to now.
    params: what the optimiser moves; `params['encoder']` is the encoder.
    opt_state: the optimiser's state.
    method_state: the method's own: teachers, queues, centres, statistics.
  """

  step: jax.Array
  bad_steps: jax.Array
  params: Any
  opt_state: optax.OptState
  method_state: Any


@flax.struct.dataclass
class Aux:
  """What a loss reports beside its value.

  Attributes:
    metrics: scalars by name.
    means: what `after_update` averages: centres, batch statistics.
    examples: what is per example, in row order [b, ...]: keys for queues.
    features: `models.features.Features` by view name, for wrappers.
    images: the [0, 1] views that the features were computed from, by name.
  """

  metrics: dict[str, jax.Array]
  means: dict[str, Any] = flax.struct.field(default_factory=dict)
  examples: dict[str, jax.Array] = flax.struct.field(default_factory=dict)
  features: dict[str, Any] = flax.struct.field(default_factory=dict)
  images: dict[str, jax.Array] = flax.struct.field(default_factory=dict)


@flax.struct.dataclass
class Figure:
  """A grid of images with a title over every column.

  Attributes:
    images: float [rows, columns, h, w, c] in [0, 1].
    columns: one title per column; 'error' is an absolute difference, which
      pictures may amplify and then state by how much.
    caption: a sentence on how to read it, below the grid; may be ''.
  """

  images: jax.Array
  columns: tuple[str, ...] = flax.struct.field(pytree_node=False)
  caption: str = flax.struct.field(pytree_node=False, default='')


def path_name(path: tuple[Any, ...]) -> str:
  """`encoder/block_0/norm_1/scale` for a key path of a pytree."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def named_leaves(tree: Any) -> dict[str, Any]:
  """{path name: leaf} in the order of the tree."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {path_name(path): leaf for path, leaf in leaves}
