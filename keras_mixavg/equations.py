"""The method's equations, one function each; numbers as in README.md, this folder.

`labels` are soft labels: non-negative, summing to one over the last axis. Functions
made of plain operators run on NumPy arrays and on the tensors of every backend.
"""

from typing import Any

import numpy as np
from keras import backend, ops

from keras_mixavg import ridge

Tensor = Any


def pairing(order: Tensor, xp: Any = np) -> Tensor:
    """Equation (1): the cyclic permutation that visits the samples in `order`.

    Args:
        order: `(batch,)` integers, a permutation of `0..batch-1`. A uniformly drawn
            `order` makes all cyclic permutations equally likely.
        xp: the module to compute with, of NumPy's interface.

    Returns:
        `(batch,)` integers: the partner of each sample, `partners[order[i]] =
        order[i + 1]`. Nobody is its own partner unless the batch is one sample.

    Example:

    >>> pairing(np.array([2, 0, 1]))
    array([1, 2, 0])
    """
    return xp.take(xp.roll(order, -1), xp.argsort(order), axis=0)


def average(values: Tensor, partners: Tensor) -> Tensor:
    """Equations (2) and (3): `(values + partners) / 2`, for two tensors of one shape.

    A sample averaged with itself comes back unchanged.

    Example:

    >>> average(np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    array([0.5, 0.5])
    """
    return (values + partners) * 0.5


def average_of_bytes(values: Tensor, partners: Tensor, xp: Any = np) -> Tensor:
    """Equation (2) for uint8, rounded to nearest with halves up, in bytes throughout.

    `a + b` is `2 (a | b) - (a ^ b)`, so no sum has to fit. Compiled by XLA it is
    twice as fast as a conversion to float32 and back.

    Args:
        values: uint8, of any shape.
        partners: uint8, of that shape.
        xp: the module to compute with, of NumPy's interface.

    Example:

    >>> average_of_bytes(np.uint8([3, 255, 0]), np.uint8([4, 255, 0]))
    array([  4, 255,   0], dtype=uint8)
    """
    half_difference = xp.right_shift(xp.bitwise_xor(values, partners), 1)
    return xp.bitwise_or(values, partners) - half_difference


def kind_is_unknown(labels: Tensor, predictions: Tensor) -> bool:
    """Whether the shape of labels leaves open if they are class numbers or rows.

    TensorFlow may know it only when the step runs.
    """
    if getattr(labels.shape, "rank", 0) is None:
        return True
    return len(labels.shape) == len(predictions.shape) and labels.shape[-1] is None


def one_hot(labels: Tensor, predictions: Tensor) -> Tensor:
    """Labels as rows: class numbers become one-hot, rows stay as they are.

    Args:
        labels: class numbers, `(...)` or `(..., 1)`, or soft labels,
            `(..., num_classes)`.
        predictions: `(..., num_classes)`, of more than one class.

    Returns:
        `(..., num_classes)`. A number outside [0, num_classes) becomes a row of zeros,
        a number that is not whole a row of nan.

    Example:

    >>> np.asarray(one_hot(np.array([2, 0]), np.zeros((2, 3))))
    array([[0., 0., 1.],
           [1., 0., 0.]], dtype=float32)
    """
    num_classes = predictions.shape[-1]
    if kind_is_unknown(labels, predictions):
        return ops.cond(
            ops.equal(ops.size(labels), ops.size(predictions)),
            lambda: ops.cast(ops.reshape(labels, ops.shape(predictions)), "float32"),
            lambda: _rows(
                ops.reshape(labels, ops.shape(predictions)[:-1]), num_classes
            ),
        )
    if len(labels.shape) == len(predictions.shape):
        if labels.shape[-1] != 1 or num_classes == 1:
            return labels
        labels = ops.squeeze(labels, -1)
    elif len(labels.shape) + 1 != len(predictions.shape):
        return labels
    return _rows(labels, num_classes)


