"""Backups, checkpoints, whole models, kills and damaged files lose nothing."""

import contextlib
import errno
import functools
import json
import re
import resource
import signal
import warnings

import keras
import kill_and_resume
import numpy as np
import processes
import pytest
import reference
import without_the_package
from small_models import (
    CLASSES,
    EAGERLY,
    FEATURES,
    averaged_batches,
    dataset_of,
    linear_model,
)
from tolerances import assert_close

from keras_mixavg import GlobalSoftLabel, SoftLabelCrossentropy
from keras_mixavg.soft_label_table import SAVED, initial_state

pytestmark = pytest.mark.numerical

BACKEND = keras.backend.backend()
EPOCHS = 3
KERNEL = np.random.default_rng(2).normal(size=(FEATURES, CLASSES)).astype("float32")


def training_batches():
    rng = np.random.default_rng(0)
    return averaged_batches(rng, sizes=(8, 5), weighted=True)


@pytest.fixture
def batches():
    return training_batches()


def new_model(loss=None):
    """What the program builds each time it is started."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(CLASSES)])
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        loss or SoftLabelCrossentropy(global_weight=0.5, from_logits=True),
        run_eagerly=EAGERLY,  # kill_and_resume.py compiles them
    )
    model.optimizer.build(model.trainable_variables)  # else Keras loads none of them
    return model


def fit(model, batches, callbacks, epochs=EPOCHS, **kwargs):
    kwargs = {"verbose": 0, "shuffle": False, **kwargs}
    return model.fit(
        dataset_of(batches), epochs=epochs, callbacks=list(callbacks), **kwargs
    )


def everything(model):
    """Weights, optimizer variables, and what the table holds."""
    state = {f"weight {i}": w for i, w in enumerate(model.get_weights())}
    for i, variable in enumerate(model.optimizer.variables):
        state[f"optimizer {i}"] = keras.ops.convert_to_numpy(variable.value)
    return {**state, **model.loss.table.state()}


def assert_same(one, other):
    """The state that a file restores exactly."""
    assert one.keys() == other.keys() and set(SAVED) <= one.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def assert_trained_alike(one, other):
    """Compare two runs, each compiled by itself."""
    assert one.keys() == other.keys() and set(SAVED) <= one.keys()
    for name, value in one.items():
        assert_close(value, other[name], trained=True, of=name)


@pytest.fixture(scope="module")
def whole():
    """The result of a run that is never killed."""
    model = new_model()
    fit(model, training_batches(), [GlobalSoftLabel()])
    return everything(model)


class Killed(Exception):
    pass


class Kill(keras.callbacks.Callback):
    """End the run after batch `batch` of epoch `epoch`."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.at = (epoch, batch)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise Killed


def in_order(order, backup, others=()):
    ours = [GlobalSoftLabel()]
    both = ours + [backup] if order == "table first" else [backup] + ours
    return [*both, *others]


ORDERS = ["table first", "backup first"]
ONCE = pytest.mark.once  # of a case that differs from another in plain Python alone


@pytest.mark.parametrize(
    "order, double",
    [(ORDERS[0], True), pytest.param(ORDERS[1], False, marks=ONCE)],
)
def test_resume_from_an_epochs_backup_is_as_if_never_killed(
    batches, whole, tmp_path, order, double
):
    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path, double_checkpoint=double)

    for epoch, batch in ((0, 1), (2, 0)):  # killed twice
        model = new_model()
        with pytest.raises(Killed):
            fit(model, batches, in_order(order, backup(), [Kill(epoch, batch)]))
    model = new_model()
    history = fit(model, batches, in_order(order, backup()))
    assert history.epoch == [2]
    assert_trained_alike(everything(model), whole)


@pytest.fixture(scope="module")
def twice():
    """What a run becomes that never stops, but that sees the first batch of its last
    epoch twice."""
    model, batches = new_model(), training_batches()
    fit(model, batches, [GlobalSoftLabel()], epochs=2)
    with contextlib.suppress(Killed):
        fit(model, batches, [GlobalSoftLabel(), Kill(2, 0)], 3, initial_epoch=2)
    fit(model, batches, [GlobalSoftLabel()], initial_epoch=2)
    return everything(model)


