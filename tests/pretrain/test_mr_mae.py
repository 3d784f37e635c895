"""MR-MAE: whose features are mimicked where, and what they cost and reach."""

import dataclasses
import functools
import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import (
  DECODER,
  SMALL_VIT,
  assert_close,
  assert_same_bits,
  assert_same_steps,
  cached_run,
  follow,
  start,
)

from models import make_encoder
from models.convvit import ConvViT
from models.features import Level
from models.masking import Mask
from models.mimic import MixedHeads
from models.swin import Swin
from models.vit import ViT
from pretrain.frozen import Frozen
from pretrain.methods.mae import mae
from pretrain.methods.mr_mae import mr_mae
from training.rng import named_key
from training.state import named_leaves

SIDE, PATCH, GRID, KEEP = 16, 4, (4, 4), 4
# Statistics of its own, as CLIP's differ from the student's.
TEACHER = dict(
  name='vit',
  patch_size=PATCH,
  width=24,
  depth=2,
  num_heads=3,
  mlp_ratio=2,
  positions='learned',
  positions_grid=3,
  mean=(0.3, 0.4, 0.6),
  std=(0.2, 0.3, 0.5),
)
DEEP = dict(TEACHER, depth=6)
OTHER = dict(SMALL_VIT, depth=1, class_token=False, pool='mean')
KEY = jax.random.key(3)


def images(count=4, side=SIDE, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.random((count, side, side, 3), np.float32))


def student(**fields):
  sizes = dict(patch_size=PATCH, width=16, depth=2, num_heads=2, mlp_ratio=2)
  return ViT(**sizes | fields)


def make(encoder=None, *, second=None, **fields):
  """MR-MAE with one teacher, or with a second one."""
  teachers = dict(first=dict(encoder=TEACHER))
  if second is not None:
    teachers['second'] = dict(encoder=OTHER) | second
  fields = dict(teachers=teachers, decoder=DECODER) | fields
  return mr_mae(encoder or student(), None, **fields)


def drawn(method):
  """(params, method_state), all leaves of some size; nothing compiles."""
  shapes = jax.eval_shape(method.init, KEY, dict(view1=images()))

  def draw(path, leaf):
    name = jax.tree_util.keystr(path)
    seed = zlib.crc32(name.encode())  # the same, whatever is beside it
    x = np.random.default_rng(seed).normal(0, 1, leaf.shape)
    if 'kernel' in name:  # keeps the size of what it is applied to
      return np.float32(x / np.sqrt(np.prod(leaf.shape[:-1])))
    return np.float32(1 + x / 10 if 'scale' in name else x / 4)

  return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def begin(**fields):
  """What methods with these fields share."""
  return drawn(make(**{k: dict(v) for k, v in fields.items()}))


def losses(method, params, state, x, rng=KEY):
  """Metrics, and what the branches read."""
  loss, aux = method.loss(params, state, dict(view1=x), rng, 0)
  return dict(aux.metrics, loss=loss), aux.features['view1']


def plain(x):
  """LayerNorm without parameters, eps 1e-5."""
  center = x - x.mean(-1, keepdims=True)
  return center / np.sqrt((center**2).mean(-1, keepdims=True) + 1e-5)


def normed(params, x):
  """LayerNorm with parameters, eps 1e-6."""
  center = x - x.mean(-1, keepdims=True)
  x = center / np.sqrt((center**2).mean(-1, keepdims=True) + 1e-6)
  return x * params['scale'] + params['bias']


def gathered(maps, index):
  """Targets [b, n, d] at the visible places [b, k]."""
  return np.take_along_axis(np.asarray(maps), np.asarray(index)[..., None], 1)


def smooth(difference):
  size = np.abs(difference)
  return 2 * np.where(size < 1, size**2 / 2, size - 0.5)


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def affine(params, x):
  return np.asarray(x) @ params['kernel'] + params['bias']


@functools.cache
def teacher_says(depth=2):
  """Compiled: images -> levels, attention and CLS of TEACHER, by hand.

  Normalised here, with the teacher's own statistics.
  """
  fields = dict(TEACHER, depth=depth)
  method = make(teachers=dict(first=dict(encoder=fields)))
  params = drawn(method)[1]['teachers']['first']
  mean, std = (np.array(fields.pop(name)) for name in ('mean', 'std'))
  encoder = ViT(
    **{k: v for k, v in fields.items() if k != 'name'}, mean=(0.0,), std=(1.0,)
  )

  @jax.jit
  def call(x):
    x = (x - mean) / std
    said = encoder.apply({'params': params}, x, attention=(depth - 1,))
    tokens = [level.tokens for level in said.levels]
    cls = [level.prefix for level in said.levels]
    return tokens, said.attention[depth - 1], cls

  return call


