"""Uses other than one plain `fit`: tools, threads, another backend, debuggers."""

import contextlib
import gc
import threading
import warnings
import weakref
from pathlib import Path

import keras
import numpy as np
import processes
import pytest
import reference
import small_models
from small_models import CLASSES, EAGERLY, FEATURES, averaged_batches, linear_model
from tolerances import assert_close, close

from keras_mixavg import (
    GlobalSoftLabel,
    MixAvg,
    SoftLabelAccuracy,
    SoftLabelCrossentropy,
)

BACKEND = keras.backend.backend()


def compiled(model, run_eagerly=EAGERLY, **kwargs):
    loss = SoftLabelCrossentropy(from_logits=True)
    optimizer = keras.optimizers.SGD(0.1)
    model.compile(optimizer, loss, run_eagerly=run_eagerly, **kwargs)
    return model


def fit(model, batches, epochs=2, **kwargs):
    return small_models.fit(model, batches, epochs, [GlobalSoftLabel()], **kwargs)


@pytest.fixture
def batches(rng):
    return averaged_batches(rng)


# --- scikit-learn, joblib and cloudpickle ---------------------------------------------


def classifier_of(X, y):
    """The model for keras.wrappers.SKLearnClassifier, the same at each call."""
    return compiled(linear_model(np.eye(X.shape[1], y.shape[1])))


def fit_a_fold(estimator, X, y, settings):
    """In another process, as `n_jobs` of scikit-learn does."""
    import cloudpickle

    Path("fitted").write_bytes(cloudpickle.dumps(estimator.fit(X, y, **settings)))


@pytest.mark.new_process
@pytest.mark.once
def test_folds_of_scikit_learn_train_alike_in_this_process_and_in_another(tmp_path):
    pytest.importorskip("sklearn")
    cloudpickle = pytest.importorskip("cloudpickle")
    from sklearn import base, model_selection

    rng = np.random.default_rng(0)
    y = np.arange(48) % CLASSES
    X = np.eye(CLASSES, FEATURES)[y] + rng.normal(size=(48, FEATURES))
    X = X.astype("float32")
    settings = {"epochs": 2, "batch_size": 8, "shuffle": False, "verbose": 0}
    settings["callbacks"] = [GlobalSoftLabel()]
    estimator = keras.wrappers.SKLearnClassifier(classifier_of)
    folds = model_selection.KFold(2)
    result = model_selection.cross_validate(
        *(estimator, X, y),
        cv=folds,
        params=settings,
        return_estimator=True,
        error_score="raise",
    )
    fitted = result["estimator"]
    first, second = (each.model_.loss.table.numpy() for each in fitted)
    assert np.abs(first - second).max() > 1e-3  # of other data
    for table in (first, second):
        assert np.abs(table - np.eye(CLASSES)).max() > 0.05
    train, test = next(folds.split(X))
    fold = base.clone(estimator), X[train], y[train], settings
    processes.run(fit_a_fold, *fold, folder=tmp_path)
    there = cloudpickle.loads((tmp_path / "fitted").read_bytes())
    assert_close(there.score(X[test], y[test]), result["test_score"][0])
    assert_close(there.model_.loss.table.numpy(), first, trained=True)


def by_joblib(value, folder):
    joblib = pytest.importorskip("joblib")
    joblib.dump(value, folder / "value")
    return joblib.load(folder / "value")


def by_cloudpickle(value, folder):
    cloudpickle = pytest.importorskip("cloudpickle")
    return cloudpickle.loads(cloudpickle.dumps(value))


