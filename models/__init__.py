"""Encoders by name, and the only folder that knows Flax's linen."""

import difflib
import functools
import re

from flax import linen as nn

from models import convvit, sizes, swin, vit

# Words that a patch size follows: vit_s of vit_s16.
PATCHED = {
  f'vit_{size}': functools.partial(vit.ViT, **fields)
  for size, fields in sizes.VIT.items()
}
# Words that are complete; their patch size is a field like others.
COMPLETE = {
  f'swin_{size}': functools.partial(swin.Swin, **fields)
  for size, fields in sizes.SWIN.items()
} | {
  f'convvit_{size}': functools.partial(convvit.ConvViT, **fields)
  for size, fields in sizes.CONVVIT.items()
}
# Nothing preset: for encoders that come with all their fields (`interop`).
BARE = {'vit': vit.ViT, 'swin': swin.Swin, 'convvit': convvit.ConvViT}
ENCODERS = PATCHED | COMPLETE
# Only to guess what an unknown word was meant to be; any patch size works.
USUAL_PATCHES = (4, 8, 14, 16, 32)


def make_encoder(word: str, **fields) -> nn.Module:
  """Builds the encoder that a word names.

  Args:
    word: a name in PATCHED followed by the patch size, such as 'vit_s16', or
      one in COMPLETE, such as 'swin_t' or 'convvit_b', or in BARE.
    **fields: fields of the encoder that should differ from its variant's.

  Returns:
    The module, without parameters.

  Raises:
    ValueError: if no encoder has that name.
    TypeError: if the encoder has no such field.
  """
  if word in COMPLETE or word in BARE:
    return (COMPLETE | BARE)[word](**fields)
  match = re.fullmatch(r'(\w*[a-z])([1-9]\d*)', word)
  if match is None or match[1] not in PATCHED:
    usual = [f'{name}{p}' for name in PATCHED for p in USUAL_PATCHES]
    usual += COMPLETE
    near = difflib.get_close_matches(word.lower(), usual, n=1, cutoff=0.6)
    hint = f'; did you mean {near[0]!r}?' if near else '.'
    raise ValueError(
      f'unknown encoder {word!r}{hint} Known: '
      f'{", ".join(PATCHED)}, each followed by the patch size, and '
      f'{", ".join(COMPLETE)}'
    )
  return PATCHED[match[1]](patch_size=int(match[2]), **fields)
