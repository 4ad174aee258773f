"""The parts of examples/training/, which the training programs share."""

import itertools
from pathlib import Path

import keras
import numpy as np
import pytest
import small_models
import tensorflow as tf
from small_data import crop_and_flip_of
from tolerances import assert_close, close

ROOT = Path(__file__).parent.parent

for package in ("sklearn", "scipy", "matplotlib"):
    pytest.importorskip(package)

import cifar  # noqa: E402
from scipy import stats  # noqa: E402
from training import data, fit, networks  # noqa: E402
from training.batches import Epoch, crop_and_flip, training_batches  # noqa: E402
from training.methods import METHODS  # noqa: E402

pytestmark = pytest.mark.once


def arguments(*flags):
    return cifar.parse_arguments(["--smoke", "--out", "not/there", *flags])


def key(number):
    return tf.constant([0, number], "int64")


# --- Methods -------------------------------------------------------------------------


def coloured(count=32, classes=8, side=16):
    """Images of class k have the colour 16 k throughout, so that mixing shows."""
    labels = np.arange(count) % classes
    images = np.ones((count, side, side, 3), "uint8") * 16
    return images * labels[:, None, None, None].astype("uint8"), labels


ALWAYS = {"cutmix": ["--share", "1"], "mixup_or_cutmix": ["--smoothing", "0"]}


@pytest.mark.parametrize("name", METHODS)
def test_a_label_has_the_shares_that_the_image_has_in_any_precision(name):
    batches = tf.data.Dataset.from_tensors(coloured())
    args = arguments("--method", name, *ALWAYS.get(name, ()))

    def mixed():
        method = METHODS[name](args, 8)
        return next(method.mix(batches, Epoch().number).as_numpy_iterator())

    x, y = mixed()
    clean = name in ("erm", "stopped_early", "label_smoothing", "ols")
    assert len(x) == (64 if name.endswith("regmixup") else 32)
    assert np.all(y.max(axis=1) == 1) == clean
    assert_close(y.sum(axis=1), 1)
    seen = x.astype(float).mean(axis=(1, 2, 3)) / 16
    # Keras' box is of whole pixels, its labels are not: of 16 lines one more or less,
    # and 7 classes apart.
    tolerance = 7 / 8 if name == "keras_cutmix" else 0.01
    np.testing.assert_allclose(seen, y @ np.arange(8), atol=tolerance)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        in_mixed_precision = mixed()
    finally:
        keras.config.set_dtype_policy(before)
    for one, other in zip(in_mixed_precision, (x, y), strict=True):
        assert one.dtype == other.dtype
        assert_close(one, other)


@pytest.mark.usefixtures("eagerly")
@pytest.mark.filterwarnings("ignore:Even though")  # that tf.data keeps its graphs
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_with_its_loss_and_callbacks(name):
    images, labels = coloured()
    args = arguments("--method", name)
    method = METHODS[name](args, 8)
    epoch = Epoch()
    batches = tf.data.Dataset.from_tensors((images, labels)).repeat(2)
    layers = [keras.layers.Flatten(), keras.layers.Dense(8)]
    network = keras.Sequential([keras.Input((16, 16, 3)), *layers])
    model = fit.compiled(method, network, args, 2)
    callbacks = method.callbacks()
    history = model.fit(
        method.mix(batches, epoch.number),
        epochs=2,
        callbacks=[epoch, *callbacks],
        validation_data=(images, np.eye(8)[labels]),
        verbose=0,
        shuffle=False,
    ).history
    assert np.isfinite(history["loss"]).all()
    assert ("soft_label_entropy" in history) == (name in ("ols", "mixavg"))
    if method.has_table(args):
        assert_close(callbacks[0].table.sum(axis=1), 1)


def test_another_method_gets_global_soft_labels_with_a_weight():
    flags = ["--global-weight", "0.25", "--fade-out", "0.5"]
    method = METHODS["cutmix"](arguments("--method", "cutmix", *flags), 8)
    assert method.loss().global_weight == 0.25
    (callback,) = method.callbacks()
    assert callback.fade_out == 0.5 and callback.collect == "correct"
    published = METHODS["ols"](arguments("--method", "ols"), 8)
    assert published.loss().global_weight == 0.5
    (callback,) = published.callbacks()
    assert (callback.prior_count, callback.fade_out) == (0, 0)


# --- Data ----------------------------------------------------------------------------


