import csv
import functools
import itertools

import keras
import numpy as np
import pytest
import reference
from small_models import (
    CLASSES,
    EAGERLY,
    FEATURES,
    Weights,
    averaged_batches,
    fit,
    fresh,
    fresh_to_fail,
    linear_model,
)
from tolerances import assert_close, close

from keras_mixavg import GlobalSoftLabel, SoftLabelAccuracy, SoftLabelCrossentropy

pytestmark = pytest.mark.core

ONCE = pytest.mark.once  # of a case that differs from another in plain Python alone
SECOND = ["a new callback", pytest.param("the same callback", marks=ONCE)]
UNFADED = pytest.mark.filterwarnings("ignore:Training ended after epoch")
EXPECTED = {"prior_count": 1.0, "collect": "correct"}


def compiled_model(kernel, learning_rate=0.1, **kwargs):
    model = linear_model(kernel)
    optimizer = keras.optimizers.SGD(learning_rate)
    model.compile(optimizer, SoftLabelCrossentropy(from_logits=True), **kwargs)
    return model


@pytest.fixture
def batches(rng):
    return averaged_batches(rng)


@pytest.fixture
def kernel(rng):
    return (0.3 * rng.normal(size=(FEATURES, CLASSES))).astype("float32")


def assert_plain(model, batches):
    """The loss is plain cross-entropy in every use, and the metrics are as usual."""
    assert [metric.name for metric in model.metrics] == ["loss", "soft_label_table"]
    x, y, _ = batches[0]
    plain = keras.losses.CategoricalCrossentropy(from_logits=True)
    predictions = keras.ops.convert_to_numpy(model(x))
    expected = float(plain(y, predictions))
    assert float(model.loss(y, predictions)) == close(expected)
    model.reset_metrics()  # the running mean of the loss
    assert float(model.test_on_batch(x, y)) == close(expected)
    assert model.evaluate(x, y, verbose=0) == close(expected)
    model.reset_metrics()
    table = model.loss.table.state()
    assert float(model.train_on_batch(x, y)) == close(expected)
    for name, value in model.loss.table.state().items():
        np.testing.assert_array_equal(value, table[name])


class Raise(keras.callbacks.Callback):
    """Raise at the second call of a hook, or at another."""

    def __init__(self, hook, error, at=1):
        super().__init__()
        self.times = itertools.count()
        setattr(self, hook, self.hook)
        self.error = error
        self.at = at

    def hook(self, *args, **kwargs):
        if next(self.times) == self.at:
            raise self.error


@pytest.mark.parametrize(
    "hook, error",
    [
        ("on_train_batch_end", KeyboardInterrupt),
        ("on_test_batch_end", RuntimeError),
        pytest.param("on_epoch_begin", RuntimeError, marks=ONCE),
        pytest.param("on_epoch_end", RuntimeError, marks=ONCE),
    ],
)
def test_after_an_exception_evaluation_and_the_next_fit_are_plain(
    batches, kernel, hook, error
):
    model = fresh_to_fail(kernel)
    callbacks = [GlobalSoftLabel(), Raise(hook, error)]
    with pytest.raises(error):
        fit(model, batches, 3, callbacks, validation_data=batches[0][:2])
    x, y, _ = batches[0]
    plain = keras.losses.CategoricalCrossentropy(from_logits=True)
    expected = close(float(plain(y, model.predict_on_batch(x))))
    assert model.evaluate(x, y, verbose=0) == expected
    model.reset_metrics()
    assert float(model.test_on_batch(x, y)) == expected
    table = model.loss.table.state()
    follows = reference.Training(model.get_weights()[0], 0.1, global_weight=0.0)
    follows.epoch(batches)
    fit(model, batches, 1, [])
    assert_close(model.get_weights()[0], follows.kernel, trained=True)
    for name, value in model.loss.table.state().items():
        np.testing.assert_array_equal(value, table[name])
    assert_plain(model, batches)


