"""Where images come from: presets of `config.data` by word."""

from ml_collections import config_dict

# Small images, and arrays of a size that somebody chose, are evaluated as they
# are.
WHOLE = dict(eval_crop=1.0, eval_resample='bilinear')


def _data(name: str, **fields) -> dict:
  return (
    dict(
      name=name,  # 'photos', 'arrays', 'folder', 'tfds' or 'cifar10'
      data_dir=config_dict.placeholder(str),  # folder or file of the images
      split='train',  # the part to train on
      test_split='test',  # part to test on; '': none; 'auto': if there is one
      mode='auto',  # 'resident' on the device, 'stream' from the host
      image_size=224,  # side in px, of views and of evaluation images
      eval_crop=0.875,  # evaluation: 224 px are the centre of 256
      eval_resample='bicubic',  # 'bicubic' or 'bilinear', of evaluation
      resident_size=config_dict.placeholder(int),  # None: as they are
      channels=config_dict.placeholder(int),  # None: the source's, or RGB
      workers=config_dict.placeholder(int),  # threads that decode; None: all
      max_unreadable=0.01,  # of the images of a report; more stop the run
    )
    | fields
  )


def photos() -> dict:
  """Tiles of photographs that ship with scikit-image and scikit-learn."""
  # 24 px in patches of 4 are 36 tokens; stride 16 gives 3570 tiles.
  return _data(
    'photos',
    image_size=24,
    tile=64,
    stride=16,
    gray=True,
    standardize=True,
    **WHOLE,
  )


def cifar10() -> dict:
  """CIFAR-10 through TFDS, prepared under `data_dir`."""
  return _data('cifar10', image_size=32, **WHOLE)


def tfds() -> dict:
  """Any prepared TFDS data set with images, named by `tfds_name`."""
  return _data(
    'tfds',
    tfds_name=config_dict.placeholder(str),  # such as 'imagenette/160px'
  )


def imagenet2012() -> dict:
  """ImageNet-1k, prepared by TFDS under `data_dir`."""
  return _data('tfds', tfds_name='imagenet2012', test_split='validation')


def arrays() -> dict:
  """An .npz file of your own, named by `data_dir`."""
  return _data('arrays', test_split='', **WHOLE)


def folder() -> dict:
  """Images in a folder, a .zip or a .tar, named by `data_dir`.

  `labels`: 'folders', 'none', 'auto', or a table of paths and labels.
  """
  return _data('folder', test_split='auto', labels='auto')


def imagenette() -> dict:
  """Imagenette (or Imagewoof) as a folder or archive with train and val."""
  return _data('folder', image_size=128, test_split='val', labels='folders')


DATA = dict(
  photos=photos,
  cifar10=cifar10,
  tfds=tfds,
  imagenet2012=imagenet2012,
  arrays=arrays,
  folder=folder,
  imagenette=imagenette,
)