@pytest.mark.once
@pytest.mark.parametrize("way", [by_joblib, by_cloudpickle])
def test_layer_loss_callback_and_model_come_back_from(way, batches, tmp_path):
    model = compiled(linear_model(np.eye(FEATURES, CLASSES)))
    callback = GlobalSoftLabel(fade_out=0.0, collect="all")
    small_models.fit(model, batches, 1, [callback])
    table = callback.table
    for value in (MixAvg(0.7, 4, seed=3), model.loss, callback):
        assert way(value, tmp_path).get_config() == value.get_config()
    x, numbers = np.eye(4, dtype="float32"), np.arange(4)
    layer = MixAvg(num_classes=4, seed=3)
    for one, other in zip(
        way(layer, tmp_path)(x, numbers), layer(x, numbers), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(way(model.loss, tmp_path).table.numpy(), table)
    other = way(model, tmp_path)
    np.testing.assert_array_equal(other.loss.table.numpy(), table)
    again = way(callback, tmp_path)
    for trained, with_callback in ((model, callback), (other, again)):
        small_models.fit(trained, batches, 1, [with_callback])
    assert_close(again.table, callback.table, trained=True)
    assert np.abs(again.table - table).max() > 1e-3


# --- Another backend ------------------------------------------------------------------

OTHER = {"tensorflow": "jax", "jax": "torch"}.get(BACKEND)
CONTINUED = """
import sys
import keras, numpy as np
from keras_mixavg import GlobalSoftLabel
path, backend = sys.argv[1:]
assert keras.backend.backend() == backend
data = np.load(path + "/data.npz")
model = keras.saving.load_model(path + "/model.keras")
loaded = model.loss.table.numpy()
loss = model.evaluate(data["x"], data["y"], batch_size=8, verbose=0)
model.fit(
    data["x"], data["y"], batch_size=8, epochs=2, shuffle=False, verbose=0,
    callbacks=[GlobalSoftLabel()],
)
table = model.loss.table.numpy()
kernel = model.get_weights()[0]
np.savez(path + "/seen.npz", loaded=loaded, loss=loss, table=table, kernel=kernel)
"""


@pytest.mark.once
@pytest.mark.skipif(
    BACKEND == "torch", reason="Keras loads an optimizer of torch as such, everywhere"
)
def test_another_backend_evaluates_and_trains_on(tmp_path, rng):
    pytest.importorskip(OTHER)
    ((x, y, _),) = averaged_batches(rng, sizes=(24,))

    def train(model):
        data = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0}
        model.fit(x, y, callbacks=[GlobalSoftLabel()], **data)
        return model.loss.table.numpy()

    model = compiled(linear_model(np.eye(FEATURES, CLASSES)), run_eagerly=False)
    learnt = train(model)
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", x=x, y=y)
    processes.run_program(CONTINUED, tmp_path, OTHER, str(tmp_path), OTHER)
    seen = np.load(tmp_path / "seen.npz")
    np.testing.assert_array_equal(seen["loaded"], learnt)
    assert float(seen["loss"]) == close(model.evaluate(x, y, batch_size=8, verbose=0))
    assert_close(seen["table"], train(model), trained=True)
    assert_close(seen["kernel"], model.get_weights()[0], trained=True)
    assert np.abs(seen["table"] - learnt).max() > 1e-3


# --- Weights that are not plain float32 -----------------------------------------------


def train_one_step(model, x, y):
    """One epoch of one batch: the table comes from the predictions before it."""
    before = model.loss.table.numpy()
    logits = model.predict(x, verbose=0).astype("float64")
    p = [reference.softmax(row) for row in logits]
    callback = GlobalSoftLabel(fade_out=0)
    settings = {"batch_size": len(x), "verbose": 0, "callbacks": [callback]}
    history = model.fit(x, y, **settings)
    assert history.history["loss"][0] == close(
        reference.loss(y, p, before, 0.5), trained=True
    )
    expected = reference.updated_table(before, *reference.evidence(y, p), 1.0)
    assert_close(model.loss.table.numpy(), expected, trained=True)
    assert np.abs(expected - before).max() > 1e-3


def test_low_rank_adaptation_then_int8_train_on_with_the_table(rng):
    (x, y, _), *_ = averaged_batches(rng)
    hidden = keras.layers.Dense(7, "tanh")
    head = keras.layers.Dense(CLASSES)
    model = keras.Sequential([keras.Input((FEATURES,)), hidden, head])
    loss = compiled(model).loss
    fit(model, [(x, y, None)], epochs=1)
    head.enable_lora(2)
    hidden.trainable = False
    model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=EAGERLY)
    train_one_step(model, x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the input has nothing to quantize
        model.quantize("int8")
    model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=EAGERLY)
    before = [np.array(head.lora_kernel_b), np.array(head.bias)]
    train_one_step(model, x, y)
    train_one_step(model, x, y)
    assert keras.backend.standardize_dtype(head._kernel.dtype) == "int8"
    for old, variable in zip(before, (head.lora_kernel_b, head.bias), strict=True):
        assert np.abs(np.array(variable) - old).max() > 1e-4


# --- Many models ----------------------------------------------------------------------


def test_models_that_are_trained_in_a_loop_are_freed(batches):
    kept = []
    for _ in range(2):
        model = compiled(linear_model(np.eye(FEATURES, CLASSES)), run_eagerly=False)
        callback = GlobalSoftLabel()
        small_models.fit(model, batches, 1, [callback])
        model.evaluate(batches[0][0], batches[0][1], verbose=0)
        kept += [weakref.ref(o) for o in (model, model.loss, model.loss.table)]
        kept.append(weakref.ref(callback))
    del model, callback
    gc.collect()
    assert len(kept) == 8 and not [reference for reference in kept if reference()]


