"""Does it help on my images? Train on a folder of them, three ways, and compare.

    python examples/image_folder.py DIR                    # a folder for each class
    python examples/image_folder.py DIR --validation DIR2 --image-size 96 --epochs 100
    python examples/image_folder.py DIR --network EfficientNetV2B0 --image-size 128

Plain training (`erm`), mixup and averaged pairs with soft labels (`mixavg`) train from
scratch, with `--seeds` seeds each and the same images in the same order. What comes out
is a table of paired differences with 95 % intervals, whether plain training memorises
your images or underfits, what to do about it, and pictures. Everything goes to --out; a
comparison that was stopped goes on with the same command.
"""

import argparse
import copy
import functools
import json
from collections import Counter
from pathlib import Path

from training import arguments, compare, fit, record  # first: it chooses the backend
from training.methods import METHODS

# isort: split
import keras
import numpy as np
import tensorflow as tf

READ = (".bmp", ".gif", ".jpeg", ".jpg", ".png")  # by image_dataset_from_directory
LISTED = 5  # at the most, in a message


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(**vars(arguments.parser(None).parse_args([])))
    add = parser.add_argument
    # fmt: off
    add("folder", type=Path, metavar="DIR", help="a folder of class folders of images")
    add("--validation", type=Path, metavar="DIR", help="another such folder to test on")
    add("--validation-split", type=float, default=0.2, metavar="SHARE",
        help="of the images to test on, without --validation; for each seed others "
        "(default: 0.2)")
    add("--image-size", type=int, default=64, metavar="PIXELS",
        help="side of the square that images are cut and scaled to (default: 64)")
    add("--seeds", type=int, default=3, metavar="N",
        help="runs of each method; an interval takes three (default: 3)")
    add("--methods", nargs="+", default=["erm", "mixup", "mixavg"], dest="compared",
        choices=list(METHODS), metavar="METHOD", help="(default: erm mixup mixavg)")
    add("--out", type=Path, metavar="DIR", help="default: runs/folder-DIR")
    # fmt: on
    arguments.add_training(parser)
    parser.set_defaults(network="fast", epochs=60, batch_size=64, quiet=True)
    args = parser.parse_args(argv)
    arguments.check(args, parser)
    if not 0 < args.validation_split < 1:
        parser.error("--validation-split must be between 0 and 1")
    for name in ("seeds", "image_size"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    args.out = args.out or Path("runs") / f"folder-{args.folder.resolve().name}"
    return args


# --- The images ----------------------------------------------------------------------


def class_folders(folder):
    """The class folders, or a message that says what is wrong with them."""
    if not folder.is_dir():
        raise SystemExit(f"{folder} is no folder.")
    folders = sorted(
        f for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".")
    )
    names = [f.name for f in folders]
    if len(folders) < 2:
        raise SystemExit(
            f"{folder} must have a folder of images for each of at least two classes. "
            f"Found: {names or 'no folder'}."
        )
    folded = Counter(name.casefold() for name in names)
    twice = [name for name in names if folded[name.casefold()] > 1]
    if twice:
        raise SystemExit(
            f"Class folders of {folder} differ only by case: {', '.join(twice)}. "
            "Rename one, or move its images to the other."
        )
    empty = [f.name for f in folders if not images_in(f)]
    if empty:
        raise SystemExit(
            f"Class folders of {folder} without an image ({', '.join(READ)}): "
            f"{', '.join(empty)}. Add images or remove the folders."
        )
    return folders


def images_in(folder):
    return sorted(f for f in folder.rglob("*") if f.suffix.lower() in READ)


def check_images(folders):
    """Read every image once, so that none ends the training hours later."""
    broken, others = [], Counter()
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and path.suffix.lower() not in READ:
                others[path.suffix.lower() or "no ending"] += 1
        for path in images_in(folder):
            try:
                tf.io.decode_image(path.read_bytes(), expand_animations=False)
            except (tf.errors.OpError, OSError):
                broken.append(path)
    if broken:
        listed = "\n    ".join(map(str, broken[:LISTED]))
        raise SystemExit(
            f"Images that cannot be read: {len(broken)}, the first\n    {listed}\n"
            "Repair or remove them and start again; nothing has been trained."
        )
    if others:
        found = ", ".join(f"{count} {ending}" for ending, count in others.items())
        print(f"Left out, since they are no images that Keras reads: {found}.")


