"""SoftLabelTable: the class-wise soft labels, the only object that holds state."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_mixavg import equations

Tensor = Any

ONE_VALUE = "only_first_replica"  # the same on every replica; "sum" would multiply it


@keras.saving.register_keras_serializable(package="keras_mixavg")
class SoftLabelTable(keras.metrics.Metric):
    """S, N, M and the current weight of equations (4)-(8).

    `GlobalSoftLabel` makes and attaches one for each `SoftLabelCrossentropy`; users
    read it through `GlobalSoftLabel.table`. It is a metric because that is what every
    backend carries through a train step; it reports nothing and outlives the epochs.
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
        self.num_classes: int | None = None
        self.release: Callable[[], Any] = lambda: None  # undoes the attachment, if any
        self.weight = self._variable("weight", ())
        self.collecting = self._variable("collecting", ())
        self.steps = self._variable("steps", ())  # collected in the running epoch

    def _variable(
        self,
        name: str,
        shape: tuple[int, ...],
        initializer: str = "zeros",
        aggregation: str = ONE_VALUE,
    ) -> Any:
        return self.add_variable(
            shape, initializer, dtype="float32", aggregation=aggregation, name=name
        )

    def build(self, num_classes: int) -> None:
        """Create the three `(num_classes, num_classes)` variables."""
        shape = (num_classes, num_classes)
        self.table = self._variable("table", shape, "identity")
        self.evidence = self._variable("evidence", shape, aggregation="sum")
        self.mass = self._variable("mass", shape, aggregation="sum")
        self.num_classes = num_classes

    def arm(self, weight: float) -> None:
        """Weigh in with `weight`, and collect evidence."""
        self.weight.assign(weight)
        self.collecting.assign(1.0)

    def reset_state(self) -> None:
        """Disarm. The table and the evidence stay."""
        self.weight.assign(0.0)
        self.collecting.assign(0.0)

    def targets(self, labels: Tensor) -> Tensor:
        """Equations (4) and (5): `(..., num_classes)` in the dtype of `labels`."""
        table = ops.cast(self.table, labels.dtype)
        weight = ops.cast(self.weight, labels.dtype)
        global_labels = equations.global_soft_labels(labels, table)
        return equations.targets(labels, global_labels, weight)

    def update_state(
        self, labels: Tensor, probabilities: Tensor, sample_weight: Tensor
    ) -> None:
        """Equation (7) for one batch, while armed; no gradient flows into it.

        Args:
            labels: local soft labels, `(..., num_classes)` float32.
            probabilities: `(..., num_classes)` float32.
            sample_weight: `(...)` float32.
        """
        labels, probabilities, sample_weight = map(
            ops.convert_to_tensor, (labels, probabilities, sample_weight)
        )
        probabilities = ops.stop_gradient(probabilities)
        if self.collect == "correct":
            mass = equations.top_label_mass(labels, probabilities)
            correct = mass >= ops.max(labels, axis=-1)
            sample_weight = ops.where(correct, sample_weight, 0.0)
        self.steps.assign(self.steps + self.collecting)
        labels = ops.reshape(labels, (-1, self.num_classes))
        probabilities = ops.reshape(probabilities, (-1, self.num_classes))
        weights = ops.reshape(sample_weight, (-1,))
        for variable, values in ((self.evidence, probabilities), (self.mass, labels)):
            seen = equations.evidence(labels, values, weights)
            variable.assign(
                variable + ops.where(self.collecting > 0.0, seen, ops.zeros_like(seen))
            )

    def end_epoch(self, prior_count: float) -> None:
        """Equation (8), on the host: a new table, and the evidence starts anew."""
        table, evidence, mass = map(numpy_of, (self.table, self.evidence, self.mass))
        new_table = equations.updated_table(table, evidence, mass, prior_count)
        self.table.assign(new_table.astype("float32"))
        for variable in (self.evidence, self.mass, self.steps):
            variable.assign(np.zeros(variable.shape, "float32"))

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
