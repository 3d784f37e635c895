"""Which environments announce several processes, and what JAX is told."""

import os
import subprocess
import sys

import pytest
import tiny_run

from training import cluster, launchers
from training.launchers import ClusterError, announced, local_devices

PLAIN = dict(
  JAX_COORDINATOR_ADDRESS='node1:1234',
  JAX_NUM_PROCESSES='4',
  JAX_PROCESS_ID='3',
)
SLURM = dict(
  SLURM_JOB_ID='7',
  SLURM_STEP_NODELIST='node[1-2]',
  SLURM_NTASKS='8',
  SLURM_PROCID='5',
  SLURM_LOCALID='1',
  SLURM_NODEID='1',
  SLURM_STEP_TASKS_PER_NODE='4(x2)',
  SLURM_GPUS_ON_NODE='4',
)
MPI = dict(
  OMPI_COMM_WORLD_SIZE='4',
  OMPI_COMM_WORLD_RANK='2',
  OMPI_COMM_WORLD_LOCAL_RANK='0',
  OMPI_COMM_WORLD_LOCAL_SIZE='2',
  OMPI_MCA_orte_hnp_uri='1531576320.0;tcp://10.96.0.1:34911',
)
TPU = dict(TPU_WORKER_HOSTNAMES='a,b', TPU_WORKER_ID='1')
POD = dict(KUBERNETES_SERVICE_HOST='10.0.0.1', JOB_COMPLETION_INDEX='2')


@pytest.fixture(autouse=True)
def no_packages(monkeypatch):
  """As if neither libtpu nor kubernetes were installed."""
  monkeypatch.setattr(launchers.importlib.util, 'find_spec', lambda _: None)


def without(variables, *names):
  return {k: v for k, v in variables.items() if k not in names}


@pytest.mark.parametrize(
  'environ',
  [
    {},
    PLAIN | dict(JAX_NUM_PROCESSES='1', JAX_PROCESS_ID='0'),
    SLURM | dict(JAX_NUM_PROCESSES='1'),
    SLURM | dict(SLURM_NTASKS='1'),
    SLURM | dict(SLURM_STEP_NUM_TASKS='1'),  # a step of one task of a job of 8
    without(SLURM, 'SLURM_STEP_NODELIST'),  # the batch script
    MPI | dict(OMPI_COMM_WORLD_SIZE='1'),
    dict(TPU_WORKER_HOSTNAMES='localhost', TPU_WORKER_ID='0'),
    dict(TPU_SKIP_MDS_QUERY='1'),
    without(POD, 'JOB_COMPLETION_INDEX'),
  ],
)
def test_a_process_of_its_own(environ):
  assert announced(environ) is None
  cluster.initialize(environ, start=None)


def test_plain_variables():
  assert announced(PLAIN) == dict(
    coordinator_address='node1:1234',
    num_processes=4,
    process_id=3,
    cluster_detection_method='deactivate',
  )


@pytest.mark.parametrize('name', PLAIN)
def test_plain_variables_that_are_missing_are_named(name):
  with pytest.raises(ClusterError, match=f'missing: {name}; '):
    announced(without(PLAIN, name))


@pytest.mark.parametrize(
  'changes, words',
  [
    (dict(JAX_PROCESS_ID='4'), 'must be 0 to 3'),
    (dict(JAX_PROCESS_ID='one'), 'whole numbers'),
  ],
)
def test_plain_variables_that_make_no_sense(changes, words):
  with pytest.raises(ClusterError, match=words):
    announced(PLAIN | changes)


@pytest.mark.parametrize(
  'changes, devices',
  [
    (dict(CUDA_VISIBLE_DEVICES='0,1,2,3'), [1]),  # a process per GPU
    (dict(CUDA_VISIBLE_DEVICES='2'), []),  # each sees only its own
    (  # a process per node
      dict(SLURM_STEP_TASKS_PER_NODE='1(x8)', SLURM_LOCALID='0'),
      [],
    ),
    (  # two GPUs per process
      dict(SLURM_STEP_TASKS_PER_NODE='4,2', CUDA_VISIBLE_DEVICES='0,1,2,3'),
      [2, 3],
    ),
    (dict(JAX_LOCAL_DEVICE_IDS='3'), None),
    ({}, None),  # no GPUs are named: JAX takes one per process
  ],
)
def test_slurm(changes, devices):
  assert announced(SLURM | changes) == dict(
    num_processes=8, process_id=5, local_device_ids=devices
  )


