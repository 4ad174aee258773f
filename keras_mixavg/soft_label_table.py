"""SoftLabelTable: the class-wise soft labels, the only object that holds state."""

import warnings
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_mixavg import equations
from keras_mixavg._keras import Trackable, sync_state
from keras_mixavg.switch import COLLECTS, WEIGHT, Switch

Tensor = Any

ONE_VALUE = "only_first_replica"  # the same on every replica; "sum" would multiply it
SAVED = ("table", "cross", "gram", "steps")
OLD_NAMES = {"evidence": "cross", "mass": "gram"}  # in files of version 0.1
LARGE = 5000  # classes; a table of as many brings a warning
SECONDS = 7e-11  # times K³: equation (8) in float64 on two cores, for K over 2,000


@keras.saving.register_keras_serializable(package="keras_mixavg")
class SoftLabelTable(keras.metrics.Metric, Trackable):
    """S, N and M of equations (4)-(8), and the switch that turns their use on and off.

    Each `SoftLabelCrossentropy` has one, and with it the table is saved and loaded
    wherever Keras saves and loads the state of a model. `GlobalSoftLabel` makes it one
    of the model's metrics, because every backend carries these through a train step. As
    a metric it reports nothing, and updating it does nothing.

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
        self.output = ""  # the name of the output that it is for, if there are several
        self.epoch = 0  # the current one, or the last
        self.learnt = False  # whether it has ever differed from the identity
        self.switch = Switch()
        self._loaded: dict[str, np.ndarray] = {}  # until it is built
        self._refused = False  # whether the last state to be loaded was refused

    def build(self, num_classes: int) -> None:
        """Create the variables, the table as loaded or else the identity."""
        if num_classes >= LARGE:
            size = 3 * 4 * num_classes**2 / 1e9  # in gigabytes
            warnings.warn(
                f"The soft-label table of {num_classes} classes takes {size:.1f} GB of "
                f"memory, up to {3 * size:.1f} GB at the peak, and {size:.1f} GB in "
                "each checkpoint. The end of an epoch takes up to about "
                f"{SECONDS * num_classes**3:.0f} s on two cores.",
                stacklevel=2,
            )
        shape = (num_classes, num_classes)
        setting = keras.initializers.Constant(self.switch.host_value)
        self.switch.variable = self._variable("switch", (2,), setting)
        # S, N and M.
        self.table = self._variable("table", shape, "identity")
        self.cross = self._variable("cross", shape, aggregation="sum")
        self.gram = self._variable("gram", shape, aggregation="sum")
        # Counts of the current epoch: steps, samples left out, and samples whose top
        # classes are tied.
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

    def reset_state(self) -> None:
        """Called by Keras when an epoch or an evaluation begins. Forgets nothing."""
        self.switch.reset()

    # --- Equations (4) to (8) --------------------------------------------------------

    def targets(self, labels: Tensor) -> Tensor:
        """Equations (4) and (5): `(..., num_classes)` in the dtype of `labels`."""

        def combined() -> Tensor:
            weight = ops.cast(self.switch.variable[WEIGHT], labels.dtype)
            global_labels = equations.global_soft_labels(
                labels, ops.cast(self.table, labels.dtype)
            )
            return equations.targets(labels, global_labels, weight)

        return self.switch.if_positive(WEIGHT, combined, lambda: labels)

    def add_batch(
        self, labels: Tensor, probabilities: Tensor, sample_weight: Tensor
    ) -> None:
        """Equation (7) for one batch, while switched on; no gradient flows into it.

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

        result = self.switch.if_positive(COLLECTS, after, before)
        for variable, value in zip(variables, result, strict=True):
            variable.assign(value)

    def end_epoch(self, prior_count: float) -> int:
        """Equation (8), on the host: a new table; the evidence is set to zero.

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
            sync_state(self.switch.owner)
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
        """Copies of S, N, M and the number of steps; empty before the first batch."""
        if self.num_classes is None:
            return dict(self._loaded)
        sync_state(self.switch.owner)
        return {name: numpy_of(getattr(self, name)) for name in SAVED}

    def save_own_variables(self, store: Any) -> None:
        store["epoch"] = np.array(self.epoch)
        if self.output:
            store["output"] = np.frombuffer(self.output.encode(), "uint8")
        for name, value in self.state().items():
            store[name] = value

    def load_own_variables(self, store: Any) -> None:
        """Called by Keras. A state with any error in it changes nothing."""
        if "epoch" not in store.keys() and self._refused:
            # With `skip_mismatch` Keras asks again, under the model's attribute name.
            self._refused = False
            return
        if not store.keys() and not self._serves_its_model():
            return  # the table of an earlier loss, which Keras visits too
        self._refused = True
        state = {OLD_NAMES.get(n, n): np.array(store[n]) for n in store.keys()}
        epoch = int(state.pop("epoch", -1))
        output = state.pop("output", None)
        if state:
            _check_state(state, self.num_classes)
        elif self.num_classes is not None:
            state = initial_state(self.num_classes)
        self._refused = False
        if epoch < 0:
            warnings.warn(
                "The file has no soft-label table for this loss, so the table starts "
                "as the identity. Either the model that saved it was not compiled with "
                "a SoftLabelCrossentropy for this output; or one of the two models was "
                "compiled with a single loss, the other with a list or a dict of "
                "losses: then compile this one as that one was, and load again.",
                stacklevel=2,
            )
        self.epoch = max(epoch, 0)
        if output is not None:
            self.output = bytes(output).decode()
        self.learnt = bool(state) and not _is_identity(state["table"])
        if self.num_classes is None:
            self._loaded = state
        else:
            self._assign(state)

    def _serves_its_model(self) -> bool:
        """Whether its model is still compiled with the loss of this table."""
        losses = keras.tree.flatten(getattr(self.switch.owner, "loss", None))
        return losses in ([], [None]) or any(
            getattr(loss, "table", None) is self for loss in losses
        )

    def _trackable_children(self, save_type: str = "checkpoint", **kwargs: Any) -> dict:
        """Called by TensorFlow: for `tf.train.Checkpoint`, but not for a SavedModel."""
        if self.num_classes is None or save_type != "checkpoint":
            return {}
        return {name: getattr(self, name) for name in SAVED}

    def _assign(self, state: dict[str, np.ndarray]) -> None:
        for name in SAVED:
            getattr(self, name).assign(state[name])

    # --- As a metric -----------------------------------------------------------------

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: a train step that updates all metrics must not change it."""

    def result(self) -> dict[str, Any]:
        """Report nothing: the callback adds the table's statistics to the logs."""
        return {}

    def get_config(self) -> dict[str, Any]:
        return {"collect": self.collect, "name": self.name}


