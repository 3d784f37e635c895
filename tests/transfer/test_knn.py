"""k-NN against scikit-learn and a NumPy twin."""

import dataclasses

import jax
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from input_pipeline.arrays import Arrays
from training import sharding
from transfer import knn, online_knn


@pytest.fixture(scope='module')
def mesh():
  return sharding.make_mesh()


@pytest.fixture(scope='module')
def features():
  rng = np.random.default_rng(0)
  centers = rng.normal(size=(7, 16))
  labels = rng.integers(7, size=403)
  x = centers[labels] + 1.6 * rng.normal(size=(403, 16))
  return x[:301], labels[:301], x[301:], labels[301:]


def unit(x):
  return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize('k', [1, 20])
def test_equals_scikit_learn(mesh, features, k):
  bank, bank_labels, queries, labels = features
  twin = KNeighborsClassifier(
    k,
    metric='cosine',
    algorithm='brute',
    weights=lambda distance: np.exp((1 - distance) / 0.07),
  ).fit(bank, bank_labels)
  want = 100 * (twin.predict(queries) == labels).mean()
  got = knn.knn_accuracy(bank, bank_labels, queries, labels, mesh=mesh, k=k)
  np.testing.assert_allclose(got['top1'], want)
  assert 30 < want < 95  # or there would be nothing to get wrong


def test_top5_twin(mesh, features):
  bank, bank_labels, queries, labels = features
  similarity = unit(queries) @ unit(bank).T
  hits = 0
  for row, label in zip(similarity, labels, strict=True):
    near = np.argsort(-row)[:20]
    votes = np.bincount(
      bank_labels[near], np.exp(row[near] / 0.07), minlength=7
    )
    hits += label in np.argsort(-votes)[:5]
  got = knn.knn_accuracy(bank, bank_labels, queries, labels, mesh=mesh)
  np.testing.assert_allclose(got['top5'], 100 * hits / len(labels))


def test_devices_do_not_matter(features):
  one = jax.make_mesh(
    (1, 1),
    sharding.AXES,
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
    devices=jax.devices()[:1],
  )
  scores = [
    knn.knn_accuracy(*features, mesh=mesh)
    for mesh in (one, sharding.make_mesh(), sharding.make_mesh(2))
  ]
  assert scores[0] == scores[1] == scores[2]


def test_small_banks(mesh):
  bank, labels = np.eye(3), np.array([0, 1, 2])
  # Fewer images than neighbours, and fewer than devices.
  got = knn.knn_accuracy(bank, labels, bank, labels, mesh=mesh, k=20)
  assert got == dict(top1=100.0, top5=100.0)
  with pytest.raises(ValueError, match='k-NN needs a bank and queries'):
    knn.knn_accuracy(bank[:0], labels[:0], bank, labels, mesh=mesh)


def test_many_queries_are_cut_up(mesh, features, monkeypatch):
  want = knn.knn_accuracy(*features, mesh=mesh)
  monkeypatch.setattr(knn, 'QUERIES', 32)
  assert knn.knn_accuracy(*features, mesh=mesh) == want


def test_histogram_twin():
  images = np.random.default_rng(0).integers(
    256, size=(3, 5, 4, 3), dtype=np.uint8
  )
  got = knn.histogram(images, bins=4)
  for image, row in zip(images, got, strict=True):
    want, _ = np.histogramdd(
      image.reshape(-1, 3)[:, ::-1], bins=4, range=[(0, 256)] * 3
    )
    np.testing.assert_allclose(row, np.sqrt(want.ravel() / 20), rtol=1e-6)
  assert knn.histogram(images[..., :1]).shape == (3, 64)


@pytest.fixture(scope='module')
def evaluator_parts():
  rng = np.random.default_rng(0)
  images = rng.integers(256, size=(50, 8, 8, 1), dtype=np.uint8)
  labels = rng.integers(3, size=50).astype(np.int32)
  classes = ('a', 'b', 'c')
  return [
    Arrays(
      name='toy', images=images[part], labels=labels[part], classes=classes
    )
    for part in (slice(0, 37), slice(37, 50))
  ]


def measure(evaluator, step):
  evaluator.start(step)
  for batch in evaluator.batches():
    evaluator.update({}, {}, batch)
  return evaluator.finish()


def test_evaluator_equals_the_function(mesh, evaluator_parts):
  bank, queries = evaluator_parts
  seen = []

  def encode(params, method_state, images):
    seen.append(images.shape)
    return images.reshape(len(images), -1).astype(np.float32)

  evaluator = online_knn.Knn(
    bank=bank, queries=queries, encode=encode, mesh=mesh, size=8, batch_size=16
  )
  want = knn.knn_accuracy(
    bank.images.reshape(37, -1).astype(np.float32),
    bank.labels,
    queries.images.reshape(13, -1).astype(np.float32),
    queries.labels,
    mesh=mesh,
  )
  got = measure(evaluator, step=5)
  assert got == dict(knn_top1=want['top1'], knn_top5=want['top5'])
  assert set(evaluator.names()) == set(got)
  assert seen == [(16, 8, 8, 1)]  # compiled once, for bank and queries alike
  first = measure(evaluator, step=0)
  assert first['knn_untrained'] == want['top1']
  assert {'knn_raw_pixels', 'knn_histogram'} < first.keys()


def test_evaluator_needs_labels(mesh, evaluator_parts):
  bank, queries = evaluator_parts
  bare = Arrays(name='bare', images=bank.images)
  with pytest.raises(ValueError, match='k-NN needs labels, and bare or toy'):
    online_knn.Knn(bank=bare, queries=queries, encode=None, mesh=mesh, size=8)


def test_unreadable_images_are_left_out_and_counted(mesh, evaluator_parts):
  bank, queries = evaluator_parts
  broken = np.isin(np.arange(37), (0, 20))
  marked = dataclasses.replace(bank, replaced=broken)
  clean = Arrays(
    name='clean',
    images=bank.images[~broken],
    labels=bank.labels[~broken],
    classes=bank.classes,
  )

  def encode(params, method_state, images):
    return images.reshape(len(images), -1).astype(np.float32)

  common = dict(queries=queries, encode=encode, mesh=mesh, size=8)
  got = measure(online_knn.Knn(bank=marked, batch_size=16, **common), step=0)
  want = measure(online_knn.Knn(bank=clean, batch_size=16, **common), step=0)
  assert got.pop('knn_unreadable') == 2
  assert got == want


def test_a_large_bank_is_thinned_out(mesh, evaluator_parts):
  bank, queries = evaluator_parts
  seen = []

  def encode(params, method_state, images):
    return images.reshape(len(images), -1).astype(np.float32)

  evaluator = online_knn.Knn(
    bank=bank,
    queries=queries,
    encode=encode,
    mesh=mesh,
    size=8,
    batch_size=16,
    bank_images=10,
  )
  for part, batch in evaluator.batches():
    if part == 'bank':
      seen += batch['index'][batch['valid']].tolist()
  assert seen == [0, 4, 8, 12, 16, 20, 24, 28, 32, 36]
