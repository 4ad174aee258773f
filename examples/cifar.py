"""Train a classifier of CIFAR-10 or CIFAR-100 with MixAvg or another method.

    python examples/cifar.py --smoke                       # check that it runs
    python examples/cifar.py --network small --train-examples 2000 --epochs 30
    python examples/cifar.py --dataset cifar100            # the full recipe, on a GPU

PreAct ResNet-18; SGD with Nesterov momentum 0.9, batches of 128, a cosine from 0.1
after 5 epochs of warm-up, L2 decay of 5e-4 on kernels, 200 epochs; pad-4 crops, flips.
`--method` changes only the mixing and the labels. All results go to --out. `--resume`
continues a run that was stopped as if it had not been. README.md has results.

This file loads the data. The rest is in training/, which several programs share:
methods.py shows how to use MixAvg, its loss and its callback, fit.py is the run. For
your own data write another `load`.
"""

import numpy as np
from training import arguments, data, fit
from training.methods import METHODS


def parse_arguments(argv=None, methods=METHODS):
    parser = arguments.parser(__doc__, methods)
    add = parser.add_argument
    add("--dataset", choices=["cifar10", "cifar100"], default="cifar10")
    add("--data-dir", metavar="DIR", help="the data directory of TFDS")
    add(
        "--arrays",
        metavar="FILE.npz",
        help="read a file saved by NumPy instead of TFDS, with train_images, "
        "train_labels, test_images, test_labels and names",
    )
    return arguments.parse(parser, lambda args: args.dataset, argv)


def load(args):
    """Training images and labels, test images and labels, names of the classes.

    Images are uint8, `(images, side, side, 3)`, labels class numbers, `(images,)`.
    """
    if args.smoke:
        return load_digits()
    if args.arrays:
        return load_arrays(args.arrays)
    return data.from_tfds(args.dataset, "test", args.data_dir)


def load_arrays(path):
    with np.load(path) as saved:
        train, test = (
            (saved[f"{part}_images"], saved[f"{part}_labels"])
            for part in ("train", "test")
        )
        return train, test, saved["names"].tolist()


def load_digits():
    """scikit-learn's 8x8 digits, four times as large, in three equal channels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.kron(digits.images, np.ones((4, 4)))[..., None].repeat(3, axis=-1)
    images, labels = (15 * images).astype("uint8"), digits.target
    names = [str(name) for name in digits.target_names]
    return (images[300:], labels[300:]), (images[:300], labels[:300]), names


def main(argv=None):
    return fit.main(parse_arguments(argv), load)


if __name__ == "__main__":
    main()
