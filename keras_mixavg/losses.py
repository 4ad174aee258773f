"""SoftLabelCrossentropy: the loss, which reads the table and collects into it."""

import json
import warnings
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_mixavg import checks, equations, keras_metrics
from keras_mixavg._keras import (
    get_keras_mask,
    has_steps_of_its_own,
    has_values,
    metrics_of,
    sync_state,
    traced_step,
)
from keras_mixavg.soft_label_table import SoftLabelTable

Tensor = Any


@keras.saving.register_keras_serializable(package="keras_mixavg")
class SoftLabelCrossentropy(keras.losses.Loss):
    """Cross-entropy of local soft labels combined with global soft labels.

    While a `GlobalSoftLabel` callback trains the model, the target of each sample is
    `(1 - global_weight) * label + global_weight * label @ table`. At all other times,
    `evaluate` and validation included, this is `keras.losses.CategoricalCrossentropy`,
    so that `val_loss` can be compared with that of any other run.

    The table of soft labels belongs to the loss, and is saved and loaded with the model
    that is compiled with it (docs/saving.md of the repository has each way). A loss
    with a trained table can train that model only. `loss.table.numpy()` is a copy of
    the table, `(num_classes, num_classes)`.

    Called by hand between two epochs or after `fit` the loss is plain cross-entropy. In
    an epoch with the callback a call counts as a training step, unless it comes between
    the callback's `on_test_begin` and `on_test_end`. If `fit` ends with an exception,
    this holds until the next `fit`; Keras' `evaluate` and `test_on_batch` are plain at
    any time.

    A subclass that overrides `call(y_true, y_pred)`, such as a focal loss, gets the
    combined targets there and need not know of the table; docs/recipes/losses.md of the
    repository has an example.

    There is no `label_smoothing`: the table smooths labels already, and `val_loss`
    could not be compared with other runs. Labels may be smoothed beforehand. There is
    no `axis` either: the classes are on the last one.

    Reference: "Bypassing the Random Input Mixing in Mixup" (OpenReview mLtPtH2SIHX);
    equations (4)-(7) of the method card, README.md in this package.

    Args:
        num_classes: optional int, to have the predictions checked against it; taken
            from the predictions by default. On JAX a model that calls the loss itself,
            as a distiller does, needs it.
        global_weight: float in [0, 1], the weight of the global soft label, or a
            callable that takes the epoch (from 0) and returns such a float, e.g. a
            `keras.optimizers.schedules` schedule. 0.5 by default. A float fades out at
            the end of training, see `fade_out` of GlobalSoftLabel; what a callable
            returns is used as it is.
        from_logits: whether predictions are logits. False by default: probabilities.
            The values do not show which of the two they are, so a wrong setting goes
            unnoticed and trains badly.
        name: name of the loss.
        reduction: as in `keras.losses.Loss`, `"sum_over_batch_size"` by default.
        dtype: as in `keras.losses.Loss`. The evidence is float32 in any case.

    Call arguments:
        y_true: local soft labels, one-hot ones included, `(..., num_classes)`, or class
            numbers, `(...)` or `(..., 1)`.
        y_pred: logits or probabilities, `(..., num_classes)`.
        sample_weight: optional, `(...)` or a shape that broadcasts to it. It weights
            the loss and the evidence. So does a Keras mask on `y_pred`.

    Raises:
        ValueError: for `num_classes` below 2, `global_weight` outside [0, 1] or a
            callable that returns such a value or cannot be saved, shapes that differ,
            predictions of another width than `num_classes` or the table, and on JAX a
            number of classes that the first step cannot know; and from the first
            training with GlobalSoftLabel on, if a metric of Keras would fail on the
            labels or be meaningless.
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
        global_weight: float | Callable[[int], float] = 0.5,
        *,
        from_logits: bool = False,
        name: str = "soft_label_crossentropy",
        reduction: str | None = "sum_over_batch_size",
        dtype: Any = None,
    ) -> None:
        if num_classes is not None:
            num_classes = checks.checked_count(
                num_classes, "num_classes", 2, "or None to take it from the predictions"
            )
        checks.refuse_multi_worker_strategy()
        if callable(global_weight):
            _check_can_be_saved(global_weight)
        else:
            global_weight = _checked_weight(global_weight, "global_weight")
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.num_classes = num_classes
        self.global_weight = global_weight
        self.from_logits = from_logits
        self.table = SoftLabelTable()
        self.lost_table = False  # whether it was made from the config of one with it
        self.replaces_table = False  # whether its model has trained with another one
        self.seen_classes: int | None = None  # the width of the last predictions

    def weight_at(self, epoch: int) -> float:
        """The weight of the global soft label in an epoch from 0, before it fades."""
        if not callable(self.global_weight):
            return self.global_weight
        return _checked_weight(self.global_weight(epoch), f"global_weight({epoch})")

    def __call__(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None
    ) -> Tensor:
        mask = get_keras_mask(y_pred)
        predictions = ops.convert_to_tensor(y_pred)
        given = ops.convert_to_tensor(y_true)
        y_true = equations.one_hot(given, predictions)
        shape = tuple(predictions.shape)
        self._check_shapes(tuple(y_true.shape), shape)
        if not equations.kind_is_unknown(given, predictions):
            self._check_metrics(tuple(given.shape), shape)
        self.seen_classes = shape[-1]
        if self._uses_table(y_pred):  # first: a mask changes torch's weights
            self._collect(y_true, y_pred, sample_weight, mask)
            y_true = self.table.targets(ops.cast(y_true, self.dtype))
        return super().__call__(y_true, y_pred, sample_weight)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Equation (6) of each sample, which a subclass may override.

        Args:
            y_true: the targets of equation (5), `(..., num_classes)`: class numbers
                are one-hot by now and combined with the global soft labels.
            y_pred: the predictions as the loss was called with them.

        Returns:
            `(...)`, the loss of each sample before weights and reduction.
        """
        return equations.crossentropy(y_true, y_pred, self.from_logits)

    def _uses_table(self, y_pred: Tensor) -> bool:
        """Whether this call reads the table, whose switch may still be off."""
        table = self.table
        if not table.switch.attached or table.switch.evaluating:
            return False
        if self.seen_classes is None:
            raise ValueError(
                "With a soft-label table the shape of `y_pred` must have the number of "
                f"classes. Received: y_pred.shape={tuple(y_pred.shape)}. End the model "
                "with a Dense layer, or with keras.ops.reshape(outputs, (-1, "
                "num_classes))."
            )
        step = traced_step()
        on_jax = keras.backend.backend() == "jax"
        if on_jax and step is None and not has_values(y_pred):
            if table.switch.is_on:
                warnings.warn(
                    "On JAX a function that calls the loss itself can neither read nor "
                    "change the soft-label table, and trains on plain labels. Call "
                    "`model.stateless_compute_loss(trainable_variables, "
                    "non_trainable_variables, metrics_variables, x=..., y=..., "
                    "y_pred=...)` there and pass its variables on.",
                    stacklevel=2,
                )
            return False
        if table.num_classes is None:
            if step is not None:
                raise ValueError(
                    "On JAX the number of classes must be known before the first step, "
                    "and this model does not show it. Received: num_classes=None. Pass "
                    f"it: SoftLabelCrossentropy(num_classes={y_pred.shape[-1]}, ...)."
                )
            table.build(y_pred.shape[-1])
        if step is not None and step.get_current_value(table.switch.variable) is None:
            return False
        sync_state(table.switch.owner)
        return True

    def _collect(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Any, mask: Any
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
        self.table.add_batch(labels, probabilities, weights)

    def _check_shapes(self, y_true: tuple, y_pred: tuple) -> None:
        if y_pred[-1] == 1:
            raise ValueError(
                "`y_pred` must have an entry for each of at least two classes. "
                f"Received: y_pred.shape={y_pred}. Give the last layer two units, or "
                "use keras.losses.BinaryCrossentropy, which needs no table."
            )
        if len(y_true) != len(y_pred) or _differ(y_true[-1], y_pred[-1]):
            raise ValueError(
                "`y_true` and `y_pred` must have the same shape (..., num_classes), or "
                "`y_true` be class numbers of shape (...). Received: "
                f"y_true.shape={y_true}, y_pred.shape={y_pred}. Make the last layer of "
                "the model and the labels agree on the number of classes."
            )
        attached = self.table.switch.attached
        for owner, expected in (
            ("num_classes of this loss", self.num_classes),
            ("its soft-label table", self.table.num_classes if attached else None),
        ):
            if expected is not None and _differ(y_pred[-1], expected):
                raise ValueError(
                    f"The last axis of `y_pred` must have {expected} entries, as many "
                    f"as {owner}. Received: y_pred.shape={y_pred}. Change the last "
                    "layer of the model or `num_classes`."
                )

    def _check_metrics(self, y_true: tuple, y_pred: tuple) -> None:
        """Refuse unfit metrics here: Keras updates them after the loss."""
        switch, model = self.table.switch, self.table.switch.owner
        if not (switch.is_on or switch.evaluating):  # or another model calls
            return
        if model is None or has_steps_of_its_own(model):
            return
        phase = "evaluation" if switch.evaluating else "training"
        metrics = metrics_of(model, self.table.output)
        keras_metrics.check(metrics, y_true, y_pred, phase)

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
            # Not an argument: a loss made from this config lacks the table.
            **({"has_table": True} if self.table.learnt or self.lost_table else {}),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SoftLabelCrossentropy":
        config = dict(config)
        has_table = config.pop("has_table", False)
        if isinstance(config.get("global_weight"), dict):
            config["global_weight"] = keras.saving.deserialize_keras_object(
                config["global_weight"]
            )
        loss = cls(**config)
        loss.lost_table = has_table
        return loss


def _checked_weight(weight: Any, name: str) -> float:
    return checks.checked_share(
        weight, name, "the share of the global soft label in the target"
    )


def _check_can_be_saved(function: Callable[[int], float]) -> None:
    """Raise now: Keras would when it saves or loads a checkpoint."""
    kind = function if hasattr(function, "__name__") else type(function)
    names = {kind.__name__: kind}  # as a user may pass them as `custom_objects`
    reason: Exception | None = None
    try:
        with warnings.catch_warnings(), keras.saving.custom_object_scope(names):
            warnings.simplefilter("ignore")  # Keras warns of a lambda when it saves one
            saved = json.dumps(keras.saving.serialize_keras_object(function))
            loaded = keras.saving.deserialize_keras_object(
                json.loads(saved), safe_mode=False
            )
    except Exception as error:
        reason, loaded = error, None
    if not callable(loaded):
        raise ValueError(
            "A callable `global_weight` is saved with the model, and this one cannot "
            f"be saved and loaded. Received: global_weight={function!r}. Pass a "
            "function, or an object whose class has `get_config`, `from_config` and "
            "the decorator keras.saving.register_keras_serializable()."
        ) from reason


def _differ(size: int | None, other: int | None) -> bool:
    return None not in (size, other) and size != other
