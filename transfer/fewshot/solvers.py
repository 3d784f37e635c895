"""Linear classifiers of few features: logistic regression, ridge regression."""

import warnings
from collections.abc import Sequence

import numpy as np
from absl import logging


def scale(
  train: np.ndarray, test: np.ndarray, how: str
) -> tuple[np.ndarray, np.ndarray]:
  """Brings features to a common scale.

  Args:
    train: float [n, d].
    test: float [q, d].
    how: 'unit', every feature vector of length 1; 'standardize', every channel
      of mean 0 and standard deviation 1 over `train`; 'none'.

  Returns:
    Both as float64.
  """
  train, test = train.astype(np.float64), test.astype(np.float64)
  if how == 'unit':
    norms = [np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test)]
    train, test = (
      x / np.maximum(norm, 1e-12)
      for x, norm in zip((train, test), norms, strict=True)
    )
  elif how == 'standardize':
    mean, std = train.mean(axis=0), train.std(axis=0)
    # Of one image, or a channel that is the same everywhere.
    std = np.where(std > 1e-9 * np.maximum(np.abs(mean), 1e-9), std, 1.0)
    train, test = (train - mean) / std, (test - mean) / std
  return train, test


def logistic(
  train: np.ndarray,
  labels: np.ndarray,
  test: np.ndarray,
  *,
  penalty: float,
  iterations: int = 1000,
) -> np.ndarray:
  """Log-probabilities by scikit-learn's multinomial logistic regression.

  The penalty is iBOT's λ (Zhou et al., 2022, `eval_logistic_regression.py`):
  mean cross-entropy + λ/2 ‖W‖². Scikit-learn's C multiplies the sum instead, so
  that C = 1 / (λ n).
  # Differs from iBOT: an intercept, which is not penalised; L-BFGS.

  Args:
    train: float64 [n, d].
    labels: int [n], at least two of them differ.
    test: float64 [q, d].
    penalty: λ.
    iterations: of L-BFGS, at most.

  Returns:
    [q, classes in `labels`, increasing].
  """
  from sklearn.exceptions import ConvergenceWarning
  from sklearn.linear_model import LogisticRegression

  model = LogisticRegression(C=1 / (penalty * len(train)), max_iter=iterations)
  with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter('always', ConvergenceWarning)
    model.fit(train, labels)
  if any(issubclass(w.category, ConvergenceWarning) for w in told):
    logging.warning(
      'logistic regression with λ=%g stopped after %d iterations without '
      'converging; set config.fewshot.iterations higher',
      penalty,
      iterations,
    )
  return model.predict_log_proba(test)


def ridge(
  train: np.ndarray,
  labels: np.ndarray,
  test: np.ndarray,
  *,
  penalties: Sequence[float],
) -> list[np.ndarray]:
  """Scores by ridge regression on targets of -1 and +1, in closed form.

  ‖XW + 1b - Y‖² + α ‖W‖², the intercept not penalised: what scikit-learn's
  `Ridge` minimises. One decomposition, of [d, d] or, for fewer images than
  channels, of [n, n], serves every α.

  Args:
    train: float64 [n, d].
    labels: int [n].
    test: float64 [q, d].
    penalties: α, above 0.

  Returns:
    For every α [q, classes in `labels`, increasing].
  """
  targets = np.where(labels[:, None] == np.unique(labels), 1.0, -1.0)
  mean, offset = train.mean(axis=0), targets.mean(axis=0)
  x, y, test = train - mean, targets - offset, test - mean
  if len(x) < x.shape[1]:  # W = Xᵀ (X Xᵀ + α)⁻¹ Y
    values, basis = np.linalg.eigh(x @ x.T)
    left, right = test @ (x.T @ basis), basis.T @ y
  else:  # W = (Xᵀ X + α)⁻¹ Xᵀ Y
    values, basis = np.linalg.eigh(x.T @ x)
    left, right = test @ basis, basis.T @ (x.T @ y)
  values = np.maximum(values, 0)[:, None]
  return [left @ (right / (values + a)) + offset for a in penalties]