def numbered(count):
    """Images that can be told apart, with numbered pixels."""
    images = np.zeros((count, 16, 16, 3), "uint8")
    images[..., 0] = (np.arange(count) % 256)[:, None, None]
    images[..., 1] = (np.arange(count) // 256)[:, None, None]
    images[..., 2] = np.arange(256).reshape(16, 16)
    return images


def epoch_of(number, args, count=50):
    epoch = Epoch()
    epoch.on_epoch_begin(number)
    images, labels = numbered(count), np.arange(count) % 10
    batches = training_batches(images, labels, args, epoch.number)
    return list(batches.as_numpy_iterator())


def test_an_epoch_has_each_image_once_and_another_order_than_the_last():
    args = arguments()
    args.batch_size = 16
    first, second = epoch_of(0, args), epoch_of(1, args)
    assert len(first) == 50 // 16
    orders = []
    for epoch in (first, second):
        images = np.concatenate([x for x, _ in epoch])[:, 0, 0, 0].tolist()
        labels = np.concatenate([y for _, y in epoch])
        assert len(set(images)) == 48
        np.testing.assert_array_equal(labels, np.array(images) % 10)
        orders.append(images)
    assert sum(a == b for a, b in zip(*orders, strict=True)) < 10


@pytest.mark.parametrize("name", ["mixup", "mixavg"])  # the ways to draw
def test_what_a_method_mixes_depends_on_epoch_and_seed_alone(name):
    args = arguments("--method", name)
    args.batch_size = 16
    images, labels = numbered(50), np.arange(50) % 10

    def mixed(number):
        """In a process that starts at this epoch, as a resumed run does."""
        epoch = Epoch()
        epoch.on_epoch_begin(number)
        batches = training_batches(images, labels, args, epoch.number)
        method = METHODS[name](args, 10)
        return list(method.mix(batches, epoch.number).as_numpy_iterator())

    first, again, next_ = mixed(3), mixed(3), mixed(4)
    assert len(first) == 3
    for batch, same, other in zip(first, again, next_, strict=True):
        for one, also in zip(batch, same, strict=True):
            assert_close(one, also)
        assert not np.array_equal(batch[0], other[0])
    args.seed += 1
    assert not np.array_equal(first[0][0], mixed(3)[0][0])


def test_the_method_is_all_that_a_method_changes():
    """Same weights, same images in the same order, same schedule."""
    seen = []
    for name in ("erm", "mixavg"):
        args = arguments("--method", name)
        keras.utils.set_random_seed(args.seed)
        network = networks.tiny((16, 16, 3), 10, args.weight_decay)
        method = METHODS[name](args, 10)
        model = fit.compiled(method, network, args, 1)
        ((x, y),) = epoch_of(0, args)
        seen.append([x, y, *model.get_weights(), model.optimizer.get_config()])
    for one, other in zip(*seen, strict=True):
        if isinstance(one, dict):
            one.pop("name"), other.pop("name")
            assert one == other
        else:
            np.testing.assert_array_equal(one, other)


class Built(Exception):
    pass


def test_every_method_starts_from_the_same_weights(tmp_path, monkeypatch):
    """Also those whose layers draw a seed of their own."""
    seen = []

    def built(method, network, args, steps):
        seen.append(network.get_weights())
        raise Built

    monkeypatch.setattr(fit, "compiled", built)
    monkeypatch.setitem(networks.NETWORKS, "tiny", small_models.linear_network)
    examples = (numbered(200), np.arange(200) % 10)
    for name in METHODS:
        args = arguments("--method", name)
        args.out = tmp_path / name
        with pytest.raises(Built):
            fit.train(args, examples, examples, [str(i) for i in range(10)])
    for other in seen[1:]:
        for one, same in zip(seen[0], other, strict=True):
            np.testing.assert_array_equal(one, same)


@pytest.mark.parametrize("dtype", ["int64", "uint8"])
def test_label_noise_changes_exactly_that_share_to_any_other_class(rng, dtype):
    many = np.arange(1000) % 200  # two of them exceed a byte
    expected, found = (
        data.with_label_noise(each, 1, np.random.default_rng(0))
        for each in (many, many.astype(dtype))
    )
    np.testing.assert_array_equal(found, expected)
    labels = (np.arange(1000) % 10).astype(dtype)
    noisy = data.with_label_noise(labels, 0.4, rng)
    wrong = noisy != labels
    assert wrong.sum() == 400 and noisy.min() >= 0 and noisy.max() < 10
    np.testing.assert_array_equal(data.with_label_noise(labels, 0, rng), labels)
    steps = np.bincount((noisy - labels)[wrong] % 10, minlength=10)
    assert stats.chisquare(steps[1:]).pvalue > 1e-3


def test_imbalance_thins_classes_geometrically(rng):
    labels = np.arange(1000) % 10
    kept = data.imbalanced(labels, 10, rng)
    assert len(set(kept)) == len(kept)
    counts = np.bincount(labels[kept])
    np.testing.assert_allclose(counts, 100 * 10 ** (-np.arange(10) / 9), atol=0.5)


def test_the_arguments_choose_the_training_set():
    images, labels = numbered(1000), np.arange(1000) % 10
    args = arguments("--label-noise", "0.5", "--imbalance", "10")
    args.train_examples = 500
    few, noisy = data.training_set(images, labels, args)
    numbers = few[:, 0, 0, 0] + 256 * few[:, 0, 0, 1].astype(int)
    true = numbers % 10
    expected = np.round(50 * 10 ** (-np.arange(10) / 9)).astype(int)
    np.testing.assert_array_equal(np.bincount(true), expected)
    assert (noisy != true).sum() == round(0.5 * len(true))
    again, also = data.training_set(images, labels, args)
    np.testing.assert_array_equal(few, again)
    np.testing.assert_array_equal(noisy, also)


def test_too_few_images_are_refused():
    images, labels = numbered(300), np.arange(300) % 10
    args = arguments()
    args.batch_size = 500
    with pytest.raises(SystemExit, match="200 training images make no batch of 500"):
        data.training_set(images, labels, args)
    args.train_examples = 10**6
    with pytest.raises(SystemExit, match="there are only 300"):
        data.training_set(images, labels, args)
    args.devices = 4
    assert [data.batch_size(count, args) for count in (501, 300, 7)] == [500, 300, 4]
    with pytest.raises(SystemExit, match="--devices 4: there are only 3 images"):
        data.batch_size(3, args)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"images": numbered(8) / 255}, "training images must be uint8.*float64"),
        ({"images": numbered(8)[:, :9]}, "images, side, side, channels"),
        ({"labels": np.zeros((8, 1), int)}, r"labels must be integers.*\(8, 1\)"),
        ({"labels": np.arange(8)}, "must be from 0 to 1, .*; they are 0 to 7"),
        ({"shift": 32}, "--shift 32 must be less than the side of the images"),
    ],
)
def test_arrays_that_cannot_be_trained_on_are_refused_at_once(change, message):
    given = {"images": numbered(8), "labels": np.arange(8) % 2, "shift": 4, **change}
    training = given["images"], given["labels"]
    args = arguments("--shift", str(given["shift"]))
    with pytest.raises(SystemExit, match=message):
        fit.train(args, training, training, ["a", "b"])


