"""The linear system of equation (8), on the host: a ridge regression.

`gram + k I` is symmetric and positive definite. With many classes its diagonal most
often outweighs the rest of each row, and a Cholesky factorization in float32 is then
exact enough.
"""

import math

import numpy as np

MANY_CLASSES = 500  # with fewer, the float64 solution takes a few milliseconds
MAX_OFF_DIAGONAL = 0.9  # of a row, as a share of its diagonal; above it float64


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
    if np.max(_off_diagonal(gram) / diagonal) > MAX_OFF_DIAGONAL:
        return _float64(gram, cross, table, k)
    return _cholesky(gram, cross, table, k, diagonal)


def _off_diagonal(gram: np.ndarray) -> np.ndarray:
    """The sum of each row without its diagonal, in absolute values."""
    sums = [np.abs(rows).sum(axis=1, dtype="float64") for rows in row_blocks(gram)]
    return np.maximum(np.concatenate(sums) - np.abs(gram.diagonal()), 0.0)


def row_blocks(matrix: np.ndarray) -> list[np.ndarray]:
    """The rows in blocks: a copy of one block needs little memory."""
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

    LAPACK reads the rows of `goal` as columns. Solving from the right saves a
    transposition: `goal.T @ inv(L.T) @ inv(L)`.
    """
    from scipy.linalg import blas, cho_factor

    scale = (1 / np.sqrt(diagonal)).astype("float32")
    system = np.array(gram, "float32")
    system *= scale
    system *= scale[:, None]
    np.fill_diagonal(system, 1.0)
    goal = np.array(cross, "float32")
    blocks = zip(*map(row_blocks, (goal, table, scale)), strict=True)
    for goal_rows, table_rows, row_scale in blocks:
        goal_rows += np.float32(k) * table_rows
        goal_rows *= row_scale[:, None]
    factor, _ = cho_factor(system.T, lower=True, overwrite_a=True, check_finite=False)
    for transposed in (1, 0):
        goal = blas.strsm(
            1.0, factor, goal.T, side=1, lower=1, trans_a=transposed, overwrite_b=1
        ).T
    goal *= scale[:, None]
    return goal
