"""SoftLabelAccuracy and SoftLabelTopKAccuracy: accuracy on averaged pairs."""

from typing import Any

import keras
from keras import ops

from keras_mixavg import checks, equations


@keras.saving.register_keras_serializable(package="keras_mixavg")
class SoftLabelAccuracy(keras.metrics.MeanMetricWrapper):
    """The label mass of the top prediction, relative to the largest.

    Per sample `y_true[argmax(y_pred)] / max(y_true)`: one if the prediction is either
    class of an averaged pair, ordinary accuracy on one-hot labels, and a fraction on
    other soft labels. (Keras' "accuracy" takes the argmax of the label too, so only the
    lower class number of a pair is right. docs/metrics.md of the repository lists the
    metrics that work.)

    Args:
        name: name of the metric, "accuracy" by default.
        dtype: as in `keras.metrics.Metric`.

    Call arguments:
        y_true: one-hot or soft labels, `(..., num_classes)`, or class numbers, `(...)`
            or `(..., 1)`.
        y_pred: logits or probabilities, `(..., num_classes)`.
        sample_weight: optional, `(...)`.

    Raises:
        ValueError: if `y_true` is neither class numbers nor rows as wide as `y_pred`.

    Example:

    >>> accuracy = SoftLabelAccuracy()
    >>> accuracy.update_state([[0.5, 0.0, 0.5], [1, 0, 0]], [[0, 1, 2], [0, 1, 2]])
    >>> float(accuracy.result())
    0.5
    """

    _direction = "up"  # callbacks that monitor it look for the largest value

    def __init__(self, name: str = "accuracy", dtype: Any = None) -> None:
        super().__init__(fn=_accuracy, name=name, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype}


@keras.saving.register_keras_serializable(package="keras_mixavg")
class SoftLabelTopKAccuracy(keras.metrics.MeanMetricWrapper):
    """How often a class with the largest label mass is among the top k predictions.

    Per sample the largest `y_true` of the k classes with the highest predictions,
    divided by `max(y_true)`: one if either class of an averaged pair is among them, and
    `keras.metrics.TopKCategoricalAccuracy` on one-hot labels. With `k=1` it is
    `SoftLabelAccuracy`.

    Args:
        k: int of at least 1, the number of predictions that count. 5 by default.
        name: name of the metric, "top_k_accuracy" by default.
        dtype: as in `keras.metrics.Metric`.

    Call arguments:
        y_true, y_pred, sample_weight: as for SoftLabelAccuracy.

    Raises:
        ValueError: if `k` is not a positive integer or exceeds the number of classes,
            or if `y_true` is neither class numbers nor rows as wide as `y_pred`.

    Example:

    >>> accuracy = SoftLabelTopKAccuracy(k=2)
    >>> accuracy.update_state([[0.5, 0.5, 0.0], [1, 0, 0]], [[0, 1, 2], [0, 1, 2]])
    >>> float(accuracy.result())
    0.5
    """

    _direction = "up"

    def __init__(
        self, k: int = 5, name: str = "top_k_accuracy", dtype: Any = None
    ) -> None:
        k = checks.checked_count(k, "k", 1, "the number of predictions that count")
        super().__init__(fn=_top_k_accuracy, name=name, dtype=dtype, k=k)
        self.k: int = k

    def get_config(self) -> dict[str, Any]:
        return {"k": self.k, "name": self.name, "dtype": self.dtype}


def _accuracy(y_true: Any, y_pred: Any) -> Any:
    labels, predictions = _labels_and_predictions(y_true, y_pred)
    mass = equations.top_label_mass(labels, predictions)
    return ops.divide_no_nan(mass, ops.max(labels, axis=-1))


def _top_k_accuracy(y_true: Any, y_pred: Any, k: int) -> Any:
    labels, predictions = _labels_and_predictions(y_true, y_pred)
    if k > predictions.shape[-1]:
        raise ValueError(
            f"`k` must be at most the number of classes, {predictions.shape[-1]}. "
            f"Received: k={k}. Pass a smaller one: SoftLabelTopKAccuracy(k=...)."
        )
    _, top = ops.top_k(predictions, k)
    mass = ops.max(ops.take_along_axis(labels, top, axis=-1), axis=-1)
    return ops.divide_no_nan(mass, ops.max(labels, axis=-1))


def _labels_and_predictions(y_true: Any, y_pred: Any) -> tuple[Any, Any]:
    """Labels as rows in float32, and predictions of the same shape."""
    y_pred = ops.convert_to_tensor(y_pred)
    y_true = equations.one_hot(ops.convert_to_tensor(y_true), y_pred)
    y_true = ops.cast(y_true, "float32")
    if len(y_true.shape) != len(y_pred.shape) or y_true.shape[-1] != y_pred.shape[-1]:
        raise ValueError(
            "`y_true` must be class numbers, (...) or (..., 1), or have the shape of "
            "`y_pred`, (..., num_classes). Received: "
            f"y_true.shape={tuple(y_true.shape)}, y_pred.shape={tuple(y_pred.shape)}. "
            "One-hot encode the labels, e.g. with MixAvg(num_classes=...) or "
            "keras.utils.to_categorical."
        )
    return y_true, y_pred
