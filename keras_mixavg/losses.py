"""SoftLabelCrossentropy: the cross-entropy that reads the table."""

import numbers
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_mixavg import equations
from keras_mixavg._keras import get_keras_mask, refuse_multi_worker_strategy
from keras_mixavg.soft_label_table import SoftLabelTable

Tensor = Any


@keras.saving.register_keras_serializable(package="keras_mixavg")
class SoftLabelCrossentropy(keras.losses.Loss):
    """Cross-entropy of local soft labels combined with global soft labels.

    While a `GlobalSoftLabel` callback trains the model, the target of each sample is
    `(1 - global_weight) * label + global_weight * label @ table`. At all other times,
    `evaluate` and validation included, this is `keras.losses.CategoricalCrossentropy`,
    so that `val_loss` compares with any other run.

    The table of soft labels belongs to the loss, and is saved and loaded with the model
    that is compiled with it. A loss with a trained table serves that model only.

    Reference: "Bypassing the Random Input Mixing in Mixup" (OpenReview mLtPtH2SIHX);
    equations (4)-(7) of the method card, README.md in this package.

    Args:
        num_classes: optional int, to have the predictions checked against it; taken
            from the predictions by default.
        global_weight: float in [0, 1], the weight of the global soft label, or a
            callable that takes the epoch (from 0) and returns such a float, e.g. a
            `keras.optimizers.schedules` schedule. 0.75 by default. A float fades
            out at the end of training, see `fade_out` of GlobalSoftLabel; a callable
            alone decides.
        from_logits: whether predictions are logits. False by default: probabilities.
            Which of the two a tensor holds cannot be told from its values; a wrong
            setting goes unnoticed and trains badly.
        name: name of the loss.
        reduction: as in `keras.losses.Loss`, `"sum_over_batch_size"` by default.
        dtype: as in `keras.losses.Loss`. The evidence is float32 in any case.

    Call arguments:
        y_true: local soft labels, one-hot ones included, `(..., num_classes)`.
        y_pred: logits or probabilities, of the same shape.
        sample_weight: optional, `(...)` or a shape that broadcasts to it. It weighs the
            loss as always, and the evidence. A Keras mask on `y_pred` does so too.

    Raises:
        ValueError: for `num_classes` below 2, `global_weight` outside [0, 1] or a
            callable returning such, integer class numbers as `y_true`, shapes that
            differ, predictions of another width than `num_classes` or the table.
        RuntimeError: under `tf.distribute.MultiWorkerMirroredStrategy`, with which
            Keras 3 does not train.

    Example:

    >>> loss = SoftLabelCrossentropy(from_logits=True)
    >>> round(float(loss([[0.5, 0.5]], [[0.0, 0.0]])), 4)
    0.6931
    """

    def __init__(
        self,
        num_classes: int | None = None,
        global_weight: float | Callable[[int], float] = 0.75,
        *,
        from_logits: bool = False,
        name: str = "soft_label_crossentropy",
        reduction: str | None = "sum_over_batch_size",
        dtype: Any = None,
    ) -> None:
        if num_classes is not None and (
            not isinstance(num_classes, numbers.Integral) or num_classes < 2
        ):
            raise ValueError(
                "`num_classes` must be an integer of at least 2, or None to take it "
                f"from the predictions. Received: num_classes={num_classes!r}"
            )
        refuse_multi_worker_strategy()
        if not callable(global_weight):
            _check_weight(global_weight, "global_weight")
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.num_classes = num_classes
        self.global_weight = global_weight
        self.from_logits = from_logits
        self.table = SoftLabelTable()
        self.attached = False  # while GlobalSoftLabel trains
        self.seen_classes: int | None = None  # the width of the last predictions

    def weight_at(self, epoch: int) -> float:
        """The weight of the global soft label in an epoch from 0, before it fades."""
        if not callable(self.global_weight):
            return float(self.global_weight)
        weight = float(self.global_weight(epoch))
        _check_weight(weight, f"global_weight({epoch})")
        return weight

    def __call__(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None
    ) -> Tensor:
        mask = get_keras_mask(y_pred)
        y_true = ops.convert_to_tensor(y_true)
        shape = tuple(ops.convert_to_tensor(y_pred).shape)
        self._check_shapes(tuple(y_true.shape), shape)
        self.seen_classes = shape[-1]
        if self.attached and self.table.num_classes is None:
            self.table.build(shape[-1])
        if self.attached:  # first: Keras on torch multiplies the weights in place
            self._collect(self.table, y_true, y_pred, sample_weight, mask)
        return super().__call__(y_true, y_pred, sample_weight)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        if self.attached:
            y_true = self.table.targets(y_true)
        return equations.crossentropy(y_true, y_pred, self.from_logits)

    def _collect(
        self,
        table: SoftLabelTable,
        y_true: Tensor,
        y_pred: Tensor,
        sample_weight: Tensor | None,
        mask: Tensor | None,
    ) -> None:
        labels = ops.cast(y_true, "float32")
        predictions = ops.cast(y_pred, "float32")
        probabilities = ops.softmax(predictions) if self.from_logits else predictions
        weights = ops.ones_like(labels[..., 0])
        for factor in (sample_weight, mask):
            if factor is not None:
                factor = ops.cast(factor, "float32")
                extra = len(factor.shape) - len(weights.shape)
                if extra == 1:  # (batch, 1) for (batch,)
                    factor = ops.squeeze(factor, -1)
                elif extra == -1 and weights.shape[-1] == 1:  # (batch,) for (batch, 1)
                    factor = ops.expand_dims(factor, -1)
                weights = weights * factor
        table.update_state(labels, probabilities, weights)

    def _check_shapes(self, y_true: tuple, y_pred: tuple) -> None:
        if len(y_true) + 1 == len(y_pred) or (y_true[-1:] == (1,) and y_pred[-1] != 1):
            raise ValueError(
                "`y_true` must hold soft labels of shape (..., num_classes). Received: "
                f"y_true.shape={y_true}, y_pred.shape={y_pred}. Pass the dataset "
                "through MixAvg(num_classes=...), validation data through "
                "MixAvg(rate=0, num_classes=...), or one-hot encode the labels with "
                "keras.utils.to_categorical."
            )
        if y_pred[-1] == 1:
            raise ValueError(
                "`y_pred` must have an entry for each of at least two classes. "
                f"Received: y_pred.shape={y_pred}. Give the model two outputs, or use "
                "keras.losses.BinaryCrossentropy, which needs no table."
            )
        if len(y_true) != len(y_pred) or _differ(y_true[-1], y_pred[-1]):
            raise ValueError(
                "`y_true` and `y_pred` must have the same shape (..., num_classes). "
                f"Received: y_true.shape={y_true}, y_pred.shape={y_pred}. Make the "
                "last layer of the model and the labels agree on the classes."
            )
        for owner, expected in (
            ("num_classes of this loss", self.num_classes),
            ("its soft-label table", self.table.num_classes if self.attached else None),
        ):
            if expected is not None and _differ(y_pred[-1], expected):
                raise ValueError(
                    f"The last axis of `y_pred` must have {expected} entries, as many "
                    f"as {owner}. Received: y_pred.shape={y_pred}. Change the last "
                    "layer of the model or `num_classes`."
                )

    def get_config(self) -> dict[str, Any]:
        weight = self.global_weight
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "global_weight": (
                keras.saving.serialize_keras_object(weight)
                if callable(weight)
                else weight
            ),
            "from_logits": self.from_logits,
            "dtype": self.dtype,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SoftLabelCrossentropy":
        config = dict(config)
        if isinstance(config.get("global_weight"), dict):
            config["global_weight"] = keras.saving.deserialize_keras_object(
                config["global_weight"]
            )
        return cls(**config)


def _check_weight(weight: Any, name: str) -> None:
    if not isinstance(weight, numbers.Real) or not 0 <= float(weight) <= 1:
        raise ValueError(
            f"`{name}` must be a float in [0, 1], the share of the global soft label "
            f"in the target. Received: {weight!r}"
        )


def _differ(size: int | None, other: int | None) -> bool:
    return None not in (size, other) and size != other
