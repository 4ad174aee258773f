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
        help="the data directory of TFDS (default with --archive: runs/data); an "
        "archive has a folder of its own in it")
    # fmt: on
    return arguments.parse(parser, "tiny_imagenet", argv)


def load(args):
    """Training images and labels, validation images and labels, names of the classes.

    Images are uint8, `(images, 64, 64, 3)`, labels class numbers, `(images,)`.
    """
    from datasets import tiny_imagenet  # registers the builder

    archive, data_dir = args.archive, args.data_dir
    if args.smoke:
        archive, data_dir = make_archive(args.out / "made-up.zip"), args.out / "data"
    elif archive:  # never what has been prepared from another archive
        if not archive.is_file():
            raise SystemExit(f"--archive {archive}: there is no such file.")
        about = archive.stat()
        own = f"{archive.stem}-{about.st_size}-{about.st_mtime_ns}"
        data_dir = (data_dir or Path("runs/data")) / own
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
