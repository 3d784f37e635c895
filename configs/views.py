"""Views of the papers: fields of `input_pipeline.views.View` by view name."""


def two_views(
  *,
  min_scale: float = 0.08,
  blur: tuple[float, float] = (1.0, 0.1),
  solarize: tuple[float, float] = (0.0, 0.2),
  strength: tuple[float, ...] = (0.4, 0.4, 0.2, 0.1),
  resample: str = 'bilinear',
) -> dict:
  """Two views of a contrastive method; the defaults are MoCo v3's.

  Args:
    min_scale: smallest area of the crop.
    blur: probability in each view; 0 for small images, whose detail a σ of 2
      pixels wipes out.
    solarize: probability in each view.
    strength: of brightness, contrast, saturation, hue.
    resample: 'bilinear' or 'bicubic'.

  Returns:
    Fields of `input_pipeline.views.View` by view name; their size is
    `data.image_size`.
  """
  shared = dict(
    scale=(min_scale, 1.0),
    ratio=(3 / 4, 4 / 3),
    flip=0.5,
    jitter=0.8,
    strength=strength,
    gray=0.2,
    sigma=(0.1, 2.0),
    resample=resample,
  )
  return {
    f'view{i + 1}': dict(shared, blur=blur[i], solarize=solarize[i])
    for i in range(2)
  }


def moco_views(*, min_scale: float = 0.08, blur: bool = True) -> dict:
  """MoCo v3's two views (authors' code, `main_moco.py`), also MoBY's.

  Args:
    min_scale: smallest area of the crop.
    blur: off for small images.

  Returns:
    As `two_views`.
  """
  chances = (1.0, 0.1) if blur else (0.0, 0.0)
  return two_views(min_scale=min_scale, blur=chances)


def moco_v2_views() -> dict:
  """MoCo v2's two equal views (authors' code), also SimSiam's."""
  return two_views(
    min_scale=0.2,
    blur=(0.5, 0.5),
    solarize=(0.0, 0.0),
    strength=(0.4, 0.4, 0.4, 0.1),
  )


def crop(resample: str = 'bilinear', *, retry: bool = True) -> dict:
  """A random crop, mirrored or not: what linear probes train on.

  Args:
    resample: 'bilinear' or 'bicubic'.
    retry: False for one draw of the crop, clipped to the image.

  Returns:
    Fields of `input_pipeline.views.View`.
  """
  return dict(
    scale=(0.08, 1.0),
    ratio=(3 / 4, 4 / 3),
    flip=0.5,
    resample=resample,
    retry=retry,
    jitter=0.0,
    gray=0.0,
    blur=0.0,
    solarize=0.0,
  )


def dino_views(
  local_crops: int,
  *,
  size: int,
  global_scale: tuple[float, float] = (0.4, 1.0),
  local_scale: tuple[float, float] = (0.05, 0.4),
) -> dict:
  """DINO's two global and several local crops (authors' `main_dino.py`).

  Args:
    local_crops: number of local crops.
    size: their side in pixels.
    global_scale: areas of the global crops.
    local_scale: areas of the local crops.

  Returns:
    As `two_views`, with 'local1', 'local2', ...
  """
  out = two_views(resample='bicubic')
  for view in out.values():
    view.update(scale=global_scale)
  local = dict(
    out['view1'], size=size, scale=local_scale, blur=0.5, solarize=0.0
  )
  return out | {f'local{i + 1}': dict(local) for i in range(local_crops)}
