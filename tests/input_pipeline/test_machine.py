"""Memory and cores as control groups limit them."""

import os

import pytest

from input_pipeline import machine

GIB = 2**30


@pytest.fixture
def groups(tmp_path, monkeypatch):
  """(lines of /proc/self/cgroup, {file: content}) -> they are there."""

  def make(own, files):
    (tmp_path / 'own').write_text(own)
    for name, content in files.items():
      path = tmp_path / 'fs' / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(f'{content}\n')
    monkeypatch.setattr(machine, 'OWN', str(tmp_path / 'own'))
    monkeypatch.setattr(machine, 'CGROUPS', str(tmp_path / 'fs'))

  return make


@pytest.mark.parametrize(
  ('own', 'files'),
  [
    # A container: its group is the root that it sees.
    ('0::/\n', {'memory.max': GIB, 'cpu.max': '50000 100000'}),
    # A job of SLURM or systemd: the limit is above the process's own group.
    (
      '0::/slurm/job_7/step_0\n',
      {
        'slurm/job_7/memory.max': GIB,
        'slurm/job_7/step_0/memory.max': 'max',
        'slurm/memory.max': 4 * GIB,
        'slurm/job_7/cpu.max': '50000 100000',
        'slurm/job_7/step_0/cpu.max': 'max 100000',
      },
    ),
    # The first version, with a hierarchy for each controller.
    (
      '4:memory:/job\n3:cpu,cpuacct:/job\n',
      {
        'memory/job/memory.limit_in_bytes': GIB,
        'memory/memory.limit_in_bytes': 2**63 - 4096,
        'cpu/job/cpu.cfs_quota_us': '50000',
        'cpu/job/cpu.cfs_period_us': '100000',
        'cpu/cpu.cfs_quota_us': '-1',
        'cpu/cpu.cfs_period_us': '100000',
      },
    ),
  ],
)
def test_the_tightest_group_counts(groups, own, files):
  groups(own, files)
  assert machine.host_memory() == GIB
  assert machine.cores() == 0.5


def test_without_groups_it_is_the_machine_s(groups):
  groups('', {})
  total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  assert machine.host_memory() <= total
  assert machine.cores() == len(os.sched_getaffinity(0))
