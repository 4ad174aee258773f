"""examples/training/on_device.py: batches made on the device, on JAX."""

import inspect
import json
from pathlib import Path

import keras
import numpy as np
import processes
import pytest
from small_data import crop_and_flip_of
from tolerances import assert_close

if keras.backend.backend() != "jax":
    pytest.skip("--on-device is for JAX", allow_module_level=True)

import jax

for package in ("sklearn", "scipy", "matplotlib"):
    pytest.importorskip(package)

ROOT = Path(__file__).parent.parent
import cifar  # noqa: E402
from training import networks, on_device  # noqa: E402
from training.methods import METHODS  # noqa: E402

# Of keras.layers.MixUp and CutMix.
pytestmark = pytest.mark.filterwarnings("ignore:Explicitly requested dtype int64")

NAMES = [  # each way to mix
    "erm",
    "mixup",
    "cutmix",
    "mixup_or_cutmix",
    "keras_mixup",
    "keras_cutmix",
    "keras_regmixup",
    "regmixup",
    "mixavg",
]
ALWAYS = {"cutmix": ["--share", "1"], "mixup_or_cutmix": ["--smoothing", "0"]}


def arguments(*flags):
    return cifar.parse_arguments(["--smoke", "--on-device", *flags])


def batches_of(name, images, labels, size, epoch=0, seed=0):
    flags = ["--method", name, "--seed", str(seed), *ALWAYS.get(name, ())]
    args = arguments(*flags, "--out", "not/there")
    args.batch_size = size
    begins = on_device.Epoch()
    begins.on_epoch_begin(epoch)
    method = METHODS[name](args, labels.max() + 1)
    batches = on_device.TrainingBatches(images, labels, method, args, begins)
    return [[np.asarray(part) for part in batches[i]] for i in range(len(batches))]


@pytest.mark.parametrize("name", NAMES)
def test_a_label_has_the_shares_that_the_image_has(name):
    """Images of class k have the colour 16 k throughout, whatever the crop."""
    labels = np.arange(64) % 8
    images = np.ones((64, 16, 16, 3), "uint8") * 16
    images *= labels[:, None, None, None].astype("uint8")
    ((x, y), _) = batches_of(name, images, labels, 32)
    assert len(x) == (64 if name.endswith("regmixup") else 32)
    assert np.all(y.max(axis=1) == 1) == (name == "erm")
    assert_close(y.sum(axis=1), 1)
    seen = x.astype(float).mean(axis=(1, 2, 3)) / 16
    # A box is of whole pixels: of 16 lines one more or less, and 7 classes apart.
    tolerance = 7 / 8 if name == "keras_cutmix" else 0.04
    np.testing.assert_allclose(seen, y @ np.arange(8), atol=tolerance)
    if name == "mixavg":
        half = np.isclose(y.max(axis=1), 0.5).mean()
        assert 0.1 < half < 0.9  # `rate` is 0.5, and partners may be of one class


def test_an_epoch_has_each_image_once_and_depends_on_seed_and_epoch_alone():
    images = np.zeros((50, 16, 16, 3), "uint8")
    images[..., 0] = np.arange(50)[:, None, None]
    labels = np.arange(50) % 10

    def made(name, **which):
        parts = zip(*batches_of(name, images, labels, 16, **which), strict=True)
        return [np.concatenate(part) for part in parts]

    x, y = made("erm")
    order = x[:, 0, 0, 0]
    assert len(order) == 48 and len(set(order)) == 48
    np.testing.assert_array_equal(y.argmax(axis=1), order % 10)
    assert np.mean(made("erm", epoch=1)[0][:, 0, 0, 0] == order) < 0.2
    for name in ("mixup", "mixavg"):
        first, again = made(name, epoch=3), made(name, epoch=3)
        for one, same in zip(first, again, strict=True):
            assert_close(one, same)
        for which in ({"epoch": 4}, {"epoch": 3, "seed": 1}):
            assert not np.array_equal(first[0], made(name, **which)[0])


def test_each_image_is_cropped_and_flipped_by_itself():
    """Against NumPy: each is one of the 162 windows of its padded image."""
    images = np.arange(40 * 6 * 6).reshape(40, 6, 6, 1)
    out = np.asarray(on_device.crop_and_flip(images, jax.random.key(3)))
    found = [crop_and_flip_of(*pair) for pair in zip(images, out, strict=True)]
    assert None not in found
    assert len(set(found)) > 25
    assert {step for *_, step in found} == {1, -1}


def dense(shape, num_classes, weight_decay=0.0):
    layers = [keras.layers.Flatten(), keras.layers.Dense(num_classes, dtype="float32")]
    return keras.Sequential([keras.Input(shape), *layers])


class Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt


# Keras leaves the CSV file open when Ctrl-C stops `fit`.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_run_that_is_resumed_equals_one_that_never_stopped(tmp_path, monkeypatch):
    monkeypatch.setitem(networks.NETWORKS, "tiny", dense)
    flags = ["--method", "mixavg", "--quiet"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    args = arguments(*flags, "--out", str(whole))
    cifar.fit.train(args, *cifar.load(args))
    args = arguments(*flags, "--out", str(stopped))
    with pytest.raises(KeyboardInterrupt):
        cifar.fit.train(args, *cifar.load(args), extra=[Stop()])
    args = arguments(*flags, "--out", str(stopped), "--resume")
    cifar.fit.train(args, *cifar.load(args))
    tables = [np.load(out / "soft_labels.npy") for out in (whole, stopped)]
    assert_close(*tables, trained=True)
    models = [keras.saving.load_model(out / "model.keras") for out in (whole, stopped)]
    for one, other in zip(*(model.get_weights() for model in models), strict=True):
        assert_close(one, other, trained=True)


def test_a_program_needs_no_tensorflow(tmp_path):
    """In a process that cannot import it, with the images in a NumPy file."""
    (images, labels), test, names = cifar.load_digits()
    saved = tmp_path / "digits.npz"
    np.savez(
        saved,
        train_images=images,
        train_labels=labels,
        test_images=test[0],
        test_labels=test[1],
        names=names,
    )
    code = f"""
import sys
class WithoutTensorFlow:
    def find_spec(name, *args):
        if name.partition(".")[0] in ("tensorflow", "tensorflow_datasets"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, WithoutTensorFlow)
sys.path.insert(0, {str(ROOT / "examples")!r})
import cifar, keras
from training import networks
{inspect.getsource(dense)}
networks.NETWORKS["dense"] = dense
cifar.main(sys.argv[1:])
"""
    flags = ["--on-device", "--arrays", str(saved), "--out", str(tmp_path / "out")]
    flags += ["--network", "dense", "--train-examples", "200", "--epochs", "2"]
    flags += ["--batch-size", "40", "--warmup-epochs", "1", "--quiet"]
    processes.run_program(code, tmp_path, "jax", *flags)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["test_images"] == 300 and result["settings"]["on_device"]
    assert (tmp_path / "out" / "pairs.png").exists()


@pytest.mark.parametrize(
    "flags",
    [["--devices", "2"], ["--deterministic"]],
)
def test_what_needs_tf_data_is_refused(flags, capsys):
    with pytest.raises(SystemExit):
        arguments(*flags)
    assert "--on-device needs one device" in capsys.readouterr().err
