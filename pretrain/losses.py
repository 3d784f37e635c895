"""Losses as pure functions; float32 inside, whatever comes in."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

Temperature = float | jax.Array


def normalize(x: jax.Array) -> jax.Array:
  """X / ‖x‖₂ along the last axis, float32; a zero vector stays zero."""
  x = x.astype(jnp.float32)
  square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def info_nce(
  queries: jax.Array, keys: jax.Array, *, temperature: float
) -> tuple[jax.Array, jax.Array]:
  """MoCo v3's contrastive loss (Chen et al., 2021, Algorithm 1).

  2τ · cross-entropy of n(q) n(k)ᵀ / τ with the own row as the label: the
  negatives of a query are all other keys of the global batch. Keys get no
  gradient.

  Args:
    queries: [b, d].
    keys: [b, d], row i is the positive of query i.
    temperature: τ.

  Returns:
    The mean loss, float32 scalar, and the share of queries whose own key is
    the nearest.
  """
  q, k = normalize(queries), normalize(jax.lax.stop_gradient(keys))
  logits = _similarity(q, k) / temperature
  labels = jnp.arange(logits.shape[0])
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  hits = jnp.argmax(logits, axis=-1) == labels
  return 2 * temperature * jnp.mean(loss), jnp.mean(hits.astype(jnp.float32))


def nt_xent(
  z1: jax.Array, z2: jax.Array, *, temperature: float
) -> tuple[jax.Array, jax.Array]:
  """SimCLR's contrastive loss (Chen et al., arXiv:2002.05709, eq. 1).

  Every row is an anchor. Its cross-entropy is over all 2b − 1 other rows of
  both views, exp(n(z)·n(z')/τ), with its partner in the other view as the
  label. Both views get a gradient, as anchors and as candidates.

  Differs from the paper: the sum of the two views' means, as the authors' code
  # has it, which is twice the paper's mean over the 2b anchors.

  Args:
    z1: [b, d], first view.
    z2: [b, d], second view; row i belongs to row i of the first.
    temperature: τ.

  Returns:
    The loss, float32 scalar, and the share of anchors whose partner is the
    nearest of their 2b − 1 candidates.
  """
  a, b = normalize(z1), normalize(z2)
  first, second = _one_view(a, b, temperature), _one_view(b, a, temperature)
  return first[0] + second[0], (first[1] + second[1]) / 2


def _one_view(anchors, partners, temperature):
  """Mean cross-entropy and hits of the anchors of one view."""
  b = anchors.shape[0]
  candidates = jnp.concatenate([partners, anchors])
  logits = _similarity(anchors, candidates) / temperature
  rows, columns = jnp.arange(b), jnp.arange(2 * b)
  own = rows[:, None] + b == columns
  logits = jnp.where(own, -jnp.inf, logits)
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, rows)
  hits = jnp.argmax(logits, axis=-1) == rows
  return jnp.mean(loss), jnp.mean(hits.astype(jnp.float32))


def negative_cosine(p: jax.Array, z: jax.Array) -> jax.Array:
  """SimSiam's D(p, z) = −n(p)·n(z) (Chen & He, arXiv:2011.10566, eq. 1).

  Args:
    p: predictions [b, d].
    z: targets [b, d]; they get no gradient.

  Returns:
    The mean over the batch, float32 scalar in [−1, 1].
  """
  target = normalize(jax.lax.stop_gradient(z))
  return -jnp.mean(jnp.sum(normalize(p) * target, axis=-1))


def regression(p: jax.Array, z: jax.Array) -> jax.Array:
  """BYOL's ‖n(p) − n(z)‖² = 2 − 2cos (Grill et al., arXiv:2006.07733, eq. 2).

  Args:
    p: predictions [b, d].
    z: targets [b, d]; they get no gradient.

  Returns:
    The mean over the batch, float32 scalar in [0, 4].
  """
  difference = normalize(p) - normalize(jax.lax.stop_gradient(z))
  return jnp.mean(jnp.sum(jnp.square(difference), axis=-1))


def queue_nce(
  queries: jax.Array, keys: jax.Array, queue: jax.Array, *, temperature: float
) -> tuple[jax.Array, jax.Array]:
  """MoCo's contrast with a queue (He et al., arXiv:1911.05722, eq. 1).

  Cross-entropy of [n(q)·n(k) | n(q)·queue] / τ with label 0: the negatives are
  what the queue holds, not the other keys of the batch. MoCo v2 and MoBY (once
  per view, each with its own queue) share it. Only queries get a gradient.

  Args:
    queries: [b, d].
    keys: [b, d], row i is the positive of query i.
    queue: normalised keys of earlier steps, [k, d]; see `pretrain.queues`.
    temperature: τ.

  Returns:
    The mean loss, float32 scalar, and the share of queries that are nearer to
    their own key than to all of the queue.
  """
  q, k = normalize(queries), normalize(jax.lax.stop_gradient(keys))
  positive = jnp.sum(q * k, axis=-1) / temperature
  negatives = _similarity(q, jax.lax.stop_gradient(queue)) / temperature
  # log(e^pos + Σ e^neg) − pos, without a copy of [b, k] that has one more
  # column.
  others = jax.nn.logsumexp(negatives, axis=-1)
  loss = jax.nn.softplus(others - positive)
  hits = positive >= jnp.max(negatives, axis=-1)
  return jnp.mean(loss), jnp.mean(hits.astype(jnp.float32))


def dino(
  student: Sequence[jax.Array],
  teacher: Sequence[jax.Array],
  centre: jax.Array,
  *,
  student_temperature: Temperature,
  teacher_temperature: Temperature,
) -> jax.Array:
  """Cross-entropy between crops (Caron et al., arXiv:2104.14294, eq. 3).

  With P_i = softmax((t_i − c) / τ_t) and S_j = softmax(s_j / τ_s), the mean of
  −Σ P_i log S_j over the batch and over all pairs of a teacher's global crop i
  and a student's crop j that is not the same crop: 2n + 2 pairs for two global
  and n local crops.

  A student's crop is met by the sum W of its teachers, so that each array
  of logits is gone through once, whatever the number of pairs:
  −Σ W log S = m log Σ exp(s/τ_s) − Σ W s/τ_s for m teachers.

  Args:
    student: logits [b, k] of every crop, the global ones first.
    teacher: logits [b, k] of the global crops, in the same order; they get no
      gradient.
    centre: [k], subtracted from the teacher's logits; gets no gradient.
    student_temperature: τ_s, a number or a traced scalar.
    teacher_temperature: τ_t, likewise.

  Returns:
    The loss, float32 scalar.

  Raises:
    ValueError: if there is no pair, or a global crop has no student.
  """
  pairs = len(teacher) * (len(student) - 1)
  if pairs <= 0 or len(student) < len(teacher):
    raise ValueError(
      f'{len(teacher)} crops of the teacher and {len(student)} of the student: '
      'the student needs all crops of the teacher, and another one'
    )
  targets = [
    _targets(logits, centre, teacher_temperature) for logits in teacher
  ]
  everyone = sum(targets)
  total = 0.0
  for j, logits in enumerate(student):
    others = [target for i, target in enumerate(targets) if i != j]
    target = sum(others) if j < len(teacher) else everyone
    total += _cross_entropy(target, len(others), logits, student_temperature)
  return total / pairs


def _targets(logits, centre, temperature):
  """Softmax((t − c) / τ), float32, without gradient."""
  logits = logits.astype(jnp.float32) - centre.astype(jnp.float32)
  return jax.nn.softmax(jax.lax.stop_gradient(logits / temperature), axis=-1)


def _cross_entropy(target, mass, logits, temperature):
  """−Σ target · log_softmax(logits / τ) by mean; target sums to `mass`."""
  logits = logits.astype(jnp.float32) / temperature
  # From the largest on, so that the two terms do not cancel.
  logits -= jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
  total = jnp.log(jnp.sum(jnp.exp(logits), axis=-1))
  return jnp.mean(mass * total - jnp.sum(target * logits, axis=-1))


def update_centre(
  centre: jax.Array, teacher: Sequence[jax.Array], momentum: Temperature
) -> jax.Array:
  """The centre c ← m c + (1 − m) · mean of the teacher's logits (eq. 4).

  The mean is over the whole batch and all crops, of logits neither divided by
  a temperature nor centred. The authors' code does this after the loss.

  Args:
    centre: [k] float32; 0 at the start of a run.
    teacher: logits [b, k] of the global crops.
    momentum: m, 0.9 in the paper.

  Returns:
    [k] float32.
  """
  means = [jnp.mean(x.astype(jnp.float32), axis=0) for x in teacher]
  mean = jax.lax.stop_gradient(sum(means) / len(means))
  return centre * momentum + mean * (1 - momentum)


def absolute_error(prediction: jax.Array, target: jax.Array) -> jax.Array:
  """|prediction − target|, averaged over the last axis, float32."""
  difference = prediction.astype(jnp.float32) - target.astype(jnp.float32)
  return jnp.mean(jnp.abs(difference), axis=-1)


def squared_error(prediction: jax.Array, target: jax.Array) -> jax.Array:
  """(prediction − target)², averaged over the last axis, float32."""
  difference = prediction.astype(jnp.float32) - target.astype(jnp.float32)
  return jnp.mean(jnp.square(difference), axis=-1)


def smooth_l1(prediction: jax.Array, target: jax.Array) -> jax.Array:
  """Twice the smooth L1 distance with β = 1, mean over the last axis.

  Like `squared_error` near 0 and like twice the absolute one beyond 1
  (MaskAlign's `2 · smooth_l1`, Xue et al., 2023).

  Args:
    prediction: [..., f].
    target: [..., f].

  Returns:
    [...] float32.
  """
  distance = jnp.abs(prediction.astype(jnp.float32) - target)
  near = jnp.square(distance)
  return jnp.where(distance < 1, near, 2 * distance - 1).mean(axis=-1)


def cosine_distance(prediction: jax.Array, target: jax.Array) -> jax.Array:
  """2 − 2 cos over the last axis (MILAN, Hou et al., 2022).

  Args:
    prediction: [..., f].
    target: [..., f].

  Returns:
    [...] float32, 0 to 4.
  """
  return 2 - 2 * jnp.sum(normalize(prediction) * normalize(target), axis=-1)


def _similarity(x: jax.Array, y: jax.Array) -> jax.Array:
  """X yᵀ of normalised rows, float32."""
  # A product in bfloat16 passes would be an error of 1e-2 / τ in the logits.
  return jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