def _rows(numbers: Tensor, num_classes: int) -> Tensor:
    """One-hot rows: zeros for a class that does not exist, which torch's function
    refuses, and nan for a number that is not whole."""
    classes = ops.arange(num_classes, dtype="int32")
    whole = ops.cast(numbers, "int32")
    rows = ops.cast(ops.equal(ops.expand_dims(whole, -1), classes), "float32")
    dtype = backend.standardize_dtype(numbers.dtype)
    if not backend.is_float_dtype(dtype):
        return rows
    is_whole = ops.cast(ops.equal(ops.cast(whole, dtype), numbers), "float32")
    # No constant nan: a debugger would stop at it though no label is wrong.
    zero_or_nan = ops.sqrt(is_whole - 1.0)
    return rows + ops.expand_dims(zero_or_nan, -1)


def global_soft_labels(labels: Tensor, table: Tensor) -> Tensor:
    """Equation (4): `labels @ table`.

    Args:
        labels: local soft labels, `(..., num_classes)`.
        table: class-wise soft labels, `(num_classes, num_classes)`.

    Returns:
        Global soft labels, `(..., num_classes)`.

    Example:

    >>> global_soft_labels(np.array([0.5, 0.5]), np.array([[0.8, 0.2], [0.4, 0.6]]))
    array([0.6, 0.4])
    """
    return labels @ table


def targets(labels: Tensor, global_labels: Tensor, global_weight: Tensor) -> Tensor:
    """Equation (5): `(1 - global_weight) * labels + global_weight * global_labels`.

    Example:

    >>> targets(np.array([1.0, 0.0]), np.array([0.6, 0.4]), 0.25)
    array([0.9, 0.1])
    """
    return (1.0 - global_weight) * labels + global_weight * global_labels


def fading(epoch: int, epochs: int, fade_out: float) -> float:
    """The weight of equation (5): `min(1, (epochs - epoch) / (fade_out * epochs))`.

    This share of `global_weight` applies in an epoch. It is 1 until the last `fade_out`
    of the epochs, and falls linearly over these; an epoch after the last would have 0.

    Args:
        epoch: int, counted from 0.
        epochs: int, the number of epochs.
        fade_out: float in [0, 1]. With 0 the weight never falls.

    Example:

    >>> [round(fading(epoch, 10, 0.3), 3) for epoch in range(10)]
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.667, 0.333]
    """
    if fade_out == 0:
        return 1.0
    return min(1.0, max(0.0, (epochs - epoch) / (fade_out * epochs)))


def crossentropy(goals: Tensor, predictions: Tensor, from_logits: bool) -> Tensor:
    """Equation (6): `-sum(goals * log(probabilities))` over the last axis.

    This is the function of `keras.losses.CategoricalCrossentropy`.

    Args:
        goals: t, `(..., num_classes)`.
        predictions: logits or probabilities, `(..., num_classes)`.
        from_logits: whether they are logits.

    Returns:
        `(...)`, in nats.

    Example:

    >>> loss = crossentropy([[0.5, 0.5]], [[0.5, 0.5]], from_logits=False)
    >>> np.asarray(loss).round(4)
    array([0.6931], dtype=float32)
    """
    return ops.categorical_crossentropy(goals, predictions, from_logits=from_logits)


def evidence(labels: Tensor, values: Tensor, weights: Tensor) -> Tensor:
    """Equation (7), one batch of it: `sum_i weights_i * outer(labels_i, values_i)`.

    With the probabilities as `values` it adds to N, the cross-product of labels and
    predictions; with the labels to M, their Gram matrix.

    Args:
        labels: local soft labels, `(samples, num_classes)`.
        values: `(samples, num_classes)`.
        weights: `(samples,)`.

    Returns:
        `(num_classes, num_classes)`.

    Example:

    >>> np.asarray(evidence([[1.0, 0.0]], [[0.7, 0.3]], [2.0]))
    array([[1.4, 0.6],
           [0. , 0. ]], dtype=float32)
    """
    weighted = ops.multiply(labels, ops.expand_dims(weights, -1))
    return ops.matmul(ops.transpose(weighted), values)


