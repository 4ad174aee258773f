"""Custom training steps and loops, as in Keras' guides."""

import gc
import weakref

import keras
import numpy as np
import pytest
import reference
from small_models import (
    CLASSES,
    FEATURES,
    averaged_batches,
    dataset_of,
    fresh,
    linear_model,
)
from tolerances import assert_close, close

from keras_mixavg import GlobalSoftLabel, SoftLabelAccuracy, SoftLabelCrossentropy

pytestmark = pytest.mark.numerical

BACKEND = keras.backend.backend()


@pytest.fixture
def batches(rng):
    return averaged_batches(rng)


@pytest.fixture
def alike(rng):
    """Batches of one size, so that a loop compiles its step once."""
    return averaged_batches(rng, sizes=(16, 16))


@pytest.fixture
def kernel(rng):
    return (0.3 * rng.normal(size=(FEATURES, CLASSES))).astype("float32")


def compiled(model, **kwargs):
    loss = SoftLabelCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, **kwargs)
    return model


def linear(kind, kernel):
    inputs = keras.Input((FEATURES,))
    model = kind(inputs, keras.layers.Dense(CLASSES, use_bias=False)(inputs))
    model.set_weights([kernel])
    return model


def fit(model, batches, epochs, callbacks):
    data = dataset_of(batches)
    return model.fit(data, epochs=epochs, callbacks=callbacks, verbose=0, shuffle=False)


def assert_trained(model, callback, kernel, batches, epochs):
    expected = reference.Training(kernel, 0.1)
    for _ in range(epochs):
        expected.epoch(batches)
    assert_close(callback.table, expected.table, trained=True)
    assert_close(model.get_weights()[0], expected.kernel, trained=True)


# --- Loops ---------------------------------------------------------------------------


def run_loop(callbacks, epochs, batches, step):
    """As in Keras' guides."""
    callbacks.on_train_begin()
    for epoch in range(epochs):
        callbacks.on_epoch_begin(epoch)
        for i, batch in enumerate(batches):
            callbacks.on_train_batch_begin(i)
            step(*batch[:2])
            callbacks.on_train_batch_end(i)
        callbacks.on_epoch_end(epoch, {})
    callbacks.on_train_end()


def test_a_loop_around_train_on_batch_may_evaluate_after_each_step(alike, kernel):
    model = fresh(kernel)
    callback = GlobalSoftLabel()
    callbacks = keras.callbacks.CallbackList([callback], model=model)
    x, y, _ = alike[0]

    def step(*batch):
        model.train_on_batch(*batch)
        model.evaluate(x, y, verbose=0)
        model.test_on_batch(x, y)

    run_loop(callbacks, 3, alike, step)
    assert_trained(model, callback, kernel, alike, 3)


def test_a_loop_that_says_its_epochs_fades_as_fit_does(batches, kernel):
    model = fresh(kernel)
    callback = GlobalSoftLabel(fade_out=0.5)
    callbacks = keras.callbacks.CallbackList(
        [callback], add_history=True, model=model, epochs=4
    )
    run_loop(callbacks, 4, batches, model.train_on_batch)
    expected = reference.Training(kernel, 0.1, epochs=4, fade_out=0.5)
    for _ in range(4):
        expected.epoch(batches)
    assert_close(callback.table, expected.table, trained=True)
    confidence = model.history.history["soft_label_confidence"]
    assert confidence[-1] == close(np.trace(expected.table) / CLASSES, trained=True)


