"""The linear system of equation (8), on the host: a ridge regression.

`gram + k I` is symmetric and positive definite, and most of the time its diagonal
outweighs the rest of each row. With many classes that allows float32, and a few passes
over a sparse matrix in place of a factorization: of order K³ operations at first, of
order K times the number of different pairs then.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

MANY_CLASSES = 500  # with fewer, the plain float64 solution takes a few milliseconds
DOMINANT = 0.9  # the most that the rest of a row may have of its diagonal, else float64
SPARSE = 0.004  # the share of entries up to which a sparse matrix is faster
COLUMNS = 128  # that are solved at a time: as many as stay in a core's cache


def solve(
    gram: np.ndarray, cross: np.ndarray, table: np.ndarray, k: float
) -> np.ndarray:
    """`inv(gram + k I) @ (cross + k table)`, each entry to 1e-5 or better.

    Args:
        gram: M, `(num_classes, num_classes)`, symmetric.
        cross: N, `(num_classes, num_classes)`.
        table: S, `(num_classes, num_classes)`, from 0 to 1.
        k: positive.

    Returns:
        `(num_classes, num_classes)`, a new array.
    """
    if len(gram) < MANY_CLASSES:
        return _float64(gram, cross, table, k)
    diagonal = gram.diagonal().astype("float64") + k
    share = float(np.max(_rest_of_rows(gram) / diagonal))
    if share > DOMINANT:
        return _float64(gram, cross, table, k)
    if np.count_nonzero(gram) > SPARSE * gram.size:
        return _cholesky(gram, cross, table, k, diagonal)
    return _chebyshev(gram, cross, table, k, diagonal)


def _rest_of_rows(gram: np.ndarray) -> np.ndarray:
    """What each row has beside its diagonal, in absolute values."""
    sums = [np.abs(rows).sum(axis=1, dtype="float64") for rows in parts(gram)]
    return np.maximum(np.concatenate(sums) - np.abs(gram.diagonal()), 0.0)


def parts(matrix: np.ndarray) -> list[np.ndarray]:
    """Blocks of rows, so that what is computed of one needs little memory."""
    return np.array_split(matrix, math.ceil(len(matrix) / 512))


def _float64(
    gram: np.ndarray, cross: np.ndarray, table: np.ndarray, k: float
) -> np.ndarray:
    system, goal = np.array(gram, "float64"), np.array(cross, "float64")
    system[np.diag_indices(len(gram))] += k
    goal += np.multiply(k, table, dtype="float64")
    return np.linalg.solve(system, goal)


def _cholesky(
    gram: np.ndarray,
    cross: np.ndarray,
    table: np.ndarray,
    k: float,
    diagonal: np.ndarray,
) -> np.ndarray:
    """In float32 and in place, scaled to a diagonal of ones.

    LAPACK takes the rows of `goal` for columns. It solves from the right, so that
    nothing has to be transposed: `goal.T @ inv(L.T) @ inv(L)`.
    """
    from scipy.linalg import blas, cho_factor

    scale = (1 / np.sqrt(diagonal)).astype("float32")
    system = np.array(gram, "float32")
    system *= scale
    system *= scale[:, None]
    np.fill_diagonal(system, 1.0)
    goal = np.array(cross, "float32")
    for new, old, row_scale in zip(*map(parts, (goal, table, scale)), strict=True):
        new += np.float32(k) * old
        new *= row_scale[:, None]
    factor, _ = cho_factor(system.T, lower=True, overwrite_a=True, check_finite=False)
    for transposed in (1, 0):
        goal = blas.strsm(
            1.0, factor, goal.T, side=1, lower=1, trans_a=transposed, overwrite_b=1
        ).T
    goal *= scale[:, None]
    return goal


def _chebyshev(
    gram: np.ndarray,
    cross: np.ndarray,
    table: np.ndarray,
    k: float,
    diagonal: np.ndarray,
) -> np.ndarray:
    """Jacobi's iteration `x = (goal - rest @ x) / diagonal`, accelerated.

    Chebyshev semi-iteration, Golub and Varga 1961: that the eigenvalues of `jacobi` lie
    within `radius` of zero tells beforehand how many steps are enough. Rows that
    nothing couples with another take none.
    """
    from scipy.sparse import csr_array

    rest = csr_array(gram, dtype="float32")
    rest.setdiag(0.0)
    rest.eliminate_zeros()
    coupled = np.flatnonzero(np.diff(rest.indptr))
    jacobi = rest[coupled][:, coupled]
    jacobi.data /= -np.repeat(diagonal[coupled], np.diff(jacobi.indptr))
    radius = _radius(abs(jacobi))
    spread = math.sqrt(diagonal.max() / diagonal.min())
    steps = _steps(radius, 1e-6 / spread)
    solution = np.array(cross, "float32")
    for new, old, entries in zip(*map(parts, (solution, table, diagonal)), strict=True):
        new += np.float32(k) * old
        new /= entries[:, None].astype("float32")

    def solve_columns(first: int) -> None:
        part = slice(first, first + COLUMNS)
        goal = solution[coupled, part]
        old, x, omega = goal, goal, 1.0
        for step in range(steps):
            new = jacobi @ x
            new += goal
            if step > 0:
                omega = 1 / (1 - radius**2 * (omega / 4 if step > 1 else 0.5))
                new -= old
                new *= np.float32(omega)
                new += old
            old, x = x, new
        solution[coupled, part] = x

    if len(coupled):
        with ThreadPoolExecutor() as threads:
            list(threads.map(solve_columns, range(0, len(gram), COLUMNS)))
    return solution


def _radius(matrix: Any) -> float:
    """A bound, from above, of the eigenvalues of a matrix without negative entries.

    Collatz and Wielandt: `max(matrix @ v / v)` for any positive `v`.
    """
    v = np.ones(matrix.shape[0])
    for _ in range(20):
        v = v + matrix @ v
        v /= v.max(initial=1.0)
    return float((matrix @ v / v).max(initial=0.0))


def _steps(radius: float, wanted: float) -> int:
    """After how many the error is `wanted` times what it was."""
    if radius == 0.0:
        return 1
    factor = radius / (1 + math.sqrt(1 - radius**2))
    return 1 + math.ceil(math.log(wanted / 2) / math.log(factor))
