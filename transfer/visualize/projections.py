"""Features in two dimensions: t-SNE and principal components."""

from collections.abc import Sequence

import numpy as np

PERPLEXITY = 30.0
FIRST = 50  # principal components that t-SNE starts from
# Up to so many points all pairs are faster than Barnes and Hut's tree: 10
# against 22 s for 765 on one core.
ALL_PAIRS = 1000


def unit(x: np.ndarray) -> np.ndarray:
  """Rows of unit length, float32."""
  x = np.asarray(x, np.float32)
  return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def choose_images(
  labels: np.ndarray | None,
  total: int,
  *,
  images: int,
  classes: int,
  seed: int,
) -> np.ndarray:
  """Images of some classes, as RePre's Fig. 4 has 20 random ones.

  Args:
    labels: int [total], or None.
    total: number of images.
    images: at most so many are chosen, evenly spread over those there are.
    classes: at most so many classes, drawn at random.
    seed: of the draw.

  Returns:
    Their numbers, ascending.
  """
  rows = np.arange(total)
  if labels is not None:
    known = np.unique(labels)
    if len(known) > classes:
      rng = np.random.default_rng(seed)
      known = rng.choice(known, classes, replace=False)
    rows = rows[np.isin(labels, known)]
  count = min(images, len(rows))
  return rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]


def principal(features: np.ndarray) -> tuple[np.ndarray, Sequence[float]]:
  """The first two principal components of unit-length features.

  Args:
    features: [n, d], n and d at least 2.

  Returns:
    [n, 2] float64, and the shares of the variance that they explain.
  """
  from sklearn.decomposition import PCA

  found = PCA(n_components=2, svd_solver='full')
  points = found.fit_transform(unit(features).astype(np.float64))
  return points, tuple(found.explained_variance_ratio_.tolist())


def tsne(features: np.ndarray, *, seed: int = 0) -> np.ndarray:
  """t-SNE of unit-length features, from 50 principal components on.

  Perplexity 30 (less where there are few points), started from the first two
  components, rate by scikit-learn; the papers state none of this.

  Args:
    features: [n, d], n at least 5.
    seed: of what is random.

  Returns:
    [n, 2] float32.
  """
  from sklearn.decomposition import PCA
  from sklearn.manifold import TSNE

  x = unit(features)
  x = PCA(min(FIRST, *x.shape), random_state=seed).fit_transform(x)
  found = TSNE(
    n_components=2,
    init='pca',
    perplexity=min(PERPLEXITY, (len(x) - 1) / 3),
    learning_rate='auto',
    method='exact' if len(x) <= ALL_PAIRS else 'barnes_hut',
    random_state=seed,
  )
  return found.fit_transform(x)
