"""What schedulers and launchers say of the processes of a run."""

import importlib.util
import re
import urllib.request
from collections.abc import Mapping
from typing import Any

PLAIN = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
SLURM = (
  'SLURM_JOB_ID',
  'SLURM_STEP_NODELIST',
  'SLURM_NTASKS',
  'SLURM_PROCID',
  'SLURM_LOCALID',
)
METADATA = 'http://metadata.google.internal/computeMetadata/v1/instance/'


class ClusterError(RuntimeError):
  """The processes could not find each other, told in one line."""


def announced(environ: Mapping[str, str]) -> dict[str, Any] | None:
  """Arguments of `jax.distributed.initialize`; None for a single process.

  Args:
    environ: variables of the process. JAX_NUM_PROCESSES=1 overrules
      everything: this process is on its own.

  Raises:
    ClusterError: what is missing.
  """
  if environ.get('JAX_NUM_PROCESSES') == '1':
    return None
  for find in (_plain, _slurm, _open_mpi, _tpu, _kubernetes):
    arguments = find(environ)
    if arguments is not None:
      return arguments
  if environ.get('JAX_COORDINATOR_ADDRESS'):
    raise ClusterError(_missing(environ))
  return None


def _missing(environ: Mapping[str, str]) -> str:
  missing = [name for name in PLAIN if not environ.get(name)]
  return (
    f'several processes need {", ".join(PLAIN)}; missing: '
    f'{", ".join(missing)}; unset the others to run as one process'
  )


def _plain(environ: Mapping[str, str]) -> dict[str, Any] | None:
  counts = [environ.get(name) for name in PLAIN[1:]]
  if not any(counts):
    return None  # an address alone goes with a scheduler's counts
  if not all(environ.get(name) for name in PLAIN):
    raise ClusterError(_missing(environ))
  try:
    count, index = map(int, counts)
  except ValueError as error:
    raise ClusterError(
      f'JAX_NUM_PROCESSES={counts[0]} and JAX_PROCESS_ID={counts[1]} must be '
      'whole numbers'
    ) from error
  if not 0 <= index < count:
    raise ClusterError(
      f'JAX_PROCESS_ID={index} must be 0 to {count - 1}: JAX_NUM_PROCESSES='
      f'{count}'
    )
  return dict(
    coordinator_address=environ['JAX_COORDINATOR_ADDRESS'],
    num_processes=count,
    process_id=index,
    cluster_detection_method='deactivate',
  )


def _slurm(environ: Mapping[str, str]) -> dict[str, Any] | None:
  count = int(environ.get('SLURM_STEP_NUM_TASKS', environ.get(SLURM[2], 1)))
  if count == 1 or not all(name in environ for name in SLURM):
    return None  # one task, or the batch script itself: no step of srun
  node = int(environ.get('SLURM_NODEID', 0))
  tasks = _tasks_per_node(
    environ.get('SLURM_STEP_TASKS_PER_NODE')
    or environ.get('SLURM_TASKS_PER_NODE', '')
  )
  here = tasks[node] if node < len(tasks) else None
  return dict(
    num_processes=count,
    process_id=int(environ['SLURM_PROCID']),
    local_device_ids=local_devices(
      environ, int(environ['SLURM_LOCALID']), here
    ),
  )


def _tasks_per_node(text: str) -> list[int]:
  """'4(x2),1' -> [4, 4, 1]."""
  out = []
  for count, _, times in re.findall(r'(\d+)(\(x(\d+)\))?', text):
    out += [int(count)] * int(times or 1)
  return out