def last_level(x):
  return np.asarray(teacher_says()(x)[0][-1])


ERRORS = ('l2', 'smooth_l1', 'cosine')


@functools.cache
def by_error():
  """Compiled: what methods with each error report, and MAE; one program."""
  methods = {name: make(mimic=dict(error=name)) for name in ERRORS}
  methods['cls'] = make(mimic=dict(class_token=True))
  alone = mae(student(), None, decoder=DECODER)

  @jax.jit
  def call(params, state, x):
    found = {k: losses(m, params, state, x) for k, m in methods.items()}
    own = {k: params[k] for k in ('encoder', 'decoder')}
    return found, losses(alone, own, {}, x)

  return call


class TestLoss:
  @functools.cached_property
  def found(self):
    return jax.device_get(by_error()(*begin(), images()))

  def test_it_is_the_distance_to_the_teacher_at_visible_places(self):
    params, _ = begin()
    assert set(params['mimic_first']) == {'out'}
    metrics, features = self.found[0]['l2']
    index = features.levels[-1].index
    assert index.shape == (4, KEEP)
    wanted = gathered(plain(last_level(images())), index)
    assert 0.9 < wanted.std() < 1.001 and np.ptp(wanted[:, :, 0]) > 0.3
    said = affine(params['mimic_first']['out'], features.tokens)
    assert metrics['loss_mimic_first'] == pytest.approx(
      np.mean((said - wanted) ** 2), rel=1e-5
    )
    smooth_l1 = self.found[0]['smooth_l1'][0]['loss_mimic_first']
    assert smooth_l1 == pytest.approx(smooth(said - wanted).mean(), rel=1e-5)
    cosine = 2 - 2 * (unit(said) * unit(wanted)).sum(-1).mean()
    found = self.found[0]['cosine'][0]['loss_mimic_first']
    assert found == pytest.approx(cosine, rel=1e-5)

  def test_cls_is_one_token_more(self):
    params, _ = begin()
    metrics, features = self.found[0]['cls']
    cls = plain(np.asarray(teacher_says()(images())[2][-1]))
    assert cls.shape == (4, 1, 24)
    places = gathered(plain(last_level(images())), features.levels[-1].index)
    tokens = np.concatenate([features.cls[:, None], features.tokens], axis=1)
    said = affine(params['mimic_first']['out'], tokens)
    wanted = np.concatenate([cls, places], axis=1)
    assert metrics['loss_mimic_first'] == pytest.approx(
      np.mean((said - wanted) ** 2), rel=1e-5
    )

  def test_pixels_are_mae_s_with_its_mask(self):
    mae_metrics, mae_features = self.found[1]
    for metrics, features in self.found[0].values():
      assert metrics['loss_decoder'] == mae_metrics['loss_decoder']
      assert_same_bits(features.levels[-1].index, mae_features.levels[-1].index)

  def test_both_are_added(self):
    for metrics, _ in self.found[0].values():
      assert metrics['loss'] == pytest.approx(
        metrics['loss_decoder'] + metrics['loss_mimic_first'], rel=1e-6
      )

  def test_hidden_pixels_reach_targets_and_no_feature(self):
    metrics, features = self.found[0]['l2']
    hidden = np.ones((4, 16), bool)
    np.put_along_axis(hidden, features.levels[0].index, False, axis=1)
    mask = hidden.reshape(4, 4, 4).repeat(PATCH, 1).repeat(PATCH, 2)[..., None]
    x = jnp.where(mask, images(seed=1), images())
    moved, same = jax.device_get(by_error()(*begin(), x))[0]['l2']
    assert_same_bits(same, features)
    change = moved['loss_mimic_first'] - metrics['loss_mimic_first']
    assert abs(change) > 1e-4


def test_without_mimicking_it_is_mae_bit_for_bit():
  alone = mae(student(), None, decoder=DECODER)
  method = make(mimic=dict(weight=0.0))
  x = dict(view1=images())
  (params, state), (wanted, _) = jax.jit(
    lambda: (method.init(KEY, x), alone.init(KEY, x))
  )()
  assert set(params) == {'encoder', 'decoder'}
  assert_same_bits(params, wanted)

  def grads(params, method, state):
    def loss(params):
      return losses(method, params, state, images())[0]['loss']

    return jax.value_and_grad(loss)(params)

  @jax.jit
  def both(params):
    return grads(params, method, state), grads(params, alone, {})

  assert_same_bits(*both(params))


