"""SoftLabelTable: the class-wise soft labels, the only object that holds state."""

import warnings
import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_mixavg import equations, two_rows

Tensor = Any

ONE_VALUE = "only_first_replica"  # the same on every replica; "sum" would multiply it
SAVED = ("table", "evidence", "mass", "steps")


@keras.saving.register_keras_serializable(package="keras_mixavg")
class SoftLabelTable(keras.metrics.Metric):
    """S, N, M and the current weight of equations (4)-(8).

    Each `SoftLabelCrossentropy` has one, and with it the table is saved and loaded
    wherever Keras saves and loads the state of a model. `GlobalSoftLabel` makes it one
    of the model's metrics while it trains, because that is what every backend carries
    through a train step; it reports nothing and outlives the epochs. Users read it
    through `GlobalSoftLabel.table`.

    While `armed` it weighs in the loss and collects evidence, else it does neither.
    Keras resets the metrics at the start of each epoch and each evaluation, and
    `reset_state` disarms: whatever runs next without the callback sees plain labels.

    Args:
        collect: `"correct"` or `"all"`, the samples that count as evidence.
        name: name of the metric.
    """

    def __init__(
        self, collect: str = "correct", name: str = "soft_label_table"
    ) -> None:
        super().__init__(name=name, dtype="float32")
        self.collect = collect
        self.num_classes: int | None = None  # once it is built
        self.epoch = 0  # that the evidence is of
        self.owner: weakref.ref | None = None  # the model that trains with it
        self.release: Callable[[], Any] = lambda: None  # undoes the attachment, if any
        self._armed_weight = 0.0
        self._armed = False
        self._loaded: dict[str, np.ndarray] = {}  # until it is built

    def build(self, num_classes: int) -> None:
        """Create the variables, the table as loaded or else the identity."""
        shape = (num_classes, num_classes)
        # In use: its weight, and whether it collects.
        self.weight = self._variable("weight", (), float(self._armed_weight))
        self.collecting = self._variable("collecting", (), float(self._armed))
        # Learnt: S, N and M.
        self.table = self._variable("table", shape, "identity")
        self.evidence = self._variable("evidence", shape, aggregation="sum")
        self.mass = self._variable("mass", shape, aggregation="sum")
        # Counted in the running epoch: steps collected, and samples left out.
        self.steps = self._variable("steps", ())
        self.left_out = self._variable("left_out", (), aggregation="sum")
        self.num_classes = num_classes
        if self._loaded:
            self._assign(self._loaded)
            self._loaded = {}

    def _variable(
        self,
        name: str,
        shape: tuple[int, ...],
        initial: str | float = "zeros",
        aggregation: str = ONE_VALUE,
    ) -> Any:
        if isinstance(initial, float):
            initial = keras.initializers.Constant(initial)
        return self.add_variable(
            shape, initial, dtype="float32", aggregation=aggregation, name=name
        )

    @property
    def loaded_classes(self) -> int | None:
        """The number of classes of a loaded state that waits for the variables."""
        return len(self._loaded["table"]) if self._loaded else None

    def arm(self, weight: float) -> None:
        """Weigh in with `weight`, and collect evidence."""
        self._arm(weight, True)

    def reset_state(self) -> None:
        """Disarm. The table and the evidence stay."""
        self._arm(0.0, False)

    def _arm(self, weight: float, armed: bool) -> None:
        self._armed_weight, self._armed = weight, armed
        if self.num_classes is not None:
            self.weight.assign(weight)
            self.collecting.assign(float(armed))

    def state(self) -> dict[str, np.ndarray]:
        """What has been learnt, as copies; empty before the first batch."""
        if self.num_classes is None:
            return dict(self._loaded)
        return {name: numpy_of(getattr(self, name)) for name in SAVED}

    def save_own_variables(self, store: Any) -> None:
        store["epoch"] = np.array(self.epoch)
        for name, value in self.state().items():
            store[name] = value

    def load_own_variables(self, store: Any) -> None:
        """Called by Keras. A state that is wrong in any part changes nothing."""
        if "epoch" not in store.keys():
            warnings.warn(
                "What is loaded has no soft-label table: it was saved by a model that "
                "was not compiled with a SoftLabelCrossentropy. The table starts as "
                "the identity.",
                stacklevel=2,
            )
        state = {name: np.array(store[name]) for name in store.keys()}
        epoch = int(state.pop("epoch", 0))
        if state:
            _check_state(state, self.num_classes)
        elif self.num_classes is not None:
            state = _initial_state(self.num_classes)
        self.epoch = epoch
        if self.num_classes is None:
            self._loaded = state
        else:
            self._assign(state)

    def _assign(self, state: dict[str, np.ndarray]) -> None:
        for name in SAVED:
            getattr(self, name).assign(state[name])

    def targets(self, labels: Tensor) -> Tensor:
        """Equations (4) and (5): `(..., num_classes)` in the dtype of `labels`."""
        weight = ops.cast(self.weight, labels.dtype)
        table = ops.convert_to_tensor(self.table)
        global_labels = two_rows.global_soft_labels(labels, table)
        return equations.targets(labels, global_labels, weight)

    def update_state(
        self, labels: Tensor, probabilities: Tensor, sample_weight: Tensor
    ) -> None:
        """Equation (7) for one batch, while armed; no gradient flows into it.

        Samples with a value that is not finite, or with a negative weight, are left
        out and counted.

        Args:
            labels: local soft labels, `(..., num_classes)` float32.
            probabilities: `(..., num_classes)` float32.
            sample_weight: `(...)` float32.
        """
        labels, probabilities, sample_weight = map(
            ops.convert_to_tensor, (labels, probabilities, sample_weight)
        )
        probabilities = ops.stop_gradient(probabilities)
        usable = ops.isfinite(sample_weight) & (sample_weight >= 0.0)
        for values in (labels, probabilities):
            usable = usable & ops.all(ops.isfinite(values), axis=-1)
        counted = usable
        if self.collect == "correct":
            mass = equations.top_label_mass(labels, probabilities)
            counted = usable & (mass >= ops.max(labels, axis=-1))
        counted = counted & (self.collecting > 0.0)
        weights = ops.where(counted, sample_weight, 0.0)  # no product: inf * 0 is nan
        labels, probabilities = (
            ops.where(ops.expand_dims(usable, -1), values, 0.0)
            for values in (labels, probabilities)
        )
        left_out = ops.sum(ops.where(usable, 0.0, 1.0))
        self.left_out.assign(self.left_out + self.collecting * left_out)
        self.steps.assign(self.steps + self.collecting)
        evidence, mass = two_rows.added_evidence(
            ops.convert_to_tensor(self.evidence),
            ops.convert_to_tensor(self.mass),
            labels,
            probabilities,
            weights,
        )
        self.evidence.assign(evidence)
        self.mass.assign(mass)

    def end_epoch(self, prior_count: float) -> int:
        """Equation (8), on the host: a new table, and the evidence starts anew.

        Returns:
            How many samples were left out of the evidence.
        """
        state = self.state()
        left_out = int(numpy_of(self.left_out))
        if np.isfinite(state["evidence"]).all() and np.isfinite(state["mass"]).all():
            new_table = equations.updated_table(
                state["table"], state["evidence"], state["mass"], prior_count
            )
            self.table.assign(new_table.astype("float32"))
        else:
            warnings.warn(
                "The evidence of this epoch has grown beyond float32, and the "
                "soft-label table stays as it was. Scale the sample weights down.",
                stacklevel=2,
            )
        for variable in (self.evidence, self.mass, self.steps, self.left_out):
            variable.assign(np.zeros(variable.shape, "float32"))
        return left_out

    def statistics(self) -> dict[str, float]:
        """Mean of the diagonal, and mean entropy of the rows in nats."""
        table = numpy_of(self.table).astype("float64")
        entropy = -np.sum(table * np.log(np.where(table > 0, table, 1.0)), axis=1)
        return {
            "soft_label_confidence": float(np.mean(np.diag(table))),
            "soft_label_entropy": float(np.mean(entropy)),
        }

    def result(self) -> dict[str, Any]:
        """Nothing: what there is to report, the callback reports once an epoch."""
        return {}

    def get_config(self) -> dict[str, Any]:
        return {"collect": self.collect, "name": self.name}


def numpy_of(variable: Any) -> np.ndarray:
    """A copy of a variable's value. (`convert_to_numpy` warns about variables.)"""
    return np.array(ops.convert_to_numpy(ops.copy(variable)))


def _initial_state(num_classes: int) -> dict[str, np.ndarray]:
    zeros = np.zeros((num_classes, num_classes), "float32")
    identity = np.eye(num_classes, dtype="float32")
    return {"table": identity, "evidence": zeros, "mass": zeros, "steps": np.zeros(())}


def _check_state(state: dict[str, np.ndarray], num_classes: int | None) -> None:
    advice = "The file is damaged, or of another version. Load an earlier one."
    if set(state) != set(SAVED):
        raise ValueError(
            f"A saved soft-label table must have {sorted(SAVED)}. Received: "
            f"{sorted(state)}. {advice}"
        )
    table = state["table"]
    expected = (num_classes or len(table),) * 2
    for name in ("table", "evidence", "mass"):
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