def step_from_scratch(model):
    """A step that calls the loss itself."""
    optimizer, loss = model.optimizer, model.loss
    if BACKEND == "tensorflow":
        import tensorflow as tf

        @tf.function
        def step(x, y):
            with tf.GradientTape() as tape:
                value = loss(y, model(x, training=True))
            gradients = tape.gradient(value, model.trainable_weights)
            optimizer.apply_gradients(
                zip(gradients, model.trainable_weights, strict=True)
            )

        return step
    if BACKEND == "torch":
        import torch

        def step(x, y):
            model.zero_grad()
            loss(torch.tensor(y), model(x, training=True)).backward()
            gradients = [v.value.grad for v in model.trainable_weights]
            with torch.no_grad():
                optimizer.apply(gradients, model.trainable_weights)

        return step
    import jax

    @jax.jit
    def value_and_gradient(trainable, non_trainable, metrics, x, y):
        def value(trainable):
            y_pred, _ = model.stateless_call(trainable, non_trainable, x)
            return model.stateless_compute_loss(
                trainable, non_trainable, metrics, x=x, y=y, y_pred=y_pred
            )

        return jax.value_and_grad(value, has_aux=True)(trainable)

    def step(x, y):
        state = [
            [v.value for v in variables]
            for variables in (
                model.trainable_variables,
                model.non_trainable_variables,
                model.metrics_variables,
            )
        ]
        (_, (_, _, metrics)), gradients = value_and_gradient(*state, x, y)
        optimizer.apply(gradients, model.trainable_variables)
        for variable, value in zip(model.metrics_variables, metrics, strict=True):
            variable.assign(value)

    return step


def test_a_loop_from_scratch(alike, kernel):
    model = compiled(linear_model(kernel))
    model.optimizer.build(model.trainable_variables)
    callback = GlobalSoftLabel()
    callbacks = keras.callbacks.CallbackList([callback], model=model)
    run_loop(callbacks, 2, alike, step_from_scratch(model))
    assert_trained(model, callback, kernel, alike, 2)


def test_a_loss_called_between_the_hooks_of_a_test_is_plain(batches, kernel):
    model = compiled(linear_model(kernel))
    callbacks = keras.callbacks.CallbackList([GlobalSoftLabel()], model=model)
    x, y, _ = batches[0]
    predictions = keras.ops.stop_gradient(model(x))
    plain = float(
        keras.losses.CategoricalCrossentropy(from_logits=True)(y, predictions)
    )
    callbacks.on_train_begin()
    for epoch in range(2):  # in the second one the table is no longer the identity
        callbacks.on_epoch_begin(epoch)
        trained = float(model.loss(y, predictions))
        before = model.loss.table.state()
        callbacks.on_test_begin()
        assert float(model.loss(y, predictions)) == close(plain)
        callbacks.on_test_end()
        for name, value in model.loss.table.state().items():
            np.testing.assert_array_equal(value, before[name])
        callbacks.on_epoch_end(epoch, {})
    assert abs(trained - plain) > 1e-3


@pytest.mark.skipif(BACKEND != "jax", reason="elsewhere the loss may be called so")
def test_a_loss_that_jax_traces_by_itself_says_what_to_call(batches, kernel):
    import jax

    model = compiled(linear_model(kernel))
    x, y, _ = batches[0]

    @jax.jit
    def value(trainable):
        y_pred, _ = model.stateless_call(trainable, [], x)
        return model.loss(y, y_pred)

    callbacks = keras.callbacks.CallbackList([GlobalSoftLabel()], model=model)
    callbacks.on_train_begin()
    callbacks.on_epoch_begin(0)
    with pytest.warns(UserWarning, match="Call `model.stateless_compute_loss") as seen:
        result = float(value([v.value for v in model.trainable_variables]))
    assert len(seen) <= 2
    callbacks.on_train_end()
    plain = reference.loss(y, [reference.softmax(z) for z in x @ kernel])
    assert result == close(plain, trained=True)


# --- Steps ---------------------------------------------------------------------------


def update_metrics(model, loss, y, y_pred):
    """Update each of `self.metrics`, as in the guides."""
    for metric in model.metrics:
        if metric.name == "loss":
            metric.update_state(loss)
        else:
            metric.update_state(y, y_pred)
    return {metric.name: metric.result() for metric in model.metrics}


