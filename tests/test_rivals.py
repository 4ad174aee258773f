"""Mixup, CutMix and DeiT's recipe as published; plain training stopped early."""

import importlib.util
import json
import math

import keras
import numpy as np
import processes
import pytest
import tensorflow as tf
from tolerances import assert_close

for package in ("sklearn", "matplotlib"):
    pytest.importorskip(package)

import cifar  # noqa: E402
from training import batches, data, fit, mixing  # noqa: E402
from training.batches import Epoch  # noqa: E402
from training.methods import METHODS  # noqa: E402

from keras_mixavg import MixAvg  # noqa: E402

pytestmark = pytest.mark.once


def backend_of_keras():
    return type(MixAvg(rate=0).backend)("tensorflow")


def method(name, *flags, num_classes=8):
    flags = ["--smoke", "--out", "not/there", "--method", name, *flags]
    return METHODS[name](cifar.parse_arguments(flags), num_classes)


def batch_of(rng, shape=(6, 9, 14, 3)):
    images = rng.uniform(size=shape).astype("float32")
    return images, np.eye(shape[0], dtype="float32"), rng.permutation(shape[0])


# --- A given draw, pixel by pixel ----------------------------------------------------


def pasted(images, labels, partners, weight, centre):
    """CutMix of a batch, with the authors' `rand_bbox` and labels."""
    height, width = images.shape[1:3]
    half_height = int(height * math.sqrt(1 - weight)) // 2
    half_width = int(width * math.sqrt(1 - weight)) // 2
    images, sources, count = images.copy(), images, 0
    for row in range(height):
        for column in range(width):
            if (
                centre[0] - half_height <= row < centre[0] + half_height
                and centre[1] - half_width <= column < centre[1] + half_width
            ):
                images[:, row, column] = sources[partners, row, column]
                count += 1
    share = 1 - count / (height * width)
    return images, share * labels + (1 - share) * labels[partners]


