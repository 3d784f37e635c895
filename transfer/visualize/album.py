"""Where pictures go: images/, TensorBoard, and the numbers behind them."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from training import distributed, screen, storage
from training.metrics import write_json
from training.tensorboard import Events
from transfer.visualize.drawing import Picture

Draw = Callable[[], list[Picture]]


class LeftOutError(ValueError):
  """Why a picture cannot be made of this run or of these data."""


class Album:
  """Collects pictures in a workdir.

  Drawn by process 0 alone; what goes wrong there goes wrong everywhere.

  Args:
    workdir: gets `images/NAME.FORMAT`, figures.json, figures.npz and pictures
      in TensorBoard.
    step: of the run, for TensorBoard.
    formats: what files there are of every picture, of `drawing.FORMATS`.
  """

  def __init__(
    self, workdir: epath.Path, *, step: int, formats: Sequence[str] = ('png',)
  ):
    self._workdir, self._step, self._formats = workdir, step, formats
    self._lead = jax.process_index() == 0
    self._events = Events(workdir, start=step) if self._lead else None
    self._plain, self._arrays = {}, {}
    self._names, self._left_out = [], {}

  def add(self, word: str, prepare: Callable[[], Draw]) -> None:
    """Draws one kind of picture, or says in one line why it is left out.

    Args:
      word: what `config.pictures` calls it.
      prepare: computes what is needed, on all processes; what it returns
        draws, on process 0.
    """
    try:
      draw = prepare()
      self._names += distributed.on_lead(lambda: self._keep(draw()))
    except LeftOutError as reason:
      self.leave_out((word,), str(reason))

  def leave_out(self, words: Sequence[str], reason: str) -> None:
    """Remembers and tells, in one line, what is missing."""
    self._left_out |= dict.fromkeys(words, reason)
    if words:
      screen.say(f'left out {", ".join(words)}: {reason}')

  def _keep(self, pictures: list[Picture]) -> list[str]:
    folder = self._workdir / 'images'
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
      for kind in self._formats:
        path = folder / f'{picture.name}.{kind}'
        storage.write_whole(path, picture.file(kind))
      endings = ','.join(self._formats)
      endings = f'{{{endings}}}' if len(self._formats) > 1 else endings
      screen.say(f'picture: {folder / picture.name}.{endings}')
      self._events.image(self._step, picture.name, picture.png)
      for name, value in picture.numbers.items():
        if isinstance(value, np.ndarray):
          self._arrays[f'{picture.name}/{name}'] = value
        else:
          self._plain.setdefault(picture.name, {})[name] = value
    return [picture.name for picture in pictures]

  def close(self) -> dict[str, Any]:
    """Writes the numbers.

    Returns:
      {'pictures': names, 'formats': endings, 'left_out': {word: reason}}.
    """
    distributed.on_lead(self._write)
    return dict(
      pictures=list(self._names),
      formats=list(self._formats),
      left_out=dict(self._left_out),
    )

  def _write(self) -> None:
    self._events.close()
    write_json(self._workdir / 'figures.json', self._plain)
    out = io.BytesIO()
    np.savez_compressed(out, **self._arrays)
    storage.write_whole(self._workdir / 'figures.npz', out.getvalue())
