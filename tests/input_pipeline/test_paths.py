"""Paths as people type them, and caches where there is no place for them."""

import logging
import os

import numpy as np
import pytest
import tiny_run

from input_pipeline import cache, sources
from input_pipeline.paths import expand
from interop.files import is_weights
from training import process, storage


@pytest.fixture
def home(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  monkeypatch.chdir(tmp_path)
  return tmp_path / 'home'


def test_home_and_variables(home, monkeypatch):
  monkeypatch.setenv('SCRATCH', '/scratch/me')
  assert expand('~') == str(home)
  assert expand('~/runs/x') == f'{home}/runs/x'
  assert expand('$SCRATCH/x') == expand('${SCRATCH}/x') == '/scratch/me/x'
  assert expand('$HOME/x') == f'{home}/x'
  assert expand('~root') == os.path.expanduser('~root') != '~root'
  assert expand('gs://bucket/~/$SCRATCH') == 'gs://bucket/~/$SCRATCH'
  assert expand('runs/a~b/$$x') == 'runs/a~b/$$x'


def test_what_exists_is_taken_as_it_is_written(home, tmp_path):
  (tmp_path / '$HOME').mkdir()
  (tmp_path / '~').mkdir()
  assert (expand('$HOME'), expand('~')) == ('$HOME', '~')


def test_an_unknown_home_makes_no_folder(home, monkeypatch):
  with pytest.raises(ValueError, match="~nobody_here/x: .* 'nobody_here'"):
    expand('~nobody_here/x')
  monkeypatch.setattr(os.path, 'expanduser', lambda path: path)
  with pytest.raises(ValueError, match='~/x: .* of this user is not known'):
    expand('~/x')


def test_every_reader_of_paths_expands(home):
  home.mkdir()
  tiny_run.write_data(home / 'data.npz')
  (home / 'w.pth').write_bytes(b'x')
  assert len(sources.load('arrays', data_dir='~/data.npz')) == tiny_run.TRAIN
  assert os.fspath(storage.resolve('~/runs/x')) == f'{home}/runs/x'
  assert is_weights('~/w.pth')
  with pytest.raises(FileNotFoundError, match=f'{home}/none'):
    sources.load('folder', data_dir='~/none')


class TestCache:
  @pytest.mark.parametrize('value', ['', None])
  def test_an_empty_word_is_the_default(self, home, monkeypatch, value):
    if value is None:
      monkeypatch.delenv('REPRE_JAX_CACHE')
    else:
      monkeypatch.setenv('REPRE_JAX_CACHE', value)
    assert cache.folder() == home / '.cache' / 'repre_jax'

  def test_a_home_in_it_is_expanded(self, home, monkeypatch):
    monkeypatch.setenv('REPRE_JAX_CACHE', '~/kept')
    assert cache.folder() == home / 'kept'

  @pytest.fixture(params=['no home', 'a file in its place', 'nowhere'])
  def without(self, request, home, tmp_path, monkeypatch):
    """A process that can keep nothing."""
    cache._once.cache_clear()
    monkeypatch.setenv('REPRE_JAX_CACHE', '')
    if request.param == 'no home':
      monkeypatch.setattr(os.path, 'expanduser', lambda path: path)
    elif request.param == 'nowhere':
      monkeypatch.setenv('REPRE_JAX_CACHE', '/proc/none')
    else:
      (tmp_path / 'file').write_text('mine')
      monkeypatch.setenv('REPRE_JAX_CACHE', str(tmp_path / 'file'))

  def test_it_goes_on_without_and_says_so_once(
    self, without, caplog, monkeypatch, tmp_path
  ):
    before = sorted(tmp_path.iterdir())
    for name in 'ab':
      path = cache.cache_file('kind', name)
      cache.write_arrays(path, x=np.ones(2))
      assert cache.read_arrays(path, ('x',)) is None
    assert caplog.text.count('nothing is kept between runs in') == 1
    assert sorted(tmp_path.iterdir()) == before

  def test_programs_are_compiled_without(
    self, without, caplog, monkeypatch, tmp_path
  ):
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
    config = process.jax.config
    names = (
      'jax_compilation_cache_dir',
      'jax_persistent_cache_min_compile_time_secs',
    )
    old = {name: config.values[name] for name in names}
    try:
      with caplog.at_level(logging.WARNING):
        process.compilation_cache()
      assert config.jax_compilation_cache_dir is None
    finally:
      for name, value in old.items():
        config.update(name, value)
    assert caplog.text.count('nothing is kept between runs in') == 1
