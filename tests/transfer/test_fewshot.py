"""Few labels: which images, solvers against scikit-learn, the whole job."""

import functools
import json
import shutil

import frozen_jobs
import numpy as np
import pytest
import tiny_run
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler, normalize

from input_pipeline.folder import from_folder
from transfer.fewshot import solvers
from transfer.fewshot.subsets import draw_subsets, listed_subset
from transfer.job import Job

LABELS = np.repeat(np.arange(5), (100, 250, 30, 7, 613))


def digits(count):
  x, y = load_digits(return_X_y=True)
  return x[:count], y[:count], x[1200:1400], y[1200:1400]


class TestSubsets:
  def test_shots_are_balanced(self):
    for subset in draw_subsets(LABELS, shots=(1, 5), draws=2):
      per_class = np.bincount(LABELS[subset.indices])
      assert set(per_class) == {int(subset.name.split()[0])}
      assert (np.diff(subset.indices) > 0).all()

  def test_shares_are_stratified(self):
    one, ten, third = (
      np.bincount(LABELS[subset.indices])
      for subset in draw_subsets(LABELS, shares=(0.01, 0.1, 1 / 3))
    )
    # 1, 2.5, 0.3, 0.07 and 6.13: one at least of each.
    assert one.tolist() == [1, 2, 1, 1, 6]
    # 10, 25, 3, 0.7 and 61.3: 100 in all.
    assert ten.tolist() == [10, 25, 3, 1, 61]
    # 33.3, 83.3, 10, 2.3 and 204.3: 333 in all, to the first of equals.
    assert third.sum() == 333
    assert np.abs(third - np.bincount(LABELS) / 3).max() < 1

  def test_draws_are_functions_of_seed_and_number(self):
    draw = functools.partial(draw_subsets, LABELS, shots=(5,), draws=2)
    first, again, other = draw(seed=1), draw(seed=1), draw(seed=2)
    assert [s.draw for s in first] == [0, 1]
    for a, b in zip(first, again, strict=True):
      np.testing.assert_array_equal(a.indices, b.indices)
    chosen = [tuple(s.indices) for s in (*first, *other)]
    assert len(set(chosen)) == 4

  def test_smaller_subsets_are_within_larger_ones(self):
    subsets = draw_subsets(LABELS, shares=(0.1,), shots=(1, 7), seed=3)
    tenth, one, seven = (set(s.indices.tolist()) for s in subsets)
    assert one < tenth and one < seven

  def test_other_classes_do_not_matter(self):
    (whole,) = draw_subsets(LABELS, shots=(3,))
    (fewer,) = draw_subsets(LABELS[:380], shots=(3,))
    assert set(fewer.indices) < set(whole.indices)

  def test_everything_is_drawn_once(self):
    (whole,) = draw_subsets(LABELS, shares=(1.0,), draws=3)
    np.testing.assert_array_equal(whole.indices, np.arange(1000))
    assert whole.name == '100%'

  @pytest.mark.parametrize(
    'options, told',
    [
      (
        dict(shots=(8,)),
        r'shots=\(8,\) must be within 1\.\.7: class .3. has 7 training',
      ),
      (dict(shots=(0,)), r'must be within 1\.\.7'),
      (dict(shares=(0.0,)), 'shares within 0..1'),
      (dict(shares=(1.5,)), 'shares within 0..1'),
      (dict(shots=(1,), draws=0), 'draws of at least 1'),
    ],
  )
  def test_what_cannot_be_drawn(self, options, told):
    with pytest.raises(ValueError, match=told):
      draw_subsets(LABELS, **options)


class TestList:
  @pytest.fixture
  def source(self, tmp_path):
    frozen_jobs.write_folder(tmp_path / 'data')
    extra = tmp_path / 'data' / 'class 1'
    shutil.copy(extra / '01.png', extra / '03.png')  # the name of another
    return from_folder(data_dir=tmp_path / 'data')

  def listed(self, source, tmp_path, text):
    (tmp_path / 'list.txt').write_text(text)
    return listed_subset(tmp_path / 'list.txt', source)

  def test_names_and_ends_of_paths(self, source, tmp_path):
    text = '05.png\n./00.png\n\nclass 1/03.png\n05.png\n'
    subset = self.listed(source, tmp_path, text)
    names = [source.where(i).split('/', 1)[1] for i in subset.indices]
    assert sorted(name[-14:] for name in names) == [
      'class 0/00.png',
      'class 1/03.png',
      'class 2/05.png',
    ]

  def test_lines_that_fit_nothing(self, source, tmp_path):
    text = '00.png\n5.png\nclass 2/00.png\nlass 0/00.png\n'
    with pytest.raises(ValueError, match='3 of 4 lines fit no image') as error:
      self.listed(source, tmp_path, text)
    assert "'5.png', 'class 2/00.png', 'lass 0/00.png'" in str(error.value)

  def test_lines_that_fit_several(self, source, tmp_path):
    with pytest.raises(ValueError, match="'03.png' fits several images"):
      self.listed(source, tmp_path, '03.png\n')

  def test_no_list(self, source, tmp_path):
    with pytest.raises(FileNotFoundError, match='there is no file'):
      listed_subset(tmp_path / 'none.txt', source)
    with pytest.raises(ValueError, match='no lines'):
      self.listed(source, tmp_path, '\n')