def batch_evidence(
    labels: Tensor, probabilities: Tensor, sample_weight: Tensor, collect: str
) -> list[Tensor]:
    """Equation (7) over the samples of a batch that count.

    Samples with a value that is not finite, a negative weight, or a label of no class
    are left out; with `collect="correct"`, so are wrong predictions.

    Args:
        labels: local soft labels, `(..., num_classes)` float32.
        probabilities: `(..., num_classes)` float32.
        sample_weight: `(...)` float32.
        collect: `"correct"` or `"all"`.

    Returns:
        What the batch adds to N and M, `(num_classes, num_classes)` each, to the number
        of steps, to the number of unusable samples, and to the number of samples whose
        top classes are tied, as those of a pair are.
    """
    sums = ops.sum(labels, axis=-1) + ops.sum(probabilities, axis=-1) + sample_weight
    usable = ops.isfinite(sums) & (sample_weight >= 0.0)  # finite only if all terms are
    largest = ops.max(labels, axis=-1)
    usable = usable & ((largest > 0.0) | (sample_weight == 0.0))
    counted = usable
    if collect == "correct":
        counted = usable & (top_label_mass(labels, probabilities) >= largest)
    top = ops.cast(ops.equal(labels, ops.expand_dims(largest, -1)), "float32")
    tied = usable & (sample_weight > 0.0) & (ops.sum(top, axis=-1) > 1.0)
    weights = ops.where(counted, sample_weight, 0.0)  # not a product: inf * 0 is nan
    labels, probabilities = (
        ops.reshape(
            ops.where(ops.expand_dims(usable, -1), values, 0.0), (-1, values.shape[-1])
        )
        for values in (labels, probabilities)
    )
    weights = ops.reshape(weights, (-1,))
    return [
        evidence(labels, probabilities, weights),
        evidence(labels, labels, weights),
        ops.ones((), "float32"),
        ops.sum(ops.cast(ops.logical_not(usable), "float32")),
        ops.sum(ops.cast(tied, "float32")),
    ]


def updated_table(
    table: np.ndarray, cross: np.ndarray, gram: np.ndarray, prior_count: float
) -> np.ndarray:
    """Equation (8): `inv(gram + k I) @ (cross + k table)`, then rows to the simplex.

    `k = prior_count + 1e-6 * trace(gram) / num_classes`: the old table counts as `k`
    examples of each class. A class without evidence keeps its row.

    Args:
        table: S, `(num_classes, num_classes)`, rows summing to one.
        cross: N, `(num_classes, num_classes)`.
        gram: M, `(num_classes, num_classes)`.
        prior_count: the number of examples the old table counts for, not negative.

    Returns:
        The new S, `(num_classes, num_classes)`, rows summing to one: in float64, or
        with 500 classes or more perhaps in float32, see `ridge.solve`.

    Example:

    >>> n, m = np.array([[1.6, 1.4], [0, 0]]), np.array([[3.0, 0], [0, 0]])
    >>> updated_table(np.eye(2), n, m, prior_count=1.0).round(3)
    array([[0.65, 0.35],
           [0.  , 1.  ]])
    """
    k = prior_count + 1e-6 * float(np.trace(gram, dtype="float64")) / len(table)
    if k == 0:  # neither evidence nor a prior
        return np.array(table, "float64")
    solution = ridge.solve(gram, cross, table, k)
    np.maximum(solution, 0.0, out=solution)  # in place: the array may be large
    sums = solution.sum(axis=1, keepdims=True)
    solution[sums[:, 0] <= 0] = table[sums[:, 0] <= 0]
    solution /= np.where(sums > 0, sums, 1.0)
    return solution


def top_label_mass(labels: Tensor, predictions: Tensor) -> Tensor:
    """The label's mass on the predicted class: `labels[argmax predictions]`.

    The prediction is correct if no class has more. Either class of a pair is correct.

    Args:
        labels: `(..., num_classes)`.
        predictions: logits or probabilities, `(..., num_classes)`.

    Returns:
        `(...)`, from 0 to 1.

    Example:

    >>> np.asarray(top_label_mass([[0.5, 0.5, 0.0]], [[0.2, 0.7, 0.1]]))
    array([0.5], dtype=float32)
    """
    top = ops.expand_dims(ops.argmax(predictions, axis=-1), -1)
    labels = ops.convert_to_tensor(labels)
    return ops.squeeze(ops.take_along_axis(labels, top, axis=-1), -1)
