"""The ablations: what each of them changes, against arithmetic."""

import numpy as np
import pytest
import tensorflow as tf
from tolerances import assert_close, close

for package in ("sklearn", "scipy", "matplotlib", "tensorflow_datasets"):
    pytest.importorskip(package)

import grid  # noqa: E402
from ablations import ABLATIONS  # noqa: E402
from training.batches import Epoch  # noqa: E402

# Of TFDS and protobuf.
pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def method(name, classes=3, **options):
    options = {"smoke": True, "out": "not/there", "method": name, **options}
    _, args = grid.arguments(options)
    return ABLATIONS[name](args, classes)


def test_pairs_go_off_for_the_last_fifth_of_the_epochs():
    pairs = method("pairs_off_at_the_end", rate=1, classes=8)
    pairs.args.epochs = 10
    epoch = Epoch()
    batches = tf.data.Dataset.from_tensor_slices((np.ones((8, 2)), np.arange(8)))
    batches = pairs.mix(batches.batch(4), epoch.number)
    for number in range(10):
        epoch.on_epoch_begin(number)
        largest = {y.max() for _, y in batches.as_numpy_iterator()}
        assert largest == ({0.5} if number < 8 else {1.0}), number


def test_a_batch_has_pairs_or_cutmix():
    """Each image has one colour: a pair shows its mean, a box shows both colours."""
    either = method("mixavg_or_cutmix", rate=1, classes=8, alpha=1)
    images = np.ones((8, 8, 8, 1)) * np.arange(8)[:, None, None, None]
    batches = tf.data.Dataset.from_tensors((images, np.arange(8))).repeat(200)
    pairs = 0
    for x, y in either.mix(batches, Epoch().number).as_numpy_iterator():
        assert_close(y @ np.arange(8), x.mean(axis=(1, 2, 3)), trained=True)
        flat = np.ptp(x, axis=(1, 2, 3)) == 0
        if np.all(y.max(axis=1) == 0.5) and flat.all():
            pairs += 1
        else:
            assert np.all(x % 1 == 0)
    assert 70 < pairs < 130  # a coin, thrown 200 times
    assert either.callbacks() and either.loss().global_weight == 0.5


@pytest.mark.parametrize(
    "name, largest",
    [
        ("mixavg_or_cutmix_off_at_the_end", 1),
        ("mixup_or_cutmix_off_at_the_end", 0.9 + 0.1 / 8),
    ],
)
def test_either_kind_of_mixing_ends_with_whole_images(name, largest):
    either = method(name, classes=8)
    either.args.epochs, epoch = 10, Epoch()
    batches = tf.data.Dataset.from_tensors((np.zeros((8, 4, 4, 1)), np.arange(8)))
    batches = either.mix(batches.repeat(8), epoch.number)
    for number in (0, 7, 8, 9):
        epoch.on_epoch_begin(number)
        labels = [y for _, y in batches.as_numpy_iterator()]
        whole = all(y.max(axis=1) == close(largest) for y in labels)
        assert whole == (number >= 8), number
