"""Two devices, two processes: the same table, weights and logs as on one device."""

import contextlib
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import reference
from small_models import two_replicas
from tolerances import assert_close

from keras_mixavg import GlobalSoftLabel, SoftLabelAccuracy, SoftLabelCrossentropy

pytestmark = [pytest.mark.core, pytest.mark.numerical]

BACKEND = keras.backend.backend()
FEATURES, CLASSES, BATCH, EPOCHS = 5, 4, 16, 2
SIZE = 2 * BATCH + 10  # the last batch is smaller, and splits into two halves


def data(size=SIZE):
    """Inputs, averaged labels and sample weights."""
    rng = np.random.default_rng(3)
    numbers = rng.integers(0, CLASSES, size)
    x = (2 * np.eye(CLASSES, FEATURES)[numbers] + rng.normal(size=(size, FEATURES)),)
    y = reference.one_hot(numbers, CLASSES)
    partners = np.where(np.arange(size) % 2, np.roll(np.arange(size), 1), range(size))
    return (
        reference.averaged(x[0], partners).astype("float32"),
        reference.averaged(y, partners).astype("float32"),
        rng.uniform(0.2, 2, size).astype("float32"),
    )


KERNEL = np.random.default_rng(4).normal(size=(FEATURES, CLASSES)).astype("float32")


def train(size=SIZE, subclassed=False, validates=True, loss=None, **compile_args):
    """Train two epochs; returns the callback, the model and the logs."""
    dense = keras.layers.Dense(CLASSES, use_bias=False)

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = dense

        def call(self, inputs):
            return self.dense(inputs)

    if subclassed:
        model = Model()
        model(np.zeros((2, FEATURES), "float32"))
    else:
        model = keras.Sequential([keras.Input((FEATURES,)), dense])
    model.set_weights([KERNEL])
    model.compile(
        keras.optimizers.SGD(0.1),
        loss or SoftLabelCrossentropy(global_weight=0.5, from_logits=True),
        metrics=[SoftLabelAccuracy()],
        **compile_args,
    )
    callback = GlobalSoftLabel()
    x, y, w = data(size)
    validation = (x[:24], np.eye(CLASSES, dtype="float32")[y[:24].argmax(axis=1)])
    history = model.fit(
        x,
        y,
        batch_size=BATCH,
        sample_weight=w,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        validation_data=validation if validates else None,
        validation_batch_size=8,
        callbacks=[callback],
    )
    return callback, model, history.history


def reference_training():
    x, y, w = data()
    expected = reference.Training(KERNEL, 0.1, global_weight=0.5)
    batches = [
        (x[i : i + BATCH], y[i : i + BATCH], w[i : i + BATCH])
        for i in range(0, SIZE, BATCH)
    ]
    losses = [expected.epoch(batches) for _ in range(EPOCHS)]
    return expected, losses


@contextlib.contextmanager
def two_devices():
    """How each backend trains on two devices."""
    if BACKEND == "tensorflow":
        with two_replicas().scope():
            yield
    elif BACKEND == "jax":
        devices = keras.distribution.list_devices("cpu")
        keras.distribution.set_distribution(
            keras.distribution.DataParallel(devices=devices[:2])
        )
        try:
            yield
        finally:
            keras.distribution.set_distribution(None)
    else:
        pytest.skip(
            "Keras has no distribution for torch; one device is what it runs on"
        )


def assert_same_as_on_one_device(run, one):
    callback, model, logs = run
    callback_of_one, model_of_one, logs_of_one = one
    assert_close(callback.table, callback_of_one.table, trained=True)
    assert_close(model.get_weights()[0], model_of_one.get_weights()[0], trained=True)
    for key, values in logs.items():
        assert_close(values, logs_of_one[key], trained=True)


@pytest.fixture(scope="module")
def one():
    """The result on one device."""
    keras.utils.set_random_seed(0)
    return train()


