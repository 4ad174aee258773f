"""Equations (4) and (7) for pairs of classes: two rows of a table, not a product.

A label of at most two classes takes two rows of S, and adds to two rows of N and to
four entries of M; the products of equations.py touch all of them. With many classes
that is much faster. Each step looks
at its labels: a batch with a label of three classes or more takes the products.
"""

import inspect
from typing import Any

import keras
from keras import ops

from keras_mixavg import equations

Tensor = Any

MANY_CLASSES = 500  # from which on the products are slower, on each backend


def pay(num_classes: int) -> bool:
    """Whether to look for pairs.

    Not on torch, where the choice would make the host wait for the device, nor in an
    older Keras, whose `scatter_update` cannot add.
    """
    return (
        num_classes >= MANY_CLASSES
        and keras.backend.backend() != "torch"
        and "reduction" in inspect.signature(ops.scatter_update).parameters
    )


def global_soft_labels(labels: Tensor, table: Tensor) -> Tensor:
    """Equation (4), as `equations.global_soft_labels`, in the dtype of `labels`."""
    num_classes = table.shape[-1]

    def products() -> Tensor:
        return equations.global_soft_labels(labels, ops.cast(table, labels.dtype))

    def rows() -> Tensor:
        global_labels = ops.zeros_like(labels)
        for number, share in _two_classes(labels, num_classes):
            row = ops.cast(ops.take(table, number, axis=0), labels.dtype)
            global_labels = global_labels + ops.expand_dims(share, -1) * row
        return global_labels

    if not pay(num_classes):
        return products()
    return ops.cond(_all_pairs(labels), rows, products)


def added_evidence(
    evidence: Tensor,
    mass: Tensor,
    labels: Tensor,
    probabilities: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor]:
    """Equation (7): N and M with one batch added, as by `equations.evidence`.

    Args:
        evidence: N, `(num_classes, num_classes)`.
        mass: M, `(num_classes, num_classes)`.
        labels: local soft labels, `(..., num_classes)`.
        probabilities: `(..., num_classes)`.
        weights: `(...)`.
    """
    num_classes = mass.shape[-1]
    at_positions = len(labels.shape) > 2
    labels = ops.reshape(labels, (-1, num_classes))
    probabilities = ops.reshape(probabilities, (-1, num_classes))
    weights = ops.reshape(weights, (-1,))

    def products() -> tuple[Tensor, Tensor]:
        return (
            evidence + equations.evidence(labels, probabilities, weights),
            mass + equations.evidence(labels, labels, weights),
        )

    def rows() -> tuple[Tensor, Tensor]:
        (first, share), (second, other) = _two_classes(labels, num_classes)
        of_first, of_second = weights * share, weights * other
        new_evidence = _added(
            evidence,
            [(first,), (second,)],
            [
                ops.expand_dims(of_first, -1) * probabilities,
                ops.expand_dims(of_second, -1) * probabilities,
            ],
        )
        new_mass = _added(
            mass,
            [(first, first), (first, second), (second, first), (second, second)],
            [of_first * share, of_first * other, of_second * share, of_second * other],
        )
        return new_evidence, new_mass

    # A row takes its samples one by one, and a float32 that counts 2**24 of them takes
    # no more. Labels at each position of a sample can be as many; a product adds sums.
    if at_positions or not pay(num_classes):
        return products()
    return ops.cond(_all_pairs(labels), rows, products)


def _all_pairs(labels: Tensor) -> Tensor:
    return ops.all(ops.sum(ops.cast(labels != 0, "int32"), axis=-1) <= 2)


def _two_classes(labels: Tensor, num_classes: int) -> list[tuple[Tensor, Tensor]]:
    """The two classes that have the most of each label: `(numbers, shares)` of each.

    Of a one-hot label the second has a share of 0.
    """
    found = []
    rest = labels
    for _ in range(2):
        number = ops.argmax(rest, axis=-1)
        share = ops.take_along_axis(labels, ops.expand_dims(number, -1), axis=-1)
        found.append((number, ops.squeeze(share, -1)))
        taken = ops.one_hot(number, num_classes, dtype=labels.dtype)
        rest = ops.where(taken > 0, -1.0, rest)
    return found


def _added(array: Tensor, indices: list[tuple[Tensor, ...]], values: list) -> Tensor:
    """`array`, with `values[i]` added at `indices[i]`, duplicates added up."""
    where = ops.concatenate([ops.stack(index, axis=-1) for index in indices])
    return ops.scatter_update(array, where, ops.concatenate(values), reduction="add")
