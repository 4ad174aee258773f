"""What GlobalSoftLabel warns of while a model trains, most of it once a training.

`told` is the set of what has been said.
"""

import warnings
from typing import Any

from keras_mixavg import equations, keras_metrics
from keras_mixavg._keras import metrics_of
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


def of_one_class(told: set[str], model: Any, name: str, table: SoftLabelTable) -> None:
    """That some of Keras' metrics are not meant for pairs, once some have come."""
    unfit = keras_metrics.of_one_class(metrics_of(model, name))
    if "of one class" in told or not unfit:
        return
    if view_of(table.tied) > 0:
        told.add("of one class")
        warnings.warn(
            f"Keras' {unfit[0].name!r} counts only the lower class number of an "
            "averaged pair as right. Compile with metrics="
            "[keras_mixavg.SoftLabelAccuracy()], or with SoftLabelTopKAccuracy(k=...), "
            "to have both counted.",
            stacklevel=3,
        )


def left_out(samples: int, name: str, epoch: int) -> None:
    """That samples do not count as evidence. Said in each epoch with such."""
    output = f" of output {name!r}" if name else ""
    count = (
        f"1 sample{output} was" if samples == 1 else f"{samples} samples{output} were"
    )
    warnings.warn(
        f"{count} left out of the soft-label table in epoch {epoch}: predictions, "
        "labels or sample weights that are not finite, negative sample weights, or "
        "labels of no class. Class numbers are whole and count from 0 on. Such samples "
        "still count in the loss.",
        stacklevel=3,
    )


def not_faded(told: set[str], done: int, epochs: int, fade_out: float) -> None:
    """That training ended before the weight had faded out."""
    if "not faded" in told:
        return
    weight = equations.fading(done - 1, epochs, fade_out)
    if weight < 0.01:  # as good as faded
        return
    told.add("not faded")
    warnings.warn(
        f"Training ended after epoch {done} of {epochs}, where the global soft labels "
        f"still had {weight:.0%} of their weight, so the network is underconfident. "
        "Have the weight follow the learning rate, callbacks=["
        "keras.callbacks.ReduceLROnPlateau(...), keras.callbacks.EarlyStopping(...), "
        'GlobalSoftLabel(fade_out="learning_rate")], or fit a temperature on held-out '
        "images. `fade_out=0` keeps the weight, without this warning.",
        stacklevel=3,
    )
