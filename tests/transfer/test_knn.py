"""k-NN against scikit-learn and a NumPy twin."""

import dataclasses

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from input_pipeline.arrays import Arrays
from training import sharding
from transfer.knn import online as online_knn
from transfer.knn import vote as knn


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
  monkeypatch.setattr(knn, 'QUERIES', 9)  # in three, the last one padded
  assert knn.knn_accuracy(*features, mesh=mesh) == want
  monkeypatch.setattr(knn, '_VOTES', 7 * 10)  # ten queries at a time
  assert knn.knn_accuracy(*features, mesh=mesh) == want


def digits():
  """Handwritten digits, pixels as features: (bank, labels, queries, labels)."""
  x, y = load_digits(return_X_y=True)
  return x[:1200], y[:1200], x[1200:1400], y[1200:1400]


def twin(bank, bank_labels, queries, labels, *, k, temperature):
  """Hits among the first and the first five of each query, in float64."""
  similarity = unit(queries) @ unit(bank).T
  hits = []
  for row, label in zip(similarity, labels, strict=True):
    near = np.argsort(-row, kind='stable')[:k]
    weights = np.exp(row[near] / temperature)
    votes = np.bincount(bank_labels[near], weights, minlength=10)
    order = np.argsort(-votes, kind='stable')
    hits.append((label == order[0], label in order[: min(5, k)]))
  return 100 * np.mean(hits, axis=0)


def test_several_k_of_real_images_from_one_list(mesh):
  data = digits()
  nearest = knn.Neighbors(data[2], k=100, mesh=mesh, block=128)
  for start in range(0, 1200, 50):  # neither divides the other
    nearest.add(data[0][start : start + 50], data[1][start : start + 50])
  ks = (1, 3, 10, 100)
  got = knn.vote(*nearest.result(), data[3], ks=ks, temperature=0.02)
  for k in ks:
    want = twin(*data, k=k, temperature=0.02)
    np.testing.assert_allclose([got[k]['top1'], got[k]['top5']], want)
  # The list for 100 serves them all: each is what it would be alone.
  alone = knn.knn_accuracy(*data, mesh=mesh, k=3, temperature=0.02)
  assert got[3] == alone
  assert len({score['top1'] for score in got.values()}) > 1


def test_blocks_and_devices_do_not_matter(features):
  bank, labels, queries, _ = features
  found = []
  one = jax.make_mesh((1, 1), sharding.AXES, devices=jax.devices()[:1])
  for mesh, block in (
    (one, 301),
    (one, 1),
    (sharding.make_mesh(), 7),
    (sharding.make_mesh(2), 64),
    (sharding.make_mesh(), 1000),
  ):
    nearest = knn.Neighbors(queries, k=20, mesh=mesh, block=block)
    nearest.add(bank, labels)
    found.append(nearest.result())
  for best, near in found[1:]:
    np.testing.assert_allclose(best, found[0][0], rtol=1e-6)
    np.testing.assert_array_equal(near, found[0][1])


@pytest.mark.parametrize('block', [1, 3, 16])
def test_of_equals_the_first_of_the_bank_comes_first(mesh, block):
  # Six copies of one image, with labels of their own.
  bank = np.repeat(np.eye(4)[[0, 1]], 6, axis=0)
  nearest = knn.Neighbors(np.eye(4)[:1], k=8, mesh=mesh, block=block)
  nearest.add(bank, np.arange(12)[::-1])
  best, near = nearest.result()
  assert near.tolist() == [[11, 10, 9, 8, 7, 6, 5, 4]]
  assert best.tolist() == [[1.0] * 6 + [0.0] * 2]
  # Equal votes: the class with the smaller number.
  assert knn.vote(best, near, np.array([6]), ks=(6,))[6]['top1'] == 100


def test_a_bank_smaller_than_k(mesh):
  nearest = knn.Neighbors(np.eye(4), k=9, mesh=mesh, block=4)
  nearest.add(np.eye(4)[:3], np.arange(3))
  best, near = nearest.result()
  assert best.shape == near.shape == (4, 3)
  assert np.isfinite(best).all() and (near >= 0).all()
  for bad in (dict(k=0), dict(k=1, block=0)):
    with pytest.raises(ValueError, match='k and block of at least 1'):
      knn.Neighbors(np.eye(4), mesh=mesh, **bad)


def test_small_temperatures_do_not_overflow():
  best, near = np.array([[0.9, 0.5]]), np.array([[3, 1]])
  got = knn.vote(best, near, np.array([3]), ks=(2,), temperature=1e-4)
  assert got == {2: dict(top1=100.0, top5=100.0)}


def test_top5_names_no_more_classes_than_neighbours():
  best, near = np.array([[0.9, 0.5]]), np.array([[3, 1]])
  got = knn.vote(best, near, np.array([0]), ks=(1, 2))
  assert got == {1: dict(top1=0.0, top5=0.0), 2: dict(top1=0.0, top5=0.0)}


def test_memory_does_not_grow_with_the_bank(mesh, monkeypatch):
  calls = []
  merge = knn._merge

  def note(*args, **static):
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in args]
    calls.append((shapes, static))
    return merge(*args, **static)

  monkeypatch.setattr(knn, '_merge', note)
  monkeypatch.setattr(knn, 'QUERIES', 16)
  rng = np.random.default_rng(0)
  queries, block, k = rng.normal(size=(300, 8)), 64, 5
  seen = []
  for size in (100, 1000):
    nearest = knn.Neighbors(queries, k=k, mesh=mesh, block=block)
    for part in np.array_split(rng.normal(size=(size, 8)), 30):
      nearest.add(part, np.zeros(len(part), int))
      assert nearest._held < block
    nearest.result()
    seen.append(len(calls))
  assert seen == [2, 2 + 16]  # blocks of 100 and of 1000
  assert len({str(call) for call in calls}) == 1  # the same program
  shapes, static = calls[0]
  closed = jax.make_jaxpr(lambda *x: merge(*x, **static))(*shapes)
  inside = largest(closed.jaxpr, within='while')
  largest_part = 16 * (block + k)
  assert inside == largest_part


def largest(jaxpr, *, within=None):
  """Elements of the largest array that is computed, in scans alone."""
  sizes = [0]
  for equation in jaxpr.eqns:
    name = equation.primitive.name
    if within is None:
      sizes += [v.aval.size for v in equation.outvars]
    inner = within if name not in ('scan', 'while') else None
    for value in equation.params.values():
      nested = getattr(value, 'jaxpr', value)
      if hasattr(nested, 'eqns'):
        sizes.append(largest(nested, within=inner))
  return max(sizes)


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
