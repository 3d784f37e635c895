"""From a row of a table to the runs of `main.py` that it stands for."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.masked_tables import DEFAULT, GIVEN, TEACHER_ROWS
from benchmarks.rows import Preset, Row
from configs import automatic, common
from pretrain.methods import MASKED

# What may follow a run, and the ending of its folder.
PROBES = dict(linear='probe', finetune='finetune')
SLOTS = ('first', 'second', 'third')


@dataclasses.dataclass(frozen=True)
class Job:
  """One run.

  Attributes:
    name: its folder below `--out`; equal for equal runs.
    options: of `main.py`, but for the workdir and what `needs` adds.
    seed: of the run.
    probe: what follows, a key of PROBES; '' for nothing.
    probe_options: of that, but for checkpoint and workdir.
    needs: {field of the config: the run whose workdir it names}, as pairs.
  """

  name: str
  options: tuple[str, ...]
  seed: int = 0
  probe: str = ''
  probe_options: tuple[str, ...] = ()
  needs: tuple[tuple[str, 'Job'], ...] = ()


def job(
  row: Row,
  variant: str,
  seed: int,
  preset: Preset,
  extra: Sequence[str] = (),
  *,
  probe: str = '',
  teacher: str | None = None,
) -> Job:
  """The run of one variant of a row.

  Args:
    row: of a table.
    variant: a key of its variants.
    seed: of the run.
    preset: where it runs.
    extra: 'field=value' of the config.
    probe: what follows: 'linear', a sweep on features that are computed once,
      'finetune', the recipe that suits the method, or '' for nothing.
    teacher: a run or file in the place of the default teacher.

  Returns:
    The run; rows that differ in nothing but their table give equal ones.
  """
  change = row.variants[variant]
  method = change.method or row.method
  encoder = preset.encoders[change.encoder or row.encoder]
  words = (*row.words, *change.words)
  given = _fields(change.fields, encoder)
  length = _length(change.epochs or row.epochs, method, preset)
  fields = dict(preset.fields, **length, **given, seed=seed)
  needs, files = _teachers(change.teachers, seed, preset, extra, teacher)
  options = [f'{k}={v}' for k, v in (fields | files).items()]
  # Every run of a table has the paper's recipe, on whatever machine.
  recipe = automatic.WORD if preset.data in automatic.DATA_WORDS else ''
  named = filter(None, (encoder, preset.data, recipe, *words))
  config = f'configs/{method}.py:{",".join(named)}'
  told = [f'{k.split(".")[-1]}_{v}' for k, v in given.items()]
  named = zip(SLOTS, change.teachers, strict=False)
  told += [f'{slot}_{_name(one, teacher)}' for slot, one in named]
  folder = f'{method}-{encoder}-{change.epochs or row.epochs}'
  kind = '-'.join((*words, *told)) or 'base'
  return Job(
    name=f'{folder}/{kind}/seed{seed}',
    options=(
      f'--config={config}',
      *(f'--config.{one}' for one in (*options, *extra)),
    ),
    seed=seed,
    probe=probe,
    probe_options=_probe(probe, method, encoder, preset.data, seed, extra),
    needs=needs,
  )


def _fields(fields: Mapping[str, Any], encoder: str) -> dict[str, Any]:
  """Of this encoder, tuples as the command line has them."""
  out = {}
  for name, value in fields.items():
    if isinstance(value, Mapping):
      if encoder not in value:
        continue
      value = value[encoder]
    if isinstance(value, tuple):
      value = ','.join(map(str, value)) + ',' * (len(value) == 1)
    out[name] = value
  return out


def _length(epochs: int, method: str, preset: Preset) -> dict[str, Any]:
  """Epochs, and the masked methods' warm-up of short runs: a tenth."""
  masked = method in MASKED
  scaled = epochs * (preset.masked_scale if masked else preset.scale)
  out = dict(epochs=f'{scaled:g}')
  if masked and preset.data not in common.SMALL:
    out['optim.warmup_epochs'] = f'{min(40, scaled / 10):g}'
  return out


def _teachers(
  names: Sequence[str],
  seed: int,
  preset: Preset,
  extra: Sequence[str],
  teacher: str | None,
) -> tuple[tuple[tuple[str, Job], ...], dict[str, str]]:
  """The runs that are teachers, and the fields that name a file."""
  needs, files = [], {}
  for slot, name in zip(SLOTS, names, strict=False):
    field = f'method.teachers.{slot}.checkpoint'
    known = _known(name, teacher)
    if known is None:
      files[field] = teacher
    else:
      row = TEACHER_ROWS[known]
      needs.append((field, job(row, 'base', seed, preset, extra)))
  return tuple(needs), files


def _known(name: str, teacher: str | None) -> str | None:
  """The run that a teacher is; None for the file."""
  if name in GIVEN or (name in DEFAULT and teacher):
    return None
  return 'dino' if name in DEFAULT else name


def _name(name: str, teacher: str | None) -> str:
  return _known(name, teacher) or pathlib.PurePath(teacher).stem


def _probe(
  probe: str,
  method: str,
  encoder: str,
  data: str,
  seed: int,
  extra: Sequence[str],
) -> tuple[str, ...]:
  if not probe:
    return ()
  config = f'linear_probe.py:{data},sweep,cached'
  if probe == 'finetune':
    swin = common.family(encoder) in common.SWINS
    recipe = 'simmim' if swin else 'mae'
    if method in ('simmim', 'local_mim'):
      recipe = method
    config = f'finetune.py:{recipe},{data}'
  given = [one for one in extra if one.startswith('data.')]
  return (
    f'--config=configs/{config}',
    *(f'--config.{one}' for one in (f'seed={seed}', *given)),
  )
