"""Sizes of views that patches must tile."""

from typing import Any

from models.patches import check_divisible


def check_view_sizes(
  config: Any, patch_size: int, name: str = 'patch size', *, view: str = ''
) -> None:
  """Raises ValueError for a view that patches do not tile, naming its field.

  Args:
    config: read here: `views`, `data.image_size`.
    patch_size: side of a patch in pixels.
    name: of that size in the message.
    view: the only view to look at; all views, and images that are evaluated, if
      empty.
  """
  whole = ('config.data.image_size', config.data.image_size)
  fields = {} if view else dict([whole])
  for key, numbers in config.views.items():
    if view in ('', key):
      field, size = whole
      if numbers.get('size') is not None:
        field, size = f'config.views.{key}.size', numbers['size']
      fields[field] = size
  for size in fields.values():
    alike = [f for f, other in fields.items() if _pair(other) == _pair(size)]
    check_divisible(_pair(size), patch_size, name, fields=alike)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
  return (size, size) if isinstance(size, int) else tuple(size)
