"""Keras' callbacks that monitor a value, with the metrics and logs of this package."""

import keras
import numpy as np
import pytest
from small_models import (
    CLASSES,
    FEATURES,
    averaged_batches,
    fit,
    fresh_to_fail,
    linear_model,
)
from tolerances import close

from keras_mixavg import (
    GlobalSoftLabel,
    SoftLabelAccuracy,
    SoftLabelCrossentropy,
    SoftLabelTopKAccuracy,
)

METRICS = {
    "loss": min,
    "accuracy": max,
    "top_k_accuracy": max,
    "val_loss": min,
    "val_accuracy": max,
    "val_top_k_accuracy": max,
}
LOGS = {"soft_label_confidence": max, "soft_label_entropy": min}


def monitoring(name, folder, **arguments):
    """Every Keras callback that monitors, set to one value."""
    return [
        keras.callbacks.EarlyStopping(name, patience=9, **arguments),
        keras.callbacks.ReduceLROnPlateau(name, patience=9, min_delta=0, **arguments),
        keras.callbacks.ModelCheckpoint(
            folder / f"{name}.weights.h5",
            name,
            save_best_only=True,
            save_weights_only=True,
            **arguments,
        ),
    ]


def trained(rng, callbacks):
    model = linear_model(rng.normal(size=(FEATURES, CLASSES)))
    model.compile(
        keras.optimizers.SGD(0.1),
        SoftLabelCrossentropy(from_logits=True),
        metrics=[SoftLabelAccuracy(), SoftLabelTopKAccuracy(2)],
    )
    x, y, _ = averaged_batches(rng, sizes=(32,))[0]
    validation = (x, y.argmax(axis=1))
    return fit(
        model, averaged_batches(rng), 3, callbacks, validation_data=validation
    ).history


def test_monitors_find_the_best_value_of_every_metric_and_log(rng, tmp_path):
    """Of the table's logs Keras must be told which value is the best."""
    monitors = {name: monitoring(name, tmp_path) for name in METRICS}
    for name, best in LOGS.items():
        monitors[name] = monitoring(name, tmp_path, mode=best.__name__)
    callbacks = [callback for several in monitors.values() for callback in several]
    history = trained(rng, [GlobalSoftLabel(), *callbacks])
    for name, best in (METRICS | LOGS).items():
        assert len(set(np.round(history[name], 6))) > 1, name
        for callback in monitors[name]:
            assert callback.best == close(best(history[name])), name


@pytest.mark.once
@pytest.mark.parametrize("name", LOGS)
def test_keras_asks_which_value_of_the_tables_logs_is_best(rng, tmp_path, name):
    batches, kernel = averaged_batches(rng), np.ones((FEATURES, CLASSES))
    for callback in monitoring(name, tmp_path):
        with pytest.raises(ValueError, match="Pass `mode='max'`"):
            fit(fresh_to_fail(kernel), batches, 1, [GlobalSoftLabel(), callback])
