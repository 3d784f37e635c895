r"""Linear probes on a frozen encoder, by four papers' protocols or by a sweep.

  python main.py --config=configs/linear_probe.py:moco_v3,imagenette \
    --config.data.data_dir=FOLDER --config.checkpoint=runs/mine \
    --workdir=runs/mine_probe
  python main.py --config=configs/linear_probe.py:photos,sweep,cached \
    --config.checkpoint=runs/quickstart --workdir=runs/quickstart_probe

Words: a protocol (moco_v3, dino, mae, moby), data, sweep, cached.

* moco_v3 (arXiv:2104.02057 and the authors' `main_lincls.py`): CLS after the
  final norm, SGD, 3 per 256 images, no decay, batch 1024, 90 epochs, cosine at
  whole epochs; tested on bilinear images, the others on bicubic ones.
* dino (arXiv:2104.14294, `eval_linear.py`): CLS of the last four blocks (of
  ViT-B one block and the mean of its patches: config.probe.blocks=(1,),
  config.probe.pooling=('cls_mean',)), SGD, 0.001 per 256 images (to be swept,
  as the authors did), batch 1024, 100 epochs.
* mae (arXiv:2111.06377, appendix A.1, `main_linprobe.py`): BatchNorm without
  scale and bias before the classifier, LARS, 0.1 per 256 images, batch 16384,
  90 epochs of which 10 warm up. Crops are bicubic and drawn once, clipped to
  the image (`util/crop.py`), where the others' are drawn until they fit.
* moby (arXiv:2105.04553, `moby_linear.py`): mean of the patches after the final
  norm, SGD, 1 per 512 images, gradients clipped to 5, batch 1024, 100 epochs of
  which 5 warm up. Theirs leaves on what looks accidental: label smoothing
  (config.probe.smoothing=0.1) and dropped paths (config.probe.drop_path=0.2).

With sweep, twelve rates times the last one and four blocks times poolings are
trained side by side on one forward pass; the best is reported beside all, in
`grid.json`. It is chosen by the test images, as the papers do. With cached,
features of the whole images are computed once and no crops are drawn: minutes
instead of hours, some tenths to a percent lower. They are kept in the workdir
(`features/`, 4 bytes a number: of ImageNet and a ViT-S 2 GB, with sweep 20), so
that a stopped job does not encode again, and are read from there where they do
not fit on a device (config.data.mode chooses).
"""

import ml_collections

from configs import common, optim, views

RATES = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
PROTOCOLS = ('moco_v3', 'dino', 'mae', 'moby')


def _protocol(config: ml_collections.ConfigDict, name: str) -> None:
  """Fills in what a paper says."""
  config.batch_size, config.epochs = 1024, 100.0
  config.probe = dict(
    blocks=(1,),  # how many of the last blocks to read; a probe for each
    pooling=('auto',),  # 'auto', 'cls', 'mean' or 'cls_mean'; a probe for each
    lrs=(),  # per `optim.per` images; none: optim.base_lr
    batch_norm=False,
    init_std=0.01,
    smoothing=0.0,
    drop_path=0.0,  # rate in the frozen encoder while the probe trains
    cached=False,  # True: features are computed once, without crops
  )
  if name == 'moco_v3':
    config.epochs = 90.0
    config.optim = optim.sgd(base_lr=3.0, schedule='epochs')
    config.data.eval_resample = 'bilinear'
  elif name == 'dino':
    config.probe.blocks = (4,)
    config.optim = optim.sgd(base_lr=1e-3, schedule='epochs')
  elif name == 'mae':
    config.batch_size, config.epochs = 16384, 90.0
    config.probe.batch_norm = True
    config.optim = optim.lars(base_lr=0.1, decay=0.0, warmup_epochs=10.0)
  else:
    config.probe.update(pooling=('mean',), init_std=0.02)
    config.optim = optim.sgd(base_lr=1.0, per=512, warmup_epochs=5.0, clip=5.0)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """A paper's protocol; smaller batches for small data."""
  flags = (*PROTOCOLS, 'sweep', 'cached')
  words = common.parse(arg, data='folder', flags=flags)
  chosen = [name for name in PROTOCOLS if words[name]] or ['moco_v3']
  if len(chosen) > 1:
    raise ValueError(f'one protocol at a time, got {" and ".join(chosen)}')
  config = common.downstream('linear_probe', words.data)
  _protocol(config, chosen[0])
  config.log_every = 100
  config.eval_every = config.checkpoint_every = 5000
  config.views = dict(
    view1=views.crop(
      'bicubic' if words.mae else 'bilinear', retry=not words.mae
    )
  )
  if words.data in ('photos', 'cifar10'):
    config.batch_size, config.epochs = 256, 30.0
    config.views.view1.scale = (0.2, 1.0)
  config.probe.cached = words.cached
  if words.sweep:
    # LARS takes rates of another size.
    config.probe.lrs = RATES if not words.mae else tuple(10 * r for r in RATES)
    config.probe.blocks = (1, 4)
    config.probe.pooling = ('auto', 'mean')
  return config
