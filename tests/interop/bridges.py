"""Files of weights and what the tests of bridges do with them."""

import functools
import pathlib

import jax
import numpy as np
from flax import traverse_util

from interop.files import Tensor, Weights, open_weights
from interop.recognise import build, recognise

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDENS = ROOT / 'goldens'
ENCODERS = GOLDENS / 'weights' / 'encoders'
NAMES = sorted(path.name for path in ENCODERS.iterdir())
# Of files without statistics: what comes in is normalised already.
RAW = dict(mean=(0.0,) * 3, std=(1.0,) * 3)


@functools.cache
def recorded(name):
  """{name: array} of `expected.npz` of a recorded encoder."""
  return dict(np.load(ENCODERS / name / 'expected.npz'))


@functools.cache
def tensors_of(name):
  """{name: array} of the file of a recorded encoder."""
  tensors = open_weights(ENCODERS / name).tensors
  return {name: tensor.read() for name, tensor in tensors.items()}


def in_memory(arrays, **fields):
  """`Weights` of arrays, as if they had been read."""
  tensors = {
    name: Tensor(x.shape, x.dtype, functools.partial(np.asarray, x))
    for name, x in arrays.items()
  }
  fields = dict(metadata={}, config={}, preprocessor={}) | fields
  return Weights(path='file.pth', tensors=tensors, **fields)


def write(folder, arrays, name='model.npz'):
  """An .npz file of arrays by name."""
  path = pathlib.Path(folder) / name
  np.savez(path, **arrays)
  return path


@functools.cache
def compiled(encoder):
  """One compiled call: what is static is in the encoder."""
  return jax.jit(
    lambda params, images: encoder.apply({'params': params}, images)
  )


def nested(params):
  flat = {k.removeprefix('encoder/'): v for k, v in params.items()}
  return traverse_util.unflatten_dict(flat, sep='/')


def encode(loaded, images, **fields):
  """Features of a loaded encoder."""
  encoder = build(dict(loaded.spec) | fields)
  return compiled(encoder)(nested(loaded.params), images)


def assert_near(found, wanted, tolerance=2e-5):
  """Within a tolerance relative to the largest value."""
  found, wanted = np.asarray(found), np.asarray(wanted)
  assert found.shape == wanted.shape
  scale = np.abs(wanted).max()
  np.testing.assert_allclose(found / scale, wanted / scale, atol=tolerance)


def written_back(weights, loaded, **given):
  """{name: array} that a layout makes of what it was read from."""
  fit = recognise(weights, given=given)
  bare = {k.removeprefix('encoder/'): v for k, v in loaded.params.items()}
  return {
    fit.root + pair.theirs: pair.give(*(bare[path] for path in pair.ours))
    for pair in fit.layout.pairs(fit.encoder)
  }