def test_each_image_of_a_batch_is_cropped_and_flipped_by_itself():
    """Against NumPy: each is one of the 162 windows of its padded image."""
    images = np.arange(40 * 6 * 6 * 1).reshape(40, 6, 6, 1)
    out = crop_and_flip(tf.constant(images), key(3)).numpy()
    found = [crop_and_flip_of(*pair) for pair in zip(images, out, strict=True)]
    assert None not in found
    assert len(set(found)) > 25 and {step for *_, step in found} == {1, -1}
    again = crop_and_flip(tf.constant(images), key(3)).numpy()
    other = crop_and_flip(tf.constant(images), key(4)).numpy()
    assert np.array_equal(out, again) and not np.array_equal(out, other)


@pytest.mark.parametrize(
    "flip, seen",
    [
        ("none", {(1, 1)}),
        ("horizontal", {(1, 1), (1, -1)}),
        ("both", {(1, 1), (1, -1), (-1, 1), (-1, -1)}),
    ],
)
def test_images_are_flipped_as_asked(flip, seen):
    """Pixel numbers rise to the right and downwards, unless flipped."""
    images = np.arange(60 * 6 * 6).reshape(60, 6, 6, 1)
    out = crop_and_flip(tf.constant(images), key(3), 0, flip).numpy()[..., 0]
    directions = (
        np.sign(out[:, -1, 0] - out[:, 0, 0]),
        np.sign(out[:, 0, -1] - out[:, 0, 0]),
    )
    assert set(zip(*(d.tolist() for d in directions), strict=True)) == seen


# --- Networks ------------------------------------------------------------------------


def count(model):
    return sum(int(np.prod(w.shape)) for w in model.trainable_weights)


def test_the_networks_have_the_sizes_that_they_are_known_for():
    shape = (32, 32, 3)
    assert 0.3e6 < count(networks.small(shape, 10)) < 0.4e6
    assert count(networks.small(shape, 100)) < 0.4e6
    assert 0.07e6 < count(networks.tiny(shape, 10)) < 0.09e6
    model = networks.preact_resnet18((64, 64, 3), 200)
    assert model.output_shape == (None, 200)
    head = 513 * (200 - 10)
    assert round((count(model) - head) / 1e6, 2) == 11.17  # with ten classes
    stem = model.layers[2]
    assert stem.kernel_size == (3, 3) and not stem.use_bias and stem.strides == (1, 1)
    assert not any("Pooling2D" in type(m).__name__ for m in model.layers[:-3])


def multiply_adds(model):
    """Multiply-adds of one image: each kernel entry once for each output position."""
    layers = [layer for layer in model.layers if hasattr(layer, "kernel")]
    return sum(
        int(np.prod(layer.kernel.shape) * np.prod(layer.output.shape[1:-1]))
        for layer in layers
    )


def test_the_fast_network_has_its_size_at_four_widths():
    names = ("fast_8", "fast_16", "fast", "fast_64")
    models = [networks.NETWORKS[name]((32, 32, 3), 100) for name in names]
    assert [round(count(m) / 1e6, 2) for m in models] == [0.08, 0.30, 1.19, 4.70]
    assert all(model.output_shape == (None, 100) for model in models)
    sizes = [multiply_adds(model) for model in models]
    assert round(sizes[2] / 1e6, 1) == 21.5
    assert all(3.8 < large / small < 4 for small, large in itertools.pairwise(sizes))


def test_the_decay_is_on_kernels_only():
    model = networks.tiny((32, 32, 3), 10, weight_decay=0.5)
    kernels = [w for w in model.trainable_weights if w.path.endswith("kernel")]
    expected = sum(0.25 * float(np.sum(np.square(k))) for k in kernels)
    assert sum(map(float, model.losses)) == close(expected, trained=True)
