"""Views: records of numbers that say how an image is shown to a network.

In this field the order of the augmentations is fixed (crop, flip, jitter,
grey, blur, solarise); only the numbers differ from paper to paper. A view is
therefore a record, not a program, and a recipe is a function that fills in
records.
"""

import dataclasses
from collections.abc import Mapping

RESAMPLES = ('bilinear', 'bicubic')
# What a rendered batch holds beside the views.
RESERVED = ('label', 'index', 'row', 'replaced')


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
  """How to render one view; a probability of 0 takes an op out of the program.

  Images with other than 3 channels have no colours: saturation, hue and grey
  are left out for them, while brightness, contrast (around the mean of all
  channels), blur and solarisation stay.

  Attributes:
    size: side of the view in pixels, or (height, width); stored as the pair.
    scale: smallest and largest area of the crop, as fractions of the image.
    ratio: smallest and largest width / height of the crop, log-uniform.
    flip: probability of a mirror image (left-right).
    jitter: probability of the colour jitter as a whole.
    strength: brightness, contrast, saturation and hue. The first three are
      factors from U[max(0, 1 - s), 1 + s]; the hue moves by U[-s, s] turns,
      s at most 0.5. An op of strength 0 is left out.
    gray: probability of removing the colours.
    blur: probability of a Gaussian blur.
    sigma: smallest and largest standard deviation of the blur, in pixels.
    solarize: probability of inverting the values from `threshold` upwards.
    threshold: of the solarisation, on [0, 1]; Pillow's 128 of 255.
    resample: 'bilinear' or 'bicubic', both antialiased as in Pillow.
    retry: whether crops are drawn until one fits into the image, as torchvision
      does; else there is one draw, which the image's borders clip (MAE's code,
      `util/crop.py`, after TensorFlow's).
  """

  size: int | tuple[int, int]
  scale: tuple[float, float] = (0.08, 1.0)
  ratio: tuple[float, float] = (3 / 4, 4 / 3)
  flip: float = 0.5
  jitter: float = 0.8
  strength: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
  gray: float = 0.2
  blur: float = 0.5
  sigma: tuple[float, float] = (0.1, 2.0)
  solarize: float = 0.0
  threshold: float = 128 / 255
  resample: str = 'bilinear'
  retry: bool = True

  def __post_init__(self):
    size = (self.size,) * 2 if isinstance(self.size, int) else self.size
    # Configs hand over lists; a view must be hashable to be a static argument.
    object.__setattr__(self, 'size', tuple(size))
    for name in ('scale', 'ratio', 'sigma'):
      values = tuple(vars(self)[name])
      if len(values) != 2 or not 0 < values[0] <= values[1]:
        raise ValueError(
          f'View.{name} must be (smallest, largest) above 0, got {values}'
        )
      object.__setattr__(self, name, values)
    object.__setattr__(self, 'strength', tuple(self.strength))
    if len(self.size) != 2 or any(
      not isinstance(side, int) or side < 1 for side in self.size
    ):
      raise ValueError(
        f'View.size must be a positive integer or a pair, got {self.size}'
      )
    if self.scale[1] > 1:
      raise ValueError(f'View.scale must not exceed 1, got {self.scale}')
    for name in ('flip', 'jitter', 'gray', 'blur', 'solarize', 'threshold'):
      if not 0 <= (value := vars(self)[name]) <= 1:
        raise ValueError(f'View.{name} must be within 0..1, got {value}')
    if len(self.strength) != 4 or any(value < 0 for value in self.strength):
      raise ValueError(
        'View.strength must hold 4 numbers >= 0 (brightness, contrast, '
        f'saturation, hue), got {self.strength}'
      )
    if self.strength[3] > 0.5:
      raise ValueError(
        f'View.strength: hue must be at most 0.5 turns, got {self.strength[3]}'
      )
    if self.resample not in RESAMPLES:
      raise ValueError(
        f'View.resample must be one of {RESAMPLES}, got {self.resample!r}'
      )


def check_views(views: Mapping[str, View]) -> None:
  """Whether views can be rendered side by side.

  Raises:
    ValueError: there is none, or one has a reserved name.
  """
  if not views:
    raise ValueError('views must hold at least one view')
  if reserved := sorted(set(views) & set(RESERVED)):
    raise ValueError(
      f'views must not be named {reserved}: {RESERVED} are taken'
    )


def moco_v3(size: int = 224, *, min_scale: float = 0.08) -> dict[str, View]:
  """Two unlike views of MoCo v3 (Chen et al., 2021), after BYOL.

  Source: facebookresearch/moco-v3 main_moco.py; MoBY uses the same numbers.

  Args:
    size: side of both views in pixels.
    min_scale: smallest crop area; 0.08 for ViT, 0.2 for ResNet.

  Returns:
    {'view1': always blurred, 'view2': seldom blurred, sometimes solarised}.
  """
  common = dict(size=size, scale=(min_scale, 1.0))
  return {
    'view1': View(**common, blur=1.0),
    'view2': View(**common, blur=0.1, solarize=0.2),
  }
