import collections
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from input_pipeline import order


@settings(max_examples=60, deadline=None)
@given(
  size=st.integers(1, 3000),
  seed=st.integers(-(2**63), 2**63 - 1),
  epoch=st.integers(0, 2**40),
)
def test_permutation_is_bijective(size, seed, epoch):
  out = order.permutation(np.arange(size), size=size, seed=seed, epoch=epoch)
  assert out.dtype == np.int64
  np.testing.assert_array_equal(np.sort(out), np.arange(size))


def test_any_part_can_be_asked_for_alone():
  size = 1_281_167
  index = np.array([[0, 7], [size - 1, 640_000]])
  out = order.permutation(index, size=size, seed=3, epoch=5)
  assert out.shape == (2, 2)
  for i, j in itertools.product(range(2), repeat=2):
    alone = order.permutation(index[i, j], size=size, seed=3, epoch=5)
    assert alone == out[i, j]


@pytest.mark.parametrize('size', [3, 4])
def test_all_orders_are_equally_likely(size):
  counts = collections.Counter(
    tuple(order.permutation(np.arange(size), size=size, seed=0, epoch=epoch))
    for epoch in range(100 * math.factorial(size))
  )
  assert len(counts) == math.factorial(size)
  assert stats.chisquare(list(counts.values())).pvalue > 1e-3


@pytest.mark.parametrize('size', [10, 50, 64])
def test_every_example_is_equally_likely_everywhere(size):
  epochs = 2000
  counts = np.zeros((size, size))
  for epoch in range(epochs):
    out = order.permutation(np.arange(size), size=size, seed=5, epoch=epoch)
    counts[np.arange(size), out] += 1
  expected = epochs / size
  chi2 = ((counts - expected) ** 2 / expected).sum()
  assert 1e-3 < stats.chi2.sf(chi2, (size - 1) ** 2) < 1 - 1e-3


def test_neighbours_do_not_stay_neighbours():
  out = order.permutation(np.arange(5000), size=5000, seed=1, epoch=0)
  assert abs(np.corrcoef(out[:-1], out[1:])[0, 1]) < 0.05
  assert abs(np.corrcoef(np.arange(5000), out)[0, 1]) < 0.05


@pytest.mark.parametrize('change', [{'seed': 1}, {'epoch': 1}])
def test_seed_and_epoch_change_the_order(change):
  base = dict(size=1000, seed=0, epoch=0)
  one = order.permutation(np.arange(1000), **base)
  two = order.permutation(np.arange(1000), **base | change)
  # Two independent permutations agree in one place on average.
  assert (one == two).sum() < 10


def test_epochs_are_covered_without_the_remainder():
  steps = [
    order.batch_indices(step, size=103, batch_size=10, seed=7)
    for step in range(20)
  ]
  first, second = np.concatenate(steps[:10]), np.concatenate(steps[10:])
  for epoch in first, second:
    assert len(set(epoch)) == 100 and 0 <= epoch.min() <= epoch.max() < 103
  assert (first == second).sum() < 10
  assert set(first) != set(second)  # another remainder is dropped


def test_resuming_gives_the_same_batches():
  arguments = dict(size=50, batch_size=8, seed=2)
  run = [order.batch_indices(step, **arguments) for step in range(30)]
  for step in (29, 6, 17):
    again = order.batch_indices(step, **arguments)
    np.testing.assert_array_equal(again, run[step])


def test_repeats_follow_each_other_across_batches():
  """DeiT's sampler: the first examples of the order, each three times."""
  arguments = dict(size=103, batch_size=10, seed=7)
  plain = [order.batch_indices(step, **arguments) for step in range(20)]
  thrice = [
    order.batch_indices(step, repeats=3, **arguments) for step in range(20)
  ]
  for epoch in (slice(0, 10), slice(10, 20)):
    want = np.concatenate(plain[epoch]).repeat(3)[:100]
    np.testing.assert_array_equal(np.concatenate(thrice[epoch]), want)


@pytest.mark.parametrize(
  'arguments, message',
  [
    (dict(size=10, batch_size=11), 'batch_size 11 is larger .* 10 examples'),
    (dict(size=0, batch_size=1), 'at least 1, got 0 and 1'),
    (dict(size=4, batch_size=0), 'at least 1, got 4 and 0'),
    (dict(size=4, batch_size=2, step=-1), 'not be negative, got -1'),
    (dict(size=4, batch_size=2, repeats=0), 'repeats must be at least 1, got'),
  ],
)
def test_bad_numbers(arguments, message):
  with pytest.raises(ValueError, match=message):
    order.batch_indices(**dict(step=0, seed=0) | arguments)


def test_bad_positions():
  with pytest.raises(ValueError, match=r'index 0\.\.4 is outside 0\.\.3'):
    order.permutation(np.arange(5), size=4, seed=0, epoch=0)
  with pytest.raises(ValueError, match='cannot order 0 examples'):
    order.permutation([], size=0, seed=0, epoch=0)