def test_a_model_compiled_again_after_an_exception_is_evaluated_plainly(
    batches, kernel
):
    """With the same loss, which keeps its table."""
    model = fresh_to_fail(kernel)
    with pytest.raises(KeyboardInterrupt):
        stop = Raise("on_train_batch_end", KeyboardInterrupt)
        fit(model, batches, 3, [GlobalSoftLabel(), stop])
    table = model.loss.table.state()
    model.compile(keras.optimizers.SGD(0.01), model.loss)
    x, y, _ = batches[0]
    plain = keras.losses.CategoricalCrossentropy(from_logits=True)
    expected = close(float(plain(y, model.predict_on_batch(x))))
    assert model.evaluate(x, y, verbose=0) == expected
    for name, value in model.loss.table.state().items():
        np.testing.assert_array_equal(value, table[name])


def test_after_an_exception_with_a_callback_list_of_ones_own_the_next_fit_is_plain(
    batches, kernel
):
    model = fresh_to_fail(kernel)
    hooks = [GlobalSoftLabel(), Raise("on_epoch_end", RuntimeError, at=0)]
    own = keras.callbacks.CallbackList(hooks, model=model, epochs=3)
    with pytest.raises(RuntimeError):
        fit(model, batches, 3, own)
    fit(model, batches, 1, [])
    assert_plain(model, batches)


