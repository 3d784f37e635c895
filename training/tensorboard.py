"""TensorBoard event files without TensorFlow.

`clu.metric_writers` imports TensorFlow, which a run on resident data does
without; the record writer and the messages of the `tensorboard` package are
all that scalars and pictures need.
"""

import os
import socket
import time
from collections.abc import Mapping

from absl import logging
from etils import epath

from training import storage

try:
  from tensorboard.compat.proto import event_pb2, summary_pb2
  from tensorboard.summary.writer import record_writer
except ImportError:  # optional: metrics.jsonl holds the same numbers
  event_pb2 = None


class Events:
  """Appends to `tensorboard/` in a workdir; silent without TensorBoard.

  What cannot be written there is given up with a warning: metrics.jsonl holds
  the same numbers.

  Args:
    workdir: the folder of the run.
    start: the step the run starts from; what older files hold of later steps
      is hidden by TensorBoard.
  """

  def __init__(self, workdir: epath.Path, *, start: int = 0):
    self._writer = None
    if event_pb2 is None:
      logging.info('tensorboard is not installed: only metrics.jsonl is kept')
      return
    folder = workdir / 'tensorboard'
    try:
      folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      self._give_up(error)
      return
    name = f'{time.time():.3f}.{socket.gethostname()}.{os.getpid()}'
    self._file = storage.Growing(folder / f'events.out.tfevents.{name}')
    self._writer = record_writer.RecordWriter(self._file)
    self._write(event_pb2.Event(file_version='brain.Event:2'))
    session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write(event_pb2.Event(step=start, session_log=session))

  def _write(self, event) -> None:
    event.wall_time = time.time()
    try:
      if self._writer is not None:
        self._writer.write(event.SerializeToString())
    except OSError as error:
      self._give_up(error)

  def _give_up(self, error: OSError) -> None:
    logging.warning('nothing more is written for TensorBoard: %s', error)
    self._writer = None

  def _add(self, step: int, values) -> None:
    if self._writer is not None:
      summary = summary_pb2.Summary(value=values)
      self._write(event_pb2.Event(step=step, summary=summary))

  def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """One point on every curve."""
    if self._writer is not None:
      value = summary_pb2.Summary.Value
      self._add(
        step, [value(tag=k, simple_value=v) for k, v in scalars.items()]
      )

  def image(self, step: int, name: str, png: bytes) -> None:
    """One PNG."""
    if self._writer is not None:
      image = summary_pb2.Summary.Image(encoded_image_string=png)
      self._add(step, [summary_pb2.Summary.Value(tag=name, image=image)])

  def flush(self) -> None:
    """What was added is safe when this returns."""
    if self._writer is not None:
      self._file.flush()

  def close(self) -> None:
    """Writes what is left."""
    self.flush()
