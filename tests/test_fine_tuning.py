"""A pretrained network in the training programs: its head first, then all of it."""

import importlib
import json

import keras
import numpy as np
import pytest
from tolerances import assert_close

for package in ("sklearn", "matplotlib"):
    pytest.importorskip(package)

import cifar  # noqa: E402
import image_folder  # noqa: E402
from training import fit, networks, record  # noqa: E402

pytestmark = [
    pytest.mark.once,
    # Of protobuf and TensorBoard; and that tf.data keeps its graphs.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Even though"),
]


def narrow(weights=None, include_top=False, input_shape=None, pooling=None, **unused):
    """A network of one convolution, with the signature of keras.applications."""
    layers = [
        keras.Input(input_shape),
        keras.layers.Conv2D(4, 3, strides=4),
        keras.layers.BatchNormalization(),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Rescaling(100.0),  # large features
    ]
    model = keras.Sequential(layers)
    if weights:
        model.load_weights(weights)
    return model


@pytest.fixture
def pretrained_file(tmp_path, monkeypatch):
    """Weights of `Narrow`, which keras.applications has for this test."""
    module = keras.applications.MobileNetV2.__module__  # its inputs are -1 to 1
    monkeypatch.setattr(narrow, "__module__", module)
    monkeypatch.setattr(keras.applications, "Narrow", narrow, raising=False)
    path = tmp_path / "narrow.weights.h5"
    narrow(input_shape=(32, 32, 3)).save_weights(path)
    return path


def arguments(out, *flags):
    given = ["--network", "Narrow", "--out", str(out), "--quiet", *map(str, flags)]
    given += ["--epochs", "2", "--warmup-epochs", "0", "--batch-size", "32"]
    return cifar.parse_arguments(given)


def noise():
    rng = np.random.default_rng(0)
    images, labels = (
        rng.integers(0, 256, (32, 32, 32, 3)).astype("uint8"),
        np.arange(32),
    )
    names = ["a", "b", "c", "d"]
    return (images, labels % 4), (images[:8], labels[:8] % 4), names


