"""Training that another callback stops, and the fade of the weight."""

import keras
import numpy as np
import pytest
from small_models import (
    CLASSES,
    FEATURES,
    Weights,
    averaged_batches,
    fit,
    linear_model,
)
from tolerances import assert_close

from keras_mixavg import GlobalSoftLabel, SoftLabelCrossentropy

pytestmark = pytest.mark.once  # what it decides is plain Python


class Stop(keras.callbacks.Callback):
    """Stop after `after` epochs, and after each later one, as EarlyStopping does."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 >= self.after:
            self.model.stop_training = True


def compiled_model(kernel, global_weight=0.5):
    model = linear_model(kernel)
    loss = SoftLabelCrossentropy(global_weight=global_weight, from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    return model


def epochs_of(callbacks, epochs, weight=0.5, logs=None, initial_epoch=0):
    """Call the hooks of `fit` without training, and return the number of epochs."""
    model = compiled_model(np.zeros((FEATURES, CLASSES)), weight)
    loop = keras.callbacks.CallbackList(callbacks, model=model, epochs=epochs)
    model.stop_training = False
    loop.on_train_begin()
    done = initial_epoch
    while done < epochs and not model.stop_training:
        loop.on_epoch_begin(done)
        loop.on_epoch_end(done, dict(logs or {"loss": 1.0}))
        done += 1
    loop.on_train_end()
    return done


def test_an_end_before_the_weight_has_faded_is_said_once_with_what_to_do():
    message = (
        "after epoch 4 of 10, .* 100% of their weight.*ReduceLROnPlateau.*"
        r'GlobalSoftLabel\(fade_out="learning_rate"\)\], or fit a temperature'
    )
    with pytest.warns(UserWarning, match=message) as warned:
        epochs_of([GlobalSoftLabel(), Stop(4)], 10)
    assert len(warned) == 1
    with pytest.warns(UserWarning, match="after epoch 9 of 10, .* 67% of their weight"):
        epochs_of([GlobalSoftLabel(), Stop(9)], 10)


def test_an_end_as_planned_is_not_remarked_upon():
    """Any warning is an error here."""
    assert epochs_of([GlobalSoftLabel()], 4) == 4
    assert epochs_of([GlobalSoftLabel()], 1) == 1
    assert epochs_of([GlobalSoftLabel(fade_out=0), Stop(2)], 9) == 2
    for weight in (0.0, lambda epoch: 0.5):
        assert epochs_of([GlobalSoftLabel(), Stop(2)], 9, weight) == 2
    for epoch in range(3):  # an epoch at a time
        epochs_of([GlobalSoftLabel()], epoch + 1, initial_epoch=epoch)
    epochs_of([GlobalSoftLabel()], 3, initial_epoch=3)  # no epoch at all


class SetRate(keras.callbacks.Callback):
    """Set the learning rate of each epoch when the one before it ends."""

    def __init__(self, rates):
        super().__init__()
        self.rates = rates

    def on_train_begin(self, logs=None):
        self.model.optimizer.learning_rate = self.rates[0]

    def on_epoch_end(self, epoch, logs=None):
        self.model.optimizer.learning_rate = self.rates[epoch + 1]


def test_the_weight_follows_the_learning_rate_and_is_full_at_the_highest():
    """A warm-up has the full weight; another `fit` starts again."""
    weights = Weights(full=0.5)
    callback = GlobalSoftLabel(fade_out="learning_rate")
    for peak in (0.4, 0.1):
        rates = [peak / 2, peak, peak / 4, peak / 2, peak / 8, 0.0]
        epochs_of([SetRate(rates), callback, weights], 5)
        assert_close(weights.seen, [1, 1, 1 / 4, 1 / 2, 1 / 8])


def test_the_weight_follows_a_schedule(rng):
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [0, 1], [0.4, 0.2, 0.0]
    )
    model = linear_model(np.zeros((FEATURES, CLASSES)))
    loss = SoftLabelCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(schedule), loss)
    weights = Weights(full=0.5)
    callbacks = [GlobalSoftLabel(fade_out="learning_rate"), weights]
    batches = averaged_batches(rng, sizes=(8,))
    fit(model, batches, 3, callbacks)
    # Epochs begin with steps 0, 1 and 2.
    assert_close(weights.seen, [1, 0.5, 0])


def test_a_plateau_fades_the_weight_and_early_stopping_needs_no_warning(rng):
    weights, model = Weights(full=0.5), compiled_model(np.zeros((FEATURES, CLASSES)))
    x, y, _ = batches = averaged_batches(rng)[0]
    callbacks = [
        keras.callbacks.ReduceLROnPlateau(factor=0.5, patience=1, min_delta=9.0),
        keras.callbacks.EarlyStopping(patience=3, min_delta=9.0),
        GlobalSoftLabel(fade_out="learning_rate"),
        weights,
    ]
    history = fit(model, [batches], 20, callbacks, validation_data=(x, y))
    assert len(history.epoch) == 4
    assert_close(weights.seen, [1, 1, 0.5, 0.25])


def test_a_rate_that_never_fell_is_said_once_with_what_to_do():
    follows = GlobalSoftLabel(fade_out="learning_rate")
    message = "at its highest learning rate, .*ReduceLROnPlateau.* leave out `fade_out`"
    for rates in ([0.1, 0.1, 0.1], [0.1, 0.2, 0.2]):
        with pytest.warns(UserWarning, match=message) as warned:
            epochs_of([SetRate(rates), follows, Stop(2)], 9)
        assert len(warned) == 1
    epochs_of([SetRate([0.2, 0.1, 0.1]), follows, Stop(2)], 9)  # it fell
    for epoch in range(2):  # an epoch at a time
        epochs_of([follows], epoch + 1, initial_epoch=epoch)


def test_a_resumed_run_fades_from_the_rate_of_the_compiled_model(tmp_path, rng):
    """Killed after an epoch at a tenth of the rate, and resumed from its backup."""
    batches = averaged_batches(rng, sizes=(8,))

    def train(extra=()):
        weights = Weights(full=0.5)
        callbacks = [
            GlobalSoftLabel(fade_out="learning_rate"),
            keras.callbacks.BackupAndRestore(tmp_path),
            weights,
            keras.callbacks.LearningRateScheduler(lambda e: 0.1 if e < 1 else 0.01),
            *extra,
        ]
        fit(compiled_model(np.zeros((FEATURES, CLASSES))), batches, 5, callbacks)
        return weights.seen

    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train([Kill()])
    assert_close(train(), [0.1, 0.1])


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_nothing_is_said_of_a_fade_after_a_loss_that_is_not_finite(loss):
    callbacks = [Stop(1), GlobalSoftLabel()]
    assert epochs_of(callbacks, 10, logs={"loss": loss}) == 1  # and no warning


def test_a_fade_by_the_learning_rate_is_refused_where_there_is_none():
    with pytest.raises(ValueError, match="not both.*'learning_rate'. Leave it out"):
        epochs_of([GlobalSoftLabel(fade_out="learning_rate")], 5, lambda epoch: 0.5)
    model = linear_model(np.zeros((FEATURES, CLASSES)))
    model.loss = SoftLabelCrossentropy(from_logits=True)
    callback = GlobalSoftLabel(fade_out="learning_rate")
    callback.set_model(model)
    model.optimizer = None
    with pytest.raises(ValueError, match="without an optimizer"):
        callback.on_train_begin()