class TestGradients:
  """Of two teachers, for any weights: the loss is linear in them."""

  @functools.cached_property
  def call(self):
    method = make(second={})

    @jax.jit
    def call(params, state, weights):
      weighted = dataclasses.replace(method, weights=weights)

      def loss(params, state):
        metrics, _ = losses(weighted, params, state, images())
        return metrics['loss'], metrics

      return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, state)

    return call

  def of(self, **weights):
    all_of = dict(decoder=0.0, mimic_first=0.0, mimic_second=0.0) | weights
    params, state = begin(second=())
    return jax.device_get(self.call(params, state, all_of))

  def test_none_reaches_a_teacher(self):
    _, (grads, frozen) = self.of(decoder=1.0, mimic_first=1.0, mimic_second=1.0)
    assert {n.split('/')[1] for n in named_leaves(frozen)} == {
      'first',
      'second',
    }
    for name, leaf in named_leaves(frozen).items():
      assert not leaf.any(), name
    never = ('attention/key/bias', 'cls')
    for name, leaf in named_leaves(grads).items():
      assert leaf.any() or name.endswith(never), name

  def test_losses_and_gradients_add_with_their_weights(self):
    names = ('decoder', 'mimic_first', 'mimic_second')
    weights = dict(zip(names, (0.5, 2.0, 3.0), strict=True))
    (loss, metrics), (whole, _) = self.of(**weights)
    alone = [self.of(**{name: 1.0}) for name in names]
    assert loss == pytest.approx(
      sum(weights[n] * metrics[f'loss_{n}'] for n in names), rel=1e-6
    )
    wanted = jax.tree.map(
      lambda *parts: sum(
        w * x for w, x in zip(weights.values(), parts, strict=True)
      ),
      *(grads for _, (grads, _) in alone),
    )
    assert_close(named_leaves(whole), named_leaves(wanted), 1e-5)

  def test_a_teacher_of_weight_0_has_none(self):
    _, (grads, _) = self.of(decoder=1.0, mimic_first=1.0)
    assert not any(x.any() for x in jax.tree.leaves(grads['mimic_second']))

  def test_a_teacher_of_weight_0_is_not_asked(self, monkeypatch):
    method = make(second=dict(weight=0.0))
    assert set(method.branches) == {'decoder', 'mimic_first'}
    asked = []

    def recorded(self, *args, **kwargs):
      asked.append(self)
      return ask(self, *args, **kwargs)

    ask = Frozen.__call__
    monkeypatch.setattr(Frozen, '__call__', recorded)
    x = dict(view1=images())
    _, state = jax.eval_shape(method.init, KEY, x)
    assert set(state['teachers']) == {'first', 'second'}
    assert asked == [method.teachers['first']]

  def test_weights_are_those_of_the_config(self):
    method = make(
      second=dict(weight=3.0), mimic=dict(weight=0.5), pixel_weight=0.25
    )
    assert method.weights == dict(
      decoder=0.25, mimic_first=0.5, mimic_second=1.5
    )

  def test_heads_read_the_encoder_s_visible_tokens_and_nothing_else(self):
    """The decoder is not on their way."""
    _, (grads, _) = self.of(mimic_first=1.0)
    assert not any(x.any() for x in jax.tree.leaves(grads['decoder']))
    assert any(x.any() for x in jax.tree.leaves(grads['encoder']))


def saliency(x):
  """Of TEACHER by hand: CLS to patches in the last block, mean over heads."""
  attention = np.asarray(teacher_says()(x)[1])
  assert attention.shape[1:] == (3, 17, 17)
  return attention[:, :, 0, 1:].mean(1)