@pytest.mark.parametrize("order", [ORDERS[0], pytest.param(ORDERS[1], marks=ONCE)])
def test_resume_from_a_backup_amid_an_epoch_has_all_that_was_saved(
    batches, twice, tmp_path, order
):
    """Keras repeats such an epoch from its first batch, with the later weights."""

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path, save_freq=5)

    model = new_model()
    with pytest.raises(Killed):
        fit(model, batches, in_order(order, backup(), [Kill(2, 0)]))
    saved = everything(model)  # killed just when it was saved
    np.testing.assert_array_equal(saved["steps"], 1)

    resumed = new_model()
    seen = []

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            seen.append(everything(self.model))

    fit(resumed, batches, in_order(order, backup(), [Look()]))
    assert_same(seen[0], saved)
    assert_trained_alike(everything(resumed), twice)


@pytest.mark.once
def test_resume_by_checkpointed_weights(batches, whole, tmp_path):
    path = tmp_path / "{epoch}.weights.h5"
    for order in ORDERS:
        checkpoint = keras.callbacks.ModelCheckpoint(path, save_weights_only=True)
        fit(new_model(), batches, in_order(order, checkpoint), epochs=2)
        model = new_model()
        model.load_weights(tmp_path / "2.weights.h5")
        fit(model, batches, [GlobalSoftLabel()], initial_epoch=2)
        assert_trained_alike(everything(model), whole)


@pytest.mark.once
def test_each_output_gets_its_own_table_back(rng, tmp_path):
    x = rng.normal(size=(12, FEATURES)).astype("float32")
    y = {
        "kind": rng.dirichlet(np.ones(CLASSES), 12).astype("float32"),
        "colour": rng.dirichlet(np.ones(3), 12).astype("float32"),
        "size": np.zeros((12, 1), "float32"),
    }

    def make():
        keras.utils.set_random_seed(1)
        inputs = keras.Input((FEATURES,))
        outputs = {
            name: keras.layers.Dense(label.shape[1], name=name)(inputs)
            for name, label in y.items()
        }
        model = keras.Model(inputs, outputs)
        losses = {
            "size": "mse",
            "kind": SoftLabelCrossentropy(from_logits=True),
            "colour": SoftLabelCrossentropy(from_logits=True),
        }
        model.compile(keras.optimizers.SGD(0.1), losses, run_eagerly=EAGERLY)
        return model

    def train(model, **kwargs):
        callback = GlobalSoftLabel(collect="all")
        model.fit(
            x, y, 12, verbose=0, shuffle=False, callbacks=[callback], epochs=2, **kwargs
        )
        return callback.table

    whole = make()
    train(whole)
    whole.save_weights(tmp_path / "a.weights.h5")
    expected = train(whole)
    resumed = make()
    resumed.load_weights(tmp_path / "a.weights.h5")
    result = train(resumed)
    assert set(result) == {"kind", "colour"}
    for name, table in expected.items():
        assert_close(result[name], table, trained=True)


# --- Whole models --------------------------------------------------------------------


def go_on(model, x, y):
    callbacks = [GlobalSoftLabel()]
    model.fit(x, y, 15, epochs=2, shuffle=False, verbose=0, callbacks=callbacks)


@pytest.fixture(scope="module")
def fresh_process(tmp_path_factory):
    """A saved model, the results of a process without and then with the package, and
    the predictions of the model before it trains further here."""
    folder = tmp_path_factory.mktemp("fresh")
    model = new_model()
    ((x, y, _),) = averaged_batches(np.random.default_rng(0), sizes=(29,))
    go_on(model, x, y)
    model.save(folder / "model.keras")
    np.savez(folder / "data.npz", x=x, y=y)
    predictions = model.predict(x, verbose=0)
    go_on(model, x, y)
    processes.run(without_the_package.load_and_go_on, folder=folder)
    return model, predictions, np.load(folder / "result.npz")


@pytest.mark.new_process
@pytest.mark.once
def test_training_goes_on_from_a_whole_model_in_a_fresh_process(fresh_process):
    model, _, result = fresh_process
    for name, value in model.loss.table.state().items():
        assert_close(result[name], value, trained=True, of=name)
    for i, value in enumerate(model.get_weights()):
        assert_close(result[f"arr_{i}"], value, trained=True)


@pytest.mark.new_process
@pytest.mark.once
def test_a_process_without_the_package_gets_a_usable_model(fresh_process):
    _, predictions, result = fresh_process
    assert_close(result["predictions"], predictions, trained=True)