class TensorFlowStep(keras.Model):
    def train_step(self, data):
        import tensorflow as tf

        x, y = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(y=y, y_pred=y_pred)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return update_metrics(self, loss, y, y_pred)


class TorchStep(keras.Model):
    def train_step(self, data):
        import torch

        x, y = data
        self.zero_grad()
        y_pred = self(x, training=True)
        loss = self.compute_loss(y=y, y_pred=y_pred)
        loss.backward()
        trainable_weights = list(self.trainable_weights)
        gradients = [v.value.grad for v in trainable_weights]
        with torch.no_grad():
            self.optimizer.apply(gradients, trainable_weights)
        return update_metrics(self, loss, y, y_pred)


class JAXStep(keras.Model):
    stateless = True

    def compute_loss_and_updates(
        self, trainable, non_trainable, metrics, x, y, training=False
    ):
        y_pred, non_trainable = self.stateless_call(
            trainable, non_trainable, x, training=training
        )
        if not self.stateless:  # as in the guide
            loss = self.compute_loss(x, y, y_pred)
            return loss, (y_pred, non_trainable, metrics)
        loss, (_, non_trainable, metrics) = self.stateless_compute_loss(
            trainable, non_trainable, metrics, x=x, y=y, y_pred=y_pred
        )
        return loss, (y_pred, non_trainable, metrics)

    def train_step(self, state, data):
        import jax

        trainable, non_trainable, optimizer, metrics = state
        x, y = data
        gradient = jax.value_and_grad(self.compute_loss_and_updates, has_aux=True)
        (loss, (y_pred, non_trainable, metrics)), gradients = gradient(
            trainable, non_trainable, metrics, x, y, training=True
        )
        trainable, optimizer = self.optimizer.stateless_apply(
            optimizer, gradients, trainable
        )
        logs, new = {}, []
        for metric in self.metrics:
            own = metrics[len(new) : len(new) + len(metric.variables)]
            values = (loss,) if metric.name == "loss" else (y, y_pred)
            own = metric.stateless_update_state(own, *values)
            logs[metric.name] = metric.stateless_result(own)
            new += own
        return logs, (trainable, non_trainable, optimizer, new)


STEP = {"tensorflow": TensorFlowStep, "torch": TorchStep, "jax": JAXStep}[BACKEND]


def test_a_train_step_that_updates_every_metric(batches, kernel):
    model = compiled(linear(STEP, kernel), metrics=[SoftLabelAccuracy()])
    callback = GlobalSoftLabel()
    history = fit(model, batches, 2, [callback]).history
    assert_trained(model, callback, kernel, batches, 2)
    assert set(history) >= {"loss", "soft_label_confidence"}


@pytest.mark.skipif(BACKEND != "jax", reason="a form of JAX")
def test_the_guides_train_step_for_jax_says_what_to_call(batches, kernel):
    model = compiled(linear(JAXStep, kernel))
    model.stateless = False
    with pytest.warns(UserWarning, match="stateless_compute_loss"):  # two, in fact
        fit(model, batches, 2, [GlobalSoftLabel()])
    expected = reference.Training(kernel, 0.1, global_weight=0.0)
    for _ in range(2):
        expected.epoch(batches)
    assert_close(model.get_weights()[0], expected.kernel, trained=True)


class SuperLoss(keras.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, **kwargs):
        return super().compute_loss(x, y, y_pred, sample_weight, **kwargs)


class CalledLoss(keras.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, **kwargs):
        return self.loss(y, y_pred, sample_weight)


class OtherLoss(keras.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, **kwargs):
        return keras.ops.mean(
            keras.losses.categorical_crossentropy(y, y_pred, from_logits=True)
        )


@pytest.mark.parametrize("kind", [SuperLoss, CalledLoss])
def test_a_compute_loss_of_ones_own(batches, kernel, kind):
    model = compiled(linear(kind, kernel))
    callback = GlobalSoftLabel()
    fit(model, batches, 2, [callback])
    assert_trained(model, callback, kernel, batches, 2)


