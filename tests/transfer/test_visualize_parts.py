"""Projections, neighbours, curves and sheets: what is in the pictures."""

import io
import json

import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas
from PIL import Image
from sklearn.datasets import make_blobs

from training.state import Figure
from transfer.visualize import (
  curve_panels,
  curves,
  drawing,
  plots,
  projections,
  sheets,
)
from transfer.visualize.neighbors import nearest


def pixels(png):
  """A PNG as uint8 [h, w, 3]; it must be a picture, and not blank."""
  image = np.asarray(Image.open(io.BytesIO(png)).convert('RGB'))
  assert image.std() > 5
  return image


class TestProjections:
  def test_principal_components_are_those_of_an_svd(self):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 7)) * np.arange(1, 8)
    points, explained = projections.principal(x)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    unit = unit - unit.mean(0)
    u, s, _ = np.linalg.svd(unit, full_matrices=False)
    np.testing.assert_allclose(abs(points), abs(u[:, :2] * s[:2]), atol=1e-6)
    np.testing.assert_allclose(explained, (s**2 / (s**2).sum())[:2], rtol=1e-5)

  def test_tsne_keeps_blobs_together(self):
    x, labels = make_blobs(60, 10, centers=3, cluster_std=0.3, random_state=0)
    points = projections.tsne(x)
    assert points.shape == (60, 2)
    order, _ = nearest_plane(points)
    assert (labels[order] == labels).mean() > 0.95
    np.testing.assert_array_equal(points, projections.tsne(x))
    assert projections.tsne(x[:5]).shape == (5, 2)  # perplexity shrinks

  def test_images_of_random_classes(self):
    labels = np.repeat(np.arange(30), 10)
    chosen = projections.choose_images(
      labels, 300, images=1000, classes=20, seed=0
    )
    assert len(chosen) == 200 and len(np.unique(labels[chosen])) == 20
    other = projections.choose_images(
      labels, 300, images=1000, classes=20, seed=1
    )
    assert set(labels[chosen]) != set(labels[other])
    few = projections.choose_images(labels, 300, images=50, classes=40, seed=0)
    assert len(few) == 50 and len(np.unique(labels[few])) == 30
    none = projections.choose_images(None, 7, images=3, classes=20, seed=0)
    np.testing.assert_array_equal(none, [0, 3, 6])


def nearest_plane(points):
  """The nearest other point of each, in the plane."""
  apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
  np.fill_diagonal(apart, np.inf)
  return apart.argmin(1), apart.min(1)


class TestNeighbours:
  BANK = np.array([[1, 0], [0, 2], [-3, 0], [1, 1], [0, 0]], np.float32)

  def test_by_cosine_not_by_length(self):
    order, cosine = nearest(self.BANK, np.array([[0.1, 5.0]]), 3)
    np.testing.assert_array_equal(order, [[1, 3, 0]])
    want = np.array([5, 5.1 / 2**0.5, 0.1]) / np.hypot(0.1, 5)
    np.testing.assert_allclose(cosine, [want], rtol=1e-5)

  def test_oneself_does_not_count(self):
    order, _ = nearest(self.BANK, self.BANK[:2], 9, without=np.array([0, -1]))
    assert order.shape == (2, 4)  # never the query itself
    assert order[0].tolist()[0] == 3 and 0 not in order[0]
    assert order[1].tolist()[0] == 1

  def test_a_bank_in_parts(self, monkeypatch):
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(20, 4)), rng.normal(size=(3, 4))
    want = nearest(bank, queries, 5)
    monkeypatch.setattr('transfer.visualize.neighbors.CHUNK', 7)
    jointly = nearest(bank, queries, 5)
    np.testing.assert_array_equal(jointly[0], want[0])


def write_run(folder, rows):
  folder.mkdir(parents=True)
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (folder / 'metrics.jsonl').write_text(text)
  return str(folder)


