"""How Keras saves, loads, copies and returns state, as listed in docs/saving.md.
test_resume.py has the kills."""

import copy
import functools
import pickle
import warnings

import h5py
import keras
import numpy as np
import pytest
from small_models import CLASSES, EAGERLY, FEATURES, averaged_batches, dataset_of
from tolerances import assert_close

from keras_mixavg import GlobalSoftLabel, SoftLabelCrossentropy

pytestmark = pytest.mark.core


def new_model(classes=CLASSES, loss=None):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(classes)])
    loss = loss or SoftLabelCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=EAGERLY)
    return model


def fit(model, batches, epochs=1, callbacks=None, **kwargs):
    callbacks = [GlobalSoftLabel()] if callbacks is None else callbacks
    return model.fit(
        dataset_of(batches),
        epochs=epochs,
        callbacks=callbacks,
        verbose=0,
        shuffle=False,
        **kwargs,
    )


@pytest.fixture
def batches(rng):
    return averaged_batches(rng, sizes=(16,))


@pytest.fixture(scope="module")
def learnt():
    """Weights and table of a model that has trained for two epochs."""
    model = new_model()
    fit(model, averaged_batches(np.random.default_rng(0)), 2)
    state = model.loss.table.state()
    assert np.abs(state["table"] - np.eye(CLASSES)).max() > 0.05
    return model.get_weights(), {**state, "epoch": 1}


@pytest.fixture
def trained(learnt, batches):
    """A model of its own as trained as that."""
    model = new_model()
    fit(model, batches, epochs=0)  # enough to make the table one of its metrics
    weights, state = learnt
    model.set_weights(weights)
    model.loss.table.load_own_variables(state)
    return model


def by_whole_model(model, folder):
    model.save(folder / "model.keras")
    return keras.saving.load_model(folder / "model.keras")


def by_weights(model, folder, **kwargs):
    name = "model.weights.json" if kwargs else "model.weights.h5"
    model.save_weights(folder / name, **kwargs)
    other = new_model()
    other.load_weights(folder / name)
    return other


def by_weights_saved_again(model, folder):
    """Before any fit, when the table has no variables yet."""
    (folder / "again").mkdir()
    return by_weights(by_weights(model, folder), folder / "again")


def by_sharded_weights(model, folder):
    if keras.__version__.startswith("3.10."):
        pytest.skip("Keras 3.10 writes weights in one file")
    return by_weights(model, folder, max_shard_size=1)


def by_deepcopy(model, folder):
    return copy.deepcopy(model)


def by_pickle(model, folder):
    return pickle.loads(pickle.dumps(model))


KEPT = [
    by_whole_model,
    by_weights,
    by_weights_saved_again,
    by_deepcopy,
    *(
        pytest.param(way, marks=pytest.mark.one_backend)
        for way in (by_sharded_weights, by_pickle)
    ),
]


@pytest.mark.parametrize("way", KEPT, ids=lambda way: way.__name__)
def test_the_table_is_kept_and_can_be_read_before_any_fit(
    trained, batches, tmp_path, way
):
    expected = trained.loss.table.state()
    other = way(trained, tmp_path)
    for name, value in other.loss.table.state().items():
        np.testing.assert_array_equal(value, expected[name])
    callback = GlobalSoftLabel()
    callback.set_model(other)
    np.testing.assert_array_equal(callback.table, expected["table"])
    for model in (trained, other):
        fit(model, batches)
    assert_close(other.loss.table.numpy(), trained.loss.table.numpy(), trained=True)


@pytest.mark.one_backend
def test_a_file_with_the_names_of_version_0_1_is_loaded(trained, tmp_path):
    expected = trained.loss.table.state()
    path = tmp_path / "old.weights.h5"
    trained.save_weights(path)
    with h5py.File(path, "a") as file:
        group = file["loss/table/vars"]
        for name, old in (("cross", "evidence"), ("gram", "mass")):
            group.move(name, old)
    other = new_model()
    other.load_weights(path)
    for name, value in other.loss.table.state().items():
        np.testing.assert_array_equal(value, expected[name])


