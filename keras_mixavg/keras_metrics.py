"""Which metrics of Keras fit which labels: class numbers, rows, averaged pairs."""

from collections.abc import Iterable

import keras

NUMBERS, ROWS = "class numbers", "one-hot or soft labels"
OF_ONE_CLASS = (  # they take the argmax of the label
    keras.metrics.CategoricalAccuracy,
    keras.metrics.TopKCategoricalAccuracy,
    keras.metrics.OneHotIoU,
    keras.metrics.OneHotMeanIoU,
)
OF_ANY_FUNCTION = (keras.metrics.Mean, keras.metrics.MeanMetricWrapper)


def takes(metric: keras.metrics.Metric) -> str | None:
    """The labels that a metric takes: `NUMBERS`, `ROWS`, or None for either.

    None also for a metric that is not Keras' own.
    """
    kind = type(metric)
    if not kind.__module__.startswith("keras.") or kind in OF_ANY_FUNCTION:
        return None
    if getattr(metric, "sparse_y_true", False):
        return None
    return NUMBERS if kind.__name__.startswith("Sparse") else ROWS


def check(
    metrics: Iterable[keras.metrics.Metric],
    y_true: tuple[int | None, ...],
    y_pred: tuple[int | None, ...],
    phase: str,
) -> None:
    """Refuse metrics that would fail on these labels or be meaningless.

    Args:
        metrics: those that get the labels.
        y_true: the shape of the labels as given.
        y_pred: the shape of the predictions.
        phase: `"training"` or `"evaluation"`, for the message.
    """
    column = len(y_true) == len(y_pred) and y_true[-1] == 1
    given = NUMBERS if column or len(y_true) < len(y_pred) else ROWS
    for metric in metrics:
        if takes(metric) not in (None, given):
            raise ValueError(
                f"The metric {metric.name!r}, a {type(metric).__name__} of Keras, "
                f"takes {takes(metric)}. Received: {given} of shape {y_true} in "
                f"{phase}. {_advice(metric, given)}"
            )


def _advice(metric: keras.metrics.Metric, given: str) -> str:
    name = type(metric).__name__
    if name.endswith("TopKCategoricalAccuracy"):
        return (
            f"Compile with metrics=[keras_mixavg.SoftLabelTopKAccuracy(k={metric.k})], "
            "which takes both."
        )
    if name.endswith("CategoricalAccuracy"):
        chosen = " (Keras chooses for `accuracy` by the first batch.)"
        return (
            "Compile with metrics=[keras_mixavg.SoftLabelAccuracy()], which takes "
            f"both.{chosen if metric.name in ('accuracy', 'acc') else ''}"
        )
    if given == NUMBERS:
        return (
            "One-hot encode these labels, e.g. with keras.utils.to_categorical(labels, "
            "num_classes) or tf.one_hot, or leave the metric out."
        )
    return f"Compile with keras.metrics.{name.removeprefix('Sparse')}() instead."


def of_one_class(
    metrics: Iterable[keras.metrics.Metric],
) -> list[keras.metrics.Metric]:
    """The metrics that count only the lower class number of a pair as right."""
    return [metric for metric in metrics if isinstance(metric, OF_ONE_CLASS)]
