"""Where arrays live: one mesh, two axes, the single-device program."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ('data', 'fsdp')
# Smaller leaves are not worth the gather that a shard of them would cost.
MIN_SHARDED_SIZE = 2**16


def make_mesh(fsdp: int = 1) -> Mesh:
  """All devices as ('data', 'fsdp').

  Args:
    fsdp: over how many devices parameters and optimiser state are split; the
      rest of the devices repeat them. The batch is split over all.

  Returns:
    A mesh with Auto axes: the methods are written for one device.

  Raises:
    ValueError: `fsdp` does not divide the number of devices.
  """
  devices = jax.device_count()
  if fsdp < 1 or devices % fsdp:
    sizes = [n for n in range(1, devices + 1) if devices % n == 0]
    raise ValueError(
      f'config.fsdp={fsdp} does not divide {devices} devices; '
      f'sizes that do: {sizes}'
    )
  return jax.make_mesh(
    (devices // fsdp, fsdp), AXES, axis_types=(AxisType.Auto,) * 2
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
  """The leading axis split over all devices."""
  return NamedSharding(mesh, PartitionSpec(AXES))


def state_shardings(mesh: Mesh, state: Any) -> Any:
  """Shardings for a train state: large leaves split over 'fsdp'.

  Args:
    mesh: from `make_mesh`.
    state: a pytree of arrays or of `ShapeDtypeStruct`s.

  Returns:
    A pytree of `NamedSharding`: the largest axis that 'fsdp' divides is split;
    leaves under 65,536 elements, and leaves without such an axis, are repeated.
  """
  parts = mesh.shape['fsdp']

  def shard(leaf):
    axes = [a for a, n in enumerate(leaf.shape) if n % parts == 0]
    if parts == 1 or not axes or np.prod(leaf.shape) < MIN_SHARDED_SIZE:
      return replicated(mesh)
    split = max(axes, key=lambda a: leaf.shape[a])
    spec = [None] * len(leaf.shape)
    spec[split] = 'fsdp'
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree.map(shard, state)


def check_batch(batch_size: int, mesh: Mesh, chunks: int = 1) -> None:
  """Every device gets the same number of rows in every chunk.

  Args:
    batch_size: the global batch.
    mesh: from `make_mesh`.
    chunks: into how many parts the per-example work is cut.

  Raises:
    ValueError: `batch_size` is not a multiple of devices × chunks; the message
      names the nearest sizes that are.
  """
  if chunks < 1:
    raise ValueError(f'config.chunks={chunks} must be at least 1')
  unit = mesh.size * chunks
  if batch_size < 1 or batch_size % unit:
    below = batch_size // unit * unit
    near = [n for n in (below, below + unit) if n > 0]
    raise ValueError(
      f'config.batch_size={batch_size} must be a positive multiple of '
      f'{unit} ({mesh.size} devices x {chunks} chunks); nearest: '
      f'{" or ".join(map(str, near))}'
    )
