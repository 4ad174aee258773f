"""The training programs, as a user starts them, and the Tiny-ImageNet dataset."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
SUBSET = ROOT.parent / "shared" / "data" / "tiny-imagenet-200-subset.zip"
PICTURES = ["curves", "pairs", "reliability"]

for package in ("sklearn", "matplotlib", "tensorflow_datasets", "keras_cv"):
    pytest.importorskip(package)

sys.path.insert(0, str(EXAMPLES))
import cifar  # noqa: E402
import networks  # noqa: E402
import report  # noqa: E402
import tiny_imagenet  # noqa: E402
from datasets.tiny_imagenet.dummy_data.make import make  # noqa: E402
from datasets.tiny_imagenet.tiny_imagenet_dataset_builder import (  # noqa: E402
    Archive,
    Builder,
)
from small_data import write_cifar10  # noqa: E402

# Of TFDS, protobuf and TensorBoard.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def start(program, *arguments, folder, **kwargs):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(
        [sys.executable, str(EXAMPLES / program), *map(str, arguments)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


def assert_complete(out, table):
    result = json.loads((out / "result.json").read_text())
    assert set(result["test"]) == {
        "accuracy",
        "top5_accuracy",
        "nll",
        "ece",
        "mean_winning_probability",
        "bins",
    }
    for name in [*PICTURES, *(["soft_labels"] if table else [])]:
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "soft_labels.png").exists() == table
    assert list((out / "tensorboard").rglob("events.out.tfevents.*"))
    assert not (out / "backup").exists()
    model = keras.saving.load_model(out / "model.keras")
    assert model.output_shape[1] >= 10
    epochs = result["settings"]["epochs"]
    with open(out / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(epochs))
    return result


@pytest.mark.parametrize("program", ["cifar.py", "tiny_imagenet.py"])
def test_the_smoke_run_leaves_everything(program, tmp_path):
    process = start(program, "--smoke", folder=tmp_path)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    (out,) = (tmp_path / "runs").iterdir()
    result = assert_complete(out, table=True)
    accuracy = 100 * result["test"]["accuracy"]
    assert f"accuracy {accuracy:.2f} %" in output
    assert "Epoch 2/2" in output


@pytest.mark.parametrize("method", cifar.METHODS)
def test_mixed_precision_leaves_what_is_mixed_alone(method, rng):
    images = rng.integers(0, 256, (8, 32, 32, 3)).astype("uint8")
    batches = tf.data.Dataset.from_tensors((images, np.arange(8)))
    args = cifar.parse_arguments(["--smoke", "--method", method])
    expected = [np.array(part) for part in next(iter(cifar.mix(batches, args, 10)))]
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        found = [np.array(part) for part in next(iter(cifar.mix(batches, args, 10)))]
    finally:
        keras.config.set_dtype_policy(before)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("method", cifar.METHODS)
def test_every_method_trains_an_epoch(method, tmp_path, capsys):
    arguments = ["--smoke", "--quiet", "--method", method, "--out", str(tmp_path / "a")]
    result = cifar.main(arguments)
    has_table = method in ("ols", "mixavg")
    assert assert_complete(tmp_path / "a", table=has_table) == result
    output = capsys.readouterr().out
    assert "Epoch" not in output  # quiet
    assert ("labels of keras_cv.layers.CutMix" in output) == (method == "kcv_cutmix")


@pytest.mark.parametrize("method", ["erm", "cutmix"])
def test_other_methods_train_on_tiny_imagenet(method, tmp_path):
    arguments = ["--smoke", "--quiet", "--method", method, "--out", str(tmp_path / "a")]
    tiny_imagenet.main(arguments)
    assert_complete(tmp_path / "a", table=False)


def test_the_method_is_all_that_a_method_changes(tmp_path, monkeypatch):
    """Same weights, same images in the same order, same schedule."""
    monkeypatch.setattr(cifar.tf.data, "AUTOTUNE", 1)  # parallel calls race for seeds
    seen = []
    for method in ("erm", "mixavg"):
        args = cifar.parse_arguments(
            ["--smoke", "--method", method, "--out", str(tmp_path / method)]
        )
        keras.utils.set_random_seed(args.seed)
        (images, labels), _, names = cifar.load(args)
        batches = cifar.training_batches(images, labels, args)
        model, _ = cifar.compiled_model(args, (32, 32, 3), len(names), len(batches))
        x, y = next(batches.as_numpy_iterator())
        seen.append([x, y, *model.get_weights(), model.optimizer.get_config()])
    assert len(seen[0]) == len(seen[1])
    for one, other in zip(*seen, strict=True):
        if isinstance(one, dict):
            one.pop("name"), other.pop("name")
            assert one == other
        else:
            np.testing.assert_array_equal(one, other)


def refused_for(arguments, reason, capsys):
    with pytest.raises(SystemExit):
        cifar.parse_arguments(list(map(str, arguments)))
    assert reason in capsys.readouterr().err


def test_cifar_is_read_through_tfds_and_a_stopped_run_goes_on(tmp_path, capsys):
    """Ctrl-C after an epoch or two; the message's own command resumes the run."""
    write_cifar10(tmp_path / "tfds", train=200, test=30)
    out = tmp_path / "out"
    arguments = ["--data-dir", tmp_path / "tfds", "--network", "tiny", "--epochs", "15"]
    arguments += ["--batch-size", "20", "--out", out]
    process = start("cifar.py", *arguments, folder=tmp_path)
    history = out / "history.csv"
    while process.poll() is None:
        if history.exists() and history.read_text().count("\n") >= 3:
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.05)
    output, errors = process.communicate()
    assert process.returncode != 0 and not (out / "result.json").exists()
    assert "Go on after" in errors, errors[-3000:]
    command = re.search(r"Go on after .* with\n    python (.*)", errors)[1]
    assert command.endswith("--resume")
    refused_for(arguments, "has an unfinished run", capsys)
    resumed = subprocess.run(
        f"{sys.executable} {command}",
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert "Epoch 1/15" not in resumed.stdout and "Epoch 15/15" in resumed.stdout
    assert_complete(out, table=True)
    refused_for(arguments, "has a finished run", capsys)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--method", "cutout"], "invalid choice: 'cutout'"),
        (["--epochs", "0"], "--epochs must be at least 1, not 0"),
        (["--network", "vgg"], "invalid choice: 'vgg'"),
        (["--batch-size", "9", "--devices", "2"], "must be a multiple of --devices"),
        (["--learning-rate", "fast"], "--learning-rate: invalid float value"),
        (["--mixed-precision", "int8"], "invalid choice: 'int8'"),
    ],
)
@pytest.mark.parametrize("program", [cifar, tiny_imagenet], ids=["cifar", "tiny"])
def test_wrong_flags_are_refused(program, arguments, message, capsys):
    with pytest.raises(SystemExit):
        program.parse_arguments(arguments)
    assert message in capsys.readouterr().err


