"""SoftLabelTable: the class-wise soft labels, the only object that holds state."""

import warnings
import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_mixavg import equations
from keras_mixavg._keras import Trackable, sync_state
from keras_mixavg.saved_state import OLD_NAMES, SAVED, check_state, initial_state

Tensor = Any

ONE_VALUE = "only_first_replica"  # the same on every replica; "sum" would multiply it
LARGE = 5000  # classes, from which on a table is worth a warning
SECONDS = 7e-11  # times K³: equation (8) in float64 on two cores, for K over 2,000


@keras.saving.register_keras_serializable(package="keras_mixavg")
class SoftLabelTable(keras.metrics.Metric, Trackable):
    """S, N, M and the current weight of equations (4)-(8).

    Each `SoftLabelCrossentropy` has one, and with it the table is saved and loaded
    wherever Keras saves and loads the state of a model. `GlobalSoftLabel` makes it one
    of the model's metrics, because that is what every backend carries through a train
    step; as a metric it reports nothing, and updating it does nothing.

    While enabled it takes part in the loss and collects from it, else it does neither.
    A test function of Keras sets `evaluating`, and neither happens there.

    Args:
        collect: `"correct"` or `"all"`, the samples to learn from.
        name: name of the metric.

    Example:

    >>> table = SoftLabelTable()
    >>> table.build(num_classes=2)
    >>> table.numpy()
    array([[1., 0.],
           [0., 1.]], dtype=float32)
    """

    def __init__(
        self, collect: str = "correct", name: str = "soft_label_table"
    ) -> None:
        super().__init__(name=name, dtype="float32")
        self.collect = collect
        self.num_classes: int | None = None  # once it is built
        self.epoch = 0  # the running one, or the last
        self.learnt = False  # whether it has ever been more than the identity
        self.owner: weakref.ref | None = None  # the model that trains with it
        self.user: Callable[[], Any] = lambda: None  # the callback that enabled it
        self.evaluating = False
        self._weight = 0.0
        self._enabled = False
        self._still_runs: Callable[[], bool] = lambda: False
        self._loaded: dict[str, np.ndarray] = {}  # until it is built
        self._refused = False  # whether the last state to be loaded was

    def build(self, num_classes: int) -> None:
        """Create the variables, the table as loaded or else the identity."""
        if num_classes >= LARGE:
            gigabytes = 4 * num_classes**2 / 1e9
            warnings.warn(
                f"The soft-label table of {num_classes} classes takes "
                f"{3 * gigabytes:.1f} GB of memory, about twice that at the end of an "
                "epoch, and as much in each checkpoint. The end of an epoch takes up "
                f"to about {SECONDS * num_classes**3:.0f} s on two cores.",
                stacklevel=2,
            )
        shape = (num_classes, num_classes)
        # In use: its weight, and whether it collects. One variable: one write.
        known = keras.initializers.Constant(self._known())
        self.in_use = self._variable("in_use", (2,), known)
        # Learnt: S, N and M.
        self.table = self._variable("table", shape, "identity")
        self.cross = self._variable("cross", shape, aggregation="sum")
        self.gram = self._variable("gram", shape, aggregation="sum")
        # Counted in the running epoch: steps collected, samples left out, and samples
        # with several top classes.
        self.steps = self._variable("steps", ())
        self.left_out = self._variable("left_out", (), aggregation="sum")
        self.tied = self._variable("tied", (), aggregation="sum")
        self.num_classes = num_classes
        if self._loaded:
            self._assign(self._loaded)
            self._loaded = {}

    def _variable(
        self,
        name: str,
        shape: tuple[int, ...],
        initial: Any = "zeros",
        aggregation: str = ONE_VALUE,
    ) -> Any:
        return self.add_variable(
            shape, initial, dtype="float32", aggregation=aggregation, name=name
        )

    @property
    def loaded_classes(self) -> int | None:
        """The number of classes of a loaded state that waits for the variables."""
        return len(self._loaded["table"]) if self._loaded else None

    # --- In use or not ---------------------------------------------------------------

    def enable(
        self, weight: float, still_runs: Callable[[], bool] = lambda: False
    ) -> None:
        """Weigh in with `weight`, and collect, until disabled.

        Args:
            weight: a of equation (5).
            still_runs: tells, when Keras resets the metrics, whether the training that
                enabled the table goes on. If not, it has ended with an exception.
        """
        self._still_runs = still_runs
        self._set(weight, True)

    def disable(self) -> None:
        """Neither weigh in nor collect. What has been learnt stays."""
        self._set(0.0, False)

    def reset_state(self) -> None:
        """Called by Keras: disable, unless the training that enabled it still runs."""
        if not (self._enabled and self._still_runs()):
            self.disable()

    def _set(self, weight: float, enabled: bool) -> None:
        self._weight, self._enabled = weight, enabled
        if self.num_classes is not None:
            self.in_use.assign(self._known())

    def _known(self) -> np.ndarray:
        """What the host knows of `in_use`."""
        return np.array([self._weight, self._enabled], "float32")

    @property
    def enabled(self) -> bool:
        return self._enabled

    @property
    def weight(self) -> Tensor:
        """a of equation (5), 0 while disabled."""
        return self.in_use[0]

    @property
    def collecting(self) -> Tensor:
        """1 while enabled, or else 0."""
        return self.in_use[1]

    def _when(
        self, flag: Tensor, known: float, then: Callable, otherwise: Callable
    ) -> Any:
        """`then()` if `flag` is positive. On torch the host, which has the value too
        as `known`, need not wait for the device to tell."""
        if keras.backend.backend() == "torch":
            return then() if known > 0 else otherwise()
        return ops.cond(flag > 0.0, then, otherwise)

    # --- Equations (4) to (8) --------------------------------------------------------

    def targets(self, labels: Tensor) -> Tensor:
        """Equations (4) and (5): `(..., num_classes)` in the dtype of `labels`."""

        def combined() -> Tensor:
            weight = ops.cast(self.weight, labels.dtype)
            global_labels = equations.global_soft_labels(
                labels, ops.cast(self.table, labels.dtype)
            )
            return equations.targets(labels, global_labels, weight)

        return self._when(self.weight, self._weight, combined, lambda: labels)

    def add_batch(
        self, labels: Tensor, probabilities: Tensor, sample_weight: Tensor
    ) -> None:
        """Equation (7) for one batch, while enabled; no gradient flows into it.

        Samples with a value that is not finite, a negative weight, or a label of no
        class are left out and counted.

        Args:
            labels: local soft labels, `(..., num_classes)` float32.
            probabilities: `(..., num_classes)` float32.
            sample_weight: `(...)` float32.
        """
        labels, probabilities, sample_weight = (
            ops.stop_gradient(ops.convert_to_tensor(values))
            for values in (labels, probabilities, sample_weight)
        )
        variables = (self.cross, self.gram, self.steps, self.left_out, self.tied)

        def before() -> list[Tensor]:
            return [ops.convert_to_tensor(variable) for variable in variables]

        def after() -> list[Tensor]:
            new = equations.batch_evidence(
                labels, probabilities, sample_weight, self.collect
            )
            return [old + more for old, more in zip(before(), new, strict=True)]

        result = self._when(self.collecting, float(self._enabled), after, before)
        for variable, value in zip(variables, result, strict=True):
            variable.assign(value)

    def end_epoch(self, prior_count: float) -> int:
        """Equation (8), on the host: a new table, and the evidence starts anew.

        Returns:
            How many samples were left out of the evidence.
        """
        cross, gram = view_of(self.cross), view_of(self.gram)
        left_out = int(view_of(self.left_out))
        sums = [np.sum(values, dtype="float64") for values in (cross, gram)]
        if np.isfinite(sums).all():
            new_table = equations.updated_table(
                view_of(self.table), cross, gram, prior_count
            )
            self.table.assign(new_table.astype("float32", copy=False))
            self.learnt = True
        else:
            warnings.warn(
                "The evidence of this epoch has grown beyond float32, and the "
                "soft-label table stays as it was. Scale the sample weights down.",
                stacklevel=2,
            )
        for variable in (self.cross, self.gram, self.steps, self.left_out, self.tied):
            variable.assign(ops.zeros(variable.shape, "float32"))
        return left_out

    def statistics(self) -> dict[str, float]:
        """Mean of the diagonal, and mean entropy of the rows in nats."""
        from scipy.special import entr

        table = view_of(self.table)
        entropy = sum(np.sum(entr(row), dtype="float64") for row in table)
        return {
            "soft_label_confidence": float(np.mean(np.diag(table), dtype="float64")),
            "soft_label_entropy": float(entropy) / len(table),
        }

    # --- Read, saved and loaded ------------------------------------------------------

    def numpy(self) -> np.ndarray:
        """`(num_classes, num_classes)` float32, a copy of the table as it is now."""
        if self.num_classes is not None:
            sync_state(self.owner() if self.owner else None)
            return numpy_of(self.table)
        if self._loaded:
            return np.array(self._loaded["table"])
        raise RuntimeError(
            "There is no table before the first batch of training, since the number "
            "of classes is not known. Pass GlobalSoftLabel to "
            "`model.fit(callbacks=[...])` first."
        )

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.numpy().astype(dtype or "float32", copy=False)

    def state(self) -> dict[str, np.ndarray]:
        """What has been learnt, as copies; empty before the first batch."""
        if self.num_classes is None:
            return dict(self._loaded)
        sync_state(self.owner() if self.owner else None)
        return {name: numpy_of(getattr(self, name)) for name in SAVED}

    def save_own_variables(self, store: Any) -> None:
        store["epoch"] = np.array(self.epoch)
        for name, value in self.state().items():
            store[name] = value

    def load_own_variables(self, store: Any) -> None:
        """Called by Keras. A state that is wrong in any part changes nothing."""
        if "epoch" not in store.keys() and self._refused:
            # `skip_mismatch` comes back under the name that the model has for it.
            self._refused = False
            return
        if not store.keys() and not self._serves_its_model():
            return  # Keras visits the table of an earlier loss too, which no file has
        self._refused = True
        state = {OLD_NAMES.get(n, n): np.array(store[n]) for n in store.keys()}
        epoch = int(state.pop("epoch", -1))
        if state:
            check_state(state, self.num_classes)
        elif self.num_classes is not None:
            state = initial_state(self.num_classes)
        self._refused = False
        if epoch < 0:
            warnings.warn(
                "What is loaded has no soft-label table for this loss. The model that "
                "saved it was not compiled with a SoftLabelCrossentropy for this "
                "output, or one of the two models with a loss and the other with a "
                "list or a dict of losses: then compile this one as that one was, and "
                "load again. The table starts as the identity.",
                stacklevel=2,
            )
        self.epoch = max(epoch, 0)
        self.learnt = bool(state) and not _is_identity(state["table"])
        if self.num_classes is None:
            self._loaded = state
        else:
            self._assign(state)

    def _serves_its_model(self) -> bool:
        """Whether the loss that its model is compiled with now is still this one's."""
        model = self.owner() if self.owner else None
        losses = keras.tree.flatten(getattr(model, "loss", None))
        return losses in ([], [None]) or any(
            getattr(loss, "table", None) is self for loss in losses
        )

    def _trackable_children(self, save_type: str = "checkpoint", **kwargs: Any) -> dict:
        """Called by TensorFlow: what `tf.train.Checkpoint` saves, and no SavedModel."""
        if self.num_classes is None or save_type != "checkpoint":
            return {}
        return {name: getattr(self, name) for name in SAVED}

    def _assign(self, state: dict[str, np.ndarray]) -> None:
        for name in SAVED:
            getattr(self, name).assign(state[name])

    # --- As a metric -----------------------------------------------------------------

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: a train step that updates all metrics must not change the table."""

    def result(self) -> dict[str, Any]:
        """Nothing: what there is to report, the callback reports once an epoch."""
        return {}

    def get_config(self) -> dict[str, Any]:
        return {"collect": self.collect, "name": self.name}


def _is_identity(table: np.ndarray) -> bool:
    return bool(np.diag(table).min() == 1.0 and np.count_nonzero(table) == len(table))


def view_of(variable: Any) -> np.ndarray:
    """A variable's value, not to be written to: on a CPU it may be no copy."""
    value = ops.convert_to_tensor(variable)
    if keras.backend.backend() == "tensorflow":
        value = ops.copy(value)  # NumPy warns of its variables
    return np.asarray(ops.convert_to_numpy(value))


def numpy_of(variable: Any) -> np.ndarray:
    """A copy of a variable's value."""
    return np.array(view_of(variable))
