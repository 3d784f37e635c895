"""Grids of images as PNG files."""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training.state import Figure

CELL = 128  # smallest side of a cell in pixels: 32-px views stay visible
GAP = 4
TITLE = 20


def to_png(figure: Figure) -> bytes:
  """Draws a figure: a title over every column, white gaps between cells.

  Args:
    figure: host arrays, float [rows, columns, h, w, c] in [0, 1]; 1 channel
      is drawn as grey, of more than 3 the first three are drawn.

  Returns:
    The PNG file's bytes. Small images are enlarged by a whole factor without
    smoothing, so that every pixel can be told from the next. A column 'error'
    is amplified by a whole factor, and its title states the error of white.
  """
  cells = np.array(figure.images, np.float32)
  titles = [
    _amplified(cells[:, j]) if title == 'error' else title
    for j, title in enumerate(figure.columns)
  ]
  rows, columns, h, w, c = cells.shape
  cells = np.repeat(cells, 3, -1) if c < 3 else cells[..., :3]
  cells = np.round(np.clip(cells[..., :3], 0, 1) * 255).astype(np.uint8)
  factor = max(1, -(-CELL // min(h, w)))
  cells = cells.repeat(factor, axis=2).repeat(factor, axis=3)
  h, w = h * factor, w * factor
  font = ImageFont.load_default(size=13)
  wide, high = columns * (w + GAP) + GAP, TITLE + rows * (h + GAP) + GAP
  caption = _wrapped(figure.caption, wide - 2 * GAP, font)
  sheet = Image.new('RGB', (wide, high + TITLE * len(caption)), 'white')
  draw = ImageDraw.Draw(sheet)
  for number, line in enumerate(caption):
    draw.text((GAP, high + TITLE * number), line, fill='black', font=font)
  for j, title in enumerate(titles):
    draw.text((GAP + j * (w + GAP), 2), title, fill='black', font=font)
  for i in range(rows):
    for j in range(columns):
      place = (GAP + j * (w + GAP), TITLE + GAP + i * (h + GAP))
      sheet.paste(Image.fromarray(cells[i, j]), place)
  out = io.BytesIO()
  sheet.save(out, 'PNG')
  return out.getvalue()


def _amplified(errors: np.ndarray) -> str:
  """Scales errors in place so that the largest are bright; a title.

  Args:
    errors: [rows, h, w, c], not negative.
  """
  factor = int(np.clip(1 / max(float(errors.max()), 1e-6) + 1e-3, 1, 20))
  errors *= factor
  return f'error, white: {1 / factor:.2g}'


def _wrapped(text: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
  """Lines of at most so many pixels."""
  lines: list[str] = []
  for word in text.split():
    longer = f'{lines[-1]} {word}' if lines else word
    if lines and font.getlength(longer) <= width:
      lines[-1] = longer
    else:
      lines.append(word)
  return lines
