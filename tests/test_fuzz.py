"""Random use: every batch, every loss and every order of calls that Hypothesis finds.

`make test` runs one round of each test, `make fuzz` rounds for 15 minutes in all
(`FUZZ_SECONDS` a test).
"""

import contextlib
import os
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis
import keras
import numpy as np
import pytest
import reference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from small_models import (
    CLASSES,
    FEATURES,
    averaged_batches,
    dataset_of,
    linear_model,
    to_numpy,
)

from keras_mixavg import GlobalSoftLabel, MixAvg, SoftLabelCrossentropy
from keras_mixavg.soft_label_table import SoftLabelTable

pytestmark = pytest.mark.once

SECONDS = float(os.environ.get("FUZZ_SECONDS", 0))
BACKEND = keras.backend.backend()
SETTINGS = settings(
    max_examples=25,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)


def keep_trying(check, capsys):
    """Run `check(data)` with new seeds until the time is up, and say how often."""
    examples = 0

    def counted(data):
        nonlocal examples
        examples += 1
        check(data)

    end, seed = time.monotonic() + SECONDS, 0
    while seed == 0 or time.monotonic() < end:
        hypothesis.seed(seed)(SETTINGS(given(data=st.data())(counted)))()
        seed += 1
    with capsys.disabled():
        print(f"\n{examples} examples, no failure: {check.__doc__}")


# --- The layer -----------------------------------------------------------------------

X_DTYPES = ["float16", "float32", "float64", "uint8", "int8", "int32", "bool"]


@st.composite
def arrays(draw, size, dtypes):
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    shape = (size, *draw(st.lists(st.integers(1, 3), max_size=3)))
    elements = st.integers(0, 100)
    if dtype.kind == "b":
        elements = st.booleans()
    values = draw(
        hnp.arrays(dtype if dtype.kind == "b" else "int64", shape, elements=elements)
    )
    return values.astype(dtype)