def initial_state(num_classes: int) -> dict[str, np.ndarray]:
    """The identity, and no evidence."""
    zeros = np.zeros((num_classes, num_classes), "float32")
    identity = np.eye(num_classes, dtype="float32")
    return {"table": identity, "cross": zeros, "gram": zeros, "steps": np.zeros(())}


def _check_state(state: dict[str, np.ndarray], num_classes: int | None) -> None:
    """Raise unless a file holds a complete table with the model's classes."""
    advice = "The file is damaged, or of another version. Load an earlier one."
    if set(state) != set(SAVED):
        raise ValueError(
            f"A saved soft-label table must have {sorted(SAVED)}. Received: "
            f"{sorted(state)}. {advice}"
        )
    table = state["table"]
    expected = (num_classes or len(table),) * 2
    for name in ("table", "cross", "gram"):
        if state[name].shape != expected:
            raise ValueError(
                f"The saved `{name}` must have shape {expected}, as the soft-label "
                f"table of this model. Received: shape {state[name].shape}. Load a "
                "file of a model with the same classes."
            )
    finite = all(np.isfinite(value).all() for value in state.values())
    if not finite or (table < 0).any() or np.abs(table.sum(axis=1) - 1).max() > 1e-3:
        raise ValueError(
            "The rows of a saved soft-label table must be finite, not negative, and "
            f"sum to 1. Received: rows that sum to {table.sum(axis=1)}. {advice}"
        )


def _is_identity(table: np.ndarray) -> bool:
    return bool(np.diag(table).min() == 1.0 and np.count_nonzero(table) == len(table))


def view_of(variable: Any) -> np.ndarray:
    """A variable's value, for reading only: on a CPU it may share its memory."""
    value = ops.convert_to_tensor(variable)
    if keras.backend.backend() == "tensorflow":
        value = ops.copy(value)  # NumPy warns of TensorFlow's variables
    return np.asarray(ops.convert_to_numpy(value))


def numpy_of(variable: Any) -> np.ndarray:
    """A copy of a variable's value."""
    return np.array(view_of(variable))
