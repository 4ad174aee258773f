"""What GlobalSoftLabel warns of while a model trains, most of it once a training.

`told` is the set of what has been said.
"""

import warnings
from typing import Any

import keras
import numpy as np

from keras_mixavg.soft_label_table import SoftLabelTable, view_of


def no_step(told: set[str], name: str, epoch: int) -> None:
    """That the table of an output was not used, for whatever reason of the loop."""
    if name in told:
        return
    told.add(name)
    of_output = f" of output {name!r}" if name else ""
    warnings.warn(
        f"Epoch {epoch} trained without the global soft labels{of_output}: no step "
        "called the loss that the model is compiled with. A `train_step` of your "
        "own calls `self.compute_loss(x, y, y_pred, sample_weight)`, on JAX "
        "`self.stateless_compute_loss(...)`; a `compute_loss` of your own calls "
        "`super().compute_loss(...)` or `self.loss(y, y_pred)`; a loop of your own "
        "calls `model.train_on_batch`.",
        stacklevel=3,
    )


def accuracy(told: set[str], model: Any, table: SoftLabelTable) -> None:
    """That Keras' accuracy is not meant for pairs, once some have come."""
    plain = any(
        isinstance(metric, keras.metrics.CategoricalAccuracy)
        for several in model.metrics
        for metric in getattr(several, "metrics", [])
    )
    if "accuracy" in told or not plain:
        return
    gram = view_of(table.gram)
    if np.count_nonzero(gram) > np.count_nonzero(gram.diagonal()):
        told.add("accuracy")
        warnings.warn(
            "Keras' accuracy counts only the lower class number of an averaged "
            "pair as right. Compile with metrics="
            "[keras_mixavg.SoftLabelAccuracy()] to have both counted.",
            stacklevel=3,
        )


def left_out(samples: int, name: str, epoch: int) -> None:
    """That samples do not count as evidence. Said in each epoch with such."""
    output = f" of output {name!r}" if name else ""
    warnings.warn(
        f"{samples} samples{output} were left out of the soft-label table in "
        f"epoch {epoch}: their predictions, labels or sample weights are "
        "not finite, their sample weights negative, or their labels of no "
        "class (numbers count from 0 on). The loss had them all.",
        stacklevel=3,
    )
