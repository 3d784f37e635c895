r"""A trained encoder for timm, transformers and detection code.

  python main.py --config=configs/export.py:timm,huggingface \
    --config.checkpoint=runs/mine --workdir=runs/mine_export

Words: formats, `timm` if none is named.

* timm: `timm.create_model('local-dir:runs/mine_export/timm')`.
* huggingface: `AutoModel.from_pretrained('runs/mine_export/huggingface')`, a
  ViT, Dinov2, CLIPVision or Swin.
* detectron2: names of Detectron2's ViTDet; it reads PyTorch's files:
  `torch.save({'model': safetensors.torch.load_file(FILE)}, 'vitdet.pth')`.
* mmdet: names of mmdet's and mmseg's SwinTransformer, for `init_cfg` after the
  same step with 'state_dict'.
* microsoft: names of Swin's authors and their detection code.
* convmae: names of ConvMAE's authors.
* npz: our own names; `config.checkpoint` and `config.init_from` read it, as
  they read all of these but detectron2, which lacks the last norm.

A file says in its metadata which commit, method, step and config made it, and
how images are to be normalised.
"""

import ml_collections
from ml_collections import config_dict

from configs import common

FORMATS = (
  'timm',
  'huggingface',
  'detectron2',
  'mmdet',
  'microsoft',
  'convmae',
  'npz',
)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Fields of the job; others are those of `configs/common.py`."""
  words = common.parse(arg, data='folder', flags=FORMATS)
  config = common.downstream('export', 'folder')
  asked = tuple(name for name in FORMATS if words[name])
  config.formats = asked or ('timm',)  # what to write, see --help
  # Side of the images in px; None: what the encoder was trained on.
  config.image_size = config_dict.placeholder(int)
  return config
