"""Names and units of metrics for a person: on the screen and in pictures."""

import re
from collections.abc import Mapping
from typing import NamedTuple

PERCENT = '%'


class Metric(NamedTuple):
  """How a metric is shown.

  Attributes:
    title: over a panel.
    short: on the screen.
    quantity: at the axis of a panel.
    unit: of the quantity; '' where it has none.
  """

  title: str
  short: str
  quantity: str
  unit: str = ''

  @property
  def axis(self) -> str:
    """Label of an axis: the quantity, its unit in brackets."""
    return f'{self.quantity} ({self.unit})' if self.unit else self.quantity


def _accuracy(title: str, short: str) -> Metric:
  return Metric(title, short, 'accuracy', PERCENT)


# By key of metrics.jsonl; the first pattern that matches the whole key. `{0}`
# stands for what the brackets of the pattern matched, `_` in it for a space.
METRICS: Mapping[str, Metric] = {
  'loss': Metric('Training loss', 'loss', 'loss'),
  'loss_contrast': Metric('Contrastive loss', 'contrast', 'loss'),
  'loss_pixels': Metric('Reconstruction loss', 'pixels', 'loss'),
  'loss_masked': Metric('Loss of masked modelling', 'masked', 'loss'),
  'loss_probe': Metric('Loss of the online probe', 'probe', 'cross-entropy'),
  'loss_best': Metric('Loss of the best probe', 'best probe', 'cross-entropy'),
  'loss_mean': Metric('Mean loss of the probes', 'mean probe', 'cross-entropy'),
  'masked_loss_(.*)': Metric('Loss of the masked {0}', 'masked {0}', 'loss'),
  'loss_(.*)': Metric('Loss of the {0}', '{0}', 'loss'),
  'knn_top1': _accuracy('k-NN top-1', 'knn top-1'),
  'knn_top5': _accuracy('k-NN top-5', 'knn top-5'),
  'knn_untrained': _accuracy('k-NN, untrained encoder', 'untrained'),
  'knn_raw_pixels': _accuracy('k-NN, raw pixels', 'raw pixels'),
  'knn_histogram': _accuracy('k-NN, histogram', 'histogram'),
  'knn_unreadable': Metric(
    'Unreadable images left out by k-NN', 'unreadable', 'images'
  ),
  'top([15])': _accuracy('Test top-{0}', 'top-{0}'),
  'probe_top([15])': _accuracy('Online probe, top-{0}', 'probe top-{0}'),
  'train_top1': _accuracy('Training top-1', 'train top-1'),
  'train_probe_top1': _accuracy(
    'Online probe, training top-1', 'probe train top-1'
  ),
  'top([15])/(.*)': _accuracy('Test top-{0}: {1}', 'top-{0} {1}'),
  'contrast_accuracy': Metric(
    'Positives found among the negatives', 'positives found', 'share'
  ),
  'effective_rank': Metric(
    'Effective rank of the features', 'rank', 'dimensions'
  ),
  'feature_std': Metric(
    'Spread of the features', 'spread', 'standard deviation x √d'
  ),
  'mean_cosine': Metric(
    'Similarity of different images', 'mean cosine', 'mean cosine'
  ),
  'cosine': Metric('Similarity of the two views', 'cosine', 'cosine'),
  'lr': Metric('Learning rate', 'lr', 'learning rate'),
  'grad_norm': Metric('Gradient norm', 'grad norm', 'L2 norm'),
  'grad_level_(.*)': Metric(
    'Gradient of the pixel loss, level {0}', 'grad level {0}', 'L2 norm'
  ),
  'weight_(.*)': Metric('Weight of {0}', 'weight {0}', 'weight'),
  'momentum': Metric('Momentum of the teacher', 'momentum', 'momentum'),
  'decay': Metric('Weight decay', 'decay', 'decay'),
  'optimum_(.*)': Metric('Optimal weight of {0}', 'optimum {0}', 'weight'),
  'teacher_temperature': Metric(
    'Teacher temperature', 'temperature', 'temperature'
  ),
  'bad_steps': Metric('Non-finite steps', 'bad_steps', 'steps'),
  'replaced': Metric(
    'Unreadable images replaced', 'unreadable', 'images per step'
  ),
  'images_per_second': Metric('Speed', 'images/s', 'speed', 'images/s'),
  'seconds_per_step': Metric('Time per step', 's/step', 'time', 's'),
}


def metric(key: str) -> Metric:
  """How to show a metric.

  Args:
    key: as in metrics.jsonl.

  Returns:
    Its entry of `METRICS`; for an unknown key the key in words.
  """
  for pattern, entry in METRICS.items():
    if match := re.fullmatch(pattern, key):
      parts = [part.replace('_', ' ') for part in match.groups()]
      return Metric(*(text.format(*parts) for text in entry))
  words = key.replace('_', ' ')
  return Metric(words[:1].upper() + words[1:], words, 'value')


def value_text(key: str, value: float) -> str:
  """A value with its unit, such as '34.9 %' or '0.0281'."""
  if metric(key).unit == PERCENT:
    return f'{value:.1f} %'
  return f'{value:.{3 if key == "lr" else 4}g}'
