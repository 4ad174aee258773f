"""GlobalSoftLabel: decides when the table is on, with which weight, and changes."""

import math
import numbers
import warnings
from typing import Any

import keras

from keras_mixavg import checks, equations, keras_metrics
from keras_mixavg._keras import (
    exclude_from_evaluation,
    metrics_of,
    recompile_steps,
    state_scope,
)
from keras_mixavg.attaching import (
    attach,
    forget_other_tables,
    name_tables,
    num_classes_of,
    soft_label_losses,
    warn_of_new_tables,
)
from keras_mixavg.losses import SoftLabelCrossentropy
from keras_mixavg.soft_label_table import SoftLabelTable, view_of

COLLECT = ("correct", "all")
FADE_OUT = 0.3  # in place of None
LEARNING_RATE = "learning_rate"
COMPILED = -1  # in place of an epoch


@keras.saving.register_keras_serializable(package="keras_mixavg")
class GlobalSoftLabel(keras.callbacks.Callback):
    """Keep the global soft labels up to date during `model.fit`.

    The table of class-wise soft labels starts as the identity. In each epoch the
    predictions of the model on the training batches are collected. At the epoch's end
    the table becomes the one that best reproduces these predictions from the local
    labels, and from the next epoch on the model's `SoftLabelCrossentropy` trains on it.
    Validation, `evaluate` and `predict` neither use nor change it.

    The table belongs to the loss: another `fit` goes on from it, with this or a new
    callback, and is saved with the model in `.keras` files, by `save_weights`,
    `BackupAndRestore` and `ModelCheckpoint` (docs/saving.md of the repository has the
    ways that lose it). From the first `fit` on it is one of the
    model's metrics, which reports nothing; without this callback the loss is plain
    cross-entropy. Evidence from an unfinished epoch counts for the next one. Samples
    with a prediction, label or sample weight that is not finite, with a negative
    weight, or with a class number that does not exist are left out, with a warning in
    each epoch.

    Put it before `CSVLogger` and other callbacks that read the logs at the epoch's end.
    The repository has pages on what it logs and which metrics work with it
    (docs/metrics.md), on training that may stop early (docs/early_stopping.md), and on
    custom training loops, which call its hooks through a `keras.callbacks.CallbackList`
    (docs/own_loops.md).

    Reference: "Bypassing the Random Input Mixing in Mixup" (OpenReview mLtPtH2SIHX) for
    the idea, "Delving Deep into Label Smoothing" (arXiv 2011.12562) for class-wise
    soft labels; equations (7) and (8) of the method card, README.md in this package.

    Args:
        prior_count: float, not negative: the number of examples of each class that the
            old table counts for when the new one is made. 1.0 by default; 0 forgets it.
        collect: `"correct"` (default) takes as evidence only the samples whose top
            prediction has the largest label mass; `"all"` takes every sample.
        fade_out: float in [0, 1], the share of the epochs of a `fit`, at its end, over
            which the weight of the global soft labels falls linearly to 0. Epoch e
            (from 0) of E has `global_weight * min(1, (E - e) / (fade_out * E))`. E is
            `epochs` of `fit`, so a run resumed with `initial_epoch` has the weights of
            one that was never interrupted. 0 never fades. `"learning_rate"` is for
            training that may stop early, with `ReduceLROnPlateau` for example: the
            weight is in proportion to the learning rate when an epoch begins, and full
            at the highest rate of this `fit` so far. None, the default, means 0.3, but
            no fade with a callable `global_weight`, which is used as it is, or in a
            loop that does not know its number of epochs. There an explicit value is an
            error, except 0 and, in such a loop, `"learning_rate"`.

    Logs:
        `soft_label_confidence`: mean of the table's diagonal, 1 for the identity.
        `soft_label_entropy`: mean entropy of its rows, in nats, 0 for the identity.
        With a list or dict of losses each name starts with the output's name and `_`.

    Raises:
        ValueError: for bad arguments. When training starts: if the model is not
            compiled with a `SoftLabelCrossentropy`, if it has the same one for several
            outputs or one that has trained another model, with two of these callbacks,
            with a `fade_out` that is not possible, or if, on JAX, the model's own
            `metrics` property hides the table from Keras.
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
                f'"{LEARNING_RATE}", which makes the weight follow the learning rate',
            )
        self.prior_count: float = float(prior_count)
        self.collect: str = collect
        self.fade_out: float | str | None = fade_out
        self._epochs: int | None = None  # of this training
        self._rates: dict[int, float] = {}  # learning rates of this training, by epoch
        self._losses: dict[str, SoftLabelCrossentropy] = {}
        self._tables: dict[str, SoftLabelTable] = {}
        self._weights: dict[str, float] = {}  # of the current epoch, else empty
        self._steps: dict[str, int] = {}  # those collected before the epoch
        self._iterations: int | None = None  # of the optimizer, before the epoch
        self._warned: set[str] = set()  # the warnings of this training
        self._done: int | None = None  # the number of finished epochs

    @property
    def table(self) -> Any:
        """`(num_classes, num_classes)` float32 array, a copy. A dict of these by output
        name if the model is compiled with a list or dict of losses."""
        tables = self._tables
        if not tables and self.model is not None:
            losses = soft_label_losses(self.model)
            tables = {name: loss.table for name, loss in losses.items()}
        copies = {
            name: table.numpy()
            for name, table in tables.items()
            if table.num_classes or table.loaded_classes
        }
        if not copies:
            raise RuntimeError(
                "There is no table before the first batch of training. Pass this "
                "callback to `model.fit(callbacks=[...])` first. The table of a loaded "
                "model, or of one that trained with another callback, is "
                "`model.loss.table.numpy()`."
            )
        return copies[""] if "" in copies else copies

    def __getstate__(self) -> dict[str, Any]:
        """A copy has the settings, but not the model or anything that belongs to it."""
        of_the_model = ("_losses", "_tables", "_weights", "_steps")
        empty: dict[str, Any] = {name: {} for name in of_the_model}
        return {**self.__dict__, "_model": None, **empty}

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        self.params = None  # of an earlier loop; this one may set none

    def on_train_begin(self, logs: Any = None) -> None:
        model = self.model
        checks.refuse_multi_worker_strategy(model)
        self._losses = soft_label_losses(model)
        params: dict[str, Any] = self.params or {}
        self._epochs, self._done, self._rates = params.get("epochs"), None, {}
        self._check_fade_out()
        self._tables = {name: loss.table for name, loss in self._losses.items()}
        self._weights = {}
        self._warned = set()
        forget_other_tables(model, self._losses)
        name_tables(model, self._losses)
        for name, table in self._tables.items():
            table.switch.claim(model)
            table.switch.turn_off()  # after an exception
            self._build_if_known(name, table)
        if attach(model, self._losses, self.collect):
            recompile_steps(model)
        switches = [table.switch for table in self._tables.values()]
        exclude_from_evaluation(model, switches)

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
            self._share_of_rate(COMPILED)  # a backup may be restored after this
        elif self._epochs is None:
            raise ValueError(
                "`fade_out` needs the number of epochs, and this loop has none. "
                f"{given} Pass it: keras.callbacks.CallbackList(..., epochs=...)."
            )

    def _weight(self, loss: SoftLabelCrossentropy, epoch: int) -> float:
        weight = loss.weight_at(epoch)
        if callable(loss.global_weight):
            return weight
        if self.fade_out == LEARNING_RATE:
            return weight * self._share_of_rate(epoch)
        if self._epochs is None:
            return weight
        return weight * equations.fading(epoch, self._epochs, self._fade_share)

    @property
    def _fade_share(self) -> float:
        return FADE_OUT if self.fade_out is None else float(self.fade_out)

    def _share_of_rate(self, epoch: int) -> float:
        """The learning rate as a share of the highest one in this training.

        That of the compiled model counts only in a training that is resumed.
        """
        if epoch == 0:
            self._rates.clear()
        self._rates[epoch] = rate = float(view_of(self.model.optimizer.learning_rate))
        highest = max(self._rates.values())
        return rate / highest if highest else 1.0

    def _build_if_known(self, name: str, table: SoftLabelTable) -> None:
        """Create the variables if the number of classes is known."""
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
        name_tables(self.model, self._losses)
        warn_of_new_tables(self._losses)
        for name, table in self._tables.items():
            switch = table.switch
            if switch.is_on and (switch.user is not self or table.epoch == epoch):
                raise ValueError(
                    "A model must train with one GlobalSoftLabel, which serves every "
                    f"output. Received: another one in epoch {epoch}, or the same "
                    "epoch again. Remove the others from the callbacks. A loop of your "
                    "own calls `on_epoch_end` before it begins an epoch again."
                )
            self._build_if_known(name, table)  # BackupAndRestore may have loaded it
            if table.num_classes and table.epoch < epoch and view_of(table.steps) > 0:
                self._end_epoch(name, table)  # it was saved just before this was done
            table.epoch = epoch
            self._steps[name] = _steps(table)
            switch.turn_on(self._weights[name], self)

    def on_test_begin(self, logs: Any = None) -> None:
        for table in self._tables.values():
            table.switch.turn_off()

    def on_test_end(self, logs: Any = None) -> None:
        for name, weight in self._weights.items():
            self._tables[name].switch.turn_on(weight, self)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        for name, table in self._tables.items():
            table.switch.turn_off()
            if _steps(table) <= self._steps[name] and self._has_trained():
                self._warn_of_no_step(name, epoch)
            if table.num_classes is None:  # not one batch came
                continue
            self._warn_of_metrics(name, table)
            self._end_epoch(name, table)
            if logs is not None:
                prefix = f"{name}_" if name else ""
                for statistic, value in table.statistics().items():
                    logs[prefix + statistic] = value
        self._weights = {}
        finite = math.isfinite((logs or {}).get("loss", 0.0))
        self._done = epoch + 1 if finite else None  # no warning of a fade after NaN

    def _optimizer_iterations(self) -> int | None:
        optimizer = self.model.optimizer
        return None if optimizer is None else int(view_of(optimizer.iterations))

    def _has_trained(self) -> bool:
        iterations = self._optimizer_iterations()
        return iterations is None or iterations != self._iterations

    def _end_epoch(self, name: str, table: SoftLabelTable) -> None:
        samples = table.end_epoch(self.prior_count)
        if not samples:
            return
        of_output = f" of output {name!r}" if name else ""
        were = f"{of_output} was" if samples == 1 else f"s{of_output} were"
        warnings.warn(
            f"{samples} sample{were} left out of the soft-label table in epoch "
            f"{table.epoch}: predictions, labels or sample weights that are not "
            "finite, negative sample weights, or labels of no class. Class numbers are "
            "whole and count from 0 on. Such samples still count in the loss.",
            stacklevel=3,
        )

    def on_train_end(self, logs: Any = None) -> None:
        for table in self._tables.values():
            table.switch.turn_off()
        self._warn_if_not_faded()

    # --- Warnings ---------------------------------------------------------------------

    def _warn_once(self, key: str, message: str) -> None:
        """At most once in a training."""
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(message, stacklevel=4)

    def _warn_of_no_step(self, name: str, epoch: int) -> None:
        of_output = f" of output {name!r}" if name else ""
        self._warn_once(
            f"no step {name}",
            f"Epoch {epoch} trained without the global soft labels{of_output}: no step "
            "called the loss that the model is compiled with. A `train_step` of your "
            "own calls `self.compute_loss(x, y, y_pred, sample_weight)`, on JAX "
            "`self.stateless_compute_loss(...)`; a `compute_loss` of your own calls "
            "`super().compute_loss(...)` or `self.loss(y, y_pred)`; a loop of your own "
            "calls `model.train_on_batch`.",
        )

    def _warn_of_metrics(self, name: str, table: SoftLabelTable) -> None:
        """Warn of Keras metrics that are not meant for pairs, once some have come."""
        unfit = keras_metrics.of_one_class(metrics_of(self.model, name))
        if unfit and "metrics" not in self._warned and view_of(table.tied) > 0:
            self._warn_once(
                "metrics",
                f"Keras' {unfit[0].name!r} counts only the lower class number of an "
                "averaged pair as right. Compile with metrics="
                "[keras_mixavg.SoftLabelAccuracy()], or with SoftLabelTopKAccuracy(k="
                "...), to have both counted.",
            )

    def _warn_if_not_faded(self) -> None:
        """Warn if training ended before the weight had faded out."""
        weighted = any(
            not callable(loss.global_weight) and loss.global_weight > 0
            for loss in self._losses.values()
        )
        done, epochs = self._done, self._epochs
        if not weighted or self.fade_out == 0 or done is None:
            return
        if self.fade_out == LEARNING_RATE:
            self._warn_if_the_rate_never_fell()
            return
        if epochs is None or done >= epochs:
            return
        weight = equations.fading(done - 1, epochs, self._fade_share)
        if weight < 0.01:  # as good as faded
            return
        self._warn_once(
            "not faded",
            f"Training ended after epoch {done} of {epochs}, where the "
            f"global soft labels still had {weight:.0%} of their weight, so the "
            "network is underconfident. Have the weight follow the learning rate, "
            "callbacks=[keras.callbacks.ReduceLROnPlateau(...), "
            "keras.callbacks.EarlyStopping(...), "
            'GlobalSoftLabel(fade_out="learning_rate")], or fit a temperature on '
            "held-out images. `fade_out=0` keeps the weight, without this warning.",
        )

    def _warn_if_the_rate_never_fell(self) -> None:
        rates = [rate for epoch, rate in self._rates.items() if epoch != COMPILED]
        if len(rates) < 2 or rates[-1] < max(self._rates.values()):
            return  # one epoch may be part of a longer loop
        self._warn_once(
            "not faded",
            "Training ended at its highest learning rate, where the global soft labels "
            "still had all of their weight, so the network is underconfident. Lower "
            "the rate before training ends, as keras.callbacks.ReduceLROnPlateau(...) "
            "or a schedule does, leave out `fade_out`, or fit a temperature on "
            "held-out images.",
        )

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