def _open_mpi(environ: Mapping[str, str]) -> dict[str, Any] | None:
  count = int(environ.get('OMPI_COMM_WORLD_SIZE', 1))
  if count == 1:
    return None
  known = ('JAX_COORDINATOR_ADDRESS', 'OMPI_MCA_orte_hnp_uri')
  if not any(name in environ for name in known):
    raise ClusterError(
      'this Open MPI does not say where process 0 is; add -x '
      'JAX_COORDINATOR_ADDRESS=HOST:PORT, the host of rank 0 and a free port'
    )
  here = environ.get('OMPI_COMM_WORLD_LOCAL_SIZE')
  rank = int(environ.get('OMPI_COMM_WORLD_LOCAL_RANK', 0))
  return dict(
    num_processes=count,
    process_id=int(environ['OMPI_COMM_WORLD_RANK']),
    local_device_ids=local_devices(environ, rank, here and int(here)),
  )


def local_devices(
  environ: Mapping[str, str], rank: int, tasks: int | None
) -> list[int] | None:
  """Which of the GPUs that a process sees are its own.

  Args:
    environ: read here: JAX_LOCAL_DEVICE_IDS, CUDA_VISIBLE_DEVICES and
      SLURM_GPUS_ON_NODE.
    rank: of the process on its node.
    tasks: processes on this node; None if unknown.

  Returns:
    [] for all that it sees (one process per node, or a scheduler that shows
    each process its own), else this process's equal share. None leaves it to
    JAX: JAX_LOCAL_DEVICE_IDS, or else one device per process.
  """
  if environ.get('JAX_LOCAL_DEVICE_IDS') or tasks is None:
    return None
  if tasks == 1:
    return []
  listed = environ.get('CUDA_VISIBLE_DEVICES')
  visible = len(listed.split(',')) if listed else None
  total = environ.get('SLURM_GPUS_ON_NODE')
  if visible is None:
    return None
  if visible < (int(total) if total else tasks):
    return []  # bound: the others are hidden
  share = visible // tasks
  return list(range(rank * share, (rank + 1) * share)) or None


def _tpu(environ: Mapping[str, str]) -> dict[str, Any] | None:
  hosts = environ.get('TPU_PROCESS_ADDRESSES') or environ.get(
    'TPU_WORKER_HOSTNAMES', ''
  )
  slices = int(environ.get('MEGASCALE_NUM_SLICES') or 1)
  if ',' in hosts or slices > 1:
    if hosts and 'TPU_WORKER_ID' not in environ:
      raise ClusterError(
        'TPU_WORKER_HOSTNAMES names several hosts, but TPU_WORKER_ID is not '
        'set; JAX_NUM_PROCESSES=1 runs this host alone'
      )
    return {}
  # Importing JAX sets this where it finds no TPU.
  if hosts or 'TPU_SKIP_MDS_QUERY' in environ:
    return None
  if not importlib.util.find_spec('libtpu'):
    return None
  if ',' in metadata('attributes/worker-network-endpoints'):
    return {}
  found = re.search(
    r"MEGASCALE_NUM_SLICES: *'?(\d+)", metadata('attributes/tpu-env')
  )
  return {} if found and int(found[1]) > 1 else None


def metadata(key: str) -> str:
  """What Google's metadata server says of this machine; '' for nothing."""
  request = urllib.request.Request(
    METADATA + key, headers={'Metadata-Flavor': 'Google'}
  )
  try:
    with urllib.request.urlopen(request, timeout=5) as answer:
      return answer.read().decode()
  except OSError:  # not one of Google's machines
    return ''


def _kubernetes(environ: Mapping[str, str]) -> dict[str, Any] | None:
  names = ('KUBERNETES_SERVICE_HOST', 'JOB_COMPLETION_INDEX')
  if not all(name in environ for name in names):
    return None
  if not importlib.util.find_spec('kubernetes'):
    raise ClusterError(
      f'this is pod {environ["JOB_COMPLETION_INDEX"]} of an indexed Job, and '
      'without the package kubernetes it cannot find the others: pip install '
      f'"jax[k8s]", or set {", ".join(PLAIN)}, or JAX_NUM_PROCESSES=1 if every '
      'pod is a run of its own'
    )
  return {}
