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
    smoothing, so that every pixel can be told from the next.
  """
  cells = np.asarray(figure.images, np.float32)
  rows, columns, h, w, c = cells.shape
  cells = np.repeat(cells, 3, -1) if c < 3 else cells[..., :3]
  cells = np.round(np.clip(cells[..., :3], 0, 1) * 255).astype(np.uint8)
  factor = max(1, -(-CELL // min(h, w)))
  cells = cells.repeat(factor, axis=2).repeat(factor, axis=3)
  h, w = h * factor, w * factor
  size = (columns * (w + GAP) + GAP, TITLE + rows * (h + GAP) + GAP)
  sheet = Image.new('RGB', size, 'white')
  draw = ImageDraw.Draw(sheet)
  font = ImageFont.load_default(size=13)
  for j, title in enumerate(figure.columns):
    draw.text((GAP + j * (w + GAP), 2), title, fill='black', font=font)
  for i in range(rows):
    for j in range(columns):
      place = (GAP + j * (w + GAP), TITLE + GAP + i * (h + GAP))
      sheet.paste(Image.fromarray(cells[i, j]), place)
  out = io.BytesIO()
  sheet.save(out, 'PNG')
  return out.getvalue()