def test_more_devices_than_there_are_are_refused(tmp_path):
    arguments = ["--smoke", "--quiet", "--devices", "8", "--out", str(tmp_path / "a")]
    with pytest.raises(SystemExit, match="--devices 8: found only"):
        cifar.main(arguments)


TWO_DEVICES = """
import sys
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)
sys.path.insert(0, sys.argv.pop(1))
import cifar
cifar.main(["--smoke", "--quiet", "--devices", "2", "--mixed-precision", *sys.argv[1:]])
"""


def test_two_devices_and_mixed_precision(tmp_path):
    out = str(tmp_path / "a")
    subprocess.run(
        [sys.executable, "-c", TWO_DEVICES, str(EXAMPLES), "--out", out], check=True
    )
    assert_complete(tmp_path / "a", table=True)


def test_too_few_images_are_refused(tmp_path):
    arguments = ["--smoke", "--quiet", "--out", str(tmp_path / "a")]
    args = cifar.parse_arguments(arguments)
    args.batch_size = 500
    with pytest.raises(SystemExit, match="200 training images make no batch of 500"):
        cifar.train(args)
    args.train_examples = 10**6
    with pytest.raises(SystemExit, match="there are only 1497"):
        cifar.train(args)


# --- The networks and the report -----------------------------------------------------