def any_batch(data):
    """MixAvg on batches of any structure, shape and dtype"""
    draw = data.draw
    size, num_classes = draw(st.integers(1, 7)), draw(st.integers(2, 5))
    x_dtypes = X_DTYPES if BACKEND == "tensorflow" else X_DTYPES[:2] + X_DTYPES[3:]
    x = draw(
        st.one_of(
            arrays(size, x_dtypes),
            st.dictionaries(st.sampled_from("ab"), arrays(size, x_dtypes), min_size=1),
            st.tuples(arrays(size, x_dtypes), arrays(size, x_dtypes)),
        )
    )
    numbers = draw(
        hnp.arrays("int64", (size,), elements=st.integers(0, num_classes - 1))
    )
    encoded = reference.one_hot(numbers, num_classes)
    y = draw(
        st.sampled_from(
            [
                numbers,
                numbers.astype("uint8"),
                numbers[:, None].astype("int32"),
                numbers.astype("float32"),
                encoded.astype("float32"),
                encoded.astype("int32"),
            ]
        )
    )
    w = draw(
        st.none() | hnp.arrays("float32", (size,), elements=st.floats(0, 9, width=16))
    )
    layer = MixAvg(draw(st.floats(0, 1)), num_classes, seed=draw(st.integers(0, 99)))
    if draw(st.booleans()):
        batch = {"images": x, "labels": y, "id": object()}
        keys = ("images", "labels", "sample_weights")
        if w is not None:
            batch["sample_weights"] = w
    else:
        batch = (x, y) if w is None else (x, y, w)
        keys = (0, 1, 2)
    partners = to_numpy(layer.draw(size))
    assert sorted(set(partners)) == sorted(set(partners) & set(range(size)))
    before = keras.tree.map_structure(np.copy, (x, y, w))
    result = layer.apply(batch, partners)
    called = layer(batch)
    assert type(result) is type(batch) and type(called) is type(batch)
    for name, part in zip(keys, (x, encoded, w), strict=True):
        if part is None:
            assert len(result) == 2 + isinstance(batch, dict)
            continue
        for leaf, out, other in zip(
            *map(keras.tree.flatten, (part, result[name], called[name])), strict=True
        ):
            out, other = to_numpy(out), to_numpy(other)
            expected = reference.averaged(leaf, partners)
            if part is x and leaf.dtype == "uint8":
                expected = np.floor(expected + 0.5)
            np.testing.assert_allclose(out, expected, rtol=1e-3)
            keeps = part is x and (leaf.dtype.kind == "f" or leaf.dtype == "uint8")
            assert out.dtype == (leaf.dtype if keeps else "float32")
            assert other.dtype == out.dtype and other.shape == out.shape
    if isinstance(batch, dict):
        assert result["id"] is batch["id"]
    for one, other in zip(*map(keras.tree.flatten, (before, (x, y, w))), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.filterwarnings("ignore:MixAvg averages inputs of dtype")  # as it should
def test_fuzz_the_layer(capsys):
    keep_trying(any_batch, capsys)


# --- The loss ------------------------------------------------------------------------

FINITE = st.floats(-30, 30, width=16)
STRANGE = FINITE | st.sampled_from([np.nan, np.inf, -np.inf, 1e4, -1e4])


def any_loss(data):
    """SoftLabelCrossentropy and its table on any shapes, weights and numbers"""
    draw = data.draw
    leading = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    num_classes = draw(st.integers(2, 4))
    shape = (*leading, num_classes)
    strange = draw(st.booleans())
    logits = draw(hnp.arrays("float32", shape, elements=STRANGE if strange else FINITE))
    labels = draw(hnp.arrays("float32", shape, elements=st.floats(0, 1, width=16)))
    weights = draw(
        st.none()
        | hnp.arrays(
            "float32",
            leading,
            elements=st.sampled_from(
                [-1, np.nan, np.inf, 0, 2] if strange else [0, 1, 2]
            ),
        )
    )
    collect = draw(st.sampled_from(["all", "correct"]))
    loss = SoftLabelCrossentropy(from_logits=True, global_weight=0.5)
    loss.table = SoftLabelTable(collect)
    loss.table.build(num_classes)
    loss.table.switch.claim(keras.Model())
    loss.table.switch.turn_on(0.5)
    for _ in range(2):
        value = to_numpy(loss(labels, logits, weights))
        before = loss.table.state()
        left_out = int(loss.table.end_epoch(1.0))
        flat = logits.astype("float64").reshape(-1, num_classes)
        flat_weights = np.ones(len(flat)) if weights is None else weights.ravel()
        usable = np.isfinite(flat).all(axis=1)
        # A logit of -inf is a probability of 0, as long as another one is finite.
        usable |= (
            ~np.isnan(flat).any(axis=1)
            & (flat < np.inf).all(axis=1)
            & (flat > -np.inf).any(axis=1)
        )
        usable &= np.isfinite(flat_weights) & (flat_weights >= 0)
        no_class = (labels.reshape(-1, num_classes) == 0).all(axis=1)
        usable &= ~no_class | (flat_weights == 0)
        assert left_out == (~usable).sum()
        probabilities = np.array([reference.softmax(z) for z in flat[usable]])
        top_two = np.sort(flat[usable], axis=1)[:, -2:]
        ties = (top_two[:, 1] - top_two[:, 0] < 1e-3).any()
        if usable.any() and not (collect == "correct" and ties):
            n, m = reference.evidence(
                labels.reshape(-1, num_classes)[usable],
                probabilities.reshape(-1, num_classes),
                flat_weights[usable],
                collect,
            )
            np.testing.assert_allclose(before["cross"], n, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(before["gram"], m, rtol=1e-4, atol=1e-5)
        table = loss.table.state()["table"]
        assert np.isfinite(table).all() and (table >= 0).all()
        np.testing.assert_allclose(table.sum(axis=1), 1, atol=1e-5)
        assert np.isfinite(value) or strange


def test_fuzz_the_loss(capsys):
    keep_trying(any_loss, capsys)


# --- The order of calls --------------------------------------------------------------

BATCHES = averaged_batches(np.random.default_rng(0), sizes=(6, 6, 3))
KERNEL = (0.3 * np.random.default_rng(1).normal(size=(FEATURES, CLASSES))).astype(
    "float32"
)


class Stop(Exception):
    pass


class CrashAt(keras.callbacks.Callback):
    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def on_train_batch_end(self, batch, logs=None):
        if batch == self.batch:
            raise Stop


class Calls(RuleBasedStateMachine):
    """Any order of calls, against the reference that is told the same"""

    examples = 0

    @initialize(
        eager=st.sampled_from([True, True, True, False]),
        collect=st.sampled_from(["all", "correct"]),
    )
    def start(self, eager, collect):
        Calls.examples += 1
        self.eager, self.collect = eager, collect
        self.model = self.new_model()
        self.callback = GlobalSoftLabel(collect=collect)
        self.expected = reference.Training(KERNEL, 0.1, collect=collect)
        self.trained = False

    def new_model(self, loss=None):
        model = linear_model(KERNEL)
        loss = loss or SoftLabelCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=self.eager)
        model.optimizer.build(model.trainable_variables)
        return model

    def fit(self, epochs, callbacks, **kwargs):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*table starts anew")
            self.model.fit(
                dataset_of(BATCHES),
                epochs=epochs,
                callbacks=callbacks,
                verbose=0,
                shuffle=False,
                **kwargs,
            )

    def plain_steps(self, batches):
        """Train the reference without the table."""
        table, n, m = self.expected.table, self.expected.n, self.expected.m
        self.expected.global_weight = 0.0
        for batch in batches:
            self.expected.step(*batch)
        self.expected.global_weight = 0.5
        self.expected.table, self.expected.n, self.expected.m = table, n, m

    @rule(epochs=st.integers(1, 2), validate=st.booleans(), new=st.booleans())
    def fit_with_the_callback(self, epochs, validate, new):
        if new:
            self.callback = GlobalSoftLabel(collect=self.collect)
        validation = {"validation_data": dataset_of(BATCHES[1:])} if validate else {}
        self.fit(epochs, [self.callback], **validation)
        for _ in range(epochs):
            self.expected.epoch(BATCHES)
        self.trained = True

    @rule()
    def fit_without_the_callback(self):
        self.fit(1, [])
        self.plain_steps(BATCHES)

    @rule(batch=st.integers(0, len(BATCHES) - 1))
    def fit_and_crash(self, batch):
        with contextlib.suppress(Stop):
            self.fit(1, [self.callback, CrashAt(batch)])
        self.callback.on_train_end()  # which Keras does not call
        for seen in BATCHES[: batch + 1]:
            self.expected.step(*seen)
        self.trained = True

    @rule(batch=st.integers(0, len(BATCHES) - 1))
    def train_on_batch(self, batch):
        self.model.train_on_batch(*BATCHES[batch][:2])
        self.plain_steps([BATCHES[batch]])

    @rule(batch=st.integers(0, len(BATCHES) - 1), callback=st.booleans())
    def evaluate_predict_and_test(self, batch, callback):
        x, y, _ = BATCHES[batch]
        callbacks = [self.callback] if callback else None
        value = self.model.evaluate(x, y, verbose=0, callbacks=callbacks)
        p = self.model.predict(x, verbose=0, callbacks=callbacks)
        np.testing.assert_allclose(p, x @ self.expected.kernel, atol=1e-4)
        plain = reference.loss(y, self.expected.probabilities(x))
        assert value == pytest.approx(plain, rel=1e-4)
        self.model.reset_metrics()
        assert float(self.model.test_on_batch(x, y)) == pytest.approx(plain, rel=1e-4)

    @rule(whole=st.booleans())
    def save_and_load(self, whole):
        with TemporaryDirectory() as folder:
            if whole:
                path = Path(folder) / "model.keras"
                self.model.save(path)
                self.model = keras.saving.load_model(path)
                self.model.run_eagerly = self.eager
            else:
                path = Path(folder) / "model.weights.h5"
                self.model.save_weights(path)
                self.model = self.new_model()
                self.model.load_weights(path)

    @rule()
    def compile_again_with_the_same_loss(self):
        self.model.compile(
            keras.optimizers.SGD(0.1), self.model.loss, run_eagerly=self.eager
        )
        self.model.optimizer.build(self.model.trainable_variables)

    @rule()
    def compile_again_with_a_new_loss(self):
        self.model.compile(
            keras.optimizers.SGD(0.1),
            SoftLabelCrossentropy(from_logits=True),
            run_eagerly=self.eager,
        )
        self.model.optimizer.build(self.model.trainable_variables)
        self.expected.table = np.eye(CLASSES)
        self.expected.n, self.expected.m = np.zeros((2, CLASSES, CLASSES))
        self.trained = False

    @rule()
    def set_the_callbacks_model_twice(self):
        self.callback.set_model(self.model)
        self.callback.set_model(self.model)

    @precondition(lambda self: self.model.loss.table.switch.attached)
    @rule()
    def another_model_with_the_same_loss(self):
        other = self.new_model(self.model.loss)
        other.train_on_batch(*BATCHES[0][:2])
        with pytest.raises(ValueError, match="has trained another model"):
            other.fit(
                dataset_of(BATCHES),
                callbacks=[GlobalSoftLabel()],
                verbose=0,
                shuffle=False,
            )

    @rule()
    def two_callbacks(self):
        with pytest.raises(ValueError, match="must train with one GlobalSoftLabel"):
            self.fit(1, [self.callback, GlobalSoftLabel()])
        self.callback.on_train_end()

    def teardown(self):
        if not hasattr(self, "model"):
            return
        state = self.model.loss.table.state()
        if self.trained:
            np.testing.assert_allclose(state["table"], self.expected.table, atol=2e-4)
            np.testing.assert_allclose(state["cross"], self.expected.n, atol=2e-3)
            np.testing.assert_allclose(state["gram"], self.expected.m, atol=2e-3)
        np.testing.assert_allclose(
            self.model.get_weights()[0], self.expected.kernel, atol=2e-4
        )
        names = [metric.name for metric in self.model.metrics]
        assert names in (["loss"], ["loss", "soft_label_table"])


def test_fuzz_the_order_of_calls(capsys):
    Calls.examples = 0
    end, seed = time.monotonic() + SECONDS, 0
    while seed == 0 or time.monotonic() < end:
        run_state_machine_as_test(
            hypothesis.seed(seed)(Calls),
            settings=settings(SETTINGS, max_examples=5, stateful_step_count=8),
        )
        seed += 1
    with capsys.disabled():
        print(f"\n{Calls.examples} examples, no failure: {Calls.__doc__}")
