"""GlobalSoftLabel: decides when the table weighs in, collects and changes."""

import math
import numbers
import weakref
from collections.abc import Callable
from typing import Any

import keras

from keras_mixavg import checks, equations, training_warnings
from keras_mixavg._keras import (
    evaluates_without,
    make_steps_anew,
    state_scope,
)
from keras_mixavg.attaching import (
    attach,
    claim,
    forget_other_tables,
    num_classes_of,
    soft_label_losses,
    warn_of_new_tables,
)
from keras_mixavg.losses import SoftLabelCrossentropy
from keras_mixavg.soft_label_table import SoftLabelTable, view_of

COLLECT = ("correct", "all")
FADE_OUT = 0.3
LEARNING_RATE = "learning_rate"


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
    `ModelCheckpoint`. From the first `fit` on it is one of the model's metrics, one
    that reports nothing; without this callback the loss stays plain cross-entropy.
    What an unfinished epoch has collected counts for the next one. Samples with a
    prediction, label or sample weight that is not finite, with a negative weight, or
    with a class number that does not exist are left out, with a warning an epoch.

    Put it before `CSVLogger` and others that read the logs at the epoch's end.
    docs/metrics.md says what it logs, and which metrics go with it;
    docs/early_stopping.md, what to do where training may stop early. A loop of your own
    calls its hooks through a `keras.callbacks.CallbackList`, as docs/own_loops.md
    shows.

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
            one that was never interrupted. 0.3 by default; 0 never fades.
            `"learning_rate"`, for training that may stop early: the weight is in
            proportion to the optimizer's learning rate when an epoch begins, and full
            at the highest one of this `fit` so far, as with `ReduceLROnPlateau`. Where
            `global_weight` is a callable it alone decides, and only 0 may be given.

    Logs:
        `soft_label_confidence`: mean of the table's diagonal, 1 for the identity.
        `soft_label_entropy`: mean entropy of its rows, in nats, 0 for the identity.
        With a list or dict of losses each name starts with the output's name and `_`.

    Raises:
        ValueError: for bad arguments; when training starts, if the model is not
            compiled with a `SoftLabelCrossentropy`, or with the same one for several
            outputs or one that has trained another model, with two of these
            callbacks, if `fade_out` is given where `global_weight` is a callable or
            the number of epochs or the learning rate unknown, or if, on JAX, a
            `metrics` property of the model's own hides the table from Keras.
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
        fade_out: float | str | None = None,
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
        if fade_out is not None and fade_out != LEARNING_RATE:
            fade_out = checks.checked_share(
                fade_out,
                "fade_out",
                "the share of the epochs over which the weight falls to 0, or "
                f'"{LEARNING_RATE}", in proportion to which it falls',
            )
        self.prior_count: float = float(prior_count)
        self.collect: str = collect
        self.fade_out: float | str | None = fade_out
        self._epochs: int | None = None  # of the running `fit`
        self._highest_rate: float = 0.0  # of learning, in this training
        self._losses: dict[str, SoftLabelCrossentropy] = {}
        self._tables: dict[str, SoftLabelTable] = {}
        self._weights: dict[str, float] = {}  # of the running epoch, else empty
        self._steps: dict[str, int] = {}  # collected when the epoch began
        self._iterations: int | None = None  # of the optimizer, when it began
        self._told: set[str] = set()  # what has been said in this training
        self._done: int | None = None  # epochs, in this training

    @property
    def table(self) -> Any:
        """`(num_classes, num_classes)` float32 array, a copy; a dict of such by output
        name if the model is compiled with a list or dict of losses."""
        tables = self._tables
        if not tables and self.model is not None:
            losses = soft_label_losses(self.model)
            tables = {name: loss.table for name, loss in losses.items()}
        known = {
            name: table.numpy()
            for name, table in tables.items()
            if table.num_classes or table.loaded_classes
        }
        if not known:
            raise RuntimeError(
                "There is no table before the first batch of training. Pass this "
                "callback to `model.fit(callbacks=[...])` first. The table of a model "
                "that is loaded, or that trained with another callback, is "
                "`model.loss.table.numpy()`."
            )
        return known[""] if "" in known else known

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes along: all but the model and what belongs to it."""
        of_the_model: dict[str, dict] = {
            "_losses": {},
            "_tables": {},
            "_weights": {},
            "_steps": {},
        }
        return {**self.__dict__, "_model": None, **of_the_model}

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        self.params = None  # of an earlier loop; this one sets its own, or has none

    def on_train_begin(self, logs: Any = None) -> None:
        model = self.model
        checks.refuse_multi_worker_strategy(model)
        self._losses = soft_label_losses(model)
        params: dict[str, Any] = self.params or {}
        self._epochs = params.get("epochs")
        self._check_fade_out()
        self._tables = {name: loss.table for name, loss in self._losses.items()}
        self._weights = {}
        self._told = set()
        self._done, self._highest_rate = None, 0.0
        forget_other_tables(model, self._losses)
        for name, table in self._tables.items():
            claim(model, self._losses[name])
            table.disable()  # after an exception
            self._build_if_known(name, table)
        if attach(model, self._losses, self.collect):
            make_steps_anew(model)
        evaluates_without(model, self._tables.values())

    def _check_fade_out(self) -> None:
        if not self.fade_out:
            return
        given = f"Received: fade_out={self.fade_out!r}."
        if any(callable(loss.global_weight) for loss in self._losses.values()):
            raise ValueError(
                "Either `fade_out` of GlobalSoftLabel or a callable `global_weight` of "
                "SoftLabelCrossentropy decides how the weight falls, not both. "
                f"{given} Leave it out."
            )
        if self.fade_out == LEARNING_RATE:
            if self.model.optimizer is None:
                raise ValueError(
                    "The weight cannot follow the learning rate of a model without an "
                    f"optimizer. {given} Compile the model with one, or pass a "
                    "`fade_out` in [0, 1]."
                )
            self._share_of_rate()  # a backup may be restored after this
        elif self._epochs is None:
            raise ValueError(
                "`fade_out` needs the number of epochs, and this loop does not give "
                f"it. {given} Pass it: keras.callbacks.CallbackList(..., epochs=...)."
            )

    def _weight(self, loss: SoftLabelCrossentropy, epoch: int) -> float:
        weight = loss.weight_at(epoch)
        if callable(loss.global_weight):
            return weight
        if self.fade_out == LEARNING_RATE:
            return weight * self._share_of_rate()
        if self._epochs is None:
            return weight
        return weight * equations.fading(epoch, self._epochs, self._fade_share)

    @property
    def _fade_share(self) -> float:
        return FADE_OUT if self.fade_out is None else float(self.fade_out)

    def _share_of_rate(self) -> float:
        """The learning rate as a share of the highest one in this training."""
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        self._highest_rate = max(self._highest_rate, rate)
        return rate / self._highest_rate if self._highest_rate else 1.0

    def _fading_ends(self) -> int | None:
        """After how many epochs the weight has faded out; None if that is not told."""
        fades = self.fade_out not in (0, LEARNING_RATE) and any(
            not callable(loss.global_weight) and loss.global_weight > 0
            for loss in self._losses.values()
        )
        return self._epochs if fades else None

    def _build_if_known(self, name: str, table: SoftLabelTable) -> None:
        """Create the variables, if by now one can tell for how many classes."""
        if table.num_classes is not None:
            return
        loss = self._losses[name]
        num_classes = table.loaded_classes or num_classes_of(self.model, name, loss)
        if num_classes is not None:
            with state_scope(self.model):
                table.build(num_classes)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._weights = {
            name: self._weight(loss, epoch) for name, loss in self._losses.items()
        }
        self._iterations = self._optimizer_iterations()
        warn_of_new_tables(self._losses)
        for name, table in self._tables.items():
            if table.enabled and (table.user() is not self or table.epoch == epoch):
                raise ValueError(
                    "A model must train with one GlobalSoftLabel: it serves every "
                    "output. Remove the others from the callbacks."
                )
            self._build_if_known(name, table)  # BackupAndRestore may have loaded it
            if table.num_classes and table.epoch < epoch and view_of(table.steps) > 0:
                self._end_epoch(name, table)  # saved between the epoch's end and (8)
            table.epoch, table.user = epoch, weakref.ref(self)
            self._steps[name] = _steps(table)
        self._enable()

    def on_test_begin(self, logs: Any = None) -> None:
        for table in self._tables.values():
            table.disable()

    def on_test_end(self, logs: Any = None) -> None:
        self._enable()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        for name, table in self._tables.items():
            table.disable()
            if _steps(table) <= self._steps[name] and self._has_trained():
                training_warnings.no_step(self._told, name, epoch)
            if table.num_classes is None:  # not one batch came
                continue
            training_warnings.of_one_class(self._told, self.model, name, table)
            self._end_epoch(name, table)
            if logs is not None:
                prefix = f"{name}_" if name else ""
                for statistic, value in table.statistics().items():
                    logs[prefix + statistic] = value
        self._weights = {}
        finite = math.isfinite((logs or {}).get("loss", 0.0))
        self._done = epoch + 1 if finite else None  # nothing to fade out after NaN

    def _optimizer_iterations(self) -> int | None:
        optimizer = self.model.optimizer
        return None if optimizer is None else int(view_of(optimizer.iterations))

    def _has_trained(self) -> bool:
        iterations = self._optimizer_iterations()
        return iterations is None or iterations != self._iterations

    def _end_epoch(self, name: str, table: SoftLabelTable) -> None:
        left_out = table.end_epoch(self.prior_count)
        if left_out:
            training_warnings.left_out(left_out, name, table.epoch)

    def on_train_end(self, logs: Any = None) -> None:
        for table in self._tables.values():
            table.disable()
        end = self._fading_ends()
        if end is not None and self._done is not None and self._done < end:
            training_warnings.not_faded(self._told, self._done, end, self._fade_share)

    def _enable(self) -> None:
        for name, weight in self._weights.items():
            self._tables[name].enable(weight, _still_trains(self.model))

    def get_config(self) -> dict[str, Any]:
        return {
            "prior_count": self.prior_count,
            "collect": self.collect,
            "fade_out": self.fade_out,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "GlobalSoftLabel":
        return cls(**config)


def _steps(table: SoftLabelTable) -> int:
    return int(view_of(table.steps)) if table.num_classes else 0


def _still_trains(model: Any) -> Callable[[], bool]:
    """A function that tells whether no other `fit` of `model` has begun since.

    Each `fit` gives the model a History of its own.
    """
    reference, history = weakref.ref(model), getattr(model, "history", None)
    return lambda: getattr(reference(), "history", None) is history
