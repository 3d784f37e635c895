"""Several real processes of one run, which find each other over Gloo."""

import contextlib
import socket
import subprocess
import time

import tiny_run

SECONDS = 240  # until whatever hangs is killed


def free_port():
  with contextlib.closing(socket.socket()) as probe:
    probe.bind(('localhost', 0))
    return probe.getsockname()[1]


class Job:
  """Processes of one run, their output in files; killed at the end."""

  def __init__(self, folder, commands, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    place = f'localhost:{free_port()}'
    self.logs = [folder / f'stderr_{i}' for i in range(len(commands))]
    self.processes = []
    for i, command in enumerate(commands):
      variables = tiny_run.environment(
        JAX_COORDINATOR_ADDRESS=place,
        JAX_NUM_PROCESSES=str(len(commands)),
        JAX_PROCESS_ID=str(i),
        **changes,
      )
      with self.logs[i].open('w') as err:
        self.processes.append(
          subprocess.Popen(
            command,
            cwd=tiny_run.ROOT,
            env=variables,
            stderr=err,
            stdout=subprocess.DEVNULL,
          )
        )

  def err(self):
    """What all of them said."""
    texts = [f'--- {p.name}\n{p.read_text()}' for p in self.logs]
    return '\n'.join(texts)

  def wait_for(self, text):
    """Until process 0 said it."""
    deadline = time.monotonic() + SECONDS
    while text not in self.logs[0].read_text():
      ended = any(process.poll() is not None for process in self.processes)
      assert not ended and time.monotonic() < deadline, self.err()
      time.sleep(0.02)

  def wait(self, seconds=SECONDS):
    """Exit codes."""
    try:
      deadline = time.monotonic() + seconds
      return [
        process.wait(max(0.1, deadline - time.monotonic()))
        for process in self.processes
      ]
    except subprocess.TimeoutExpired:
      raise AssertionError(f'still running:\n{self.err()}') from None
    finally:
      self.kill()

  def kill(self):
    for process in self.processes:
      process.kill()
      process.wait()