def count(model):
    return sum(int(np.prod(w.shape)) for w in model.trainable_weights)


def test_the_networks_have_the_sizes_that_they_are_known_for():
    shape = (32, 32, 3)
    assert round(count(networks.preact_resnet18(shape, 10)) / 1e6, 2) == 11.17
    assert 0.3e6 < count(networks.small(shape, 10)) < 0.4e6
    assert count(networks.small(shape, 100)) < 0.4e6
    assert 0.07e6 < count(networks.tiny(shape, 10)) < 0.09e6
    model = networks.preact_resnet18((64, 64, 3), 200)
    assert model.output_shape == (None, 200)
    stem = model.layers[2]
    assert stem.kernel_size == (3, 3) and not stem.use_bias and stem.strides == (1, 1)
    assert not any("Pooling2D" in type(m).__name__ for m in model.layers[:-3])


def multiply_adds(model):
    """Of one image: each kernel entry once for each position of its output."""
    layers = [layer for layer in model.layers if hasattr(layer, "kernel")]
    return sum(
        int(np.prod(layer.kernel.shape) * np.prod(layer.output.shape[1:-1]))
        for layer in layers
    )


def test_the_fast_network_has_its_size_at_three_widths():
    model = networks.fast((32, 32, 3), 100)
    assert round(count(model) / 1e6, 2) == 1.19
    assert round(multiply_adds(model) / 1e6, 1) == 21.5
    assert model.output_shape == (None, 100)
    sizes = [networks.NETWORKS[n]((32, 32, 3), 100) for n in ("fast_16", "fast_64")]
    small, large = map(multiply_adds, sizes)
    assert small < multiply_adds(model) / 3.8 and large > 3.8 * multiply_adds(model)


def test_the_decay_is_on_kernels_only():
    model = networks.tiny((32, 32, 3), 10, weight_decay=0.5)
    kernels = [w for w in model.trainable_weights if w.path.endswith("kernel")]
    expected = sum(0.25 * float(np.sum(np.square(k))) for k in kernels)
    assert sum(map(float, model.losses)) == pytest.approx(expected, rel=1e-5)


def test_figures_of_a_known_case():
    # Two samples of confidence .8, one right; one of .6 that is right.
    p = np.array([[0.8, 0.2, 0], [0.8, 0.2, 0], [0.4, 0.6, 0]]) + 1e-12
    figures = report.figures_of(np.log(p) + 5, np.array([0, 1, 1]))
    assert figures["accuracy"] == pytest.approx(2 / 3)
    assert figures["ece"] == pytest.approx((2 * 0.3 + 0.4) / 3)
    assert figures["nll"] == pytest.approx(-np.log([0.8, 0.2, 0.6]).mean())
    assert figures["mean_winning_probability"] == pytest.approx(2.2 / 3)
    logits = -np.arange(8.0)[None].repeat(8, axis=0)
    top5 = report.figures_of(logits, np.arange(8))["top5_accuracy"]
    assert top5 == pytest.approx(5 / 8)


def test_an_epoch_that_was_repeated_counts_once(tmp_path):
    lines = ["epoch,loss", "0,1.0", "1,0.5", "1,0.4", "2,0.3", ""]
    (tmp_path / "history.csv").write_text("\n".join(lines))
    assert report.read_history(tmp_path)["loss"] == [1.0, 0.4, 0.3]
    assert (tmp_path / "history.csv").read_text().split() == lines[:2] + lines[3:5]


def test_an_epoch_without_validation_has_no_test_figures(tmp_path):
    lines = ["epoch,loss,val_loss", "0,1.0,NA", "1,0.5,0.7", "2,0.4,", ""]
    (tmp_path / "history.csv").write_text("\n".join(lines))
    history = report.read_history(tmp_path)
    np.testing.assert_array_equal(history["val_loss"], [np.nan, 0.7, np.nan])
    history["accuracy"] = history["val_accuracy"] = [0.0, 0.0, 0.0]
    lines = report.draw_curves(history).axes[0].lines
    assert [len(line.get_xdata()) for line in lines] == [3, 1]