class TestSolvers:
  def test_scaling_is_scikit_learn_s(self):
    train, _, test, _ = digits(50)
    got = solvers.scale(train, test, 'standardize')
    scaler = StandardScaler().fit(train)
    for one, part in zip(got, (train, test), strict=True):
      np.testing.assert_allclose(one, scaler.transform(part), atol=1e-12)
    for one, part in zip(
      solvers.scale(train, test, 'unit'), (train, test), strict=True
    ):
      np.testing.assert_allclose(one, normalize(part), atol=1e-12)
    assert (
      solvers.scale(train.astype(np.float32), test, 'none')[0].dtype == float
    )

  @pytest.mark.parametrize('count', [20, 64, 300])  # of 64 channels
  def test_ridge_is_scikit_learn_s(self, count):
    train, labels, test, _ = digits(count)
    targets = np.where(labels[:, None] == np.unique(labels), 1.0, -1.0)
    penalties = (0.01, 1.0, 100.0)
    found = solvers.ridge(train, labels, test, penalties=penalties)
    for penalty, got in zip(penalties, found, strict=True):
      model = Ridge(alpha=penalty, solver='svd').fit(train, targets)
      np.testing.assert_allclose(got, model.predict(test), atol=1e-8)

  def test_ridge_solves_its_least_squares_problem(self):
    train, labels, test, _ = digits(40)
    (got,) = solvers.ridge(train, labels, test, penalties=(0.5,))
    mean = train.mean(0)
    targets = np.where(labels[:, None] == np.arange(10), 1.0, -1.0)
    a = np.concatenate([train - mean, np.sqrt(0.5) * np.eye(64)])
    b = np.concatenate([targets - targets.mean(0), np.zeros((64, 10))])
    weights = np.linalg.lstsq(a, b)[0]
    want = (test - mean) @ weights + targets.mean(0)
    np.testing.assert_allclose(got, want, atol=1e-9)

  @pytest.mark.parametrize('classes', [2, 10])
  def test_logistic_is_scikit_learn_s(self, classes):
    train, labels, test, _ = digits(100)
    train, test = solvers.scale(train, test, 'unit')
    train, labels = train[labels < classes], labels[labels < classes]
    got = solvers.logistic(train, labels, test, penalty=0.01)
    model = LogisticRegression(C=100 / len(train), max_iter=1000)
    want = model.fit(train, labels).predict_proba(test)
    np.testing.assert_allclose(np.exp(got), want, atol=1e-7)

  def test_the_penalty_is_of_the_mean_loss(self):
    """At the minimum the gradient of iBOT's objective is zero."""
    train, labels, _, _ = digits(60)
    train, _ = solvers.scale(train, train, 'unit')
    penalty = 0.03
    log = solvers.logistic(train, labels, train, penalty=penalty)
    residual = np.exp(log) - np.eye(10)[labels]
    gradient = train.T @ residual / len(train)  # = -λ W
    weights = -gradient / penalty
    logits = train @ weights
    centred = log - log.mean(1, keepdims=True)
    logits -= logits.mean(1, keepdims=True)
    # What is left is the intercept, the same for every image.
    np.testing.assert_allclose((centred - logits).std(0), 0, atol=2e-3)

  def test_too_few_iterations_are_told(self, caplog):
    train, labels, test, _ = digits(100)
    solvers.logistic(train, labels, test, penalty=1e-6, iterations=2)
    assert 'stopped after 2 iterations without converging' in caplog.text


SMALL = [
  '--config.fewshot.shares=(0.5,)',
  '--config.fewshot.shots=(2,)',
  '--config.fewshot.logistic=(0.01, 1.0)',
  '--config.fewshot.ridge=(1.0,)',
]


@pytest.fixture
def run(monkeypatch, tmp_path):
  return functools.partial(
    frozen_jobs.run,
    monkeypatch,
    'fewshot.py:arrays',
    tmp_path / 'fewshot',
    *frozen_jobs.arrays(),
    *SMALL,
  )


