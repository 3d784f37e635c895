"""The nearest images of a query, by cosine of their features."""

import numpy as np

from transfer.visualize.projections import unit

CHUNK = 65_536  # of the bank: bounds the similarities in memory


def nearest(
  bank: np.ndarray,
  queries: np.ndarray,
  k: int,
  *,
  without: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """The k most similar rows of a bank for each query.

  Args:
    bank: [n, d].
    queries: [q, d].
    k: how many; at most what the bank has.
    without: int [q], a row of the bank that is the query itself and does not
      count, or -1; None where there is none.

  Returns:
    int [q, k] rows of the bank, most similar first (of equals the first), and
    their cosines, float32.
  """
  bank, queries = unit(bank), unit(queries)
  parts = [queries @ bank[i : i + CHUNK].T for i in range(0, len(bank), CHUNK)]
  cosine = np.concatenate(parts, axis=1)
  others = len(bank)
  if without is not None and (without >= 0).any():
    (rows,) = np.nonzero(without >= 0)
    cosine[rows, without[rows]] = -np.inf
    others -= 1
  order = np.argsort(-cosine, axis=1, kind='stable')[:, : min(k, others)]
  return order, np.take_along_axis(cosine, order, axis=1)