def test_the_bins_of_the_figures_give_the_calibration_error(rng):
    logits, labels = rng.normal(size=(200, 4)), rng.integers(0, 4, 200)
    figures = report.figures_of(logits, labels)
    p, right, count = map(np.array, figures["bins"].values())
    assert count.sum() == 200 and (count > 0).all()
    assert np.sum(count * abs(p - right)) / 200 == pytest.approx(figures["ece"])
    assert np.sum(count * right) / 200 == pytest.approx(figures["accuracy"])


def test_one_temperature_mends_modesty_and_nothing_else(rng):
    """Logits that are right but for a factor, against ones that are noise."""
    logits = 2 * rng.normal(size=(4000, 5))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(5, p=row) for row in p])
    right = report.figures_of(logits, labels)
    modest = report.figures_of(logits / 4, labels)
    assert modest["nll"] > right["nll"] + 0.2 and modest["ece"] > right["ece"] + 0.1
    assert modest["scaled_nll"] == pytest.approx(right["scaled_nll"], abs=1e-4)
    assert modest["scaled_ece"] < 0.03
    np.testing.assert_allclose(modest["temperatures"], 0.25, rtol=0.1)
    assert modest["accuracy"] == right["accuracy"]
    wrong = report.figures_of(rng.normal(size=(4000, 5)), labels)
    assert wrong["scaled_nll"] > np.log(5) - 0.02


def test_a_temperature_is_fitted_on_the_half_that_it_does_not_scale(rng):
    """Even samples that are four times too sure, odd ones that are as they should."""
    logits = 2 * rng.normal(size=(8000, 3))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(3, p=row) for row in p])
    logits[0::2] *= 4
    scaled, (even, odd) = report.temperature_scaled(logits, labels)
    assert even == pytest.approx(1, rel=0.1) and odd == pytest.approx(4, rel=0.1)
    np.testing.assert_allclose(scaled[0::2], logits[0::2] / even)
    np.testing.assert_allclose(scaled[1::2], logits[1::2] / odd)


def test_each_image_of_a_batch_is_cropped_and_flipped_by_itself():
    """Against NumPy: each is one of the 162 windows of its padded image."""
    images = np.arange(40 * 6 * 6 * 1).reshape(40, 6, 6, 1)
    out = cifar.crop_and_flip(tf.constant(images), seed=3, padding=4).numpy()
    found = []
    for image, cropped in zip(images, out, strict=True):
        padded = np.pad(image, [(4, 4), (4, 4), (0, 0)], "reflect")
        windows = {
            (row, column, step): padded[row : row + 6, column : column + 6][:, ::step]
            for row in range(9)
            for column in range(9)
            for step in (1, -1)
        }
        match = [k for k, window in windows.items() if np.array_equal(window, cropped)]
        assert match
        found.append(match[0])
    assert len(set(found)) > 25 and {step for *_, step in found} == {1, -1}
    again = cifar.crop_and_flip(tf.constant(images), seed=3, padding=4).numpy()
    other = cifar.crop_and_flip(tf.constant(images), seed=4, padding=4).numpy()
    assert np.array_equal(out, again) and not np.array_equal(out, other)


# --- Tiny-ImageNet -------------------------------------------------------------------


def test_the_tfds_conventions_are_kept():
    """TFDS' own test case, on the dummy data; in a process of its own."""
    test = "datasets/tiny_imagenet/tiny_imagenet_dataset_builder_test.py"
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", test],
        cwd=EXAMPLES,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    assert "passed" in result.stdout


def load(archive, data_dir):
    import tensorflow_datasets as tfds

    builder = Builder(archive=archive, data_dir=data_dir)
    builder.download_and_prepare()
    (train, test) = builder.as_dataset(
        split=["train", "validation"], batch_size=-1, as_supervised=True
    )
    return tfds.as_numpy(train), tfds.as_numpy(test), builder.info.features["label"]


