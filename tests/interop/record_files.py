"""Records files of torch.save and torch.jit.save, and what is in them.

  python tests/interop/record_files.py

needs torch (2.13 was used) and writes tests/goldens/weights: torch_zip.pth,
torch_protocol4.pth, torch_old.pth (the format before 1.6), torch_script.pt, and
their values in torch_files.npz: FILE/NAME in float64 (or as they are, if whole
numbers), and the types by the same names in `dtypes`, a JSON text.
"""

import argparse
import collections
import json
import pathlib

import numpy as np
import torch

FOLDER = pathlib.Path(__file__).parent.parent / 'goldens' / 'weights'


def numbers(*shape):
  return torch.randn(
    *shape, generator=torch.Generator().manual_seed(sum(shape))
  )


def kinds():
  """A tensor of every type."""
  some = torch.tensor([[0.0, 1.0, 2.5], [7.0, 100.0, 0.5]])
  names = 'float32 float64 float16 bfloat16 int64 int32 int16 int8 uint8 bool'
  return {name: some.to(vars(torch)[name]) for name in names.split()}


def views():
  """Tensors that share storages, in every position."""
  base = numbers(4, 6)
  return dict(
    base=base,
    transposed=base.T,
    part=base[1:3, 2:5],
    every_second=base[:, ::2],
    permuted=numbers(2, 3, 4).permute(2, 0, 1),
    expanded=torch.tensor([[1.5], [2.5]]).expand(2, 3),
    scalar=torch.tensor(3.25),
    of_a_scalar=base[2, 3],
    empty=torch.zeros(0, 3),
    channels_last=numbers(1, 3, 2, 2).to(memory_format=torch.channels_last),
  )


def checkpoint():
  """What training scripts save, settings and counters included."""
  layer = torch.nn.Linear(3, 2)
  with torch.no_grad():
    layer.weight.copy_(numbers(2, 3))
    layer.bias.copy_(numbers(2))
  optimizer = torch.optim.AdamW(layer.parameters())
  layer(numbers(1, 3)).sum().backward()
  optimizer.step()
  tagged = torch.nn.Parameter(numbers(2, 2))
  tagged.tag = 'with an attribute'
  return {
    'epoch': 3,
    'best': np.float64(71.5),
    'args': argparse.Namespace(
      arch='vit_small', lr=1e-3, output=pathlib.PurePosixPath('/runs/one')
    ),
    'sizes': torch.Size([2, 3]),
    'dtype': torch.bfloat16,
    'device': torch.device('cpu'),
    'seen': {1, 2, 3},
    'history': collections.defaultdict(list, loss=[2.0, 1.5]),
    'model': layer.state_dict(),
    'teacher': {'backbone': {'norm': {'weight': numbers(5)}}},
    'optimizer': optimizer.state_dict(),
    'tagged': tagged,
    'frozen': torch.nn.Parameter(numbers(2), requires_grad=False),
    'heads': [numbers(1), numbers(2)],
    'kinds': kinds(),
    'views': views(),
  }


def modern():
  """Types that only newer files have."""
  some = torch.tensor([0.0, 1.0, 448.0])
  return dict(
    uint16=some.to(torch.uint16),
    float8_e4m3fn=some.to(torch.float8_e4m3fn),
    float8_e5m2=some.to(torch.float8_e5m2),
    complex64=torch.tensor([1 + 2j]),
    buffer=torch.nn.Buffer(some),
  )


class Scripted(torch.nn.Module):
  """A module with a module, a buffer and a list in it."""

  def __init__(self):
    super().__init__()
    self.layer = torch.nn.Linear(2, 2).half()
    self.register_buffer('mean', numbers(3).to(torch.bfloat16))
    self.sizes = [2, 3]

  def forward(self, x):
    return self.layer(x) + self.mean.sum()


def flat(value, prefix=''):
  items = ()
  if isinstance(value, dict):
    items = value.items()
  elif isinstance(value, list):
    items = enumerate(value)
  for key, child in items:
    if isinstance(child, torch.Tensor):
      yield f'{prefix}{key}', child.detach()
    else:
      yield from flat(child, f'{prefix}{key}.')


def main():
  torch.manual_seed(0)
  FOLDER.mkdir(exist_ok=True)
  everything = checkpoint()
  old = {k: v for k, v in everything.items() if k != 'tagged'}
  scripted = torch.jit.script(Scripted())
  files = {
    'torch_zip.pth': everything,
    'torch_protocol4.pth': modern(),
    'torch_old.pth': old,
    'torch_script.pt': scripted.state_dict(),
  }
  torch.save(everything, FOLDER / 'torch_zip.pth')
  torch.save(modern(), FOLDER / 'torch_protocol4.pth', pickle_protocol=4)
  torch.save(
    old, FOLDER / 'torch_old.pth', _use_new_zipfile_serialization=False
  )
  torch.jit.save(scripted, FOLDER / 'torch_script.pt')
  values, dtypes = {}, {}
  for file, tree in files.items():
    for name, tensor in flat(tree):
      whole = not (tensor.is_floating_point() or tensor.is_complex())
      kept = tensor if whole or tensor.is_complex() else tensor.double()
      values[f'{file}/{name}'] = kept.numpy()
      dtypes[f'{file}/{name}'] = str(tensor.dtype).removeprefix('torch.')
  np.savez_compressed(
    FOLDER / 'torch_files.npz', dtypes=json.dumps(dtypes), **values
  )


if __name__ == '__main__':
  main()