@pytest.mark.parametrize("weight", [0.0, 0.13, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("centre", [(0, 0), (4, 7), (8, 13)])
def test_cutmix_pastes_one_box_for_the_batch_and_weighs_its_pixels(rng, weight, centre):
    images, labels, partners = batch_of(rng)
    expected = pasted(images, labels, partners, weight, centre)
    found = mixing.cutmix(
        images, labels, partners, np.float32(weight), centre, backend_of_keras()
    )
    np.testing.assert_array_equal(found[0], expected[0])
    assert_close(found[1], expected[1])


def test_mixup_has_one_weight_for_the_batch(rng):
    images, labels, partners = batch_of(rng)
    found = mixing.mixup(images, labels, partners, np.float32(0.3), backend_of_keras())
    for one, of in zip(found, (images, labels), strict=True):
        assert_close(one, 0.3 * of + 0.7 * of[partners])


TORCHVISION = """
import numpy as np
import torch
from torchvision.transforms import v2
from tolerances import assert_close
from training import mixing
from keras_mixavg import MixAvg

ops = type(MixAvg(rate=0).backend)("torch")
images, numbers = torch.rand(6, 3, 9, 14), torch.arange(6)
labels, before = torch.eye(6), torch.roll(numbers, 1)  # their partners
theirs = {"cutmix": v2.CutMix(num_classes=6), "mixup": v2.MixUp(num_classes=6)}
for seed in range(200):
    for name, mixed in theirs.items():
        torch.manual_seed(seed)
        expected = mixed(images, numbers)
        torch.manual_seed(seed)
        one = torch.tensor([1.0])
        draws = [torch.distributions.Beta(one, one).sample(())[0]]
        if name == "cutmix":
            column, row = (int(torch.randint(side, (1,))) for side in (14, 9))
            draws.append((row, column))
        channels_last = images.permute(0, 2, 3, 1)
        found = getattr(mixing, name)(channels_last, labels, before, *draws, ops)
        assert_close(found[0].permute(0, 3, 1, 2), expected[0])
        assert_close(found[1], expected[1])
print("alike")
"""


@pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="needs torchvision"
)
def test_they_are_those_of_torchvision_for_the_same_draws(tmp_path):
    """In a new process: torchvision and TensorFlow do not always go together."""
    assert "alike" in processes.run_program(TORCHVISION, tmp_path, "torch")


# --- What is drawn -------------------------------------------------------------------


def label_shares(method, batches=300):
    """The largest entry in the labels of each batch, and its spread."""
    images = np.zeros((16, 8, 8, 3), "uint8")
    data = tf.data.Dataset.from_tensors((images, np.arange(16) % 8)).repeat(batches)
    labels = np.stack(
        [y for _, y in method.mix(data, Epoch().number).as_numpy_iterator()]
    )
    own = labels[:, np.arange(16), np.arange(16) % 8]
    return own.min(axis=1)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
@pytest.mark.parametrize("share", [0.25, 1.0])
def test_share_is_the_share_of_batches_that_are_mixed(name, share):
    shares = label_shares(method(name, "--share", str(share)))
    mixed = np.mean(shares < 1)
    # Of 8 pixels a side, a box of less than a sixteenth of the area has none.
    expected = share * (15 / 16 if name == "cutmix" else 1)
    spread = math.sqrt(expected * (1 - expected) / len(shares))
    assert abs(mixed - expected) <= 4 * spread


def test_alpha_shapes_the_weights():
    """Beta(a, a) has the variance 1 / (8 a + 4)."""
    for alpha in (0.2, 10.0):
        shares = label_shares(method("mixup", "--alpha", str(alpha)), 600)
        expected = 1 / (8 * alpha + 4)
        assert np.var(shares) == pytest.approx(expected, rel=0.25)


def test_timms_default_tosses_a_coin_and_smooths_labels():
    smoothed = method("mixup_or_cutmix")
    images = np.repeat(np.arange(16, dtype="uint8") * 16, 64 * 3)
    images = images.reshape(16, 8, 8, 3)
    batches = tf.data.Dataset.from_tensors((images, np.arange(16) % 8)).repeat(200)
    cut = []
    for x, y in smoothed.mix(batches, Epoch().number).as_numpy_iterator():
        assert_close(y.sum(axis=1), 1)
        assert y.min() >= 0.1 / 8 - 1e-6
        cut.append(np.all(x % 16 == 0))  # colours of whole images alone
    assert 0.35 < np.mean(cut) < 0.65


def test_a_method_takes_its_own_options_alone(capsys):
    for name, flag, text in (
        ("erm", "--alpha", "--alpha does not apply to --method erm"),
        ("mixup", "--smoothing", "--smoothing does not apply to --method mixup"),
    ):
        with pytest.raises(SystemExit):
            method(name, flag, "0.5")
        assert text in capsys.readouterr().err
    with pytest.raises(SystemExit):
        method("mixup", "--share", "2")
    assert "--share must be from 0 to 1, not 2.0" in capsys.readouterr().err


def test_regmixup_has_each_batch_whole_and_then_mixed_with_one_weight():
    batches = tf.data.Dataset.from_tensors((np.zeros((8, 4, 4, 3)), np.arange(8)))
    _, y = next(iter(method("regmixup").mix(batches, Epoch().number)))
    np.testing.assert_array_equal(y[:8], np.eye(8))
    top = np.max(y[8:], axis=1)
    mixed = top[top < 1]  # the others are their own partners
    assert len(mixed) > 2 and 0.5 <= mixed[0] < 1
    assert_close(mixed, mixed[0])


def test_whole_images_end_the_training():
    """By the epoch from the callback, in the batches of `fit`."""

    class Last(METHODS["mixup"]):
        mixed_share = 0.5

    args = method("mixup").args
    args.epochs, epoch = 4, Epoch()
    batches = tf.data.Dataset.from_tensors((np.zeros((8, 4, 4, 3)), np.arange(8)))
    mixed = Last(args, 8).mix(batches.repeat(3), epoch.number)
    for number in range(4):
        epoch.on_epoch_begin(number)
        whole = [y.max(axis=1).min() == 1 for _, y in mixed.as_numpy_iterator()]
        assert all(whole) if number >= 2 else not all(whole)


# --- Held-out images -----------------------------------------------------------------


def test_held_out_images_are_the_same_for_every_seed_and_never_trained_on():
    images, labels = np.arange(100), np.arange(100) % 5
    (rest, _), (held_out, held_labels) = data.split(images, labels, 20, data.HELD_OUT)
    again = data.split(images, labels, 20, data.HELD_OUT)[1][0]
    np.testing.assert_array_equal(held_out, again)
    assert sorted([*rest, *held_out]) == list(range(100))
    np.testing.assert_array_equal(held_labels, held_out % 5)
    with pytest.raises(SystemExit, match="100 images to hold out: there are only 100"):
        data.split(images, labels, 100, 0)


@pytest.mark.usefixtures("eagerly", "blank_pictures")
@pytest.mark.filterwarnings("ignore:Even though")  # that tf.data keeps its graphs
# Keras tells CSVLogger nothing of a `fit` that was stopped: its file stays open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_plain_training_stopped_early_ends_with_the_best_validation_nll(
    tmp_path, rng, monkeypatch
):
    """With random labels the best epoch is an early one. A stopped run starts again."""
    images = rng.integers(0, 256, (100, 8, 8, 3)).astype("uint8")
    labels = rng.integers(0, 10, 100)
    images[:, 0, 0, 0] = labels
    names = [str(number) for number in range(10)]
    flags = ["--smoke", "--method", "stopped_early", "--out", str(tmp_path / "run")]
    args = cifar.parse_arguments([*flags, "--quiet"])
    args.train_examples, args.learning_rate, args.epochs = None, 0.5, 3
    args.label_noise, args.batch_size = 0.4, 100
    seen, wrong = {}, []
    batches_of = batches.validation_batches

    def validation_batches(images, labels, *rest):
        wrong.append(np.mean(images[:, 0, 0, 0] != labels))
        return batches_of(images, labels, *rest)

    monkeypatch.setattr(batches, "validation_batches", validation_batches)

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1 and not args.resume:
                raise KeyboardInterrupt

        def on_epoch_end(self, epoch, logs=None):
            seen[logs["val_nll"]] = self.model.get_weights()

        def on_train_end(self, logs=None):
            self.last = self.model

    look = Look()
    with pytest.raises(KeyboardInterrupt):
        fit.train(args, (images, labels), (images, labels), names, extra=[look])
    args.resume = True
    seen.clear()
    fit.train(args, (images, labels), (images, labels), names, extra=[look])
    assert len(seen) == 3
    result = json.loads((args.out / "result.json").read_text())
    assert result["settings"]["batch_size"] == 90  # all that are left of 100
    assert args.batch_size == 100  # the program may make other runs with it
    assert 0 < wrong[0] < 1  # of ten images; of the others .4
    for one, best in zip(look.last.get_weights(), seen[min(seen)], strict=True):
        np.testing.assert_array_equal(one, best)