class TestFocus:
  @functools.cached_property
  def visible(self):
    """{focus: index} of the same images."""
    methods = {name: make(focus=name) for name in ('topk', 'sample')}

    @jax.jit
    def call(params, state, x):
      return {
        name: losses(m, params, state, x)[1].levels[0].index
        for name, m in methods.items()
      }

    return jax.device_get(call(*begin(), images(16)))

  def test_topk_shows_what_is_looked_at_most(self):
    order = np.argsort(-saliency(images(16)), axis=1)
    wanted = np.sort(order[:, :KEEP], axis=1)
    np.testing.assert_array_equal(self.visible['topk'], wanted)
    assert len(np.unique(wanted, axis=0)) > 8  # each image its own

  def test_samples_follow_it(self):
    """Gumbel's trick on the same noise, by hand."""
    a = saliency(images(16))
    noise = jax.random.gumbel(named_key(KEY, 'mask'), (16, 16))
    order = np.argsort(-(np.log(a / a.sum(1, keepdims=True)) + noise), axis=1)
    np.testing.assert_array_equal(
      self.visible['sample'], np.sort(order[:, :KEEP], axis=1)
    )
    assert (self.visible['sample'] != self.visible['topk']).any()

  def test_the_first_teacher_in_use_is_the_guide(self):
    teachers = dict(
      first=dict(encoder=None),
      second=dict(encoder=OTHER),
      third=dict(encoder=TEACHER),
    )
    assert make(teachers=teachers, focus='topk').guide == 'second'
    assert make(teachers=teachers).guide is None
    assert list(make(teachers=teachers).teachers) == ['second', 'third']

  @pytest.mark.parametrize(
    'encoder',
    [
      ViT(**{k: v for k, v in OTHER.items() if k != 'name'}, registers=2),
      ConvViT(
        patch_sizes=(2, 2, 1), widths=(4, 8, 16), depths=(1, 1, 1), num_heads=2
      ),
    ],
    ids=['vit', 'convvit'],
  )
  def test_without_cls_it_is_the_mean_over_all_patches(self, encoder):
    """A register is neither one that looks nor one that is looked at."""
    x, last = images(), encoder.depth - 1

    @jax.jit
    def call():
      params = Frozen(encoder=encoder).init(KEY, x)
      params = jax.tree.map(lambda p: 4 * p, params)
      teacher = Frozen(encoder=encoder)
      found = teacher(params, x, GRID, with_saliency=True).saliency
      out = encoder.apply({'params': params}, x, attention=(last,))
      return found, out.attention[last]

    found, attention = jax.device_get(call())
    wanted = attention[:, :, -16:, -16:].mean((1, 2))
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert np.ptp(found) > 1e-3

  def test_a_swin_cannot_guide(self):
    swin = dict(name='swin', width=8, depths=(1,), num_heads=(1,), window=2)
    method = make(teachers=dict(first=dict(encoder=swin)), focus='topk')
    with pytest.raises(ValueError, match="ViT, or set method.focus='none'"):
      jax.eval_shape(method.init, KEY, dict(view1=images()))

  def test_a_finer_guide_is_averaged(self):
    encoder = make_encoder(**_word(dict(TEACHER, patch_size=2)))
    teacher, x = Frozen(encoder=encoder), images()

    @jax.jit
    def call():
      params = teacher.init(KEY, x)
      fine = teacher(params, x, (8, 8), with_saliency=True)
      return fine, teacher(params, x, (2, 4), with_saliency=True)

    (fine, _, looks), (coarse, _, at) = jax.device_get(call())
    assert fine.shape == (4, 8, 8, 24) and coarse.shape == (4, 2, 4, 24)
    wanted = fine.reshape(4, 2, 4, 4, 2, 24).mean((2, 4))
    np.testing.assert_allclose(coarse, wanted, atol=1e-6)
    wanted = looks.reshape(4, 2, 4, 4, 2).mean((2, 4)).reshape(4, 8)
    np.testing.assert_allclose(at / at.sum(), wanted / wanted.sum(), atol=1e-6)


def _word(fields):
  fields = dict(fields)
  return dict(word=fields.pop('name')) | fields


