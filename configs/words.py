"""The words behind the colon of `--config=FILE:words`."""

import difflib
import re

import ml_collections

from configs.data import DATA

VITS = ('vit_mini', 'vit_ti', 'vit_s', 'vit_b', 'vit_l', 'vit_h')
SWINS = ('swin_mini', 'swin_t', 'swin_s', 'swin_b', 'swin_l')
CONVVITS = ('convvit_mini', 'convvit_s', 'convvit_b')
COMPLETE = SWINS + CONVVITS  # no patch size follows
ENCODERS = VITS + COMPLETE
CHECKPOINT = '; the encoder is that of config.checkpoint'
NEAR = 0.6  # difflib's ratio from which on a known word is suggested


def parse(
  arg: str | None,
  *,
  data: str,
  encoder: str | None = None,
  flags: tuple[str, ...] = (),
) -> ml_collections.ConfigDict:
  """Reads the words behind the colon of `--config=FILE:words`.

  Args:
    arg: comma-separated words, in any order.
    data: the data word when none is given.
    encoder: the encoder word when none is given; None: there is none to give.
    flags: words that are on or off.

  Returns:
    {encoder, data, **flags}.

  Raises:
    ValueError: a word that is none of these, with the nearest known one, or
      several that name data or encoders.
  """
  words = dict(encoder=encoder, data=data, **dict.fromkeys(flags, False))
  named, encoders = [], []
  for word in filter(None, (arg or '').split(',')):
    if word in DATA:
      words['data'] = word
      named.append(word)
    elif word in flags:
      words[word] = True
    elif encoder and (
      word in COMPLETE or re.fullmatch(rf'({"|".join(VITS)})[1-9]\d*', word)
    ):
      words['encoder'] = word
      encoders.append(word)
    else:
      raise _unknown(word, flags, encoders=bool(encoder))
  for kind, given in (('data', named), ('encoder', encoders)):
    if len(set(given)) > 1:
      raise ValueError(f'several {kind} words: {", ".join(given)}; give one')
  return ml_collections.ConfigDict(words)


def _unknown(word: str, flags: tuple[str, ...], *, encoders: bool) -> Exception:
  """The error for an unknown word, with the nearest known one if it is near."""
  names = f'{", ".join(VITS)} followed by the patch size, {", ".join(COMPLETE)}'
  usual = (*(f'{vit}16' for vit in VITS), *COMPLETE) if encoders else ()
  known = (*DATA, *flags, *usual)
  near = difflib.get_close_matches(word.lower(), known, n=1, cutoff=NEAR)
  return ValueError(
    f'unknown config word {word!r}'
    f'{f"; did you mean {near[0]!r}?" if near else "."} Known: '
    f'data {", ".join(DATA)}; {f"encoders {names}; " if encoders else ""}'
    f'flags {", ".join(flags) or "none"}{"" if encoders else CHECKPOINT}'
  )


def family(word: str) -> str:
  """The name of an encoder without its patch size: vit_s of vit_s16."""
  return word.rstrip('0123456789')