@pytest.mark.usefixtures("eagerly", "blank_pictures")
def test_a_folder_of_images_is_compared_with_pretrained_weights(
    pretrained_file, tmp_path, capsys, rng
):
    for name in ("cats", "dogs"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(8):
            image = rng.integers(0, 256, (32, 32, 3))
            keras.utils.save_img(tmp_path / "images" / name / f"{i}.png", image)
    flags = ["--network", "Narrow", "--weights", pretrained_file, "--head-epochs", "1"]
    flags += ["--epochs", "2", "--warmup-epochs", "0", "--folds", "2", "--runs", "1"]
    flags += ["--methods", "mixavg_local", "--out", tmp_path / "out"]
    results = image_folder.main([*map(str, [tmp_path / "images", *flags])])
    assert list(results) == ["erm", "mixavg_local"]
    found = list((tmp_path / "out").glob("*/result.json"))
    assert len(found) == 2
    for result in found:
        settings = json.loads(result.read_text())["settings"]
        assert settings["weights"] == str(pretrained_file)
    said = capsys.readouterr().out
    assert "1 epoch of the new last layer, 2 epochs of all layers" in said
    assert "regularizers help" not in said


def test_batch_normalization_is_frozen_in_layers_within_layers_too():
    """As in the blocks of KerasHub's MobileNet."""

    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.convolution = keras.layers.Conv2D(4, 3)
            self.normalization = keras.layers.BatchNormalization()

        def call(self, x):
            return self.normalization(self.convolution(x))

    backbone = keras.Sequential([keras.Input((8, 8, 3)), Block()], name="backbone")
    model = keras.Sequential([backbone, keras.layers.Dense(2)])
    networks.freeze(model)
    assert len(model.trainable_weights) == 2
    networks.thaw(model)
    assert len(model.trainable_weights) == 4


class StopBeforeSecondEpochOfAll(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1 and len(self.model.trainable_weights) > 2:
            raise KeyboardInterrupt


@pytest.mark.usefixtures("eagerly", "blank_pictures")
# Keras tells CSVLogger nothing of a `fit` that was stopped: its file stays open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_head_trains_first_then_all_and_a_stopped_run_goes_on_with_all(
    pretrained_file, tmp_path, monkeypatch
):
    seen = []
    whole = fit.compiled

    def compiled(method, network, args, steps):
        kernel = network.get_layer("backbone").weights[0].numpy()
        model = whole(method, network, args, steps)
        seen.append((kernel, len(model.trainable_weights), args.learning_rate))
        return model

    monkeypatch.setattr(fit, "compiled", compiled)
    flags = ["--method", "mixavg", "--weights", pretrained_file, "--head-epochs", "1"]
    args = arguments(tmp_path / "out", *flags)
    fit.train(args, *noise())
    (first, of_head, head_rate), (second, of_all, rate) = seen
    before = narrow(weights=pretrained_file, input_shape=(32, 32, 3)).weights[0].numpy()
    np.testing.assert_array_equal(first, before)  # what the file has
    np.testing.assert_array_equal(second, before)  # the head alone has trained
    assert (of_head, head_rate) == (2, fit.HEAD)
    assert (of_all, rate) == (4, 1e-4)  # but for batch normalization
    assert max(record.read_history(args.out)["loss"]) < 100
    model = keras.saving.load_model(tmp_path / "out" / "model.keras")
    backbone = model.get_layer("backbone")
    assert not np.array_equal(backbone.weights[0].numpy(), before)  # then it has too
    mean = next(w for w in backbone.weights if w.path.endswith("moving_mean"))
    np.testing.assert_array_equal(mean.numpy(), 0)  # which has what it came with
    settings = json.loads((tmp_path / "out" / "result.json").read_text())["settings"]
    assert settings["weights"] == str(pretrained_file)

    args = arguments(tmp_path / "stopped", *flags)
    with pytest.raises(KeyboardInterrupt):
        fit.train(args, *noise(), extra=[StopBeforeSecondEpochOfAll()])
    args.resume = True
    monkeypatch.setattr(fit, "train_head", None)  # it would be called in vain
    fit.train(args, *noise())
    resumed = keras.saving.load_model(tmp_path / "stopped" / "model.keras")
    for one, other in zip(resumed.get_weights(), model.get_weights(), strict=True):
        assert_close(one, other, trained=True)


def test_a_run_that_died_before_its_first_backup_trains_the_head(
    pretrained_file, tmp_path, monkeypatch
):
    """Keras makes the folder first."""
    out, seen = tmp_path / "out", []
    args = arguments(out, "--method", "erm", "--weights", pretrained_file)
    args.resume = True
    (out / "backup").mkdir(parents=True)
    (out / "backup" / "latest.weights.h5").write_bytes(b"half")

    def train_head(*others):
        seen.append(others)
        raise KeyboardInterrupt

    monkeypatch.setattr(fit, "train_head", train_head)
    with pytest.raises(KeyboardInterrupt):
        fit.train(args, *noise())
    assert len(seen) == 1 and not (out / "backup").exists()


def test_logits_are_saved_in_float32():
    layer = keras.layers.Dense(2, dtype="mixed_bfloat16")
    model = keras.Sequential([keras.Input((3,)), layer])
    assert record.logits_of(model, np.zeros((4, 3))).dtype == "float32"


def test_a_network_that_scales_its_images_gets_them_as_they_are():
    network = networks.application("ConvNeXtTiny", (32, 32, 3), 4)
    kinds = [type(layer) for layer in network.layers]
    assert keras.layers.Normalization in kinds
    assert keras.layers.Rescaling not in kinds


@pytest.mark.parametrize("name", ["MobileNetV2", "ResNet50", "DenseNet121"])
def test_images_are_preprocessed_as_the_weights_expect(name, rng):
    """-1 to 1; blue first and the mean of ImageNet off; mean and deviation of each."""
    images = rng.integers(0, 256, (2, 32, 32, 3)).astype("float32")
    network = getattr(keras.applications, name)
    inputs = keras.Input((32, 32, 3))
    model = keras.Model(inputs, networks.preprocessed(inputs, network))
    module = importlib.import_module(network.__module__)
    expected = module.preprocess_input(images.copy())
    found = keras.ops.convert_to_numpy(model(images))
    assert_close(found, expected, trained=True)
    assert abs(expected - images).max() > 50


def test_a_pretrained_network_scales_the_images_itself(pretrained_file):
    model = networks.pretrained("Narrow", pretrained_file, (16, 16, 3), 4, 0, 32)
    assert model.input_shape == (None, 16, 16, 3)
    assert model.get_layer("backbone").input_shape == (None, 32, 32, 3)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--network", "fast", "--weights", "imagenet"], "fast has no weights"),
        (["--network", "MobileNetV2", "--weights", "no/file.h5"], "there is no file"),
        (
            ["--network", "hub:x", "--weights", "imagenet"],
            "takes the weights preset or",
        ),
        (["--network", "fast", "--weights", "preset"], "takes the weights preset or"),
        (["--network", "fast", "--scale-to", "64"], "--scale-to is for a network of"),
        (["--head-epochs", "-1"], "--head-epochs must be at least 0, not -1"),
    ],
)
def test_weights_that_there_are_not_are_refused(flags, message, capsys):
    with pytest.raises(SystemExit):
        cifar.parse_arguments(flags)
    assert message in " ".join(capsys.readouterr().err.split())