def test_a_model_saved_during_training_is_whole(batches, tmp_path):
    tables = {}

    class Remember(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            tables[epoch + 1] = self.model.loss.table.state()

    save = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    fit(new_model(), batches, [GlobalSoftLabel(), save, Remember()], epochs=2)
    for epoch, table in tables.items():
        loaded = keras.saving.load_model(tmp_path / f"{epoch}.keras")
        for name, value in loaded.loss.table.state().items():
            np.testing.assert_array_equal(value, table[name])
        assert [metric.name for metric in loaded.metrics] == ["loss"]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="exports of TensorFlow")
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_an_exported_model_has_no_trace_of_the_table(batches, tmp_path):
    """During `fit` and after it."""
    import tensorflow as tf

    model, x = new_model(), batches[0][0]

    class Export(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.export(str(tmp_path / "during fit"), verbose=False)

    fit(model, batches, [GlobalSoftLabel(), Export()], epochs=1)
    model.export(str(tmp_path / "after it"), verbose=False)
    for when in ("during fit", "after it"):
        served = tf.saved_model.load(str(tmp_path / when))
        assert_close(served.serve(x), model(x), trained=True)
        for file in (tmp_path / when).rglob("*"):
            if file.is_file():
                assert b"soft_label" not in file.read_bytes(), file
        assert not any("table" in v.name for v in served.variables)
        assert len(served.variables) == 2  # kernel and bias


# --- Between models with the method and without --------------------------------------


@pytest.mark.once
def test_a_checkpoint_with_the_method_loads_into_a_bare_model(batches, tmp_path):
    model = new_model()
    fit(model, batches, [GlobalSoftLabel()], epochs=1)
    model.save_weights(tmp_path / "a.weights.h5")
    for loss in (keras.losses.CategoricalCrossentropy(from_logits=True), None):
        bare = new_model(loss) if loss else keras.models.clone_model(model)
        bare.load_weights(tmp_path / "a.weights.h5")
        for one, other in zip(bare.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.once
@pytest.mark.parametrize("trained", [False, True])
def test_a_checkpoint_without_the_method_starts_at_the_identity(
    batches, tmp_path, trained
):
    bare = new_model(keras.losses.CategoricalCrossentropy(from_logits=True))
    bare.save_weights(tmp_path / "a.weights.h5")
    model = new_model()
    if trained:
        fit(model, batches, [GlobalSoftLabel()], epochs=1)
    with pytest.warns(UserWarning, match="has no soft-label table") as caught:
        model.load_weights(tmp_path / "a.weights.h5")
    assert len(caught) == 1
    tables = []

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            table = self.model.loss.table
            tables.append(table.state()["table"] if table.num_classes else None)

    callback = GlobalSoftLabel()
    fit(model, batches, [callback, Look()], epochs=1)
    np.testing.assert_array_equal(tables[0], np.eye(CLASSES))


@pytest.mark.once
def test_a_checkpoint_of_an_untrained_model_loads_without_a_word(batches, tmp_path):
    new_model().save_weights(tmp_path / "a.weights.h5")
    model = new_model()
    fit(model, batches, [GlobalSoftLabel()], epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_weights(tmp_path / "a.weights.h5")
    np.testing.assert_array_equal(model.loss.table.state()["table"], np.eye(CLASSES))


# --- Faults --------------------------------------------------------------------------


@pytest.mark.new_process
@pytest.mark.once
@pytest.mark.skipif(BACKEND != "tensorflow", reason="forks before its first use")
def test_kill_training_at_random_moments_and_resume(tmp_path, capsys):
    """`python tests/kill_and_resume.py FOLDER 20 0` kills more often."""
    output = processes.run(kill_and_resume.main, tmp_path, 4, 0, folder=tmp_path)
    survived = re.findall(r"^(\d+) kills survived", output, re.MULTILINE)
    whole = dict(np.load(tmp_path / "uninterrupted.npz"))
    for name in ("first", "last"):
        resumed = dict(np.load(tmp_path / f"killed {name}.npz"))
        assert_trained_alike(resumed, whole)
    with capsys.disabled():
        print(f"\n{' + '.join(survived)} kills survived")
    assert sum(map(int, survived)) == 4


@pytest.mark.once
def test_a_truncated_checkpoint_leaves_the_state_as_it_was(batches, tmp_path):
    model = new_model()
    fit(model, batches, [GlobalSoftLabel()], epochs=1)
    path = tmp_path / "a.weights.h5"
    model.save_weights(path)
    path.write_bytes(path.read_bytes()[:1000])
    before = everything(model)
    with pytest.raises(OSError):
        model.load_weights(path)
    assert_same(everything(model), before)
    fit(model, batches, [GlobalSoftLabel()], epochs=1)


@pytest.mark.once
def test_a_truncated_backup_falls_back_to_the_one_before(batches, whole, tmp_path):
    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path, double_checkpoint=True)

    with pytest.raises(Killed):
        fit(new_model(), batches, [GlobalSoftLabel(), backup(), Kill(2, 0)])
    latest = tmp_path / "latest.weights.h5"
    latest.write_bytes(latest.read_bytes()[:1000])
    model = new_model()
    fit(model, batches, [GlobalSoftLabel(), backup()])
    assert_trained_alike(everything(model), whole)


DAMAGES = {
    "a row that does not sum to 1": ("table", lambda v: v * 0.9, "sum to 1"),
    "a negative entry": ("table", lambda v: v - 0.5 * (v == v.max()), "sum to 1"),
    "nan in the table": ("table", lambda v: v * np.nan, "finite"),
    "nan in N": ("cross", lambda v: v * np.nan, "finite"),
    "another number of classes": ("table", lambda v: np.eye(7), r"shape \(4, 4\)"),
    "a part is missing": ("gram", lambda v: None, "must have"),
}


@pytest.mark.once
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("trained", [False, True])
def test_a_damaged_table_is_refused_as_a_whole(whole, damage, trained):
    name, change, message = DAMAGES[damage]
    good = {part: whole[part] for part in SAVED}
    state = {**good, "epoch": np.array(3), name: change(good[name])}
    if state[name] is None:
        del state[name]
    table = SoftLabelCrossentropy().table
    if trained:
        table.build(CLASSES)
        table.load_own_variables({**good, "epoch": np.array(2)})
    elif damage == "another number of classes":
        message = r"shape \(7, 7\)"
    before, epoch = table.state(), table.epoch
    with pytest.raises(ValueError, match=message):
        table.load_own_variables(state)
    assert table.epoch == epoch
    assert before.keys() == table.state().keys()
    for key, value in before.items():
        np.testing.assert_array_equal(table.state()[key], value)


@pytest.mark.once
def test_a_model_with_other_classes_says_which(batches, tmp_path):
    model = new_model()
    fit(model, batches, [GlobalSoftLabel()], epochs=1)
    state = {**model.loss.table.state(), "epoch": np.array(0)}
    other = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(3)])
    other.compile("sgd", SoftLabelCrossentropy(from_logits=True))
    other.loss.table.load_own_variables(state)
    with pytest.raises(ValueError, match="must have 4 entries.*its soft-label table"):
        other.fit(
            np.ones((4, FEATURES)),
            np.eye(3)[[0, 1, 2, 0]],
            callbacks=[GlobalSoftLabel()],
            verbose=0,
        )


