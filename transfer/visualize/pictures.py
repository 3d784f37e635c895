"""The pictures of encoders, by the word that asks for them."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from training.state import Figure
from transfer.visualize import curve_panels, plots, projections, sheets
from transfer.visualize.album import Draw, LeftOutError
from transfer.visualize.curves import grouped, read_curves, short_names
from transfer.visualize.neighbors import nearest
from transfer.visualize.subject import Subject

FEWEST = 5  # points that t-SNE can place

# (the backbone, images [n, h, w, c] in [0, 1], dtype) -> its method's figures.
FiguresOf = Callable[..., dict[str, Figure]]


def attention(subjects: Sequence[Subject], figures_of: FiguresOf) -> Draw:
  """Attention maps of the first encoder, a sheet for every block."""
  del figures_of
  first = subjects[0]
  maps, index = first.attention
  images = first.images(first.source, index)
  _need(len(index), 1, first)
  query = 'of all patches (mean)' if _no_cls(first) else 'of CLS'

  def draw():
    return [
      sheets.attention_sheet(
        f'attention_block_{block}',
        images,
        found,
        title=f'{_of(subjects)}Attention {query}, block {block}',
        mass=first.job.config.mass,
        heads=first.job.config.heads,
      )
      for block, found in maps.items()
    ]

  return draw


def _no_cls(subject: Subject) -> bool:
  return 'cls' not in subject.job.backbone.variables()['params']


def _need(count: int, wanted: int, subject: Subject) -> None:
  if count < wanted:
    raise LeftOutError(
      f'{subject.source.name} has {count} readable images for it, and it needs '
      f'{wanted}'
    )


def _points(subject: Subject):
  """Features, and their labels and images."""
  features, index = subject.features
  _need(len(features), FEWEST, subject)
  source = subject.source
  labels = None if source.labels is None else source.labels[index]
  return features, labels, index


def _of(subjects: Sequence[Subject]) -> str:
  """Names the first run where there are several; of one there is no doubt."""
  return f'{subjects[0].name}: ' if len(subjects) > 1 else ''


def _title(
  what: str, subjects: Sequence[Subject], labels: np.ndarray | None
) -> str:
  subject, what = subjects[0], f'{_of(subjects)}{what}'
  if labels is None:
    return f'{what}, {len(subject.features[1])} images'
  used, total = len(np.unique(labels)), len(subject.source.classes)
  known = f'{total} classes' if used == total else f'{used} of {total} classes'
  return f'{what}, {len(labels)} images, {known}'


def tsne(subjects: Sequence[Subject], figures_of: FiguresOf) -> Draw:
  """t-SNE of the first encoder's features."""
  del figures_of
  first = subjects[0]
  _, labels, index = _points(first)

  def draw():
    picture = plots.projection(
      'tsne',
      first.tsne,
      title=_title('t-SNE', subjects, labels),
      labels=labels,
      classes=first.classes,
      indices=index,
    )
    return [picture]

  return draw


def pca(subjects: Sequence[Subject], figures_of: FiguresOf) -> Draw:
  """Two principal components of the first encoder's features."""
  del figures_of
  first = subjects[0]
  features, labels, index = _points(first)

  def draw():
    points, explained = projections.principal(features)
    picture = plots.projection(
      'pca',
      points,
      title=_title('PCA', subjects, labels),
      labels=labels,
      classes=first.classes,
      indices=index,
      explained=explained,
    )
    return [picture]

  return draw


def reconstruction(subjects: Sequence[Subject], figures_of: FiguresOf) -> Draw:
  """What the method of the first run draws of images."""
  first = subjects[0]
  config = first.job.config
  images = first.images(first.source, first.spread(config.images))
  drawn = figures_of(
    first.job.backbone, images.astype(np.float32) / 255, config.dtype
  )
  if not drawn:
    raise LeftOutError(
      f'{first.job.backbone.where} has no decoder: reconstructions need RePre '
      'or a masked method'
    )

  def draw():
    return [
      sheets.figure_sheet(
        name,
        figure,
        title=_of(subjects) + name.replace('_', ' ').capitalize(),
      )
      for name, figure in drawn.items()
    ]

  return draw


