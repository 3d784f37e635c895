"""Optimisers as the papers state them: fields of `config.optim`."""

from ml_collections import config_dict


def optim(
  name: str,
  *,
  base_lr: float,
  decay: float,
  warmup_epochs: float,
  per: int = 256,
  schedule: str = 'cosine',
  milestones: tuple[float, ...] = (),
  warmup_lr: float = 0.0,
  end_lr: float = 0.0,
  scale_end_lr: bool = False,
  end_decay: float | None = None,
  exclude_vectors: bool = False,
  exclude: str = '',
  clip: float = 0.0,
  clip_per: str = 'scope',
  **hyper: float,
) -> dict:
  """How the run is optimised; see `training.recipe`.

  Args:
    name: 'adamw', 'sgd' or 'lars'.
    base_lr: highest rate per `per` images: the rate is base_lr · batch / per.
    decay: weight decay.
    warmup_epochs: length of the warm-up.
    per: see `base_lr`.
    schedule: one of `training.recipe.SCHEDULES`.
    milestones: where in the run (0 to 1) the rate falls, for schedule 'steps';
      each time it is multiplied by `step_factor`, 0.1.
    warmup_lr: rate at the beginning of the warm-up, per `per` images.
    end_lr: rate at the end.
    scale_end_lr: `end_lr` is per `per` images too.
    end_decay: decay at the end of a cosine from `decay`; None: constant.
    exclude_vectors: biases and scales do not decay (LARS: nor adapt).
    exclude: pattern of whole parameter paths that do not either; '' for none.
    clip: gradients are clipped to this norm; 0: not.
    clip_per: 'scope', one norm over all parameters, or 'tensor'.
    **hyper: numbers of the optimiser itself.
  """
  placeholder = config_dict.placeholder(float)
  return dict(
    name=name,
    base_lr=base_lr,
    per=per,
    decay=decay,
    end_decay=placeholder if end_decay is None else end_decay,
    exclude_vectors=exclude_vectors,
    exclude=exclude,
    schedule=schedule,
    milestones=milestones,
    step_factor=0.1,  # of the rate at each milestone, for schedule 'steps'
    warmup_epochs=warmup_epochs,
    warmup_lr=warmup_lr,
    end_lr=end_lr,
    scale_end_lr=scale_end_lr,
    clip=clip,
    clip_per=clip_per,
    hyper=hyper,
  )


def adamw(**fields) -> dict:
  """AdamW with PyTorch's numbers; see `optim`."""
  return optim(
    'adamw',
    **dict(
      b1=0.9,  # decay rate of the mean of gradients
      b2=0.999,  # decay rate of the mean of squared gradients
      eps=1e-8,  # added to the denominator of the update
    )
    | fields,
  )


def lars(**fields) -> dict:
  """LARS as in MoCo v3's and BYOL's code; biases and scales do not adapt."""
  return optim(
    'lars',
    **dict(
      momentum=0.9,  # share of the velocity that a step keeps
      trust=1e-3,  # coefficient of the ratio |parameter| / |update|
      classic=False,  # True: the rate is inside the velocity, as in SimCLR
      exclude_vectors=True,
    )
    | fields,
  )


def sgd(**fields) -> dict:
  """SGD as linear probes use it: momentum 0.9, no decay unless given."""
  return optim(
    'sgd', **dict(momentum=0.9, decay=0.0, warmup_epochs=0.0) | fields
  )