@pytest.mark.once
@pytest.mark.skipif(BACKEND != "tensorflow", reason="nothing of the backend's")
def test_a_full_disk_ends_fit_and_leaves_a_usable_run(batches, whole, tmp_path):
    """A limit on the size of files stands for the full disk."""
    model = new_model()

    class FillDisk(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))

    def callbacks():
        backup = keras.callbacks.BackupAndRestore(tmp_path, double_checkpoint=True)
        return [GlobalSoftLabel(), backup]

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(OSError) as caught:
            fit(model, batches, [*callbacks(), FillDisk()])
        assert caught.value.errno in (errno.EFBIG, None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    state = model.loss.table.state()
    assert_close(state["table"].sum(axis=1), 1)

    resumed = new_model()
    fit(resumed, batches, callbacks())
    assert_trained_alike(everything(resumed), whole)


@pytest.mark.once
def test_the_metadata_of_backups_is_what_we_think(batches, tmp_path):
    """Keras counts finished epochs, and the table the one its evidence is of."""
    backup = keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)
    model = new_model()
    fit(model, batches, [backup, GlobalSoftLabel()], epochs=2)
    metadata = json.loads((tmp_path / "training_metadata.json").read_text())
    assert metadata["epoch"] == 2
    other = new_model()
    other.load_weights(tmp_path / "latest.weights.h5")
    assert other.loss.table.epoch == 1
    np.testing.assert_array_equal(other.loss.table.state()["steps"], len(batches))


# --- Bad numbers ---------------------------------------------------------------------


class StandStill(keras.optimizers.SGD):
    """Only the table moves. (NaN times a learning rate of 0 is NaN.)"""

    def update_step(self, gradient, variable, learning_rate):
        pass