class TestGrids:
  """What a teacher sees where its patches are not the student's."""

  def seen(self, monkeypatch, *, side, grid, patch, size=None):
    """Sizes of images that the teacher's encoder is called with."""
    encoder, found = ViT(patch_size=patch, width=16, depth=1, num_heads=2), []
    apply = ViT.apply

    def recorded(self, variables, images, *args, **kwargs):
      found.append(images.shape[1:3])
      return apply(self, variables, images, *args, **kwargs)

    monkeypatch.setattr(ViT, 'apply', recorded)
    teacher = Frozen(encoder=encoder, size=size and (size, size))
    x = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    params = jax.eval_shape(teacher.init, KEY, x)
    said = jax.eval_shape(lambda p, x: teacher(p, x, grid), params, x)
    assert said.places.shape == (2, *grid, 16)
    return found

  @pytest.mark.parametrize(
    ('side', 'grid', 'patch', 'size', 'wanted'),
    [
      (224, (14, 14), 16, None, 224),
      (224, (14, 14), 8, None, 224),  # 28 x 28, averaged
      (224, (7, 7), 16, None, 224),  # a Swin student
      (224, (14, 14), 14, None, 196),  # CLIP's ViT-L/14
      (224, (14, 14), 32, None, 448),  # coarser than the student
      (24, (6, 6), 16, None, 96),
      (224, (14, 14), 14, 392, 392),
    ],
  )
  def test_size_of_the_images(
    self, monkeypatch, side, grid, patch, size, wanted
  ):
    found = self.seen(monkeypatch, side=side, grid=grid, patch=patch, size=size)
    assert found == [(wanted, wanted)]

  def test_a_size_that_does_not_fit_is_refused(self, monkeypatch):
    with pytest.raises(ValueError, match='12x12 patches do not fit .*14x14'):
      self.seen(monkeypatch, side=224, grid=(14, 14), patch=14, size=168)

  def test_resized_images_are_the_images(self):
    """By hand: four taps of the cubic kernel, kept within [0, 1]."""
    encoder = make_encoder(**_word(dict(TEACHER, patch_size=3)))
    teacher, x = Frozen(encoder=encoder), jnp.round(images())

    @jax.jit
    def call():
      params = teacher.init(KEY, x)
      larger = jnp.clip(jax.image.resize(x, (4, 12, 12, 3), 'cubic'), 0, 1)
      level = encoder.apply({'params': params}, larger).levels[-1]
      return teacher(params, x, GRID)[0], level.tokens

    said, tokens = jax.device_get(call())
    np.testing.assert_allclose(
      said.reshape(4, 16, -1), plain(tokens), atol=1e-5
    )


class TestFusion:
  def test_the_sum_of_four_blocks_is_what_both_losses_read(self):
    encoder = student(depth=4)
    method = make(encoder, mimic=dict(fusion='sum'))
    params, state = drawn(method)
    assert method.neck.levels == (0, 1, 2, 3)

    @jax.jit
    def call(x):
      metrics, fused = losses(method, params, state, x)
      own = {'params': params['encoder']}
      mask = method.masking(named_key(KEY, 'mask'), GRID, batch=len(x))
      branch = method.branches['decoder']
      predicted = branch.predict(params['decoder'], fused)
      error = branch.error(predicted, branch.target(x))
      pixels = branch.mean(error, mask)
      return metrics, fused, encoder.apply(own, x, mask), pixels

    metrics, fused, features, pixels = jax.device_get(call(images()))
    streams = [features.levels[i] for i in method.neck.levels]
    total = sum(
      affine(
        params['neck'][f'dense_{i}'], np.concatenate([s.prefix, s.tokens], 1)
      )
      for i, s in enumerate(streams)
    )
    wanted = normed(params['neck']['norm'], total)
    np.testing.assert_allclose(fused.tokens, wanted[:, 1:], atol=1e-4)
    np.testing.assert_allclose(fused.cls, wanted[:, 0], atol=1e-4)
    np.testing.assert_allclose(fused.pooled, features.pooled, atol=1e-5)
    said = affine(params['mimic_first']['out'], wanted[:, 1:])
    target = gathered(plain(last_level(images())), fused.levels[-1].index)
    assert metrics['loss_mimic_first'] == pytest.approx(
      np.mean((said - target) ** 2), rel=1e-4
    )
    assert metrics['loss_decoder'] == pytest.approx(pixels, rel=1e-6)

  @pytest.mark.parametrize(
    ('depth', 'levels'),
    [(4, (0, 1, 2, 3)), (6, (0, 2, 3, 5)), (12, (2, 5, 8, 11))],
  )
  def test_blocks_at_equal_distances(self, depth, levels):
    method = make(student(depth=depth), mimic=dict(fusion='sum'))
    assert method.neck.levels == levels

  def test_mixtures_mimic_the_last_five_levels(self):
    encoder, teachers = student(depth=5), dict(first=dict(encoder=DEEP))
    method = make(encoder, teachers=teachers, mimic=dict(fusion='multi'))
    with_cls = make(
      encoder, teachers=teachers, mimic=dict(fusion='multi', class_token=True)
    )
    params, state = drawn(method)
    head = params['mimic_first']
    assert head['mixture'].shape == (5, 5) and method.neck is None

    @jax.jit
    def call(x):
      mask = method.masking(named_key(KEY, 'mask'), GRID, batch=len(x))
      own = {'params': params['encoder']}
      metrics = [losses(m, params, state, x)[0] for m in (method, with_cls)]
      return metrics, encoder.apply(own, x, mask).levels

    metrics, levels = jax.device_get(call(images()))
    places, _, cls = teacher_says(6)(images())
    errors = []  # of CLS and the visible places, by level
    for i in range(5):
      stack = np.stack([np.hstack([x.prefix, x.tokens]) for x in levels])
      mixed = np.tensordot(head['mixture'][i], stack, 1)
      said = affine(head[f'out_{i}'], normed(head[f'norm_{i}'], mixed))
      target = gathered(plain(np.asarray(places[i - 5])), levels[-1].index)
      wanted = np.hstack([plain(np.asarray(cls[i - 5])), target])
      errors.append(((said - wanted) ** 2).mean(-1))
    errors = np.stack(errors)
    assert len(set(np.round(errors.mean((1, 2)), 6))) == 5
    found = [m['loss_mimic_first'] for m in metrics]
    wanted = [errors[:, :, 1:].mean(), errors.mean()]
    np.testing.assert_allclose(found, wanted, rtol=1e-4)

  @pytest.mark.parametrize('levels', [5, 7])
  def test_mixtures_begin_with_the_last_levels_themselves(self, levels):
    token = Level(jnp.zeros((1, 0, 4)), jnp.ones((1, 1, 4)), (1, 1))
    params = MixedHeads(3, 5).init(KEY, (token,) * levels)['params']
    wanted = np.eye(5, levels, k=levels - 5, dtype=np.float32)
    np.testing.assert_array_equal(params['mixture'], wanted + np.float32(0.01))

  def test_a_convvit_adds_its_stages_itself(self):
    encoder = ConvViT(
      patch_sizes=(2, 2, 1), widths=(4, 8, 16), depths=(1, 1, 1), num_heads=2
    )
    assert make(encoder, mimic=dict(fusion='sum')).neck is None