def load(args):
    """Training images and labels, test images and labels, names of the classes."""
    names = [f.name for f in class_folders(args.folder)]
    images, labels = read(args.folder, args.image_size)
    if args.validation:
        return (images, labels), read(args.validation, args.image_size), names
    order = np.random.default_rng(args.seed).permutation(len(labels))
    tested = np.zeros(len(labels), bool)
    for number in range(len(names)):  # as many of each class, one at least
        members = order[labels[order] == number]
        tested[members[: max(1, round(args.validation_split * len(members)))]] = True
    return (images[~tested], labels[~tested]), (images[tested], labels[tested]), names


@functools.lru_cache(maxsize=2)  # once for all runs: DIR, and --validation
def read(folder, side):
    """All images of a folder, uint8, and their class numbers."""
    dataset = keras.utils.image_dataset_from_directory(
        folder,
        class_names=[f.name for f in class_folders(folder)],
        image_size=(side, side),
        crop_to_aspect_ratio=True,
        batch_size=None,
        shuffle=False,
        verbose=False,
    )
    images, labels = zip(*dataset.as_numpy_iterator(), strict=True)
    return np.stack(images).round().astype("uint8"), np.array(labels)


def check(args):
    """Everything that can be wrong with the folders, before anything is trained."""
    folders = class_folders(args.folder)
    if args.validation:
        others = class_folders(args.validation)
        if [f.name for f in others] != [f.name for f in folders]:
            missing = {f.name for f in folders} ^ {f.name for f in others}
            raise SystemExit(
                f"{args.folder} and {args.validation} must have the same class "
                f"folders. In one of them only: {', '.join(sorted(missing))}."
            )
    few = [f.name for f in folders if len(images_in(f)) < 2]
    if few and not args.validation:
        raise SystemExit(
            "Each class needs two images, one to train on and one to test on. Only one "
            f"is in: {', '.join(few)}. Add images, or pass --validation."
        )
    check_images(folders + (others if args.validation else []))


# --- The runs ------------------------------------------------------------------------


class Progress(keras.callbacks.Callback):
    """One bar over the epochs of all runs."""

    def __init__(self, runs, epochs):
        super().__init__()
        self.bar, self.done, self.of = keras.utils.Progbar(runs * epochs), 0, epochs

    def on_epoch_end(self, epoch, logs=None):
        self.bar.update(self.done + epoch + 1)

    def finished(self):
        self.done += self.of
        self.bar.update(self.done)


def check_out(args):
    """A folder of results is of one set of options."""
    settings = {k: v for k, v in record.settings(args).items() if k != "out"}
    path = args.out / "settings.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings, indent=1) + "\n")
    before = json.loads(path.read_text())
    changed = sorted(k for k in settings if before.get(k) != settings[k])
    if set(changed) - {"seeds", "compared"}:  # more of the same is welcome
        raise SystemExit(
            f"{args.out} has runs with other options: {', '.join(changed)}. Choose "
            "another --out, or give the same options to go on."
        )


def train_all(args):
    """`{method: {seed: result}}`. What is finished is read, not trained again."""
    progress = Progress(args.seeds * len(args.compared), args.epochs)
    results = {method: {} for method in args.compared}
    for seed in range(args.seeds):
        for method in args.compared:
            run = copy.copy(args)
            run.seed, run.method = seed, method
            run.out = args.out / f"{method}-{seed}"
            run.resume = run.out.exists()
            path = run.out / "result.json"
            if not path.exists():
                fit.train(run, *load(run), extra=[progress])
                keras.utils.clear_session()
            progress.finished()
            results[method][seed] = {
                **json.loads(path.read_text()),
                "history": record.read_history(run.out),
            }
    return results


# --- What they say -------------------------------------------------------------------


def report(args, results):
    """Print the table and the advice, and write them with the pictures."""
    text = f"{compare.table(results)}\n{compare.advice(results)}\n"
    print(f"\n{text}")
    (args.out / "comparison.md").write_text(text)
    (args.out / "comparison.json").write_text(json.dumps(results, indent=1) + "\n")
    last = args.out / f"{args.compared[-1]}-0"
    _, (images, labels), names = load(args)
    model = keras.models.load_model(last / "model.keras", compile=False)
    figures = {
        "curves": compare.draw_curves(results),
        "confused": record.draw_confused(model, images, labels, names),
    }
    for name, figure in figures.items():
        figure.savefig(args.out / f"{name}.png", dpi=120)
    print(f"Pictures: {args.out}; of each run, such as the pairs: {last}")


def main(argv=None):
    args = parse_arguments(argv)
    check(args)
    check_out(args)
    try:
        results = train_all(args)
    except KeyboardInterrupt:
        raise SystemExit("\nStopped. The same command goes on.") from None
    report(args, results)
    return results


if __name__ == "__main__":
    main()
