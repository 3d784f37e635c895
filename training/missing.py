"""Errors for a path that a config names and that is no run."""

from etils import epath

from input_pipeline.known import nearest
from training import distributed
from training.checkpoint import CheckpointError

MOST = 8  # names that a message lists
NO_RUN = 'is neither a workdir nor one of its checkpoints/STEP'


def check_folder(path: epath.Path) -> None:
  """Raises CheckpointError for a path that is no folder.

  Args:
    path: an absolute path. The message names what lies beside one that does not
      exist, the nearest name first, or the deepest folder that exists.
  """
  if problem := distributed.on_lead(lambda: _problem(path)):
    raise CheckpointError(f'{path} {NO_RUN}: {problem}')


def _problem(path: epath.Path) -> str:
  """Why a path is no folder; '' where it is one."""
  if path.is_dir():
    return ''
  if path.exists():
    return (
      'it is a file, and not named as weights are: .safetensors, .pth, .pt, '
      '.bin, .ckpt or .npz'
    )
  folder = path.parent
  while not folder.exists() and folder != folder.parent:
    folder = folder.parent
  if folder != path.parent:
    return f'it does not exist; of its folders only {folder} does'
  names = sorted(item.name for item in folder.iterdir())
  near = nearest(path.name, names)
  text = f'; did you mean {folder / near}?' if near else '.'
  listed = ', '.join(names[:MOST]) or 'nothing'
  more = f' and {len(names) - MOST} more' if len(names) > MOST else ''
  return f'it does not exist{text} In {folder}: {listed}{more}'