def test_the_dataset_has_the_archives_classes_and_images(tmp_path):
    path = tmp_path / "made.zip"
    words = {"n3": "crane, bird", "n1": "crane, machine", "n2": "goldfish, a fish"}
    make(path, words, train=4, validation=2)
    train, test, label = load(path, tmp_path / "tfds")
    assert label.names == ["crane (n3)", "crane (n1)", "goldfish"]
    assert train[0].shape == (12, 64, 64, 3) and train[0].dtype == "uint8"
    assert np.bincount(train[1]).tolist() == [4, 4, 4]
    assert np.bincount(test[1]).tolist() == [2, 2, 2]
    grayscale = (np.ptp(train[0].astype(int), axis=-1) == 0).all(axis=(1, 2))
    assert np.bincount(train[1][grayscale]).tolist() == [1, 1, 1]


def test_the_subset_at_hand(tmp_path):
    if not SUBSET.exists():
        pytest.skip("no Tiny-ImageNet at hand")
    train, test, label = load(SUBSET, tmp_path)
    assert train[0].shape == (4000, 64, 64, 3) and test[0].shape == (1000, 64, 64, 3)
    assert np.bincount(train[1]).tolist() == [200] * 20
    assert np.bincount(test[1]).tolist() == [50] * 20
    assert "goldfish" in label.names and len(label.names) == 20


def changed(path, target, name=None, text=None, extra=None):
    """Copy an archive without or with another member `name`, and with `extra`."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.namelist():
            if name is None or not member.endswith(name):
                new.writestr(member, old.read(member))
            elif text is not None:
                new.writestr(member, text)
        if extra:
            new.writestr(extra, "evil")
    return target


BAD_ARCHIVES = {
    "climbs up": ({"extra": "../evil.txt"}, "'../evil.txt' climbs out"),
    "climbs up inside": (
        {"extra": "tiny-imagenet-200/train/../../../evil"},
        "climbs out of the archive",
    ),
    "is absolute": ({"extra": "/etc/evil"}, "'/etc/evil' climbs out"),
    "has no wnids": ({"name": "wnids.txt"}, "no item named.*wnids.txt"),
    "has a class twice": (
        {"name": "wnids.txt", "text": "n00000001\nn00000001\n"},
        "each once",
    ),
    "lacks a class": (
        {"name": "wnids.txt", "text": "n00000001\n"},
        "lacks the classes",
    ),
    "lacks a name": ({"name": "words.txt", "text": "n00000001\tone\n"}, "no name for"),
    "lacks an image": ({"name": "val_2.JPEG"}, "lacks 1 of 4 validation images"),
    "has no training": ({"name": ".JPEG", "text": None}, "it has 0 training images"),
}


@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_bad_archives_are_refused_by_name(case, tmp_path):
    change, message = BAD_ARCHIVES[case]
    make(tmp_path / "good.zip")
    bad = changed(tmp_path / "good.zip", tmp_path / "bad.zip", **change)
    with pytest.raises(ValueError, match=f"bad.zip is no usable.*{message}"):
        Archive(bad)


def test_truncated_corrupt_and_missing_archives_are_refused_by_name(tmp_path):
    path = tmp_path / "a.zip"
    make(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="a.zip is no usable.*not a zip file"):
        Archive(path)
    at = whole.index(b"n00000001_1.JPEG") + 300
    path.write_bytes(whole[:at] + b"\0" * 20 + whole[at + 20 :])
    archive = Archive(path)
    with pytest.raises(ValueError, match="a.zip is no usable.*n00000001_1.JPEG"):
        for name in archive.train:
            archive.open(name)
    with pytest.raises(ValueError, match="b.zip is no usable.*No such file"):
        Archive(tmp_path / "b.zip")


# --- The guide -----------------------------------------------------------------------


def test_the_guide_runs_and_is_a_notebook(tmp_path):
    jupytext = pytest.importorskip("jupytext")
    notebook = jupytext.read(EXAMPLES / "guide.py")
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == "markdown" and kinds.count("code") >= 5
    code = "\n".join(c.source for c in notebook.cells if c.cell_type == "code")
    (tmp_path / "guide.py").write_text(code)
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "guide.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