def test_a_compute_loss_that_never_calls_the_loss_warns(batches, kernel):
    model = compiled(linear(OtherLoss, kernel))
    message = "^Epoch 0 trained without the global soft labels: no step called the loss"
    with pytest.warns(UserWarning, match=message) as seen:
        fit(model, batches, 1, [GlobalSoftLabel()])
    (message,) = [str(w.message) for w in seen if "Epoch 0" in str(w.message)]
    assert "super().compute_loss" in message and "evaluate" not in message


@pytest.mark.skipif(BACKEND == "jax", reason="a step in the form of the others")
def test_several_steps_of_optimizers_a_batch_bring_no_warning(batches, kernel):
    """Two of the model's own, and one of a second model's, as a GAN has it."""

    generator, other_optimizer = [keras.Variable([1.0])], keras.optimizers.SGD()
    other_optimizer.build(generator)

    class SeveralSteps(STEP):
        def train_step(self, data):
            other_optimizer.apply([keras.ops.ones((1,))], generator)
            zeros = [keras.ops.zeros_like(v) for v in self.trainable_variables]
            self.optimizer.apply(zeros, self.trainable_variables)
            return super().train_step(data)

    model = compiled(linear(SeveralSteps, kernel))
    callback = GlobalSoftLabel()
    fit(model, batches, 2, [callback])
    assert_trained(model, callback, kernel, batches, 2)
    assert int(other_optimizer.iterations) == 2 * len(batches)


class GuidesDistiller(keras.Model):
    """As in Keras' guide: the losses are attributes."""

    def __init__(self, student, teacher):
        super().__init__()
        self.student, self.teacher = student, teacher

    def compile(self, optimizer, student_loss_fn):
        super().compile(optimizer=optimizer)
        self.student_loss_fn = student_loss_fn
        self.distillation_loss_fn = keras.losses.KLDivergence()

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, **kwargs):
        distillation = self.distillation_loss_fn(
            keras.ops.softmax(self.teacher(x)), keras.ops.softmax(y_pred)
        )
        return self.student_loss_fn(y, y_pred) + 0.0 * distillation

    def call(self, x):
        return self.student(x)


def guides_distiller(student, teacher, optimizer, loss):
    model = GuidesDistiller(student, teacher)
    model.compile(optimizer, student_loss_fn=loss)
    return model


def distiller_of_keras(student, teacher, optimizer, loss):
    model = keras.distillation.Distiller(
        teacher, student, keras.distillation.LogitsDistillation(), 1.0, 0.999999
    )
    model.compile(optimizer, loss)
    return model


@pytest.mark.parametrize("distiller", [guides_distiller, distiller_of_keras])
def test_a_student_is_distilled(batches, kernel, distiller):
    if distiller is distiller_of_keras and not hasattr(keras, "distillation"):
        pytest.skip("Keras has none yet")
    student, teacher = linear_model(kernel), linear_model(kernel)
    loss = SoftLabelCrossentropy(CLASSES, from_logits=True)
    model = distiller(student, teacher, keras.optimizers.SGD(0.1), loss)
    callback = GlobalSoftLabel()
    fit(model, batches, 2, [callback])
    assert_trained(student, callback, kernel, batches, 2)


@pytest.mark.skipif(BACKEND != "jax", reason="others make variables in a step")
def test_a_distiller_on_jax_must_know_the_classes(batches, kernel):
    student, teacher = linear_model(kernel), linear_model(kernel)
    loss = SoftLabelCrossentropy(from_logits=True)
    model = guides_distiller(student, teacher, keras.optimizers.SGD(0.1), loss)
    message = f"must be known before the first step.*num_classes={CLASSES}"
    with pytest.raises(ValueError, match=message):
        fit(model, batches, 1, [GlobalSoftLabel()])


