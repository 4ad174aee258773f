"""Every warning of the package: cases that cause it once, and similar ones that do not.

Other files have more cases, in tests named for their behaviour:

- token ids:
  `test_inputs_like_token_ids_bring_one_warning`
  `test_images_and_quantities_bring_no_warning`
- a model loaded without its table:
  `test_a_model_that_loses_its_table_warns_once`
- a table that starts again:
  `test_a_new_loss_starts_anew_and_the_same_one_goes_on`
- no step:
  `test_a_compute_loss_that_never_calls_the_loss_warns`
  `test_several_steps_of_optimizers_a_batch_bring_no_warning`
- metrics of one class:
  `test_plain_accuracy_on_pairs_is_noticed_once`
- excluded samples:
  `test_bad_samples_are_left_out_and_counted`
  `test_class_numbers_that_do_not_exist_are_left_out_and_counted`
- not faded:
  `test_an_end_before_the_weight_has_faded_is_said_once_with_what_to_do`
  `test_an_end_as_planned_is_not_remarked_upon`
  `test_a_rate_that_never_fell_is_said_once_with_what_to_do`
  `test_nothing_is_said_of_a_fade_after_a_loss_that_is_not_finite`
- a large table:
  `test_a_large_table_says_beforehand_what_it_takes`
- JAX:
  `test_a_loss_that_jax_traces_by_itself_says_what_to_call`
  `test_the_guides_train_step_for_jax_says_what_to_call`
- nothing loaded:
  `test_weights_without_a_table_say_so_and_it_starts_anew`
  `test_weights_with_a_table_load_without_a_word_whatever_came_before`
  `test_a_checkpoint_of_an_untrained_model_loads_without_a_word`
- beyond float32:
  `test_evidence_beyond_float32_leaves_the_table_and_says_so`
  `test_rows_sum_to_one_whatever_the_weights_and_labels`
- an unknown epoch:
  `test_a_callback_that_no_fit_has_is_warned_of`
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_models import EAGERLY

from keras_mixavg import (
    CurrentEpoch,
    GlobalSoftLabel,
    MixAvg,
    SoftLabelCrossentropy,
    soft_label_table,
)

BACKEND = keras.backend.backend()
NUMBERS = np.arange(12) % 4
X = np.random.default_rng(0).normal(size=(12, 3)).astype("float32")
Y = np.eye(4, dtype="float32")[NUMBERS]
PAIRS = (Y + np.roll(Y, 1, axis=0)) / 2
IDS = np.ones((12, 9), "int32")
ONCE = pytest.mark.once
JAX_ONLY = pytest.mark.skipif(BACKEND != "jax", reason="a limit of JAX")


# --- Models, and what happens to them ------------------------------------------------


def own_loss(**arguments):
    return SoftLabelCrossentropy(from_logits=True, **arguments)


def plain_loss():
    return keras.losses.CategoricalCrossentropy(from_logits=True)


def compiled(model, loss=None, **arguments):
    optimizer = arguments.pop("optimizer", "sgd")
    loss = own_loss() if loss is None else loss
    model.compile(optimizer, loss, run_eagerly=EAGERLY, **arguments)
    return model


def new_model(loss=None, outputs=1, **arguments):
    x = keras.Input((3,))
    heads = [keras.layers.Dense(4, name="ab"[i])(x) for i in range(outputs)]
    model = keras.Model(x, heads if outputs > 1 else heads[0])
    return compiled(model, loss, **arguments)


def train(model, y=Y, callbacks=(), **arguments):
    if len(model.outputs) > 1:
        y = [y] * len(model.outputs)
    callback = GlobalSoftLabel(collect="all")
    model.fit(X, y, callbacks=[callback, *callbacks], verbose=0, **arguments)
    return model


def epoch_of(model, *steps):
    """The hooks of an epoch, and between them the steps."""
    callback = GlobalSoftLabel(collect="all")
    loop = keras.callbacks.CallbackList([callback], model=model, epochs=1)
    loop.on_train_begin()
    loop.on_epoch_begin(0)
    for step in steps:
        step()
    loop.on_epoch_end(0, {"loss": 1.0})
    loop.on_train_end()


def cloned(model):
    clone = keras.models.clone_model(model)
    clone.compile_from_config(model.get_compile_config())
    clone.run_eagerly = EAGERLY
    return clone


def loaded(saved, model, folder):
    saved.save_weights(folder / "saved.weights.h5")
    model.load_weights(folder / "saved.weights.h5")


class Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def interrupted(folder):
    """A model, and a new callback that restores it."""
    model = new_model()
    backup = keras.callbacks.BackupAndRestore(folder)
    with pytest.raises(KeyboardInterrupt):
        train(model, callbacks=[backup, Stop()], epochs=3)
    return model, keras.callbacks.BackupAndRestore(folder)


def dataset(x=X):
    return tf.data.Dataset.from_tensors((x, Y))


# --- Token ids -----------------------------------------------------------------------


def ids_in_a_map(folder, patch):
    dataset(IDS).map(MixAvg())


def ids_with_given_partners(folder, patch):
    MixAvg().apply((IDS, Y), np.roll(np.arange(12), 1))


def ids_that_are_not_averaged(folder, patch):
    for rate, options in ((0.5, {"training": False}), (0.0, {})):
        MixAvg(rate)((IDS, Y), **options)
        MixAvg(rate)(dataset(IDS), **options)
    MixAvg().apply((IDS, Y), None)


# --- A table that does not come along, or starts anew --------------------------------


def a_clone_of_an_untrained_model_trains(folder, patch):
    train(cloned(new_model()))


def a_clone_that_loads_the_weights_trains(folder, patch):
    model = train(new_model())
    clone = cloned(model)
    loaded(model, clone, folder)
    train(clone)


def a_clone_is_restored_when_training_begins(folder, patch):
    model, backup = interrupted(folder)
    train(cloned(model), callbacks=[backup], epochs=3)


def a_new_loss_for_one_of_two_outputs(folder, patch):
    losses = [own_loss(), own_loss()]
    model = train(new_model(losses, outputs=2))
    train(compiled(model, [losses[0], own_loss()]))


def a_new_loss_in_a_list(folder, patch):
    train(compiled(train(new_model()), [own_loss()]))


def a_new_loss_after_the_hooks_of_a_fit_without_epochs(folder, patch):
    model = compiled(train(new_model()))
    train(model, epochs=0)
    train(model)


def the_same_loss(folder, patch):
    model = train(new_model())
    train(compiled(model, model.loss))


def a_plain_loss_for_one_of_two_outputs(folder, patch):
    losses = [own_loss(), own_loss()]
    model = train(new_model(losses, outputs=2))
    train(compiled(model, [losses[0], plain_loss()]))


def a_new_loss_whose_table_is_restored(folder, patch):
    model, backup = interrupted(folder)
    train(compiled(model), callbacks=[backup], epochs=3)


def a_new_loss_after_a_table_that_is_the_identity(folder, patch):
    model = train(new_model())
    loaded(new_model(), model, folder)
    train(compiled(model))


# --- Steps, metrics and samples ------------------------------------------------------


def a_step_of_the_optimizer_alone(folder, patch):
    model = new_model()
    variables = model.trainable_variables
    zeros = [keras.ops.zeros(variable.shape) for variable in variables]
    epoch_of(model, lambda: model.optimizer.apply(zeros, variables))


def a_loss_of_another_object(folder, patch):
    model = new_model()

    def step():
        own_loss()(Y, model(X))
        model.optimizer.iterations.assign_add(1)

    epoch_of(model, step)


def an_epoch_without_a_step(folder, patch):
    epoch_of(new_model())


def an_optimizer_that_counts_otherwise(folder, patch):
    accumulating = keras.optimizers.SGD(gradient_accumulation_steps=4)
    train(new_model(optimizer=accumulating), batch_size=4)


def top_k_accuracy_of_pairs(folder, patch):
    metric = keras.metrics.TopKCategoricalAccuracy(k=2)
    train(new_model(metrics=[metric]), PAIRS, epochs=2)


def accuracy_of_smoothed_pairs(folder, patch):
    train(new_model(metrics=["accuracy"]), 0.9 * PAIRS + 0.025)


def accuracy_of_other_soft_labels(folder, patch):
    """Smoothed labels, mixtures, pairs without weight: each has one top class."""
    train(new_model(metrics=["accuracy"]), 0.9 * Y + 0.025)
    train(new_model(metrics=["accuracy"]), 0.7 * Y + 0.3 * np.roll(Y, 1, axis=0))
    y = np.concatenate([Y[:6], PAIRS[6:]])
    weight = np.repeat([1.0, 0.0], 6)
    train(new_model(metrics=["accuracy"]), y, sample_weight=weight)


def a_class_number_that_is_not_whole(folder, patch):
    numbers = NUMBERS.astype("float32")
    numbers[3] = 0.5
    train(new_model(), numbers)


def negative_class_numbers(folder, patch):
    train(new_model(), NUMBERS - 1)


def a_class_without_weight(folder, patch):
    numbers = np.where(NUMBERS == 3, 255, NUMBERS)
    train(new_model(), numbers, sample_weight=(numbers < 255).astype("float32"))


def evidence(weight):
    """Three batches of one class. None of them alone exceeds float32."""
    model, weights = new_model(), np.full(12, weight, "float32")
    y_pred, y_true = np.zeros((12, 4), "float32"), np.eye(4)[np.zeros(12, int)]
    steps = [lambda: model.loss(y_true, y_pred, weights)] * 3
    with np.errstate(over="ignore"):
        epoch_of(model, *steps)


def evidence_beyond_float32(folder, patch):
    evidence(2e37)


def evidence_below_that(folder, patch):
    evidence(5e36)


# --- Others --------------------------------------------------------------------------


def an_end_after(done, epochs, fade_out):
    callback = GlobalSoftLabel(fade_out=fade_out)
    loop = keras.callbacks.CallbackList([callback], model=new_model(), epochs=epochs)
    loop.on_train_begin()
    loop.on_epoch_begin(done - 1)
    loop.on_epoch_end(done - 1)
    loop.on_train_end()


def an_end_in_the_first_epoch(folder, patch):
    an_end_after(1, 10, 0.3)


def an_end_at_two_thousandths_of_the_weight(folder, patch):
    an_end_after(999, 1000, 1.0)


def a_table_of_as_many_classes(folder, patch):
    patch.setattr(soft_label_table, "LARGE", 4)
    train(new_model())


def a_table_of_more_classes(folder, patch):
    patch.setattr(soft_label_table, "LARGE", 3)
    epoch_of(model := new_model(), lambda: model.loss(Y, model(X)))


def a_table_of_fewer_classes(folder, patch):
    patch.setattr(soft_label_table, "LARGE", 5)
    train(new_model())


def weights_of_one_loss_for_a_list(folder, patch):
    loaded(train(new_model()), new_model([own_loss()]), folder)


def weights_without_a_table_of_one_output(folder, patch):
    saved = train(new_model([own_loss(), plain_loss()], outputs=2))
    loaded(saved, new_model([own_loss(), own_loss()], outputs=2), folder)


def weights_of_a_list_for_a_dict(folder, patch):
    loaded(train(new_model([own_loss()])), new_model({"a": own_loss()}), folder)


def a_fit_that_is_not_given_the_epoch(folder, patch):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    model.compile("sgd", "mse", run_eagerly=EAGERLY)
    data = MixAvg()(dataset(), epoch=CurrentEpoch())
    model.fit(data, epochs=3, verbose=0, shuffle=False)


def looks_before_and_after_a_fit(folder, patch):
    epoch = CurrentEpoch()
    data = MixAvg()(dataset(), epoch=epoch)
    list(data), list(data)
    loop = keras.callbacks.CallbackList([epoch], epochs=1)
    loop.on_train_begin()
    loop.on_epoch_begin(0)
    list(data)
    loop.on_epoch_end(0)
    loop.on_train_end()
    list(data), list(data)


def traced_by_jax(model):
    import jax

    return jax.jit(lambda y_pred: model.loss(Y, y_pred))(X @ np.ones((3, 4), "float32"))


def jax_traces_the_loss(folder, patch):
    epoch_of(model := new_model(), lambda: traced_by_jax(model))


def jax_differentiates_the_traced_loss(folder, patch):
    import jax

    model = new_model()
    gradient = jax.jit(jax.grad(lambda y_pred: model.loss(Y, y_pred)))
    epoch_of(model, lambda: gradient(X @ np.ones((3, 4), "float32")))


def jax_traces_the_loss_after_training(folder, patch):
    traced_by_jax(train(new_model()))


# --- The table -----------------------------------------------------------------------

ANEW = "was compiled with a new SoftLabelCrossentropy since"
ONE_CLASS = "counts only the lower class number of an averaged pair"
LEFT_OUT = "left out of the soft-label table in epoch 0"
UNTOLD = "no `fit` with its CurrentEpoch was running"
NO_STEP = "Epoch 0 trained without the global soft labels"

BRING = [
    ("look like token ids", ids_in_a_map, ONCE),
    ("look like token ids", ids_with_given_partners, ONCE),
    (
        f"{ANEW}.* table of output 'b' starts anew",
        a_new_loss_for_one_of_two_outputs,
        (),
    ),
    (f"{ANEW}.* table of output 'a' starts anew", a_new_loss_in_a_list, ONCE),
    (ANEW, a_new_loss_after_the_hooks_of_a_fit_without_epochs, ONCE),
    (NO_STEP, a_step_of_the_optimizer_alone, ()),
    (NO_STEP, a_loss_of_another_object, ONCE),
    (f"^Keras' 'top_k_.*{ONE_CLASS}", top_k_accuracy_of_pairs, ()),
    (ONE_CLASS, accuracy_of_smoothed_pairs, ONCE),
    (f"^1 sample was {LEFT_OUT}.* whole and", a_class_number_that_is_not_whole, ()),
    (f"^3 samples were {LEFT_OUT}", negative_class_numbers, ONCE),
    ("after epoch 1 of 10, .* 100% of", an_end_in_the_first_epoch, ONCE),
    ("table of 4 classes takes", a_table_of_as_many_classes, ONCE),
    ("table of 4 classes takes", a_table_of_more_classes, ONCE),
    ("list or a dict.*load again", weights_of_one_loss_for_a_list, ONCE),
    ("no soft-label table for this loss", weights_without_a_table_of_one_output, ONCE),
    ("grown beyond float32", evidence_beyond_float32, ()),
    (UNTOLD, a_fit_that_is_not_given_the_epoch, ()),
    ("`model.stateless_compute_loss", jax_traces_the_loss, JAX_ONLY),
    ("`model.stateless_compute_loss", jax_differentiates_the_traced_loss, JAX_ONLY),
]
BRING_NONE = [
    (ids_that_are_not_averaged, ONCE),
    (a_clone_of_an_untrained_model_trains, ONCE),
    (a_clone_that_loads_the_weights_trains, ONCE),
    (a_clone_is_restored_when_training_begins, ONCE),
    (the_same_loss, ONCE),
    (a_plain_loss_for_one_of_two_outputs, ONCE),
    (a_new_loss_whose_table_is_restored, ()),
    (a_new_loss_after_a_table_that_is_the_identity, ONCE),
    (an_epoch_without_a_step, ONCE),
    (an_optimizer_that_counts_otherwise, ()),
    (accuracy_of_other_soft_labels, ()),
    (a_class_without_weight, ()),
    (evidence_below_that, ()),
    (an_end_at_two_thousandths_of_the_weight, ONCE),
    (a_table_of_fewer_classes, ONCE),
    (weights_of_a_list_for_a_dict, ONCE),
    (looks_before_and_after_a_fit, ONCE),
    (jax_traces_the_loss_after_training, JAX_ONLY),
]


@pytest.mark.parametrize(
    "message, way",
    [pytest.param(m, w, marks=marks, id=w.__name__) for m, w, marks in BRING],
)
def test_it_is_said_once(tmp_path, monkeypatch, message, way):
    with pytest.warns(UserWarning, match=message) as seen:
        way(tmp_path, monkeypatch)
    messages = [str(w.message) for w in seen if w.category is UserWarning]
    assert len(messages) == 1, messages


@pytest.mark.parametrize(
    "way", [pytest.param(w, marks=marks, id=w.__name__) for w, marks in BRING_NONE]
)
def test_nothing_is_said(tmp_path, monkeypatch, way):
    """Any warning is an error here."""
    way(tmp_path, monkeypatch)
