"""The step of a PyTorch program beside ours, on the same sizes, in turn.

PyTorch is no dependency: the caller names an interpreter that has it and a
script, which is started as

  PYTHON SCRIPT step --method moco_v3|mae --arch ARCH --size PX --batch B
    --steps N --warmup 2 [--bf16]

and prints one JSON object as its last line, with `median_s`, `params_m` and
`other_cores`. Its step has to be forward of all networks, loss, backward, AdamW
and the teacher's move, on ready views.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import ml_collections

from benchmarks import machine, timing
from configs import mae, moco_v3

# Method and sizes by name: that of the architecture that the script knows,
# unless `arch` says it. Six heads as timm's ViT-S has.
SIZES: Mapping[str, Mapping[str, Any]] = {
  'vit_tiny_test': dict(
    encoder='vit_ti4',
    fields=dict(width=192, depth=6, num_heads=3),
    image_size=32,
    batch_size=64,
    hidden=512,
    out=64,
  ),
  'vit_s16': dict(
    encoder='vit_s16',
    fields=dict(num_heads=6),
    image_size=224,
    batch_size=8,
    hidden=4096,
    out=256,
  ),
  # Visible patches through the encoder, all through eight blocks of 512.
  'mae_vit_b16': dict(
    method='mae',
    arch='vit_b16',
    encoder='vit_b16',
    image_size=224,
    batch_size=8,
  ),
}
COLUMNS = dict(
  name='',
  seconds='s/step (median of rounds)',
  rounds='rounds',
  images_per_second='images/s',
  parameters_m='parameters, M',
  speed='our speed / theirs (median of rounds)',
  other_cores='other cores',
)


def config(arch: str, dtype: str) -> ml_collections.ConfigDict:
  """MoCo v3 or MAE with the sizes of a peer.

  All of MoCo v3's patch embedding is trained, as the peer's is.
  """
  size = SIZES[arch]
  file = mae if _method(size) == 'mae' else moco_v3
  out = file.get_config(f'{size["encoder"]},arrays,paper')
  out.batch_size, out.dtype = size['batch_size'], dtype
  out.data.image_size = size['image_size']
  if file is mae:
    return out
  out.method.update(
    hidden=size['hidden'], out=size['out'], frozen_patch_embed=False
  )
  with out.encoder.unlocked():
    out.encoder.update(size['fields'])
  return out


def _method(size: Mapping[str, Any]) -> str:
  return size.get('method', 'moco_v3')


def run_peer(
  arch: str, *, dtype: str, python: str, script: str, steps: int
) -> dict[str, Any]:
  """One run of the script; what it printed.

  Raises:
    RuntimeError: the script failed; with the end of what it said.
  """
  size = SIZES[arch]
  command = [python, script, 'step', '--method', _method(size)]
  command += [
    '--arch',
    size.get('arch', arch),
    '--size',
    str(size['image_size']),
  ]
  command += ['--batch', str(size['batch_size'])]
  command += ['--steps', str(steps), '--warmup', '2']
  command += ['--bf16'] if dtype == 'bfloat16' else []
  done = subprocess.run(command, capture_output=True, text=True)
  if done.returncode:
    raise RuntimeError(f'{" ".join(command)}: {done.stderr[-500:]}')
  return json.loads(done.stdout.strip().splitlines()[-1])


def run_ours(arch: str, *, dtype: str, steps: int) -> dict[str, Any]:
  """The same of ours, in a process of its own.

  Two pools of threads in one process would get into each other's way.
  """
  command = [sys.executable, '-m', 'benchmarks.peer', arch, dtype, str(steps)]
  done = subprocess.run(command, capture_output=True, text=True)
  if done.returncode:
    raise RuntimeError(f'{" ".join(command)}: {done.stderr[-500:]}')
  return json.loads(done.stdout.strip().splitlines()[-1])


def compare(
  arch: str,
  *,
  dtype: str,
  python: str | None,
  script: str | None,
  rounds: int,
  steps: int,
) -> list[dict[str, Any]]:
  """Both sides in turn, ours first and last alternately.

  Args:
    arch: one of `SIZES`.
    dtype: 'float32' or 'bfloat16' for both.
    python: an interpreter with PyTorch.
    script: see above.
    rounds: how often each side runs.
    steps: timed steps per run.

  Returns:
    A row for each side.

  Raises:
    ValueError: no interpreter or script was named.
    RuntimeError: a side failed.
  """
  if not python or not script:
    raise ValueError('--peer needs --peer_python and --peer_script')
  ours, theirs = [], []
  for turn in range(rounds):
    sides = [
      lambda: ours.append(run_ours(arch, dtype=dtype, steps=steps)),
      lambda: theirs.append(
        run_peer(arch, dtype=dtype, python=python, script=script, steps=steps)
      ),
    ]
    for side in sides[:: 1 if turn % 2 == 0 else -1]:
      side()
    print(
      f'round {turn + 1} of {rounds}: ours {ours[-1]["median_s"]:.3f} s, peer '
      f'{theirs[-1]["median_s"]:.3f} s, other cores '
      f'{ours[-1]["other_cores"]} and {theirs[-1]["other_cores"]}',
      file=sys.stderr,
      flush=True,
    )
  batch = SIZES[arch]['batch_size']
  speeds = [
    t['median_s'] / o['median_s'] for o, t in zip(ours, theirs, strict=True)
  ]
  shared = dict(
    kind='peer',
    arch=arch,
    dtype=dtype,
    **machine.device(),
    **machine.software(),
  )
  rows = []
  for name, runs in (('ours', ours), ('peer', theirs)):
    medians = [run['median_s'] for run in runs]
    seconds = statistics.median(medians)
    load = max(run['other_cores'] or 0 for run in runs)
    rows.append(
      dict(
        shared,
        name=name,
        seconds=round(seconds, 4),
        rounds=', '.join(f'{s:.3f}' for s in medians),
        images_per_second=round(batch / seconds, 2),
        parameters_m=runs[0]['params_m'],
        speed=round(statistics.median(speeds), 3) if name == 'ours' else None,
        speeds=speeds,
        other_cores=load,
        disturbed=machine.disturbed(load),
        runs=runs,
      )
    )
  return rows


def main(arch: str, dtype: str, steps: str) -> None:
  """Our side of one round; prints what the script of a peer prints."""
  row = timing.measure(config(arch, dtype), given='views', steps=int(steps))[0]
  print(
    json.dumps(
      dict(
        median_s=row['seconds'],
        min_s=row['seconds_min'],
        max_s=row['seconds_max'],
        params_m=round(row['parameters'] / 1e6, 3),
        loss=row['loss'],
        compile_s=row['compile_seconds'],
        peak_mb=round(row['rss_peak_bytes'] / 2**20, 1),
        other_cores=row['other_cores'],
      )
    )
  )


if __name__ == '__main__':
  main(*sys.argv[1:])