def test_two_devices_train_as_one_does(one):
    """Then they evaluate and predict, and go on from the same table."""
    expected, losses = reference_training()
    with two_devices():
        callback, model, logs = two = train()
        assert_same_as_on_one_device(two, one)
        assert logs.keys() == one[2].keys()
        assert_close(callback.table, expected.table, trained=True)
        assert_close(model.get_weights()[0], expected.kernel, trained=True)
        assert_close(logs["loss"], losses, trained=True)
        assert np.abs(expected.table - np.eye(CLASSES)).max() > 0.05

        x, y, w = data()
        model.evaluate(x, y, batch_size=14, verbose=0)
        model.predict(x, batch_size=14, verbose=0)
        arguments = {"sample_weight": w, "callbacks": [callback], "shuffle": False}
        model.fit(x, y, batch_size=14, verbose=0, **arguments)
    starts = range(0, SIZE, 14)
    expected.epoch([tuple(part[i : i + 14] for part in (x, y, w)) for i in starts])
    assert_close(callback.table, expected.table, trained=True)


def test_two_devices_train_a_subclassed_model_as_one_does(one):
    with two_devices():
        two = train(subclassed=True, validates=False)
    assert_same_as_on_one_device(two, one)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="fails in Keras, with any loss")
def test_steps_per_execution_on_two_devices(one):
    with two_devices():
        two = train(steps_per_execution=2)
    assert_close(two[0].table, one[0].table, trained=True)
    assert_close(two[1].get_weights()[0], one[1].get_weights()[0], trained=True)