def test_after_an_exception_in_the_data_the_next_fit_is_plain(batches, kernel):
    model = fresh_to_fail(kernel)

    class Data(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            if index == 2:
                raise OSError("unreadable")
            return batches[index][:2]

    with pytest.raises(Exception, match="unreadable"):  # each backend wraps it
        model.fit(
            Data(), callbacks=[GlobalSoftLabel()], verbose=0, shuffle=False, epochs=2
        )
    fit(model, batches, 1, [])
    assert_plain(model, batches)


class StopAfter(keras.callbacks.Callback):
    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def on_train_batch_end(self, batch, logs=None):
        if batch == self.batch:
            self.model.stop_training = True


@UNFADED
def test_stop_training_ends_the_epoch_with_the_evidence_so_far(batches, kernel):
    model = fresh(kernel)
    callback = GlobalSoftLabel()
    fit(model, batches, 3, [callback, StopAfter(1)])
    expected = reference.Training(kernel, 0.1, **EXPECTED)
    expected.epoch(batches[:2])
    assert_close(callback.table, expected.table, trained=True)
    assert_plain(model, batches)
    assert_close(callback.table, expected.table, trained=True)


@pytest.mark.parametrize("second", SECOND)
def test_a_second_fit_goes_on_from_the_table(batches, kernel, second):
    model = fresh(kernel)
    callback = GlobalSoftLabel()
    fit(model, batches, 2, [callback])
    if second == "a new callback":
        callback = GlobalSoftLabel()
    fit(model, batches, 1, [callback])
    expected = reference.Training(kernel, 0.1, **EXPECTED)
    for _ in range(3):
        expected.epoch(batches)
    assert_close(callback.table, expected.table, trained=True)


def test_a_new_loss_starts_anew_and_the_same_one_goes_on(batches, kernel):
    model = linear_model(kernel)
    callback = GlobalSoftLabel(prior_count=5.0)
    tables = []
    same = SoftLabelCrossentropy(from_logits=True)
    for loss in (same, SoftLabelCrossentropy(from_logits=True), same):
        model.compile(keras.optimizers.SGD(0.0), loss, run_eagerly=EAGERLY)
        if tables and loss is not same:  # said once, before it trains
            with pytest.warns(UserWarning, match="its soft-label table starts anew"):
                fit(model, batches, 1, [callback])
        else:
            fit(model, batches, 1, [callback])
        tables.append(callback.table)
        assert sum("soft_label" in metric.name for metric in model.metrics) == 1
    assert_close(tables[0], tables[1], trained=True)
    expected = reference.Training(kernel, 0.0, prior_count=5.0)
    for _ in range(2):
        expected.epoch(batches)
    assert_close(tables[2], expected.table, trained=True)


def test_a_loss_that_has_trained_another_model_is_refused(batches, kernel):
    batches = batches[:1]
    model = compiled_model(kernel, run_eagerly=EAGERLY)
    fit(model, batches, 1, [GlobalSoftLabel()])
    other = linear_model(kernel)
    other.compile("sgd", model.loss, run_eagerly=EAGERLY)
    fit(other, batches, 1, [])  # plain cross-entropy may be shared
    with pytest.raises(ValueError, match="has trained another model.*of its own"):
        fit(other, batches, 1, [GlobalSoftLabel()])
    fit(model, batches, 1, [GlobalSoftLabel()])


@pytest.mark.parametrize("second", SECOND)
def test_a_fit_after_a_crash_goes_on_with_table_and_evidence(batches, kernel, second):
    model = fresh_to_fail(kernel)
    callback = GlobalSoftLabel()
    boom = Raise("on_train_batch_end", RuntimeError)  # after the second batch
    with pytest.raises(RuntimeError):
        fit(model, batches, 3, [callback, boom])
    if second == "a new callback":
        callback = GlobalSoftLabel()
    fit(model, batches, 1, [callback])
    expected = reference.Training(kernel, 0.1, **EXPECTED)
    expected.step(*batches[0])
    expected.step(*batches[1])
    expected.epoch(batches)
    assert_close(callback.table, expected.table, trained=True)
    assert_close(model.get_weights()[0], expected.kernel, trained=True)


def test_fits_with_and_without_the_callback_may_alternate(batches, kernel):
    """A step compiled without the table must not serve one with it, nor vice versa."""
    model = compiled_model(kernel)
    expected = reference.Training(kernel, 0.1, **EXPECTED)
    for use in (False, True, False, True):
        callback = GlobalSoftLabel()
        fit(model, batches, 1, [callback] if use else [])
        expected.global_weight = 0.5 if use else 0.0
        table = expected.table
        expected.epoch(batches)
        if not use:
            expected.table = table
        assert_close(model.get_weights()[0], expected.kernel, trained=True)
        if use:
            assert_close(callback.table, expected.table, trained=True)


@pytest.mark.parametrize("passed", [False, True])
def test_evaluate_inside_an_epoch_leaks_nothing_and_training_goes_on(
    batches, kernel, passed
):
    model, batches = fresh(kernel), batches[1:]
    x, y, _ = batches[1]
    values = []

    class Evaluate(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            logits = keras.ops.convert_to_numpy(self.model(x))
            plain = reference.loss(y, [reference.softmax(z) for z in logits])
            callbacks = [callback] if passed else None
            value = self.model.evaluate(x, y, 64, 0, callbacks=callbacks)
            values.append((value, plain))
            self.model.reset_metrics()
            values.append((float(self.model.test_on_batch(x, y)), plain))

    callback = GlobalSoftLabel()
    fit(model, batches, 2, [callback, Evaluate()])
    expected = reference.Training(kernel, 0.1, **EXPECTED)
    for _ in range(2):
        expected.epoch(batches)
    assert_close(callback.table, expected.table, trained=True)
    assert_close(model.get_weights()[0], expected.kernel, trained=True)
    assert len(values) == 2 * 2 * len(batches)
    assert_close(*np.transpose(values), trained=True)


@pytest.mark.once
def test_evaluate_after_the_last_step_of_an_epoch_does_no_harm(batches, kernel):
    model = fresh(kernel)
    x, y, _ = batches[2]

    class Evaluate(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.evaluate(x, y, verbose=0)

    callback = GlobalSoftLabel()
    fit(model, batches, 2, [Evaluate(), callback])  # no warning
    expected = reference.Training(kernel, 0.1, **EXPECTED)
    for _ in range(2):
        expected.epoch(batches)
    assert_close(callback.table, expected.table, trained=True)


def test_global_weight_follows_the_epoch(batches, kernel):
    model = linear_model(kernel)
    weights = [0.0, 0.3, 0.9]
    loss = SoftLabelCrossentropy(
        global_weight=lambda epoch: weights[epoch], from_logits=True
    )
    model.compile(keras.optimizers.SGD(0.1), loss)
    callback = GlobalSoftLabel()
    fit(model, batches, 3, [callback], initial_epoch=1)
    expected = reference.Training(kernel, 0.1, **EXPECTED)
    for weight in weights[1:]:
        expected.global_weight = weight
        expected.epoch(batches)
    assert_close(callback.table, expected.table, trained=True)


@pytest.mark.once
def test_a_bad_weight_ends_training_in_its_epoch_and_leaves_nothing(batches, kernel):
    model, batches = linear_model(kernel), batches[:1]
    loss = SoftLabelCrossentropy(global_weight=lambda epoch: epoch, from_logits=True)
    model.compile("sgd", loss, run_eagerly=EAGERLY)
    with pytest.raises(ValueError, match=r"`global_weight\(2\)` must be a float in"):
        fit(model, batches, 3, [GlobalSoftLabel()])
    fit(model, batches, 1, [])
    assert_plain(model, batches)


@pytest.mark.once
@pytest.mark.parametrize("metric", ["accuracy", "categorical_accuracy"])
def test_plain_accuracy_on_pairs_is_noticed_once(batches, kernel, metric):
    options = {"metrics": [metric], "run_eagerly": EAGERLY}
    batches = batches[:1]
    model = compiled_model(kernel, **options)
    with pytest.warns(UserWarning, match="SoftLabelAccuracy") as seen:
        fit(model, batches, 2, [GlobalSoftLabel()])
    assert sum("SoftLabelAccuracy" in str(w.message) for w in seen) == 1
    one_hot = [
        (x, np.eye(CLASSES, dtype="float32")[y.argmax(axis=1)], w)
        for x, y, w in batches
    ]
    fit(compiled_model(kernel, **options), one_hot, 1, [GlobalSoftLabel()])


@functools.cache
def trained_on(form):
    """Table, weights and scores of a model that trains and is evaluated on labels of
    this form."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, FEATURES)).astype("float32")
    numbers = rng.integers(0, CLASSES, 12)
    one_hot = np.eye(CLASSES, dtype="float32")[numbers]
    y = {"one-hot": one_hot, "numbers": numbers, "a column": numbers[:, None]}[form]
    kernel = 0.3 * rng.normal(size=(FEATURES, CLASSES))
    metrics = [SoftLabelAccuracy()]
    model = compiled_model(kernel, metrics=metrics, run_eagerly=EAGERLY)
    callback = GlobalSoftLabel()
    data = {"epochs": 2, "batch_size": 6, "shuffle": False, "verbose": 0}
    model.fit(x, y, validation_data=(x, y), callbacks=[callback], **data)
    scores = [model.evaluate(x, labels, verbose=0) for labels in (y, one_hot)]
    assert_close(*scores)
    return callback.table, *model.get_weights(), np.array(scores[0])


@pytest.mark.parametrize("form", ["numbers", pytest.param("a column", marks=ONCE)])
def test_class_numbers_train_and_evaluate_as_one_hot_labels_do(form):
    for one, other in zip(trained_on(form), trained_on("one-hot"), strict=True):
        assert_close(one, other, trained=True)


def test_class_numbers_that_do_not_exist_are_left_out_and_counted(rng, kernel):
    model = fresh(kernel)
    x = rng.normal(size=(12, FEATURES)).astype("float32")
    numbers = np.arange(12) % CLASSES + 1  # from 1 on, by mistake
    with pytest.warns(UserWarning, match="^3 samples were left out.*from 0 on"):
        model.fit(x, numbers, callbacks=[GlobalSoftLabel()], verbose=0)


@pytest.mark.parametrize(
    "fade_out", [None, *(pytest.param(f, marks=ONCE) for f in (0.0, 0.5, 1.0))]
)
def test_the_weight_fades_out_over_the_last_epochs(batches, kernel, fade_out):
    model = fresh(kernel)
    arguments = {} if fade_out is None else {"fade_out": fade_out}
    weights = Weights()
    batches = batches[:1]
    fit(model, batches, 5, [GlobalSoftLabel(**arguments), weights])
    share = {
        None: [1, 1, 1, 1, 2 / 3],
        0.0: [1, 1, 1, 1, 1],
        0.5: [1, 1, 1, 4 / 5, 2 / 5],
        1.0: [1, 4 / 5, 3 / 5, 2 / 5, 1 / 5],
    }[fade_out]
    assert_close(weights.seen, 0.5 * np.array(share))
    expected = reference.Training(kernel, 0.1, epochs=5)
    expected.fade_out = 0.3 if fade_out is None else fade_out or 1e-9
    for _ in range(5):
        expected.epoch(batches)
    assert_close(model.get_weights()[0], expected.kernel, trained=True)


@pytest.mark.once
@UNFADED
def test_a_resumed_run_fades_as_if_never_interrupted(batches, kernel):
    kernels, batches = [], batches[:1]
    for parts in ([(0, 4)], [(0, 3), (3, 4)]):
        model = fresh(kernel)
        for start, stop in parts:
            callback = GlobalSoftLabel(fade_out=0.5)
            others = [StopAfterEpoch(stop - 1)]
            fit(model, batches, 4, [callback, *others], initial_epoch=start)
        kernels.append(model.get_weights()[0])
    assert_close(*kernels, trained=True)


class StopAfterEpoch(keras.callbacks.Callback):
    def __init__(self, last):
        super().__init__()
        self.last = last

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = epoch == self.last


@pytest.mark.once
def test_a_callable_weight_does_not_fade_and_refuses_a_fade_out(batches, kernel):
    model, batches = linear_model(kernel), batches[:1]
    loss = SoftLabelCrossentropy(global_weight=lambda _: 0.5, from_logits=True)
    model.compile("sgd", loss)
    for arguments in ({}, {"fade_out": 0.0}):
        weights = Weights()
        fit(model, batches, 3, [GlobalSoftLabel(**arguments), weights])
        assert weights.seen == [0.5] * 3
    with pytest.raises(ValueError, match="Either `fade_out`.*fade_out=0.2. Leave it"):
        fit(model, batches, 3, [GlobalSoftLabel(fade_out=0.2)])


@pytest.mark.once
def test_a_loop_that_does_not_say_its_epochs_fades_nothing(batches, kernel):
    model = fresh(kernel)
    callback, weights = GlobalSoftLabel(), Weights()
    fit(model, batches, 2, [callback])  # whose `epochs` are not the loop's
    loop = keras.callbacks.CallbackList([callback, weights], model=model)
    loop.on_train_begin()
    for epoch in range(10):
        loop.on_epoch_begin(epoch)
    assert weights.seen == [0.5] * 10
    loop = keras.callbacks.CallbackList([GlobalSoftLabel(fade_out=0.2)], model=model)
    with pytest.raises(ValueError, match="`fade_out` needs the number of epochs.*=0.2"):
        loop.on_train_begin()


@pytest.mark.once
def test_history_and_csv_show_the_statistics(batches, kernel, tmp_path):
    model = fresh(kernel)
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    history = fit(model, batches, 2, [GlobalSoftLabel(), log]).history
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    for name in ("soft_label_confidence", "soft_label_entropy"):
        logged = [float(row[name]) for row in rows]
        assert_close(logged, history[name])


# --- Models --------------------------------------------------------------------------


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(CLASSES, use_bias=False)

    def call(self, inputs):
        return self.dense(inputs)


@pytest.mark.parametrize("built", ["never", "before compile", "after compile"])
@pytest.mark.parametrize("make", [Subclassed, keras.Sequential])
def test_models_of_every_kind_can_be_trained(batches, kernel, make, built):
    model = make()
    if make is keras.Sequential:
        model.add(keras.layers.Dense(CLASSES, use_bias=False))
    for layer in model.layers:
        layer.kernel_initializer = keras.initializers.Constant(kernel)
    if built == "before compile":
        model(batches[0][0])
    model.compile(keras.optimizers.SGD(0.1), SoftLabelCrossentropy(from_logits=True))
    if built == "after compile":
        model(batches[0][0])
    callback = GlobalSoftLabel()
    fit(model, batches, 2, [callback])
    expected = reference.Training(kernel, 0.1, **EXPECTED)
    for _ in range(2):
        expected.epoch(batches)
    assert_close(callback.table, expected.table, trained=True)
    assert [metric.name for metric in model.metrics] == ["loss", "soft_label_table"]
    if built == "never":
        assert_plain(model, batches)
    if make is Subclassed:  # built, it is as closed to new state as before
        with pytest.raises(ValueError, match="cannot add new elements of state"):
            model.late = keras.layers.Dense(1)


class OwnMetrics(keras.Sequential):
    """Lists its metrics by hand, as guides to custom training steps have it."""

    @property
    def metrics(self):
        return [self._loss_tracker]


def test_validation_leaks_nothing_where_a_model_resets_its_own_metrics(batches, kernel):
    dense = keras.layers.Dense(CLASSES, use_bias=False)
    model = OwnMetrics([keras.Input((FEATURES,)), dense])
    model.set_weights([kernel])
    model.compile(keras.optimizers.SGD(0.1), SoftLabelCrossentropy(from_logits=True))
    callback = GlobalSoftLabel()
    if keras.backend.backend() == "jax":
        with pytest.raises(ValueError, match=r"return \[\*super\(\).metrics"):
            fit(model, batches, 2, [callback])
        return
    fit(model, batches, 2, [callback], validation_data=batches[2][:2])
    expected = reference.Training(kernel, 0.1, **EXPECTED)
    for _ in range(2):
        expected.epoch(batches)
    assert_close(callback.table, expected.table, trained=True)


def test_the_table_is_a_copy(batches, kernel):
    callback = GlobalSoftLabel()
    fit(fresh(kernel), batches, 1, [callback])
    callback.table[:] = 0
    assert_close(callback.table.sum(axis=1), 1)


# --- Bad use -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"prior_count": -1}, "`prior_count` must be a finite float.*prior_count=-1"),
        ({"prior_count": float("inf")}, "`prior_count` must be a finite.*=inf"),
        ({"prior_count": float("nan")}, "`prior_count` must be a finite.*=nan"),
        ({"prior_count": "some"}, "`prior_count` must be a finite float.*'some'"),
        ({"fade_out": 1.5}, r"`fade_out` must be a float in \[0, 1\].*fade_out=1.5"),
        (
            {"fade_out": "late"},
            "`fade_out` must be .*or .learning_rate.*fade_out='late'",
        ),
        ({"collect": "best"}, r"`collect` must be one of \('correct', 'all'\).*'best'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GlobalSoftLabel(**arguments)


def test_two_of_these_callbacks_in_one_fit_are_refused(batches, kernel):
    callback = GlobalSoftLabel()
    for callbacks in ([callback, callback], [callback, GlobalSoftLabel()]):
        with pytest.raises(ValueError, match="must train with one GlobalSoftLabel"):
            fit(fresh_to_fail(kernel), batches, 1, callbacks)


def test_there_is_no_table_before_training():
    with pytest.raises(RuntimeError, match="no table before the first batch"):
        _ = GlobalSoftLabel().table
