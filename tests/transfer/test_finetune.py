"""Fine-tuning and supervised training: arithmetic, and that they learn."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

import main
from configs import finetune as configs
from models import make_encoder
from training.recipe import Recipe, make_recipe
from training.schedules import constant
from training.warm_start import load_params
from transfer.backbone import load_backbone
from transfer.finetune.classifier import Classifier
from transfer.finetune.views import make_augment

CLASSES = 4


def classifier(**fields):
  encoder = make_encoder('vit_mini8', width=16, depth=2, num_heads=2)
  recipe = Recipe(lr=constant(1e-2), decay=0.05, peak=1e-2, total=10)
  made = dict(encoder=encoder, classes=CLASSES, recipe=recipe, head_std=0.1)
  return Classifier(**made | fields)


@pytest.fixture(scope='module')
def batch():
  images, labels = tiny_run.images(8, seed=0)
  images = jnp.asarray(images, jnp.float32) / 255
  return dict(view1=images, label=jnp.asarray(labels))


class TestClassifier:
  def test_the_loss_is_the_cross_entropy_of_the_head(self, batch):
    method = classifier(smoothing=0.1)
    params, state = method.init(jax.random.key(0), batch)
    assert state == {}
    loss, aux = method.loss(params, state, batch, jax.random.key(1), 0)
    pooled = method.encoder.apply(
      {'params': params['encoder']}, batch['view1']
    ).pooled
    z = np.asarray(pooled) @ params['head']['kernel'] + params['head']['bias']
    z = z - np.log(np.exp(z).sum(-1, keepdims=True))
    targets = np.eye(CLASSES)[batch['label']] * 0.9 + 0.1 / CLASSES
    np.testing.assert_allclose(loss, -(targets * z).sum(-1).mean(), rtol=1e-5)
    hits = (z.argmax(-1) == batch['label']).mean()
    assert float(aux.metrics['train_top1']) == pytest.approx(100 * hits)

  def test_fc_norm_reads_the_raw_mean_of_the_patches(self, batch):
    method = classifier(pool='fc_norm')
    params, _ = method.init(jax.random.key(0), batch)
    features = method.encoder.apply(
      {'params': params['encoder']}, batch['view1']
    )
    x = np.asarray(features.levels[-1].tokens, np.float64).mean(1)
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    want = x @ np.asarray(params['head']['kernel'])
    found = method.logits(params, batch['view1'])
    np.testing.assert_allclose(found, want, atol=1e-5)
    grads = jax.grad(
      lambda p: method.loss(p, {}, batch, jax.random.key(0), 0)[0]
    )
    norm = grads(params)['encoder']['norm']
    assert not np.any(norm['scale']) and not np.any(norm['bias'])

  def test_the_average_follows(self, batch):
    method = classifier(average=0.9)
    params, state = method.init(jax.random.key(0), batch)
    moved = jax.tree.map(lambda x: x + 1.0, params)
    after = method.after_update(moved, state, None, 0)['teacher']
    for a, p in zip(
      jax.tree.leaves(after), jax.tree.leaves(params), strict=True
    ):
      np.testing.assert_allclose(a, p + 0.1, atol=1e-6)
    found = method.predict(params, dict(teacher=after), batch)
    assert found.keys() == {'last', 'average'}
    assert (found['last'] != found['average']).any()

  def test_paths_are_dropped_in_training_only(self, batch):
    encoder = make_encoder(
      'vit_mini8', width=16, depth=2, num_heads=2, drop_path=0.5
    )
    method = classifier(encoder=encoder)
    params, _ = method.init(jax.random.key(0), batch)
    losses = {
      float(method.loss(params, {}, batch, jax.random.key(i), 0)[0])
      for i in range(3)
    }
    assert len(losses) == 3
    last = method.predict(params, {}, batch)['last']
    plain = classifier().predict(params, {}, batch)['last']
    np.testing.assert_array_equal(last, plain)

  def test_chunks_change_nothing(self, batch):
    whole, parts = classifier(), classifier(chunks=2)
    params, _ = whole.init(jax.random.key(0), batch)

    def loss(method):
      return jax.value_and_grad(
        lambda p: method.loss(p, {}, batch, jax.random.key(0), 0)[0]
      )(params)

    (a, ga), (b, gb) = loss(whole), loss(parts)
    np.testing.assert_allclose(a, b, rtol=1e-6)
    # The gradients of key biases are 0 but for rounding.
    most = max(float(np.abs(y).max()) for y in jax.tree.leaves(gb))
    for x, y in zip(jax.tree.leaves(ga), jax.tree.leaves(gb), strict=True):
      np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * most)


def test_views_are_augmented_in_order(batch):
  """With everything off labels are smoothed and images stay; on, they mix."""
  encoder = make_encoder('vit_mini8')
  found = configs.get_config('imagenet2012,mae').augment.to_dict()
  off = found | dict(rand_magnitude=0.0, erasing=0.0, mixup=0.0, cutmix=0.0)
  images, targets = make_augment(off, CLASSES, encoder)(
    batch['view1'], batch['label'], jax.random.key(0)
  )
  np.testing.assert_array_equal(images, batch['view1'])
  want = np.eye(CLASSES)[batch['label']] * 0.9 + 0.025
  np.testing.assert_allclose(targets, want, rtol=1e-6)
  run = jax.jit(make_augment(found, CLASSES, encoder))
  images, targets = run(batch['view1'], batch['label'], jax.random.key(0))
  np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-5)
  assert (images != batch['view1']).any(axis=(1, 2, 3)).all()
  again, _ = run(batch['view1'], batch['label'], jax.random.key(0))
  np.testing.assert_array_equal(images, again)


def config(words, **fields):
  out = configs.get_config(words)
  out.data.update(data_dir=tiny_run.data(), test_split='test', image_size=16)
  out.data.update(eval_crop=1.0)
  out.update(dtype='float32', batch_size=16, epochs=10.0, drop_path=0.0)
  out.update(log_every=5, eval_every=10, checkpoint_every=10)
  plain = dict(rand_magnitude=0.0, erasing=0.0, mixup=0.0, cutmix=0.0)
  out.augment.update(plain)
  out.optim.update(base_lr=0.05, warmup_epochs=1.0)
  out.views.view1.scale = (0.5, 1.0)
  names = {name.replace('__', '.'): value for name, value in fields.items()}
  out.update_from_flattened_dict(names)
  if 'encoder' in out:
    with out.unlocked():
      out.encoder.update(width=32, depth=2, num_heads=2)
  return out.lock()


def run(path, *args, **fields):
  return main.TASKS['finetune'](config(*args, **fields), str(path))


class TestJob:
  def test_a_trained_encoder_is_tuned_and_can_be_read_again(self, tmp_path):
    source = tiny_run.finished()
    summary = run(
      tmp_path / 'run', 'arrays,mae', checkpoint=str(source), average=0.5
    )
    assert summary['top1'] > 70
    assert summary['top1'] == summary['top1/average']
    assert summary['loss'] < 1.0
    # What is reported is the head's rate, not that of a block.
    made = config('arrays,mae').optim.to_dict()
    recipe = make_recipe(made, batch_size=16, steps_per_epoch=3, total=30)
    reported = tiny_run.losses(tmp_path / 'run')[5]['lr']
    assert reported == pytest.approx(float(recipe.lr(4)))
    before, after = load_params(source), load_params(tmp_path / 'run')
    name = 'encoder/block_1/mlp/fc1/kernel'
    assert (before[name] != after[name]).any()
    tuned = load_backbone(tmp_path / 'run')
    np.testing.assert_array_equal(tuned.params[name], after[name])
    assert tuned.encoder.width == 32
    average = load_backbone(tmp_path / 'run', which='teacher').params[name]
    assert (average != after[name]).any()

  def test_from_scratch_it_learns(self, tmp_path):
    # Three copies of each would leave five images in a batch.
    fields = dict(augment__repeats=1)
    summary = run(tmp_path / 'run', 'arrays,deit,vit_mini8', **fields)
    rows = tiny_run.losses(tmp_path / 'run')
    assert summary['top1'] > 60
    assert rows[max(rows)]['loss'] < 0.7 * rows[min(rows)]['loss']
    saved = json.loads((tmp_path / 'run' / 'config.json').read_text())
    assert saved['encoder']['name'] == 'vit_mini8'
    assert load_backbone(tmp_path / 'run').encoder.depth == 2

  def test_continued_it_ends_the_same(self, tmp_path):
    """With repeated augmentation, which is DeiT's."""
    whole = tmp_path / 'whole'
    steps = dict(steps=4, checkpoint_every=2, eval_every=4)
    run(whole, 'arrays,deit,vit_mini8', average=0.5, **steps)
    again = tiny_run.copy(whole, tmp_path / 'again')
    tiny_run.shutil.rmtree(again / 'checkpoints' / '4')
    run(again, 'arrays,deit,vit_mini8', average=0.5, **steps)
    assert tiny_run.checksums(again, 4) == tiny_run.checksums(whole, 4)

  def test_neither_checkpoint_nor_encoder(self, tmp_path):
    with pytest.raises(ValueError, match='set config.checkpoint'):
      run(tmp_path / 'run', 'arrays,mae')

  def test_one_encoder_at_a_time(self, tmp_path):
    with pytest.raises(ValueError, match='two encoders: .* vit_mini8, not tra'):
      run(tmp_path / 'run', 'arrays,deit,vit_mini8', checkpoint='runs/mine')

  @pytest.mark.parametrize(
    'fields, told',
    [
      (dict(average=2.0), 'average=2.0 must be at least 0 and below 1'),
      (dict(average=1.0), 'average=1.0 must be at least 0 and below 1'),
      (dict(layer_decay=0.0), 'layer_decay=0.0 must be above 0 and at most 1'),
      (dict(drop_path=1.0), 'drop_path=1.0 must be at least 0 and below 1'),
      (dict(head__std=-1.0), 'head.std=-1.0 must be at least 0'),
      (dict(augment__mixup=-0.8), 'augment.mixup=-0.8 must be at least 0'),
      (
        dict(augment__erasing=1.5),
        r'augment.erasing=1.5 must be within 0\.\.1',
      ),
      (dict(augment__smoothing=1.0), 'must be at least 0 and below 1'),
      (dict(augment__rand_magnitude=11.0), r'must be within 0\.\.10'),
      (dict(augment__rand_resample='cubic'), "did you mean 'bicubic'"),
      (dict(augment__repeats=0), 'augment.repeats=0 must be at least 1'),
      (dict(augment__rand_ops=0), 'augment.rand_ops=0 must be at least 1'),
      (dict(augment__mixup=0.8, batch_size=15), 'batch_size=15 must be even'),
    ],
  )
  def test_numbers_out_of_range(self, tmp_path, fields, told):
    with pytest.raises(ValueError, match=told):
      run(tmp_path / 'run', 'arrays,deit,vit_mini8', **fields)
    assert not (tmp_path / 'run').exists()

  @pytest.mark.parametrize('recipe', configs.RECIPES)
  def test_recipes_are_the_papers(self, recipe):
    found = configs.get_config(f'imagenet2012,{recipe}')
    rate = found.optim.base_lr * found.batch_size / found.optim.per
    want = dict(
      mae=(2e-3, 100, 5, 0.65, 0.1, 0),
      simmim=(5e-3, 100, 20, 0.8, 0.1, 5),
      local_mim=(2e-3, 100, 20, 0.65, 0.1, 0),
      mr_mae=(1.2e-3, 100, 5, 0.6, 0.15, 0),
      deit=(1e-3, 300, 5, 1.0, 0.1, 0),
      swin=(1e-3, 300, 20, 1.0, 0.2, 5),
    )[recipe]
    optim = found.optim
    assert rate == pytest.approx(want[0])
    assert (found.epochs, optim.warmup_epochs) == want[1:3]
    assert (found.layer_decay, found.drop_path, optim.clip) == want[3:]
    assert optim.decay == 0.05
    assert found.augment.repeats == (3 if recipe == 'deit' else 1)
    assert found.augment.rand_resample == 'bicubic'

  def test_one_recipe_at_a_time(self):
    with pytest.raises(ValueError, match='one recipe at a time'):
      configs.get_config('mae,deit')