def test_two_losses_of_a_distiller_are_refused(batches, kernel):
    model = guides_distiller(
        linear_model(kernel),
        linear_model(kernel),
        keras.optimizers.SGD(0.1),
        SoftLabelCrossentropy(from_logits=True),
    )
    model.distillation_loss_fn = SoftLabelCrossentropy(from_logits=True)
    with pytest.raises(ValueError, match="needs a model compiled with a SoftLabelCros"):
        fit(model, batches, 1, [GlobalSoftLabel()])


# --- Reading the table ---------------------------------------------------------------


class ReadAlways(keras.callbacks.Callback):
    """Read the table in every hook, through the callback and the loss."""

    def __init__(self, source):
        super().__init__()
        self.source = source
        self.read = {}
        for name in dir(keras.callbacks.Callback):
            if name.startswith("on_"):
                setattr(self, name, lambda *args, hook=name, **kwargs: self.look(hook))

    def look(self, hook):
        table = self.source.table
        np.testing.assert_array_equal(table, self._model.loss.table.numpy())
        np.testing.assert_array_equal(table, np.asarray(self._model.loss.table))
        self.read.setdefault(hook, []).append(table)


def test_the_table_can_be_read_in_every_hook(batches, kernel):
    model = fresh(kernel)
    callback = GlobalSoftLabel()
    reader = ReadAlways(callback)
    data = dataset_of(batches)
    model.fit(
        data,
        epochs=2,
        callbacks=[callback, reader],
        verbose=0,
        shuffle=False,
        validation_data=data,
    )
    model.predict(batches[0][0], verbose=0, callbacks=[reader])
    assert_trained(model, callback, kernel, batches, 2)
    assert len(reader.read) == 14  # all but the old names of two
    first, *_, last = reader.read["on_train_batch_end"]
    np.testing.assert_array_equal(first, np.eye(CLASSES))  # of the first epoch
    np.testing.assert_array_equal(last, reader.read["on_epoch_end"][0])


# --- One compilation -----------------------------------------------------------------


class CountingLoss(SoftLabelCrossentropy):
    """TensorFlow and JAX run this once for each trace."""

    calls = 0

    def call(self, y_true, y_pred):
        type(self).calls += 1
        return super().call(y_true, y_pred)


@pytest.mark.skipif(BACKEND == "torch", reason="torch compiles nothing by default")
@pytest.mark.parametrize("evaluated_before", [False, True])
def test_later_fits_and_evaluations_compile_nothing(batches, kernel, evaluated_before):
    model = linear_model(kernel)
    model.compile(keras.optimizers.SGD(0.1), CountingLoss(from_logits=True))
    batches = [batches[0], batches[0]]
    data = dataset_of(batches)

    def train(epoch, callbacks):
        model.fit(
            data,
            initial_epoch=epoch,
            epochs=epoch + 1,
            callbacks=callbacks,
            validation_data=data,
            verbose=0,
            shuffle=False,
        )

    if evaluated_before:
        train(0, [])
    train(0, [GlobalSoftLabel()])
    before = CountingLoss.calls
    for epoch in (1, 2):
        train(epoch, [GlobalSoftLabel(fade_out=0)])
        train(epoch, [])
        model.evaluate(data, verbose=0)
    assert CountingLoss.calls == before


def test_many_fits_leave_nothing_behind(batches, kernel):
    model = fresh(kernel)
    callbacks, sizes = [], []
    for epoch in range(3):
        callback = GlobalSoftLabel(fade_out=0)
        callbacks.append(weakref.ref(callback))
        model.fit(
            dataset_of(batches),
            initial_epoch=epoch,
            epochs=epoch + 1,
            callbacks=[callback],
            verbose=0,
            shuffle=False,
        )
        sizes.append((len(model.metrics), len(model.loss.table.variables)))
    assert len(set(sizes)) == 1
    del callback
    model.history = None
    gc.collect()
    assert not [reference for reference in callbacks if reference()]
