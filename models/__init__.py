"""Encoders by name, and the only folder that knows Flax's linen."""

import difflib
import functools
import re

from flax import linen as nn

from models.vit import VARIANTS, ViT

# The name of an encoder without its patch size: vit_s of vit_s16.
ENCODERS = {
  f'vit_{size}': functools.partial(ViT, **fields)
  for size, fields in VARIANTS.items()
}
# Only to guess what an unknown word was meant to be; any patch size works.
USUAL_PATCHES = (4, 8, 14, 16, 32)


def make_encoder(word: str, **fields) -> nn.Module:
  """Builds the encoder that a word names.

  Args:
    word: a name in ENCODERS followed by the patch size, such as 'vit_s16'.
    **fields: fields of the encoder that should differ from its variant's.

  Returns:
    The module, without parameters.

  Raises:
    ValueError: if no encoder has that name.
    TypeError: if the encoder has no such field.
  """
  match = re.fullmatch(r'(\w*[a-z])([1-9]\d*)', word)
  if match is None or match[1] not in ENCODERS:
    usual = [f'{name}{p}' for name in ENCODERS for p in USUAL_PATCHES]
    nearest = difflib.get_close_matches(word, usual, n=1, cutoff=0)[0]
    raise ValueError(
      f'unknown encoder {word!r}; did you mean {nearest!r}? Known: '
      f'{", ".join(ENCODERS)}, each followed by the patch size'
    )
  return ENCODERS[match[1]](patch_size=int(match[2]), **fields)