def depth(subjects: Sequence[Subject], figures_of: FiguresOf) -> Draw:
  """NMI and attention distance by block, a line for each encoder."""
  del figures_of
  found = {subject.name: subject.depth for subject in subjects}
  _need(min(count for _, count in found.values()), 1, subjects[0])
  count = next(iter(found.values()))[1]
  means = {name: measured for name, (measured, _) in found.items()}
  return lambda: [plots.depth_curves(means, images=count)]


def neighbors(subjects: Sequence[Subject], figures_of: FiguresOf) -> Draw:
  """Nearest training images of some images, by the first encoder."""
  del figures_of
  first = subjects[0]
  source, train = first.source, first.job.train
  queries, index = first.queries
  bank, rows = first.bank
  _need(min(len(index), len(rows) - 1), 1, first)
  own = None
  if source is train:
    places = {row: place for place, row in enumerate(rows.tolist())}
    own = np.array([places.get(row, -1) for row in index.tolist()])
  order, cosines = nearest(
    bank, queries, first.job.config.neighbors, without=own
  )
  chosen = rows[order]
  images = first.images(train, chosen.reshape(-1))
  labelled = source.labels is not None and train.labels is not None
  same = None
  if labelled and tuple(source.classes) == tuple(train.classes):
    same = train.labels[chosen] == source.labels[index][:, None]

  def draw():
    numbers = dict(query=index, neighbor=chosen)
    named = first.classes
    if same is not None:
      numbers['same'] = same
    picture = sheets.neighbor_sheet(
      first.images(source, index),
      images.reshape(*chosen.shape, *images.shape[1:]),
      cosines,
      title=f'{_of(subjects)}Nearest of {len(rows):,} training images',
      same=same,
      numbers=numbers,
      names=[] if same is None else [named[n] for n in source.labels[index]],
    )
    return [picture]

  return draw


def curves_of_run(subjects: Sequence[Subject], figures_of: FiguresOf) -> Draw:
  """Curves of the runs of the encoders, and of `config.runs`."""
  del figures_of
  config = subjects[0].job.config
  paths = [subject.workdir for subject in subjects]
  return curves([*paths, *listed(config.runs)])


def listed(words: str | Sequence[str] | None) -> list[str]:
  """Words, or paths, of a tuple or with commas between."""
  words = (words,) if isinstance(words, str) else words or ()
  parts = [part.strip(' ()\'"') for word in words for part in word.split(',')]
  return [part for part in parts if part]


def curves(paths: Sequence[str]) -> Draw:
  """Curves of runs that need not have a checkpoint.

  Args:
    paths: their workdirs.
  """
  paths = tuple(dict.fromkeys(path.rstrip('/') for path in paths))
  names = short_names(paths)

  def draw():
    runs = {}
    for name, path in zip(names, paths, strict=True):
      try:
        runs[name] = read_curves(path)
      except ValueError as error:
        raise LeftOutError(str(error)) from error
    return curve_panels.curve_pictures(grouped(runs), names)

  return draw


def compare(subjects: Sequence[Subject]) -> Draw:
  """RePre's Fig. 4: the deepest block asked for and t-SNE of two encoders."""
  maps = {}
  for subject in subjects:
    found, index = subject.attention
    maps[subject.name] = found[max(found)].mean(axis=1)
    _, labels, _ = _points(subject)
  _need(len(index), 1, subjects[0])
  first = subjects[0]
  images = first.images(first.source, index)

  def draw():
    points = {subject.name: subject.tsne for subject in subjects}
    picture = sheets.two_runs(
      images, maps, points, labels=labels, classes=first.classes
    )
    return [picture]

  return draw


PICTURES: Mapping[str, Callable[[Sequence[Subject], FiguresOf], Draw]] = {
  'attention': attention,
  'tsne': tsne,
  'pca': pca,
  'reconstruction': reconstruction,
  'depth': depth,
  'neighbors': neighbors,
  'curves': curves_of_run,
}