class TestJob:
  def test_equals_scikit_learn_on_the_same_features(
    self, run, monkeypatch, tmp_path
  ):
    summary = run()['fewshot']
    (x, y), (queries, labels) = (
      frozen_jobs.embedded(monkeypatch, tmp_path, split)
      for split in ('train', 'test')
    )
    assert summary.keys() == {'50%', '2 per class'}
    subsets = draw_subsets(y, shots=(2,), draws=3)
    scores = dict(logistic=[], ridge=[])
    for subset in subsets:
      train, seen = normalize(x[subset.indices]), y[subset.indices]
      test = normalize(queries)
      logit = LogisticRegression(C=1 / (0.01 * len(seen)), max_iter=1000)
      found = logit.fit(train, seen).predict(test)
      scores['logistic'].append(100 * (found == labels).mean())
      targets = np.where(seen[:, None] == np.arange(4), 1.0, -1.0)
      model = Ridge(alpha=1.0).fit(train, targets)
      found = model.predict(test).argmax(1)
      scores['ridge'].append(100 * (found == labels).mean())
    result = summary['2 per class']
    assert (result['images'], result['draws']) == (8, 3)
    for solver, penalty in (('logistic', '0.01'), ('ridge', '1')):
      row = result[solver][penalty]
      np.testing.assert_allclose(row['top1'], np.mean(scores[solver]))
      np.testing.assert_allclose(
        row['top1_std'], np.std(scores[solver], ddof=1)
      )
      assert row['top5'] == 100  # of four classes
    every = [*result['logistic'].values(), *result['ridge'].values()]
    assert result['best']['top1'] == max(row['top1'] for row in every) > 25

  def test_a_rerun_encodes_nothing(self, run, monkeypatch, tmp_path, caplog):
    first = run()
    workdir = tmp_path / 'fewshot'
    (workdir / 'summary.json').unlink()  # it was stopped while solving
    encoded = []
    features = Job.features

    def watched(job, extractor, source, **options):
      encoded.append(options['what'])
      return features(job, extractor, source, **options)

    monkeypatch.setattr(Job, 'features', watched)
    assert run()['fewshot'] == first['fewshot']
    assert encoded == []
    # Other numbers on the same images: only what follows is done again.
    run('--config.resume=force', '--config.fewshot.ridge=(5.0,)')
    assert encoded == []
    # Another checkpoint of the same run, then other images.
    older = tiny_run.finished() / 'checkpoints' / '2'
    run('--config.resume=force', checkpoint=older)
    assert encoded == ['training images', 'test images']
    assert 'kept features are of other weights: starting over' in caplog.text
    encoded.clear()
    other = tiny_run.write_data(tmp_path / 'other.npz')
    with np.load(other) as data:
      arrays = dict(data)
    arrays['test_images'][3] ^= 1
    np.savez(other, **arrays)
    force = ['--config.resume=force', f'--config.data.data_dir={other}']
    run(*force, checkpoint=older)
    assert encoded == ['test images']

  def test_a_list_of_files(self, monkeypatch, tmp_path):
    for split in ('train', 'test'):
      frozen_jobs.write_folder(tmp_path / 'data' / split, broken=(6,))
    lines = ['00.png', '01.png', 'class 1/04.png', '06.png']
    (tmp_path / 'list.txt').write_text('\n'.join(lines))
    options = [
      f'--config.data.data_dir={tmp_path / "data"}',
      f'--config.fewshot.list={tmp_path / "list.txt"}',
      '--config.fewshot.logistic=(0.001,)',
    ]
    workdir = tmp_path / 'fewshot'
    summary = frozen_jobs.run(
      monkeypatch, 'fewshot.py:folder', workdir, *options
    )
    assert summary['fewshot'].keys() == {'list'}
    result = summary['fewshot']['list']
    # One that is listed and one for testing are broken.
    assert (result['images'], result['draws']) == (3, 1)
    assert summary['unreadable'] == 2
    row = result['logistic']['0.001']
    assert 'top1_std' not in row
    assert row['top1'] <= 80  # two of ten are of a class that was not seen
    about = json.loads(
      (workdir / 'features/training images/about.json').read_text()
    )
    assert about['chosen'].startswith('4 of 11,')

  @pytest.mark.parametrize(
    'options, told',
    [
      (
        ['--config.fewshot.scale=l2'],
        "config.fewshot.scale 'l2'. Known: unit, ",
      ),
      (['--config.fewshot.logistic=(0.0,)'], 'logistic=(0.0,) must be above'),
      (['--config.fewshot.iterations=0'], 'iterations=0 must be at least 1'),
      (['--config.fewshot.shares=(0.1, 1.5)'], 'must be above 0 and at most 1'),
      (
        ['--config.fewshot.logistic=()', '--config.fewshot.ridge=()'],
        'needs penalties for logistic, ridge or both',
      ),
      (
        ['--config.fewshot.shots=(13,)'],
        "must be within 1..12: class '0' has 12",
      ),
      (
        ['--config.fewshot.shots=()', '--config.fewshot.shares=()'],
        'nothing to do; give shares, shots or a list',
      ),
      (['--config.data.test_split='], 'fewshot needs test images'),
      (['--config.fewshot.list=/none.txt'], 'there is no file /none.txt'),
    ],
  )
  def test_what_is_refused(self, monkeypatch, tmp_path, options, told):
    line = frozen_jobs.refused(
      monkeypatch,
      'fewshot.py:arrays',
      tmp_path / 'x',
      *frozen_jobs.arrays(),
      *options,
    )
    assert told in line
    assert not (tmp_path / 'x' / 'features').exists()