@functools.cache
def _standing_still(collect):  # which is compiled anew for another `collect`
    model = linear_model(np.zeros((FEATURES, CLASSES)))
    model.compile(StandStill(), SoftLabelCrossentropy(from_logits=True))
    return model


def standing_still(kernel=KERNEL, collect="all"):
    """A model whose table starts anew. It is the same each time."""
    model = _standing_still(collect)
    model.loss.table.state()  # on JAX, what the last steps left behind comes first
    model.set_weights([kernel])
    model.loss.table.load_own_variables({**initial_state(CLASSES), "epoch": 0})
    return model


def spoilt(batches, part, value, places=np.s_[::4]):
    """Every fourth sample, or those in `places`, have `value` in `part`."""
    result = []
    for x, y, w in batches:
        x, y, w = x.copy(), y.copy(), w.copy()
        {"x": x, "y": y, "w": w}[part][places] = value
        result.append((x, y, w))
    return result


@pytest.mark.parametrize("collect", ["all", "correct"])
def test_bad_samples_are_left_out_and_counted(rng, collect):
    """Seven kinds of them, each at its own places."""
    kernel = rng.normal(size=(FEATURES, CLASSES)).astype("float32")
    model = standing_still(kernel, collect)
    batches = averaged_batches(rng, sizes=(28, 28, 16), weighted=True)
    bad = batches
    kinds = [("x", np.nan), ("x", np.inf), ("y", np.nan), ("y", np.inf)]
    kinds += [("w", np.nan), ("w", np.inf), ("w", -1.0)]
    for number, (part, value) in enumerate(kinds):
        bad = spoilt(bad, part, value, np.s_[4 * number :: 28])
    callback = GlobalSoftLabel(collect=collect)
    left_out = 7 + 7 + 4
    with pytest.warns(UserWarning, match=f"^{left_out} samples were left out") as seen:
        fit(model, bad, [callback], epochs=2)
    assert sum("left out" in str(w.message) for w in seen) == 2  # one an epoch
    expected = reference.Training(kernel, collect=collect)
    good = [tuple(np.delete(p, np.s_[::4], axis=0) for p in batch) for batch in batches]
    for _ in range(2):
        expected.epoch(good)
    assert_close(callback.table, expected.table, trained=True)


@pytest.mark.parametrize(
    "weight, scale",
    [
        (1e-30, 0.3),
        (1e30, 7.0),
        pytest.param(0.0, 0.0, marks=ONCE),
        pytest.param(0.0, 7.0, marks=ONCE),
        pytest.param(1e30, 0.0, marks=ONCE),
    ],
)
def test_rows_sum_to_one_whatever_the_weights_and_labels(batches, weight, scale):
    """Zero, tiny and huge weights; labels that sum to 0, 0.3 and 7."""
    strange = [
        (x, scale * y, np.full(len(x), weight, "float32")) for x, y, _ in batches
    ]
    model = standing_still()
    callback = GlobalSoftLabel(collect="all")
    warned = contextlib.nullcontext()
    if scale == 0 and weight > 0:  # of no class
        warned = pytest.warns(UserWarning, match="left out")
    with warned:
        fit(model, strange, [callback], epochs=2)
    assert np.isfinite(callback.table).all() and (callback.table >= 0).all()
    assert_close(callback.table.sum(axis=1), 1)
    if weight == 0 or scale == 0:
        assert_close(callback.table, np.eye(CLASSES))


def test_evidence_beyond_float32_leaves_the_table_and_says_so(batches):
    huge = [(x, y, np.full(len(x), 3e38, "float32")) for x, y, _ in batches]
    model = standing_still()
    callback = GlobalSoftLabel(collect="all")
    with pytest.warns(UserWarning, match="beyond float32.*Scale the sample weights"):
        fit(model, huge, [callback], epochs=1)
    np.testing.assert_array_equal(callback.table, np.eye(CLASSES))
    fit(model, batches, [callback], epochs=1)
    assert np.abs(callback.table - np.eye(CLASSES)).max() > 0.01


@pytest.mark.once
@pytest.mark.filterwarnings("ignore:Training ended after epoch")
def test_terminate_on_nan_still_ends_training(batches):
    bad = spoilt(batches, "x", np.nan)
    model = new_model()
    callback = GlobalSoftLabel()
    with pytest.warns(UserWarning, match="left out"):
        history = fit(model, bad, [callback, keras.callbacks.TerminateOnNaN()])
    assert history.epoch == [0]
    assert_close(callback.table.sum(axis=1), 1)
