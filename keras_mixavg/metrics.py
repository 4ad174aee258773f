"""SoftLabelAccuracy: accuracy for averaged pairs."""

from typing import Any

import keras

from keras_mixavg import equations


@keras.saving.register_keras_serializable(package="keras_mixavg")
class SoftLabelAccuracy(keras.metrics.MeanMetricWrapper):
    """How often the top prediction is a class with the largest label mass.

    Per sample `y_true[argmax(y_pred)] / max(y_true)`: one if the prediction is either
    class of an averaged pair, and ordinary accuracy on one-hot labels. (Keras'
    "accuracy" takes the argmax of the label too, which settles the tie of a pair in
    favour of the lower class number.)

    Args:
        name: name of the metric, "accuracy" by default.
        dtype: as in `keras.metrics.Metric`.

    Call arguments:
        y_true: one-hot or soft labels, `(..., num_classes)`, or class numbers, `(...)`
            or `(..., 1)`.
        y_pred: logits or probabilities, `(..., num_classes)`.
        sample_weight: optional, `(...)`.

    Raises:
        ValueError: if `y_true` and `y_pred` differ in shape.

    Example:

    >>> accuracy = SoftLabelAccuracy()
    >>> accuracy.update_state([[0.5, 0.0, 0.5], [1, 0, 0]], [[0, 1, 2], [0, 1, 2]])
    >>> float(accuracy.result())
    0.5
    """

    def __init__(self, name: str = "accuracy", dtype: Any = None) -> None:
        super().__init__(fn=_accuracy, name=name, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype}


def _accuracy(y_true: Any, y_pred: Any) -> Any:
    y_pred = keras.ops.convert_to_tensor(y_pred)
    y_true = equations.one_hot(keras.ops.convert_to_tensor(y_true), y_pred)
    y_true = keras.ops.cast(y_true, "float32")
    if len(y_true.shape) != len(y_pred.shape) or y_true.shape[-1] != y_pred.shape[-1]:
        raise ValueError(
            "`y_true` and `y_pred` must have the same shape (..., num_classes). "
            f"Received: y_true.shape={tuple(y_true.shape)}, "
            f"y_pred.shape={tuple(y_pred.shape)}. One-hot encode the labels, e.g. with "
            "MixAvg(num_classes=...) or keras.utils.to_categorical."
        )
    mass = equations.top_label_mass(y_true, y_pred)
    return keras.ops.divide_no_nan(mass, keras.ops.max(y_true, axis=-1))
