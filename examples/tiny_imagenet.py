"""Train a classifier of Tiny-ImageNet with MixAvg or another method.

    python examples/tiny_imagenet.py --smoke               # check that it runs
    python examples/tiny_imagenet.py --archive SUBSET.zip --network small --epochs 30
    python examples/tiny_imagenet.py                       # the full recipe, on a GPU

200 classes at 64x64 pixels, with the recipe and the flags of cifar.py. The TFDS builder
in datasets/ reads the official archive, or one of the same layout. This file loads the
data; the rest is in training/, which several programs share.
"""

from pathlib import Path

from training import arguments, data, fit
from training.methods import METHODS


def parse_arguments(argv=None, methods=METHODS):
    parser = arguments.parser(__doc__, methods)
    add = parser.add_argument
    # fmt: off
    add("--archive", type=Path, metavar="ZIP",
        help="read this archive of the official layout instead of downloading it")
    add("--data-dir", type=Path, metavar="DIR",
        help="the data directory of TFDS (with --archive: runs/data/NAME of the ZIP)")
    # fmt: on
    return arguments.parse(parser, "tiny_imagenet", argv)


def load(args):
    """Training images and labels, validation images and labels, names of the classes.

    Images are uint8, `(images, 64, 64, 3)`, labels class numbers, `(images,)`.
    """
    from datasets import tiny_imagenet  # registers the builder

    archive, data_dir = args.archive, args.data_dir
    if args.smoke:
        archive = make_archive(args.out / "made-up.zip")
    if archive and not data_dir:  # not mixed with the full data or other archives
        data_dir = args.out / "data" if args.smoke else Path("runs/data") / archive.stem
    name = tiny_imagenet.Builder.name
    return data.from_tfds(name, "validation", data_dir, archive=archive)


def make_archive(path):
    """A small archive of the official layout, with blots of colour as images."""
    from datasets.tiny_imagenet.dummy_data.make import make

    path.parent.mkdir(parents=True, exist_ok=True)
    classes = {f"n{i:08}": f"colours {i}" for i in range(10)}
    make(path, classes, train=20, validation=5)
    return path


def main(argv=None):
    return fit.main(parse_arguments(argv), load)


if __name__ == "__main__":
    main()