class TestCurves:
  @pytest.fixture
  def runs(self, tmp_path):
    a = write_run(
      tmp_path / 'base' / 'seed0',
      [
        dict(step=0, knn_top1=20.0, knn_raw_pixels=11.0),
        dict(step=5, loss=3.0, lr=0.1, bad_steps=0.0),
        dict(step=10, loss=None, knn_top1=30.0),
        dict(step=15, loss=1.5),
      ],
    )
    b = write_run(
      tmp_path / 'repre' / 'seed0', [dict(step=5, loss=2.0, loss_pixels=0.1)]
    )
    paths = (a, b)
    names = curves.short_names(paths)
    read = map(curves.read_curves, paths)
    return dict(zip(names, read, strict=True))

  def test_names_tell_runs_apart(self, runs):
    assert list(runs) == ['base/seed0', 'repre/seed0']
    assert curves.short_names(['x/a/', 'x/b']) == ('a', 'b')
    assert curves.short_names(['x/a', 'x/a']) == ('a', 'a')

  def test_every_metric_has_its_group(self, runs):
    groups = curves.grouped(runs)
    assert {g: list(m) for g, m in groups.items()} == {
      'losses': ['loss', 'loss_pixels'],
      'probes': ['knn_raw_pixels', 'knn_top1'],
      'optimisation': ['bad_steps', 'lr'],
    }
    assert groups['losses']['loss'] == {
      'base/seed0': dict(step=[5, 15], value=[3.0, 1.5]),  # null is a gap
      'repre/seed0': dict(step=[5], value=[2.0]),
    }
    assert curves.group_of('contrast_accuracy') == 'features'
    assert curves.group_of('something_new') == 'others'

  def test_lines_points_and_legend(self, runs):
    groups = curves.grouped(runs)
    figure = Canvas(layout='constrained')
    names = list(runs)
    curve_panels.paint_group(figure, groups['losses'], groups['losses'], names)
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == names
    panels = {ax.get_title(): ax for ax in figure.axes}
    lines = {n.get_label(): n for n in panels['Training loss'].lines}
    np.testing.assert_array_equal(
      lines['base/seed0'].get_xydata(), [[5, 3], [15, 1.5]]
    )
    np.testing.assert_array_equal(lines['repre/seed0'].get_xydata(), [[5, 2]])
    assert panels['Training loss'].get_xlabel() == 'step'
    assert panels['Reconstruction loss'].get_ylabel() == 'loss'

  def test_baselines_are_dotted_lines_beside_knn(self, runs):
    probes = curves.grouped(runs)['probes']
    figure = Canvas(layout='constrained')
    curve_panels.paint_group(
      figure, dict(knn_top1=probes['knn_top1']), probes, list(runs)
    )
    (ax,) = figure.axes
    trained, pixels = ax.lines
    assert pixels.get_ydata() == [11.0, 11.0]
    assert pixels.get_linestyle() == ':'
    assert [t.get_text() for t in ax.texts] == ['raw pixels']
    assert trained.get_ydata().tolist() == [20.0, 30.0]
    assert ax.get_title() == 'k-NN top-1'
    assert ax.get_ylabel() == 'accuracy (%)'

  def test_a_picture_for_every_group(self, runs):
    found = curve_panels.curve_pictures(curves.grouped(runs), list(runs))
    assert [picture.name for picture in found] == [
      'curves_losses',
      'curves_probes',
      'curves_optimisation',
    ]
    for picture in found:
      pixels(picture.png)
    kept = found[0].numbers['loss/base/seed0']
    assert kept == dict(step=[5, 15], value=[3.0, 1.5])
    # What has always been 0 has no panel, but its numbers are there.
    assert 'bad_steps/base/seed0' in found[2].numbers
    one = Image.open(io.BytesIO(found[2].png)).size
    two = Image.open(io.BytesIO(found[0].png)).size
    assert two[0] > 1.5 * one[0]  # two panels, and `lr` alone

  def test_nothing_reported(self, tmp_path):
    with pytest.raises(ValueError, match='no reports to draw in .*metrics'):
      curves.read_curves(tmp_path)


