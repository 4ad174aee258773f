"""Two models of one network, with and without the method, that take turns.

The speed of a machine changes while a benchmark runs. Changes that hit both models
alike cancel in their ratio. training_step.py says what is measured.
"""

import itertools
import statistics
import threading
import time

import measuring

BATCH = 128
DRAWS = 10  # batches of pairs, so that each class meets several others
FEATURES = 256  # of the dense models


# --- The models and their data -------------------------------------------------------


def compiled(make_model, with_method):
    import keras

    import keras_mixavg

    keras.utils.set_random_seed(0)
    model = make_model()
    plain = keras.losses.CategoricalCrossentropy(from_logits=True)
    loss = keras_mixavg.SoftLabelCrossentropy(from_logits=True)
    model.compile(
        keras.optimizers.SGD(0.01, 0.9),
        loss if with_method else plain,
        jit_compile=keras.backend.backend() != "torch",  # Keras: torch.compile, slower
    )
    return model, [keras_mixavg.GlobalSoftLabel()] if with_method else []


def make_data(features, classes, batch):
    """One batch of inputs, and the labels of pairs for `DRAWS` batches of them."""
    import keras
    import numpy as np

    rng = np.random.default_rng(0)
    pairs = rng.integers(0, classes, (DRAWS, 2, batch))
    one_hot = (keras.utils.to_categorical(pair, classes) for pair in pairs)
    labels = [pair.mean(axis=0, dtype="float32") for pair in one_hot]
    return rng.normal(size=(batch, *features)).astype("float32"), labels


def repeated(data):
    """The batches as tensors of the backend, in an endless loop."""
    import keras

    inputs, labels = data
    inputs = keras.ops.convert_to_tensor(inputs)
    for values in itertools.cycle(map(keras.ops.convert_to_tensor, labels)):
        yield inputs, values


def dense(classes):
    import keras

    return keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(classes)])


def hidden_layer():
    import keras

    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(64, "relu"),
            keras.layers.Dense(10),
        ]
    )


def counted(make_model, traces):
    """A model that adds to `traces` each time TensorFlow or JAX compiles it.

    Only then do they run Python. (torch compiles nothing, and runs it at each step.)
    """
    import keras

    class Count(keras.layers.Layer):
        def call(self, inputs):
            traces.append(1)
            return inputs

    return keras.Sequential([make_model(), Count()])


# --- An epoch of `fit` in turns ------------------------------------------------------


class Side(threading.Thread):
    """Train a model with or without the method; wait for a turn at each epoch."""

    def __init__(self, make_model, with_method, data, steps, epochs):
        super().__init__(daemon=True)
        self.arguments = make_model, with_method, data, steps, epochs
        self.mine, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.epochs, self.steps, self.error = [], [], None

    def run(self):
        import keras

        make_model, with_method, data, steps, epochs = self.arguments
        side = self

        class First(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                side.mine.acquire()
                self.start = time.perf_counter()

            def on_epoch_end(self, epoch, logs=None):
                side.steps.append(time.perf_counter() - side.begun)

        class Last(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                side.begun = time.perf_counter()

            def on_epoch_end(self, epoch, logs=None):
                side.epochs.append(time.perf_counter() - first.start)
                side.done.release()

        first = First()
        try:
            model, callbacks = compiled(make_model, with_method)
            model.fit(
                repeated(data),
                steps_per_epoch=steps,
                epochs=epochs,
                verbose=0,
                callbacks=[first, *callbacks, Last()],
            )
        except Exception as error:
            self.error = error
            self.done.release()

    def take_turn(self):
        self.mine.release()
        self.done.acquire()
        if self.error:
            raise self.error


def take_turns(make_model, data, steps, repeats):
    warm_up = 1 if steps > 10 else 2
    plain, method = (
        Side(make_model, with_method, data, steps, warm_up + repeats)
        for with_method in (False, True)
    )
    plain.start(), method.start()
    for turn in range(warm_up + repeats):
        for side in (plain, method) if turn % 2 else (method, plain):
            side.take_turn()
    plain.join(), method.join()
    figures = {}
    for name in ("steps", "epochs"):
        with_, without = (getattr(s, name)[warm_up:] for s in (method, plain))
        ratios = [a / b for a, b in zip(with_, without, strict=True)]
        figures[name] = {
            "ratio": statistics.median(ratios),
            "quartiles": measuring.quartiles(ratios),
            "plain_ms": 1e3 * statistics.median(without),
            "method_ms": 1e3 * statistics.median(with_),
        }
    return figures


# --- Whole calls in turns ------------------------------------------------------------


def fit(model, callbacks, data, steps, **validation):
    model.fit(
        repeated(data),
        steps_per_epoch=steps,
        verbose=0,
        callbacks=callbacks,
        **validation,
    )


def fit_and_validate(model, callbacks, data, steps):
    validation = repeated(data)
    fit(
        model,
        callbacks,
        data,
        steps,
        validation_data=validation,
        validation_steps=steps,
    )


def fit_without_the_callback(model, _, data, steps):
    fit(model, [], data, steps)


def evaluate(model, _, data, steps):
    model.evaluate(repeated(data), steps=steps, verbose=0)


def compared(make_model, features, classes, steps, actions, repeats, attach=None):
    """A row for each action: once, and then `repeats` times in turns.

    First each model does `attach`, which is not timed.
    """
    import keras

    data = make_data(features, classes, BATCH)
    traces = {"plain": [], "method": []}
    models = {
        side: compiled(lambda side=side: counted(make_model, traces[side]), with_method)
        for side, with_method in (("plain", False), ("method", True))
    }
    for pair in models.values() if attach else ():
        attach(*pair, data, steps)
    for action in actions:
        in_turns = {
            side: lambda pair=pair, action=action: action(*pair, data, steps)
            for side, pair in models.items()
        }
        first = {side: 1e3 * measuring.seconds(do) for side, do in in_turns.items()}
        before = {side: len(traces[side]) for side in traces}
        times = measuring.in_turns(in_turns, repeats)
        new = {side: len(traces[side]) - before[side] for side in traces}
        ratios = [a / b for a, b in zip(times["method"], times["plain"], strict=True)]
        yield {
            "case": action.__name__,
            "classes": classes,
            "steps": steps,
            "repeats": repeats,
            "first_ms": first,
            "plain_ms": 1e3 * statistics.median(times["plain"]),
            "method_ms": 1e3 * statistics.median(times["method"]),
            "ratio": statistics.median(ratios),
            "quartiles": measuring.quartiles(ratios),
            "compiled_later": None if keras.backend.backend() == "torch" else new,
        }