def test_three_threads_train_a_model_each(rng):
    kernels = [rng.normal(size=(FEATURES, CLASSES)) * 0.3 for _ in range(3)]
    data = [averaged_batches(rng) for _ in kernels]
    models, failures, start = [None] * 3, [], threading.Barrier(3)

    def train(i):
        try:
            model = compiled(linear_model(kernels[i]), run_eagerly=False)
            models[i] = model
            start.wait()
            fit(model, data[i])
        except BaseException as failure:
            failures.append(failure)
            raise

    threads = [threading.Thread(target=train, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for model, kernel, own in zip(models, kernels, data, strict=True):
        expected = reference.Training(kernel.astype("float32"), 0.1, epochs=2)
        for _ in range(2):
            expected.epoch(own)
        assert_close(model.loss.table.numpy(), expected.table, trained=True)
        assert_close(model.get_weights()[0], expected.kernel, trained=True)


# --- Segmentation ---------------------------------------------------------------------


@pytest.mark.parametrize("void, dtype", [(-1, "int32"), (255, "uint8")])
def test_void_pixels_of_no_weight_count_neither_in_the_loss_nor_in_the_table(
    rng, void, dtype
):
    """Predictions (batch, height, width, classes); void labels are not a class."""
    numbers = rng.integers(0, CLASSES, (6, 4, 3))
    images = np.eye(CLASSES, FEATURES)[numbers] + rng.normal(size=(6, 4, 3, FEATURES))
    kernel = rng.normal(size=(FEATURES, CLASSES)) * 0.3
    is_void = rng.uniform(size=numbers.shape) < 0.3
    masks = np.where(is_void, void, numbers).astype(dtype)
    weights = 1.0 - is_void.astype("float32")
    model = keras.Sequential(
        [
            keras.Input((4, 3, FEATURES)),
            keras.layers.Conv2D(CLASSES, 1, use_bias=False),
        ]
    )
    model.set_weights([kernel[None, None]])
    compiled(model, weighted_metrics=[SoftLabelAccuracy()])
    data = (images.astype("float32"), masks, weights)
    settings = {"batch_size": 3, "shuffle": False, "verbose": 0}
    history = model.fit(
        *data[:2],
        sample_weight=weights,
        epochs=2,
        validation_data=data,
        callbacks=[GlobalSoftLabel()],
        **settings,
    )
    flat = [
        (
            part[0].reshape(-1, FEATURES),
            reference.one_hot(part[1].ravel(), CLASSES),
            part[2].ravel(),
        )
        for part in (
            (data[0][i : i + 3], numbers[i : i + 3], weights[i : i + 3]) for i in (0, 3)
        )
    ]
    expected = reference.Training(kernel.astype("float32"), 0.1, epochs=2)
    losses = [expected.epoch(flat) for _ in range(2)]
    assert_close(history.history["loss"], losses, trained=True)
    assert_close(model.loss.table.numpy(), expected.table, trained=True)
    assert_close(model.get_weights()[0][0, 0], expected.kernel, trained=True)
    logits = data[0] @ expected.kernel
    right = (logits.argmax(axis=-1) == numbers)[~is_void].mean()
    assert history.history["val_accuracy"][-1] == close(right, trained=True)


# --- Debuggers ------------------------------------------------------------------------


@contextlib.contextmanager
def numbers_checked():
    """How each backend stops at the first NaN."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        tf.debugging.enable_check_numerics()
        try:
            yield (tf.errors.InvalidArgumentError, "NaN|Inf")
        finally:
            tf.debugging.disable_check_numerics()
    elif BACKEND == "jax":
        import jax

        jax.config.update("jax_debug_nans", True)
        try:
            yield (FloatingPointError, "nan")
        finally:
            jax.config.update("jax_debug_nans", False)
    else:
        import torch

        with torch.autograd.detect_anomaly(check_nan=True):
            yield (RuntimeError, "nan")


def fit_with_numbers_checked(run_eagerly, labels):
    rng = np.random.default_rng(0)
    ((x, y, _),) = averaged_batches(rng, sizes=(8,))
    if labels == "float32":
        y = y.argmax(axis=-1).astype(labels)
    with numbers_checked() as (error, message):
        model = linear_model(rng.normal(size=(FEATURES, CLASSES)))
        compiled(model, run_eagerly, jit_compile=False, metrics=[SoftLabelAccuracy()])
        settings = {"batch_size": 8, "verbose": 0, "epochs": 2}
        settings["callbacks"] = [GlobalSoftLabel()]
        model.fit(x, y, validation_data=(x, y), **settings)
        assert np.isfinite(model.loss.table.numpy()).all()
        with pytest.raises(error, match=message):
            model.fit(np.full_like(x, np.nan), y, **settings)


@pytest.mark.new_process
@pytest.mark.parametrize("run_eagerly, labels", [(False, "pairs"), (True, "float32")])
def test_debuggers_of_nan_stop_at_the_data_never_at_the_table(
    tmp_path, run_eagerly, labels
):
    """In a new process, since after other tests JAX may no longer stop at a NaN."""
    processes.run(fit_with_numbers_checked, run_eagerly, labels, folder=tmp_path)