@pytest.mark.skipif(BACKEND != "jax", reason="Keras' ModelParallel is of JAX")
@pytest.mark.parametrize("sharding", [("model", None), (None, "model")])
def test_a_table_that_is_spread_over_two_devices(one, sharding):
    """Split by rows or columns, with N and M and the matching kernel."""
    devices = keras.distribution.list_devices("cpu")[:2]
    mesh = keras.distribution.DeviceMesh((1, 2), ["batch", "model"], devices)
    layout = keras.distribution.LayoutMap(mesh)
    layout["dense.*kernel"] = (None, "model")
    layout["soft_label_table/(table|cross|gram)"] = sharding
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")
    )
    try:
        two = train()
        table = two[1].loss.table
        for variable in (table.table, table.cross, table.gram):
            shapes = {shard.data.shape for shard in variable.value.addressable_shards}
            assert shapes == {tuple(CLASSES // (2 if axis else 1) for axis in sharding)}
        assert_same_as_on_one_device(two, one)
    finally:
        keras.distribution.set_distribution(None)


@pytest.mark.once
@pytest.mark.skipif(BACKEND != "tensorflow", reason="JAX refuses such a batch")
def test_a_last_batch_that_does_not_split_evenly_counts_fully_in_the_table():
    """Keras' mean over the replicas weighs their samples unequally then, also with its
    own losses: the weights move a little differently, the evidence is the same."""
    x, y, w = data(2 * BATCH + 9)

    def trained(loss, *callbacks):
        dense = keras.layers.Dense(CLASSES, use_bias=False)
        model = keras.Sequential([keras.Input((FEATURES,)), dense])
        model.set_weights([KERNEL])
        model.compile(keras.optimizers.SGD(0.1), loss)
        model.fit(x, y, BATCH, 1, 0, callbacks, sample_weight=w, shuffle=False)
        return model.get_weights()[0]

    callback = GlobalSoftLabel()
    with two_devices():
        ours = trained(SoftLabelCrossentropy(from_logits=True), callback)
        keras_own = trained(keras.losses.CategoricalCrossentropy(from_logits=True))
    assert_close(ours, keras_own)  # the table is the identity in the first epoch
    expected = reference.Training(KERNEL, 0.1)
    starts = range(0, len(x), BATCH)  # the uneven batch is the last one
    expected.epoch([tuple(part[i : i + BATCH] for part in (x, y, w)) for i in starts])
    assert_close(callback.table, expected.table, trained=True)


@pytest.mark.skipif(BACKEND != "jax", reason="a rule of JAX")
def test_jax_refuses_a_batch_that_does_not_split_evenly():
    with two_devices(), pytest.raises(ValueError, match="divisible|evenly|shard"):
        train(size=2 * BATCH + 9)


PROCESS = """
import runpy, sys
tests, out, example, *sys.argv[1:] = sys.argv[1:]
sys.path.insert(0, tests)
runpy.run_path(example, run_name="__main__")  # connects, and sets the distribution

import jax, keras, numpy as np, tensorflow as tf
import test_distribution as t
import keras_mixavg

process = jax.process_index()
x, y, w = t.data()
def share(values):  # each process reads its half of every global batch
    batches = [values[i : i + t.BATCH] for i in range(0, len(values), t.BATCH)]
    halves = [b[process * len(b) // 2 : (process + 1) * len(b) // 2] for b in batches]
    return halves
parts = list(zip(share(x), share(y), share(w)))
spec = (
    tf.TensorSpec((None, t.FEATURES)), tf.TensorSpec((None, t.CLASSES)),
    tf.TensorSpec((None,)),
)
dataset = tf.data.Dataset.from_generator(lambda: iter(parts), output_signature=spec)
dataset = dataset.apply(tf.data.experimental.assert_cardinality(len(parts)))
dense = keras.layers.Dense(t.CLASSES, use_bias=False)
model = keras.Sequential([keras.Input((t.FEATURES,)), dense])
model.set_weights([t.KERNEL])
loss = keras_mixavg.SoftLabelCrossentropy(global_weight=0.5, from_logits=True)
model.compile(keras.optimizers.SGD(0.1), loss)
callback = keras_mixavg.GlobalSoftLabel()
history = model.fit(
    dataset, epochs=t.EPOCHS, verbose=0, shuffle=False, callbacks=[callback]
)
np.savez(
    f"{out}/{process}.npz", table=callback.table, kernel=model.get_weights()[0],
    loss=history.history["loss"], processes=jax.process_count(),
)
"""


def run_two_processes(folder):
    """What each has printed and saved, over loopback with gloo collectives.

    They run the example, which connects them, and then train on the data above.
    """
    (folder / "process.py").write_text(PROCESS)
    here = Path(__file__).parent
    example = here.parent / "examples" / "several_machines.py"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    program = [sys.executable, folder / "process.py", here, folder, example]
    program += ["--coordinator", address, "--processes", "2", "--epochs", "4"]
    flags = os.environ["XLA_FLAGS"].split()
    one_device = " ".join(flag for flag in flags if "device_count" not in flag)
    processes = [
        subprocess.Popen(
            [*map(str, program), "--process", number],
            env={**os.environ, "KERAS_BACKEND": "jax", "XLA_FLAGS": one_device},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in "01"
    ]
    try:
        outputs = [process.communicate(timeout=900) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    return [
        (output, np.load(folder / f"{i}.npz")) for i, (output, _) in enumerate(outputs)
    ]


@pytest.mark.skipif(BACKEND != "jax", reason="several machines need the JAX backend")
def test_two_processes_train_as_one_does(tmp_path):
    """And so they do in the example for several machines."""
    two_processes = run_two_processes(tmp_path)
    expected, losses = reference_training()
    for _, result in two_processes:
        assert result["processes"] == 2
        assert_close(result["table"], expected.table, trained=True)
        assert_close(result["kernel"], expected.kernel, trained=True)
        assert_close(result["loss"], losses, trained=True)
    said = [text.splitlines()[-1].partition(": ")[2] for text, _ in two_processes]
    one, other = ([float(f) for f in re.findall(r"\d\.\d+", line)] for line in said)
    assert_close(one, other, trained=True)
    accuracy = float(re.search(r"accuracy ([\d.]+)", said[0])[1])
    assert accuracy > 0.7


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a strategy of TensorFlow")
@pytest.mark.parametrize("where", ["loss", "fit"])
def test_a_multi_worker_strategy_is_refused_and_the_jax_way_named(where):
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()  # a cluster of one
    message = "MultiWorkerMirroredStrategy.*KERAS_BACKEND=jax.*DataParallel"
    if where == "loss":
        with strategy.scope(), pytest.raises(RuntimeError, match=message):
            SoftLabelCrossentropy()
        return
    loss = SoftLabelCrossentropy(from_logits=True)
    with strategy.scope(), pytest.raises(RuntimeError, match=message):
        train(loss=loss)