class TestPlots:
  @pytest.mark.parametrize('count', [3, 12, 30, 31])
  def test_classes_can_be_told_apart_and_are_all_named(self, count):
    """Also by those who see no red or green; nothing is cut off."""
    rng = np.random.default_rng(0)
    labels = np.arange(4 * count) % count
    picture = plots.projection(
      'tsne',
      rng.normal(size=(len(labels), 2)),
      title='t',
      labels=labels,
      classes=[f'a class of number {i}' for i in range(count)],
      indices=labels,
    )
    figure = Canvas(figsize=picture.size, layout='constrained')
    picture.paint(figure)
    figure.draw_without_rendering()
    if count > plots.NAMED:
      _, bar = figure.axes
      assert bar.get_ylabel() == 'class, numbered by its name'
      return
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == [f'a class of number {i}' for i in range(count)]
    (ax,) = figure.axes
    assert ax.get_xlabel() == 't-SNE dimension 1'
    looks = {
      (tuple(dots.get_facecolor()[0]), dots.get_paths()[0].vertices.tobytes())
      for dots in ax.collections
    }
    assert len(looks) == count
    box, page = legend.get_window_extent(), figure.bbox
    assert 0 <= box.x0 and box.x1 <= page.x1
    assert 0 <= box.y0 and box.y1 <= page.y1
    assert ax.get_window_extent().width > 0.4 * page.width

  def test_names_at_the_side_keep_their_distance(self):
    found = curve_panels.spread([0.1, 0.11, 0.12, 0.9], 0.1)
    assert np.diff(found).min() > 0.099
    np.testing.assert_allclose(found, [0.01, 0.11, 0.21, 0.9], atol=1e-3)
    assert curve_panels.spread([], 0.1) == []

  @pytest.mark.parametrize('kind', ['pdf', 'svg'])
  def test_files_of_the_same_numbers_are_the_same(self, kind):
    picture = drawing.Picture(
      name='a', size=(1, 1), paint=lambda figure: figure.subplots().plot([1, 2])
    )
    assert picture.file(kind) == picture.file(kind)


class TestSheets:
  @pytest.mark.parametrize('channels', [1, 2, 3, 5])
  def test_images_of_any_channels(self, channels):
    image = np.random.default_rng(0).integers(0, 256, (4, 4, channels))
    shown = drawing.as_rgb(image.astype(np.uint8))
    kept = [0, 1, 2] if channels >= 3 else [0, 0, 0]
    np.testing.assert_allclose(shown, image[..., kept] / 255, atol=1e-6)
    np.testing.assert_array_equal(drawing.as_rgb(shown), shown)

  def test_maps_lie_over_their_patches(self):
    grid = np.arange(6.0).reshape(2, 3)
    big = drawing.enlarge(grid, (8, 12))
    np.testing.assert_array_equal(big, grid.repeat(4, 0).repeat(4, 1))
    assert drawing.enlarge(grid, (5, 7)).shape == (
      5,
      7,
    )  # sides that do not fit
    black = np.zeros((8, 12, 1), np.uint8)
    seen = drawing.overlay(black, grid).sum(-1)
    assert seen[:4, :4].max() == seen.min()
    assert (seen[4:, 8:] == seen.max()).all() and seen.max() > 1

  def test_attention(self):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    maps = rng.dirichlet(np.ones(4), (2, 3)).reshape(2, 3, 2, 2)
    picture = sheets.attention_sheet(
      'a', images, maps, title='t', mass=0.6, heads=2
    )
    h, w, _ = pixels(picture.png).shape
    assert 300 < h < w < 2000
    np.testing.assert_array_equal(picture.numbers['mean'], maps.mean(1))
    held = (maps.mean(1) * picture.numbers['kept']).sum((1, 2))
    assert (held >= 0.6).all()

  def test_neighbours_are_framed_by_their_label(self):
    gray = np.full((1, 8, 8, 1), 128, np.uint8)
    found = np.full((1, 2, 8, 8, 1), 128, np.uint8)

    def draw(same):
      picture = sheets.neighbor_sheet(
        gray, found, np.ones((1, 2)), title='', same=same, numbers={}
      )
      return pixels(picture.png).astype(int)

    def count(image, color):
      want = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
      return (abs(image - want).max(-1) < 40).sum()

    labelled = draw(np.array([[True, False]]))
    assert count(labelled, sheets.SAME) > 300
    assert count(labelled, sheets.OTHER) > 200
    right = draw(np.array([[True, True]]))
    assert count(right, sheets.SAME) > 1.8 * count(labelled, sheets.SAME)
    assert count(right, sheets.OTHER) == 0
    assert count(draw(None), sheets.SAME) == 0

  @pytest.mark.parametrize('rows', [2, 7])
  def test_reconstructions(self, rows):
    cells = np.random.default_rng(0).random((rows, 3, 8, 8, 1), np.float32)
    columns = ('input', 'reconstruction', 'error')
    figure = Figure(cells, columns, 'Nothing is masked.')
    picture = sheets.figure_sheet('r', figure, title='t')
    np.testing.assert_allclose(
      picture.numbers['error'], cells[:, 2].mean((1, 2, 3)), rtol=1e-5
    )
    h, w, _ = pixels(picture.png).shape
    assert w > h if rows == 7 else w > 0.8 * h  # many are set side by side