def by_old_format(model, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the format
        model.save(folder / "model.h5")
        loaded = keras.saving.load_model(folder / "model.h5")
    optimizer = keras.optimizers.SGD(0.1)  # not the old one
    loaded.compile(optimizer, loaded.loss, run_eagerly=EAGERLY)
    return loaded


def by_compile_config(model, folder):
    other = new_model()
    other.compile_from_config(model.get_compile_config())
    return other


def by_config_of_the_loss(model, folder):
    config = model.loss.get_config()
    return new_model(loss=SoftLabelCrossentropy.from_config(config))


def by_clone_model(model, folder):
    other = keras.models.clone_model(model)
    assert other.compiled
    return other


LOST = [by_clone_model, by_old_format, by_compile_config, by_config_of_the_loss]


@pytest.mark.one_backend
@pytest.mark.parametrize("way", LOST, ids=lambda way: way.__name__)
def test_a_model_that_loses_its_table_warns_once(trained, batches, tmp_path, way):
    other = way(trained, tmp_path)
    with pytest.warns(UserWarning, match="the table did not come with it"):
        fit(other, batches)
    fit(other, batches)


@pytest.mark.one_backend
def test_other_classes_are_skipped_with_the_rest_of_a_mismatch(trained, tmp_path):
    path = tmp_path / "four.weights.h5"
    trained.save_weights(path)
    other = new_model(classes=CLASSES + 1)
    data = [(np.ones((4, FEATURES), "f4"), np.eye(CLASSES + 1, dtype="f4")[:4], None)]
    fit(other, data)
    before = other.loss.table.numpy()
    with pytest.warns(UserWarning, match="could not be loaded|mismatch"):
        other.load_weights(path, skip_mismatch=True)
    np.testing.assert_array_equal(other.loss.table.numpy(), before)


def test_the_state_tree_carries_the_table(trained, batches):
    other = new_model()
    fit(other, batches, epochs=0)  # enough to make the table one of its metrics
    other.set_state_tree(trained.get_state_tree())
    np.testing.assert_array_equal(other.loss.table.numpy(), trained.loss.table.numpy())


def of_two_outputs(names=("a", "b"), order=None, plain=None):
    """A model whose outputs have a table each, but for the plain one.

    `order` is that of its dict of losses.
    """
    inputs = keras.Input((FEATURES,))
    model = keras.Model(
        inputs, {n: keras.layers.Dense(CLASSES, name=n)(inputs) for n in names}
    )
    losses = {
        name: keras.losses.CategoricalCrossentropy(from_logits=True)
        if name == plain
        else SoftLabelCrossentropy(from_logits=True)
        for name in order or names
    }
    model.compile("sgd", losses, run_eagerly=EAGERLY)
    return model


def fit_both(model, rng):
    x, y, _ = averaged_batches(rng, sizes=(16,))[0]
    callback = GlobalSoftLabel(collect="all")
    labels = {"a": y, "b": y[::-1]}
    model.fit(x, labels, verbose=0, shuffle=False, callbacks=[callback])
    return callback.table


@pytest.fixture
def two_outputs(rng):
    """A trained model, and its tables, which differ."""
    model = of_two_outputs()
    tables = fit_both(model, rng)
    assert np.abs(tables["a"] - tables["b"]).max() > 0.01
    return model, tables


def test_each_output_gets_its_own_table_back(two_outputs, rng, tmp_path):
    model, tables = two_outputs
    model.save_weights(tmp_path / "two.weights.h5")
    other = of_two_outputs()
    other.load_weights(tmp_path / "two.weights.h5")
    for name, table in tables.items():
        np.testing.assert_array_equal(other.loss[name].table.numpy(), table)
    fit_both(other, rng)


@pytest.mark.parametrize("saved_again", [False, True])
@pytest.mark.parametrize("how", [{"order": "ba"}, {"plain": "a"}], ids=str)
def test_an_output_refuses_the_table_of_another(
    two_outputs, rng, tmp_path, how, saved_again
):
    """Keras loads the losses of a dict by their order, not by their keys."""
    path = tmp_path / "two.weights.h5"
    two_outputs[0].save_weights(path)
    if saved_again:  # by a model that has not trained, and so does not know its outputs
        again = of_two_outputs()
        again.load_weights(path)
        again.save_weights(path)
    other = of_two_outputs(**how)
    other.load_weights(path)
    with pytest.raises(ValueError, match="saved for output 'a'.*in the same order"):
        fit_both(other, rng)


def test_outputs_of_other_names_take_the_tables_in_order(two_outputs, tmp_path):
    model, tables = two_outputs
    model.save_weights(tmp_path / "two.weights.h5")
    renamed = ("new_a", "new_b")
    other = of_two_outputs(renamed)
    other.load_weights(tmp_path / "two.weights.h5")
    labels = {name: np.eye(CLASSES, dtype="f4") for name in renamed}
    callback = GlobalSoftLabel()
    other.fit(
        np.ones((CLASSES, FEATURES)), labels, 4, 0, verbose=0, callbacks=[callback]
    )
    for n, table in tables.items():
        np.testing.assert_array_equal(callback.table[f"new_{n}"], table)


def test_the_state_tree_has_a_table_of_each_output(two_outputs, rng):
    model, tables = two_outputs
    other = of_two_outputs()
    fit_both(other, np.random.default_rng(1))
    other.set_state_tree(model.get_state_tree())
    for name, table in tables.items():
        np.testing.assert_array_equal(other.loss[name].table.numpy(), table)


@pytest.mark.one_backend
def test_weights_alone_leave_the_table(trained, batches):
    other = new_model()
    fit(other, batches)
    before = other.loss.table.numpy()
    other.set_weights(trained.get_weights())
    np.testing.assert_array_equal(other.loss.table.numpy(), before)


@pytest.mark.one_backend
def test_a_model_that_is_loaded_without_its_loss_has_no_table(trained, tmp_path):
    trained.save(tmp_path / "model.keras")
    model = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert getattr(model, "loss", None) is None


def by_lora(model, batches, folder):
    model.layers[0].enable_lora(2)
    assert len(model.trainable_variables) == 3  # two factors, a bias


def by_quantizing(model, batches, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the input has nothing to quantize
        model.quantize("int8")
    assert keras.backend.standardize_dtype(model.layers[0].kernel.dtype) == "int8"


def by_averaged_weights(model, batches, folder):
    optimizer = keras.optimizers.SGD(0.1, use_ema=True)
    model.compile(optimizer, model.loss, run_eagerly=EAGERLY)
    for _ in range(2):  # at its end `fit` would put the averages in place
        model.train_on_batch(*batches[0][:2])
    own, seen = model.get_weights()[0], []

    class Look(keras.callbacks.Callback):
        def on_test_begin(self, logs=None):
            seen.append((self.model.get_weights()[0], self.model.loss.table.numpy()))

    swap = keras.callbacks.SwapEMAWeights()
    model.evaluate(dataset_of(batches), verbose=0, callbacks=[swap, Look()])
    ((averaged, table),) = seen
    assert np.abs(averaged - own).max() > 1e-4
    np.testing.assert_array_equal(table, model.loss.table.numpy())


def by_the_names_in_an_old_file(model, batches, folder):
    kernel = model.get_weights()[0]
    other = keras.models.clone_model(model)  # of the same names
    other.compile("sgd", SoftLabelCrossentropy(from_logits=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the format
        other.save(folder / "model.h5")
    model.load_weights(folder / "model.h5", by_name=True)
    np.testing.assert_array_equal(model.get_weights()[0], other.get_weights()[0])
    assert np.abs(model.get_weights()[0] - kernel).max() > 1e-4


UNTOUCHED = [
    by_lora,
    by_quantizing,
    by_averaged_weights,
    by_the_names_in_an_old_file,
]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="one is enough")
@pytest.mark.parametrize("way", UNTOUCHED, ids=lambda way: way.__name__)
def test_what_changes_the_weights_alone_leaves_the_table(
    trained, batches, tmp_path, way
):
    before = trained.loss.table.numpy()
    way(trained, batches, tmp_path)
    np.testing.assert_array_equal(trained.loss.table.numpy(), before)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="of TensorFlow")
@pytest.mark.parametrize("trained_before", [True, False])
def test_a_checkpoint_of_tensorflow_keeps_the_table(
    trained, batches, tmp_path, trained_before
):
    import tensorflow as tf

    path = tf.train.Checkpoint(model=trained).save(tmp_path / "checkpoint")
    names = [name for name, _ in tf.train.list_variables(path)]
    assert sum("soft_label_table" in name for name in names) == 4, names  # SAVED
    expected = trained.loss.table.numpy()
    other = new_model()
    if trained_before:
        fit(other, batches)
        assert not np.array_equal(other.loss.table.numpy(), expected)
    status = tf.train.Checkpoint(model=other).restore(path)
    if not trained_before:  # its variables come, and take their values, with `fit`
        tables = []
        look = keras.callbacks.LambdaCallback(
            on_train_begin=lambda logs: tables.append(other.loss.table.numpy())
        )
        fit(other, batches, 1, [GlobalSoftLabel(), look])
        (restored,) = tables
    else:
        restored = other.loss.table.numpy()
        np.testing.assert_array_equal(other.get_weights()[0], trained.get_weights()[0])
    status.assert_existing_objects_matched()
    np.testing.assert_array_equal(restored, expected)


@pytest.mark.one_backend
@pytest.mark.filterwarnings("ignore:Training ended after epoch")
def test_early_stopping_restores_the_best_weights_beside_the_last_table(batches):
    tables = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            tables.append(self.model.loss.table.numpy())
            logs["watched"] = float(epoch)  # the first is the best

    model = new_model()
    stop = keras.callbacks.EarlyStopping(
        "watched", mode="min", patience=2, restore_best_weights=True
    )
    fit(model, batches, 9, [GlobalSoftLabel(), Look(), stop])
    assert len(tables) == 3
    np.testing.assert_array_equal(model.loss.table.numpy(), tables[-1])
    once = new_model()
    fit(once, batches, 1)
    assert_close(model.get_weights()[0], once.get_weights()[0])


@pytest.mark.once
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, by_pickle])
def test_a_copied_callback_is_one_that_has_not_trained(trained, batches, copied):
    class_of = {"fade_out": 0.0, "prior_count": 2.0, "collect": "all"}
    callback = GlobalSoftLabel(**class_of)
    fit(trained, batches, 1, [callback])
    args = (None,) if copied is by_pickle else ()
    other = copied(callback, *args)
    assert other.get_config() == callback.get_config()
    with pytest.raises(RuntimeError, match=r"`model.loss.table.numpy\(\)`"):
        _ = other.table
    fit(new_model(), batches, 1, [other])  # another model, as a tuner has it
    assert other.table.shape == callback.table.shape


def weight_of(epoch, factor):
    return min(1.0, factor * epoch)


class Weight:
    def __call__(self, epoch):
        return 0.5


@pytest.mark.parametrize("weight", [functools.partial(weight_of, factor=1), Weight()])
def test_a_weight_that_cannot_be_saved_is_refused_when_given(weight):
    with pytest.raises(ValueError, match="`global_weight` is saved with the model"):
        SoftLabelCrossentropy(global_weight=weight)