def test_every_gpu_of_a_node_has_one_process():
  visible = dict(CUDA_VISIBLE_DEVICES='0,1,2,3', SLURM_GPUS_ON_NODE='4')
  for tasks in (2, 4):
    taken = [local_devices(visible, rank, tasks) for rank in range(tasks)]
    assert sorted(sum(taken, [])) == [0, 1, 2, 3]


def test_open_mpi():
  found = announced(MPI | dict(CUDA_VISIBLE_DEVICES='0,1'))
  assert found == dict(num_processes=4, process_id=2, local_device_ids=[0])
  with pytest.raises(ClusterError, match='-x JAX_COORDINATOR_ADDRESS'):
    announced(without(MPI, 'OMPI_MCA_orte_hnp_uri'))


def test_tpus_of_kubernetes():
  assert announced(TPU) == {}
  assert announced(dict(MEGASCALE_NUM_SLICES='2')) == {}
  with pytest.raises(ClusterError, match='TPU_WORKER_ID is not set'):
    announced(without(TPU, 'TPU_WORKER_ID'))


@pytest.mark.parametrize(
  'endpoints, rest, found',
  [
    ('10.0.0.1', '', None),
    ('10.0.0.1,10.0.0.2', '', {}),
    ('10.0.0.1', "ZONE: 'us'\nMEGASCALE_NUM_SLICES: '2'\n", {}),
    ('', '', None),
  ],
)
def test_tpu_vms_ask_the_metadata_server(monkeypatch, endpoints, rest, found):
  said = {
    'attributes/worker-network-endpoints': endpoints,
    'attributes/tpu-env': rest,
  }
  monkeypatch.setattr(launchers, 'metadata', said.__getitem__)
  assert announced({}) is None  # without libtpu nobody is asked
  monkeypatch.setattr(launchers.importlib.util, 'find_spec', lambda _: True)
  assert announced({}) == found
  assert announced(dict(TPU_SKIP_MDS_QUERY='1')) is None


def test_pods_of_an_indexed_job(monkeypatch):
  with pytest.raises(ClusterError, match=r'jax\[k8s\]'):
    announced(POD)
  monkeypatch.setattr(launchers.importlib.util, 'find_spec', lambda _: True)
  assert announced(POD | dict(TPU_SKIP_MDS_QUERY='1')) == {}


def test_what_jax_is_told(monkeypatch):
  told = {}
  cluster.initialize(PLAIN, start=lambda **fields: told.update(fields))
  assert told.pop('initialization_timeout') > cluster.CONNECT_SECONDS
  assert told.pop('heartbeat_timeout_seconds') == cluster.HEARTBEAT_SECONDS
  assert told == announced(PLAIN)


def test_a_port_that_is_taken():
  def start(**unused):
    raise RuntimeError('UNKNOWN: Failed to start RPC server')

  with pytest.raises(ClusterError, match='port of node1:1234 is taken'):
    cluster.initialize(PLAIN, start=start)


def test_nobody_answers():
  """JAX would abort; what is wrong is said before."""
  variables = tiny_run.environment(
    JAX_COORDINATOR_ADDRESS='localhost:1',
    JAX_NUM_PROCESSES='2',
    JAX_PROCESS_ID='1',
    REPRE_JAX_CONNECT_SECONDS='1',
  )
  done = subprocess.run(
    [
      sys.executable,
      '-c',
      'from training import cluster; cluster.initialize()',
    ],
    cwd=tiny_run.ROOT,
    env=variables,
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 1, done.stderr
  assert 'not every process reached localhost:1 within 1 s' in done.stderr
  assert 'Traceback' not in done.stderr


def test_alone_nothing_is_started():
  assert not os.environ.get('JAX_NUM_PROCESSES')
  cluster.initialize(start=None)