@functools.cache
def masks_of_an_image():
  """Metrics and features of four masks, and metrics of each alone."""
  method, (params, state) = make(masks_per_image=4), begin()
  x = images()
  dealt = method.masking(named_key(KEY, 'mask'), GRID, batch=4)

  @jax.jit
  def call(hidden, visible):
    def given(*_, batch):
      assert batch == len(x)
      return Mask(hidden=hidden, visible=visible, grid=GRID)

    one = dataclasses.replace(method, copies=1, masking=given)
    return losses(one, params, state, x)

  alone = [call(dealt.hidden[i::4], dealt.visible[i::4]) for i in range(4)]
  together = jax.jit(lambda: losses(method, params, state, x))()
  return jax.device_get((together, alone, dealt))


class TestMasksPerImage:
  def test_each_patch_is_visible_once(self):
    _, _, dealt = masks_of_an_image()
    seen = np.sort(dealt.visible.reshape(4, 16), axis=1)
    np.testing.assert_array_equal(seen, np.tile(np.arange(16), (4, 1)))
    assert len(np.unique(dealt.visible.reshape(4, 16), axis=0)) == 4

  def test_the_loss_is_the_mean_of_four(self):
    (metrics, _), alone, _ = masks_of_an_image()
    for name in ('loss', 'loss_decoder', 'loss_mimic_first'):
      four = [found[name] for found, _ in alone]
      assert metrics[name] == pytest.approx(np.mean(four), rel=1e-5)
      assert np.ptp(four) > 1e-4

  def test_probes_get_one_row_for_each_image_in_order(self):
    (_, features), alone, _ = masks_of_an_image()
    first = alone[0][1]
    assert features.pooled.shape == (4, 16)
    np.testing.assert_allclose(features.pooled, first.pooled, atol=1e-5)
    np.testing.assert_array_equal(
      features.levels[0].index, first.levels[0].index
    )

  def test_teachers_see_every_image_once(self, monkeypatch):
    seen, call = [], Frozen.__call__

    def recorded(self, params, images, *args, **kwargs):
      seen.append(len(images))
      return call(self, params, images, *args, **kwargs)

    method = make(masks_per_image=4, second={})
    params, state = begin(second=())
    monkeypatch.setattr(Frozen, '__call__', recorded)
    jax.eval_shape(functools.partial(losses, method), params, state, images(6))
    assert seen == [6, 6]

  def test_figures_show_each_image_once(self):
    method, (params, state) = make(masks_per_image=4), begin()
    drawn = jax.eval_shape(method.figures, params, state, dict(view1=images()))
    assert drawn['reconstruction'].images.shape == (4, 3, SIDE, SIDE, 3)


