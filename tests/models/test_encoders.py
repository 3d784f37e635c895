"""Encoder words."""

import pytest

from models import ENCODERS, make_encoder


def test_words_name_variant_and_patch():
  encoder = make_encoder('vit_mini4', drop_path=0.1)
  assert (encoder.width, encoder.depth, encoder.num_heads) == (96, 6, 3)
  assert (encoder.patch_size, encoder.drop_path) == (4, 0.1)
  encoder = make_encoder('vit_s16')
  assert (encoder.width, encoder.depth, encoder.num_heads) == (384, 12, 12)
  assert make_encoder('vit_b14').patch_size == 14
  assert encoder.strides == (16,) * 12


def test_words_without_a_patch():
  encoder = make_encoder('swin_t', drop_path=0.2)
  assert (encoder.width, encoder.depths) == (96, (2, 2, 6, 2))
  assert (encoder.patch_size, encoder.window, encoder.drop_path) == (4, 7, 0.2)
  assert make_encoder('swin_mini').patch_size == 2
  assert make_encoder('swin_mini', patch_size=4).patch_size == 4
  encoder = make_encoder('convvit_b', drop_path=0.1)
  assert (encoder.widths, encoder.depths) == ((256, 384, 768), (2, 2, 11))
  assert (encoder.patch_size, encoder.num_heads) == (16, 12)
  assert make_encoder('convvit_mini').patch_size == 4


@pytest.mark.parametrize(
  'word, nearest',
  [
    ('vit_s', 'vit_s'),
    ('vits16', 'vit_s16'),
    ('vit_mimi4', 'vit_mini4'),
    ('vit_b0', 'vit_b'),
    ('swint', 'swin_t'),
    ('swin_t4', 'swin_t'),
    ('swin_base', 'swin_'),
    ('convvit_b16', 'convvit_b'),
    ('convit_s', 'convvit_s'),
  ],
)
def test_unknown_words_get_the_nearest_and_all_known(word, nearest):
  with pytest.raises(ValueError) as error:
    make_encoder(word)
  message = str(error.value)
  assert f'unknown encoder {word!r}' in message
  assert f"did you mean '{nearest}" in message
  assert all(name in message for name in ENCODERS)


@pytest.mark.parametrize('word', ['', 'qqqqqqqq'])
def test_a_word_far_from_all_gets_no_suggestion(word):
  with pytest.raises(ValueError) as error:
    make_encoder(word)
  assert f'unknown encoder {word!r}. Known: vit_mini, ' in str(error.value)


def test_unknown_fields_are_refused():
  with pytest.raises(TypeError, match='drop_paths'):
    make_encoder('vit_s16', drop_paths=0.1)
