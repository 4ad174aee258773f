"""GlobalSoftLabel: decides when the table weighs in, collects and changes."""

import math
import numbers
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import keras

from keras_mixavg import equations
from keras_mixavg._keras import (
    calling_callback_list,
    refuse_multi_worker_strategy,
    replicated_by_tensorflow,
    state_scope,
    track_metric,
    untrack_metric,
)
from keras_mixavg.losses import SoftLabelCrossentropy
from keras_mixavg.soft_label_table import SoftLabelTable, numpy_of

COLLECT = ("correct", "all")
FADE_OUT = 0.3


@keras.saving.register_keras_serializable(package="keras_mixavg")
class GlobalSoftLabel(keras.callbacks.Callback):
    """Keep the global soft labels up to date during `model.fit`.

    The table of class-wise soft labels starts as the identity. Each epoch it collects
    what the model predicts on the training batches; at the epoch's end it becomes the
    table that best reproduces these predictions from the local labels, and the
    model's `SoftLabelCrossentropy` trains on it from the next epoch on. Validation,
    `evaluate` and `predict` neither use nor change it.

    The table belongs to the loss: another `fit` goes on from it, with this or a new
    callback, and whatever saves the model saves it: `model.save`, `BackupAndRestore`,
    `ModelCheckpoint`. When `fit` ends, or dies of an exception, the loss is
    plain cross-entropy again, and the model has the metrics, variables and compiled
    functions of one that never knew the method. Evidence of an unfinished epoch counts
    for the next one. Samples with a prediction, label or sample weight that is not
    finite, or with a negative weight, are left out of it, with a warning an epoch.

    Put it before `CSVLogger` and others that read the logs at the epoch's end.

    Reference: "Bypassing the Random Input Mixing in Mixup" (OpenReview mLtPtH2SIHX) for
    the idea, "Delving Deep into Label Smoothing" (arXiv 2011.12562) for class-wise
    soft labels; equations (7) and (8) of the method card, README.md in this package.

    Args:
        prior_count: float, not negative: how many examples of each class the old table
            counts for when the new one is made. 1.0 by default; 0 forgets it.
        collect: `"correct"` (default) takes as evidence only the samples whose top
            prediction has the largest label mass; `"all"` takes every sample.
        fade_out: float in [0, 1], the share of the epochs of a `fit`, at its end, over
            which the weight of the global soft labels falls linearly to 0. Epoch e
            (from 0) of E has `global_weight * min(1, (E - e) / (fade_out * E))`. E is
            `epochs` of `fit`, so a run resumed with `initial_epoch` has the weights of
            one that was never interrupted. 0.3 by default; 0 never fades. Where
            `global_weight` is a callable it alone decides, and only 0 may be given.

    Logs:
        `soft_label_confidence`: mean of the table's diagonal, 1 for the identity.
        `soft_label_entropy`: mean entropy of its rows, in nats, 0 for the identity.
        With a list or dict of losses each name starts with the output's name and `_`.

    Raises:
        ValueError: for bad arguments; when training starts, if the model is not
            compiled with a `SoftLabelCrossentropy`, or with the same one for several
            outputs or one that has trained another model, if `fit` gets two of these
            callbacks, if `fade_out` is given where `global_weight` is a callable or
            the number of epochs unknown, or if, on JAX, a `metrics` property of the
            model's own hides the table from Keras.
        RuntimeError: under `tf.distribute.MultiWorkerMirroredStrategy`, with which
            Keras 3 does not train.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> model.compile("sgd", loss=SoftLabelCrossentropy(from_logits=True))
    >>> x, y = np.ones((6, 4)), np.eye(3)[[0, 1, 2, 0, 1, 2]]
    >>> history = model.fit(x, y, callbacks=[GlobalSoftLabel()], verbose=0)
    >>> sorted(history.history)
    ['loss', 'soft_label_confidence', 'soft_label_entropy']
    """

    def __init__(
        self,
        prior_count: float = 1.0,
        collect: str = "correct",
        fade_out: float | None = None,
    ) -> None:
        super().__init__()
        if (
            not isinstance(prior_count, numbers.Real)
            or not math.isfinite(prior_count)
            or prior_count < 0
        ):
            raise ValueError(
                "`prior_count` must be a finite float of at least 0, the number of "
                "examples that the old table counts for. Received: "
                f"prior_count={prior_count!r}"
            )
        if collect not in COLLECT:
            raise ValueError(
                f"`collect` must be one of {COLLECT}. Received: collect={collect!r}"
            )
        if fade_out is not None and (
            not isinstance(fade_out, numbers.Real) or not 0 <= fade_out <= 1
        ):
            raise ValueError(
                "`fade_out` must be a float in [0, 1], the share of the epochs over "
                f"which the weight falls to 0. Received: fade_out={fade_out!r}"
            )
        self.prior_count: float = float(prior_count)
        self.collect: str = collect
        self.fade_out: float | None = None if fade_out is None else float(fade_out)
        self._epochs: int | None = None  # of the running `fit`
        self._losses: dict[str, SoftLabelCrossentropy] = {}
        self._tables: dict[str, SoftLabelTable] = {}
        self._weights: dict[str, float] = {}  # of the running epoch, else empty
        self._skipped: dict[str, int] = {}  # steps without the table before the epoch

    @property
    def table(self) -> Any:
        """`(num_classes, num_classes)` float32 array, a copy; a dict of such by output
        name if the model is compiled with a list or dict of losses."""
        tables = {
            name: numpy_of(table.table)
            for name, table in self._tables.items()
            if table.num_classes
        }
        if not tables:
            raise RuntimeError(
                "There is no table before the first batch of training. Pass this "
                "callback to `model.fit(callbacks=[...])` first."
            )
        return tables[""] if "" in tables else tables

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        self.params = None  # of an earlier loop; this one sets its own, or has none

    def on_train_begin(self, logs: Any = None) -> None:
        model = self.model
        fit = calling_callback_list()
        if fit and sum(isinstance(c, GlobalSoftLabel) for c in fit.callbacks) > 1:
            raise ValueError(
                "`fit` must get one GlobalSoftLabel: it serves every output of the "
                f"model. Received: callbacks={fit.callbacks}. Remove the others."
            )
        refuse_multi_worker_strategy(model)
        self._losses = _soft_label_losses(model)
        params: dict[str, Any] = self.params or {}
        self._epochs = params.get("epochs")
        self._check_fade_out()
        self._tables = {}
        self._weights = {}
        # Keras calls no hook when `fit` raises: its callback list going is the sign.
        release = weakref.finalize(
            fit or self, _detach, model, self._losses, self._tables
        )
        release.atexit = False
        for name, loss in self._losses.items():
            table = loss.table
            _claim(table, model)
            table.release()  # from a `fit` that raised and is not yet cleared away
            table.release = release
            table.collect = self.collect
            self._build_if_known(name, table)
            track_metric(model, _attribute(name), table)
            loss.attached = True
            self._tables[name] = table
        _check_carried(model, self._tables)
        _retrace(model)

    def _check_fade_out(self) -> None:
        if not self.fade_out:
            return
        if any(callable(loss.global_weight) for loss in self._losses.values()):
            raise ValueError(
                "Either `fade_out` of GlobalSoftLabel or a callable `global_weight` of "
                "SoftLabelCrossentropy decides how the weight falls, not both. "
                f"Received: fade_out={self.fade_out}. Leave it out."
            )
        if self._epochs is None:
            raise ValueError(
                "`fade_out` needs the number of epochs, and this loop does not give "
                f"it. Received: fade_out={self.fade_out}. Pass it: "
                "keras.callbacks.CallbackList(..., epochs=...)."
            )

    def _weight(self, loss: SoftLabelCrossentropy, epoch: int) -> float:
        weight = loss.weight_at(epoch)
        if callable(loss.global_weight) or self._epochs is None:
            return weight
        fade_out = FADE_OUT if self.fade_out is None else self.fade_out
        return weight * equations.fading(epoch, self._epochs, fade_out)

    def _build_if_known(self, name: str, table: SoftLabelTable) -> None:
        """Create the variables, if by now one can tell for how many classes."""
        if table.num_classes is not None:
            return
        loss = self._losses[name]
        num_classes = table.loaded_classes or _num_classes(self.model, name, loss)
        if num_classes is not None:
            with state_scope(self.model):
                table.build(num_classes)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        for name, table in self._tables.items():
            self._build_if_known(name, table)  # BackupAndRestore may have loaded it
            if table.num_classes and table.epoch < epoch and numpy_of(table.steps) > 0:
                self._end_epoch(name, table)  # saved between the epoch's end and (8)
            table.epoch = epoch
        self._weights = {
            name: self._weight(loss, epoch) for name, loss in self._losses.items()
        }
        self._skipped = {
            name: self._steps_without(table) for name, table in self._tables.items()
        }
        self._arm()

    def on_test_begin(self, logs: Any = None) -> None:
        for table in self._tables.values():
            table.reset_state()

    def on_test_end(self, logs: Any = None) -> None:
        self._arm()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        for name, table in self._tables.items():
            skipped = self._steps_without(table) - self._skipped[name]
            if skipped > 0:
                warnings.warn(
                    f"{skipped} steps of epoch {epoch} trained without global soft "
                    "labels and left no evidence, since something reset the model's "
                    "metrics, such as `model.evaluate` in another callback. Pass this "
                    "GlobalSoftLabel to it: `evaluate(..., callbacks=[...])`.",
                    stacklevel=2,
                )
            table.reset_state()
            if table.num_classes is None:  # not one batch came
                continue
            self._end_epoch(name, table)
            if logs is not None:
                prefix = f"{name}_" if name else ""
                for statistic, value in table.statistics().items():
                    logs[prefix + statistic] = value
        self._weights = {}

    def _end_epoch(self, name: str, table: SoftLabelTable) -> None:
        left_out = table.end_epoch(self.prior_count)
        if left_out:
            output = f" of output {name!r}" if name else ""
            warnings.warn(
                f"{left_out} samples{output} were left out of the soft-label table in "
                f"epoch {table.epoch}: their predictions, labels or sample weights are "
                "not finite, or their sample weights negative. The loss had them all.",
                stacklevel=2,
            )

    def on_train_end(self, logs: Any = None) -> None:
        for table in self._tables.values():
            table.release()

    def _arm(self) -> None:
        for name, weight in self._weights.items():
            self._tables[name].arm(weight)

    def _steps_without(self, table: SoftLabelTable) -> int:
        if self.model.optimizer is None:  # a train_step with one of its own
            return 0
        collected = 0 if table.num_classes is None else numpy_of(table.steps)
        return int(numpy_of(self.model.optimizer.iterations) - collected)

    def get_config(self) -> dict[str, Any]:
        return {
            "prior_count": self.prior_count,
            "collect": self.collect,
            "fade_out": self.fade_out,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "GlobalSoftLabel":
        return cls(**config)


def _soft_label_losses(model: Any) -> dict[str, SoftLabelCrossentropy]:
    """Each SoftLabelCrossentropy of the model by output name, `""` if single."""
    losses = {
        name: loss
        for name, loss in _named(model.loss, getattr(model, "output_names", None))
        if isinstance(loss, SoftLabelCrossentropy)
    }
    if not losses:
        raise ValueError(
            "GlobalSoftLabel needs a model compiled with a SoftLabelCrossentropy. "
            f"Received: model.loss={model.loss!r}. Compile the model with "
            "loss=keras_mixavg.SoftLabelCrossentropy(from_logits=...)."
        )
    several = "" in losses and len(getattr(model, "outputs", None) or [None]) > 1
    if several or len({id(loss) for loss in losses.values()}) < len(losses):
        raise ValueError(
            "Each output needs a SoftLabelCrossentropy of its own, since each has its "
            f"own table. Received: model.loss={model.loss!r}. Compile with a list or a "
            "dict, with one SoftLabelCrossentropy(...) for each output that is to have "
            "global soft labels."
        )
    return losses


def _attribute(name: str) -> str:
    """The model's attribute for the table of an output while it trains."""
    return f"soft_label_table_{name}" if name else "soft_label_table"


def _claim(table: SoftLabelTable, model: Any) -> None:
    if table.owner is not None and table.owner() is not model:
        raise ValueError(
            "The SoftLabelCrossentropy of this model has trained another model, whose "
            "soft-label table it holds. Compile each model with a "
            "SoftLabelCrossentropy(...) of its own."
        )
    table.owner = weakref.ref(model)


def _num_classes(model: Any, name: str, loss: SoftLabelCrossentropy) -> int | None:
    """How many classes the loss of an output sees, if that can be told by now.

    On one device TensorFlow and torch learn it from the first batch. JAX and replicas
    need all variables before: there Keras has called the loss once, symbolically.
    """
    if loss.num_classes is not None:
        return loss.num_classes
    outputs = getattr(model, "outputs", None) or []
    names = getattr(model, "output_names", None) or []
    if name in names and len(names) == len(outputs):
        return outputs[names.index(name)].shape[-1]
    if name == "" and len(outputs) == 1:
        return outputs[0].shape[-1]
    if keras.backend.backend() == "jax" or replicated_by_tensorflow(model):
        return loss.seen_classes
    return None


def _named(loss: Any, names: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(loss, dict):
        entries = list(loss.items())
    elif isinstance(loss, (list, tuple)):
        usable = names is not None and len(names) == len(loss) and not prefix
        entries = list(zip(names if usable else range(len(loss)), loss, strict=True))
    else:
        yield prefix, loss
        return
    for key, entry in entries:
        yield from _named(entry, None, f"{prefix}/{key}" if prefix else str(key))


def _check_carried(model: Any, tables: dict[str, SoftLabelTable]) -> None:
    """On JAX a step carries only what the model lists; elsewhere it need not be."""
    listed = {id(metric) for metric in model.metrics}
    if keras.backend.backend() == "jax" and any(
        id(table) not in listed for table in tables.values()
    ):
        raise ValueError(
            "On JAX, `model.metrics` must list the soft-label table, and the model's "
            f"own property does not. Received: model.metrics={model.metrics!r}. Have "
            "it return [*super().metrics, ...]."
        )


def _detach(
    model: Any,
    losses: dict[str, SoftLabelCrossentropy],
    tables: dict[str, SoftLabelTable],
) -> None:
    """Undo what training began with. Assigns no variable: it may run at any moment."""
    for name, table in tables.items():
        losses[name].attached = False
        untrack_metric(model, _attribute(name), table)
    _retrace(model)


def _retrace(model: Any) -> None:
    """Forget the compiled steps: they hold the loss as it was when first called."""
    model.make_train_function(force=True)
    model.make_test_function(force=True)