class TestAtTheDecoder:
  def test_where_it_counts(self):
    methods = {
      on: make(mimic=dict(at='decoder', on=on))
      for on in ('masked', 'visible', 'all')
    }
    params, state = begin(mimic=(('at', 'decoder'),))
    one = methods['all']
    assert set(params) == {'encoder', 'decoder', 'mimic_first'}
    assert params['mimic_first'].keys() == params['decoder'].keys()

    @jax.jit
    def call(x):
      found = {on: losses(m, params, state, x)[0] for on, m in methods.items()}
      features = losses(one, params, state, x)[1]
      predict = one.branches['mimic_first'].predict
      return found, features, predict(params['mimic_first'], features)

    found, features, said = jax.device_get(call(images()))
    wanted = plain(last_level(images())).reshape(4, *GRID, -1)
    assert said.shape == wanted.shape
    error = ((said - wanted) ** 2).mean(-1).reshape(4, 16)
    visible = np.zeros((4, 16), bool)
    np.put_along_axis(visible, features.levels[0].index, True, axis=1)
    for on, where in (
      ('masked', ~visible),
      ('visible', visible),
      ('all', np.ones_like(visible)),
    ):
      assert found[on]['loss_mimic_first'] == pytest.approx(
        error[where].mean(), rel=1e-5
      )

  @pytest.mark.parametrize('at', ['encoder', 'decoder'])
  def test_without_pixels_there_is_no_decoder_of_them(self, at):
    method = make(pixel_weight=0.0, mimic=dict(at=at, on='visible'))
    params, state = jax.eval_shape(method.init, KEY, dict(view1=images()))
    assert set(params) == {'encoder', 'mimic_first'}
    x = dict(view1=images())
    drawn = jax.eval_shape(method.figures, params, state, x)
    assert drawn['reconstruction'].columns == ('input', 'visible')


KIND = dict(method='mr_mae')


class TestSteps:
  """The real train step on one and more devices; paths are dropped."""

  def test_one_device_takes_the_same_step(self):
    got, want = follow(2, **KIND, devices=1), follow(2, **KIND)
    assert_same_steps(got, want, loss=1e-5, gradient=1e-4)

  def test_chunks_on_two_devices_take_the_same_step(self):
    got = follow(2, **KIND, devices=2, chunks=2)
    assert_same_steps(got, follow(2, **KIND), loss=1e-5, gradient=1e-4)

  @pytest.mark.parametrize('encoder', ['vit', 'convvit', 'swin'])
  def test_the_student_learns_and_the_teacher_does_not(self, encoder):
    how = dict(devices=2, chunks=2) if encoder == 'vit' else dict(devices=1)
    kind = KIND | (dict(encoder=encoder) if encoder != 'vit' else {})
    first, (state, report) = start(**kind), follow(2, **kind, **how)[1]
    assert set(state.method_state) == {'teachers'}
    assert_same_bits(state.method_state, first.method_state)
    before, after = named_leaves(first.params), named_leaves(state.params)
    assert {n.split('/')[0] for n in before} == {
      'encoder',
      'decoder',
      'mimic_first',
    }
    still = {n for n in before if (before[n] == after[n]).all()}
    if encoder == 'swin':
      # One cell of four is visible: attention in the last stage has no choice.
      still = {
        n for n in still if not n.startswith('encoder/block_1/attention/')
      }
    assert not still
    assert report['bad_steps'] == 0
    assert report['loss'] == pytest.approx(
      report['loss_decoder'] + report['loss_mimic_first'], rel=1e-6
    )

  def test_only_the_student_is_given_to_probes(self):
    method, first = cached_run(**KIND).method, start(**KIND)
    found = method.encoder_params(first.params, first.method_state)
    assert found is first.params['encoder']
    with pytest.raises(ValueError, match="set which='student'"):
      method.encoder_params(first.params, first.method_state, 'teacher')

  def test_teachers_are_not_optimised(self):
    """Neither moments nor decay are kept for them."""
    leaves = named_leaves(start(**KIND).opt_state)
    assert not [name for name in leaves if 'teacher' in name]


NO_TEACHER = dict(first=dict(encoder=None), second=dict(encoder=None))
SWIN = Swin(width=8, depths=(1, 1), num_heads=(1, 2), window=2)
FUSED = dict(kind='fusion', width=8, levels=2)


@pytest.mark.parametrize(
  ('encoder', 'fields', 'message'),
  [
    (None, dict(teachers=NO_TEACHER), 'method.teachers.first.checkpoint'),
    (None, dict(teachers={}), 'method.teachers.first.checkpoint'),
    (None, dict(focus='top'), "method.focus 'top'; known: 'none', 'sample'"),
    (None, dict(mimic=dict(error='l1')), "method.mimic.error 'l1'; known"),
    (None, dict(mimic=dict(at='top')), "method.mimic.at 'top'; known"),
    (None, dict(mimic=dict(on='some')), "method.mimic.on 'some'; known"),
    (None, dict(mimic=dict(fusion='mean')), "method.mimic.fusion 'mean'"),
    (None, dict(mimic=dict(on='all')), "set method.mimic.at='decoder'"),
    (
      None,
      dict(mimic=dict(at='decoder', fusion='multi')),
      "needs method.mimic.at='encoder'",
    ),
    (None, dict(masks_per_image=3), 'set method.mask_ratio to 0.66'),
    (None, dict(masks_per_image=0), 'method.masks_per_image=0 must be at le'),
    (None, dict(masks_per_image=4, focus='topk'), 'set all but one to random'),
    (None, dict(masking='blocks', focus='topk'), 'set all but one to random'),
    (None, dict(masks_per_image=4, mask_ratio=0.5), 'mask_ratio to 0.75'),
    (
      None,
      dict(pixel_weight=0.0, mimic=dict(weight=0.0)),
      'nothing is learned',
    ),
    (
      None,
      dict(
        pixel_weight=0.0, teachers=dict(first=dict(encoder=TEACHER, weight=0.0))
      ),
      'method.pixel_weight and all mimic weights are 0',
    ),
    (
      None,
      dict(mimic=dict(at='decoder', class_token=True)),
      "class_token=True needs method.mimic.at='encoder'",
    ),
    (SWIN, dict(mimic=dict(class_token=True)), 'this Swin has no CLS token'),
    (
      student(class_token=False, pool='mean'),
      dict(mimic=dict(class_token=True)),
      'this ViT has no CLS token: set method.mimic.class_token=False',
    ),
    (SWIN, dict(mimic=dict(fusion='sum')), 'needs 4 levels on one grid.*has 1'),
    (SWIN, dict(mimic=dict(fusion='multi')), 'needs 2 levels on one grid'),
    (student(depth=3), dict(mimic=dict(fusion='sum')), 'has 3'),
    (
      ConvViT(fuse=False),
      dict(mimic=dict(fusion='sum')),
      'set encoder.fuse=True',
    ),
    (
      None,
      dict(decoder=FUSED, mimic=dict(at='decoder')),
      "needs method.decoder.kind='blocks'",
    ),
  ],
)
def test_errors_name_the_way_out(encoder, fields, message):
  with pytest.raises(ValueError, match=message):
    make(encoder, **fields)


@pytest.mark.parametrize('count', [2, 3, 5, 6, 7, 9])
def test_the_ratio_that_is_advised_is_taken(count):
  with pytest.raises(ValueError, match='mask_ratio') as refused:
    make(masks_per_image=count, mask_ratio=0.01)
  ratio = float(str(refused.value).rsplit(' ', 1)[1])
  assert make(masks_per_image=count, mask_ratio=ratio).copies == count


def test_a_teacher_without_cls_cannot_show_it():
  method = make(
    teachers=dict(first=dict(encoder=OTHER)), mimic=dict(class_token=True)
  )
  with pytest.raises(ValueError, match='teacher has no CLS token: set'):
    jax.eval_shape(method.init, KEY, dict(view1=images()))


def test_a_teacher_of_other_images_is_refused():
  grey = dict(TEACHER, in_channels=1, mean=(0.5,), std=(0.5,))
  method = make(teachers=dict(first=dict(encoder=grey)))
  with pytest.raises(ValueError, match='takes 1 channels, the images have 3'):
    jax.eval_shape(method.init, KEY, dict(view1=images()))


def test_masks_that_do_not_deal_the_patches_are_refused():
  method = make(masks_per_image=3, mask_ratio=1 - 1 / 3)
  with pytest.raises(ValueError, match='take a divisor of 16'):
    jax.eval_shape(method.init, KEY, dict(view1=images()))
  assert math.isclose(method.copies, 3)
