"""Does it help on my images? Train on a folder of them with four methods, and compare.

    python examples/image_folder.py DIR               # a folder of class folders
    python examples/image_folder.py DIR --flip none   # digits, text
    python examples/image_folder.py DIR --network EfficientNetV2B0 --weights imagenet
    python examples/image_folder.py DIR --image-size 64 --epochs 30     # a first look
    python examples/image_folder.py tfds:oxford_flowers102              # or @SPLIT

It compares plain training, MixUp, CutMix and MixAvg with global soft labels, with the
same seeds and the same images in the same order. With `--weights` it fine-tunes, and
takes averaged pairs alone for MixAvg, since global soft labels gained nothing there.
With fewer than 5,000 images each is tested by a network that has not seen it, once with
the default --folds. The answer is in words, with 95 % intervals, the cause and the next
command, on the terminal and, with pictures, as one HTML page in --out. The program
stops early where more runs would change nothing. After an interruption the same command
continues.
"""

import argparse
import copy
import os
import shlex
import sys
from pathlib import Path

from training import arguments, fit, record  # first: it chooses the backend
from training.methods import METHODS, in_words, with_names

# isort: split
import keras
import numpy as np
from training import answer, compare, folder, networks, page, pictures, scores
from training.clock import clock
from training.progress import Progress

UNSEEN = "How good is each method on images that it has not seen?"
FEW = 5000  # images, up to which cross-validation tests each
DISAGREE = 0.25  # share of the images on which two networks typically differ
LONG = 3600  # seconds, from which a smaller image size is suggested
SMOKE = {"epochs": 2, "warmup_epochs": 1, "head_epochs": 1, "runs": 3}


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(**vars(arguments.parser(None).parse_args([])))
    add = parser.add_argument
    # fmt: off
    add("folder", type=Path, metavar="DIR",
        help="a folder of class folders of images, or tfds:NAME or "
        "tfds:NAME@SPLIT of TensorFlow Datasets (default split: train), which is "
        "written into such a folder in runs/data")
    add("--validation", type=Path, metavar="DIR",
        help="another such folder, or tfds:NAME@SPLIT, to test on (default: none: "
        "cross-validation)")
    add("--data-dir", metavar="DIR",
        help="the data directory of TFDS (default: its own)")
    add("--folds", type=int, default=5, metavar="K",
        help="parts of the cross-validation: a run trains on all parts but one, and "
        "tests on that one (default: %(default)s)")
    add("--runs", type=int, metavar="N",
        help="runs of each method (default: --folds, but at least 3, so that each "
        f"image is tested; 3 with --validation, or with {FEW:,} images or more)")
    add("--image-size", type=int, metavar="PIXELS",
        help="side of the square that images are cropped and scaled to (default: "
        "their own, from {} to {})".format(*folder.SIDES))
    add("--methods", nargs="+", dest="compared", choices=list(METHODS),
        metavar="METHOD",
        help=f"{with_names(METHODS)}; erm is always among them (default: erm mixup "
        "cutmix mixavg, and mixavg_local for mixavg with --weights)")
    add("--all-runs", action="store_true",
        help="make all runs, even if they would change nothing (default: no)")
    add("--smoke", action="store_true",
        help="only check that it runs: two epochs, random weights, made-up images "
        "instead of tfds:NAME; KerasHub still fetches the configuration of a preset "
        "(default: no)")
    add("--out", type=Path, metavar="DIR",
        help="for the results (default: runs/folder-DIR)")
    # fmt: on
    arguments.add_training(parser)
    parser.set_defaults(
        network="fast", epochs=60, batch_size=64, shift=None, quiet=True
    )
    args = parser.parse_args(argv)
    ours = "mixavg" if args.weights == networks.NONE else "mixavg_local"
    compared = args.compared or ["mixup", "cutmix", ours]
    args.compared = list(dict.fromkeys(["erm", *compared]))  # each once
    if len(args.compared) < 2:
        parser.error("--methods needs a method besides erm (plain training)")
    arguments.check(args, parser)
    if args.held_out:
        parser.error("--held-out does not apply here: use --folds or --validation")
    for name, least in (("runs", 1), ("image_size", 1), ("folds", 2)):
        value = getattr(args, name)
        if value is not None and value < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}")
    if args.smoke:
        vars(args).update(SMOKE)
    return args


# --- The plan ------------------------------------------------------------------------


def find_folders(args):
    """Write data sets of TFDS as folders, and name the one for the results."""
    args.folder, args.validation = (
        folder.of_tfds(str(where).removeprefix(folder.TFDS), args.data_dir, args.smoke)
        if str(where).startswith(folder.TFDS)
        else where
        for where in (args.folder, args.validation)
    )
    name = f"folder-{args.folder.resolve().name}{'-smoke' * args.smoke}"
    args.out = args.out or Path("runs") / name
    for of_images in filter(None, (args.folder, args.validation)):
        if args.out.resolve().is_relative_to(of_images.resolve()):
            raise SystemExit(
                f"The results would be written to {args.out}, which is in {of_images}, "
                "where folders are classes. Pass another --out."
            )


def survey(args):
    """The contents of the folders, once everything has been checked."""
    found = folder.survey(args.folder)
    if args.validation:
        others = folder.survey(args.validation)
        if list(others.counts) != list(found.counts):
            missing = ", ".join(sorted(set(found.counts) ^ set(others.counts)))
            raise SystemExit(
                f"{args.folder} and {args.validation} must have the same class "
                f"folders. Only one of them has: {missing}."
            )
        return found, others
    few = [name for name, count in found.counts.items() if count < 2]
    if few:
        raise SystemExit(
            "Each class needs two images, one to train on and one to test on. Classes "
            f"with only one: {', '.join(few)}. Add images, or pass --validation."
        )
    if args.folds > found.images:
        raise SystemExit(f"--folds {args.folds}: there are only {found.images} images.")
    return found, None


def complete(args, found):
    """Fill in the defaults that depend on the images."""
    args.image_size = args.image_size or found.image_size
    if args.shift is None:
        args.shift = args.image_size // 8
    if args.runs is None:
        few = found.images < FEW and not args.validation
        args.runs = max(3, args.folds) if few else 3


def plan(args, found, others):
    """The plan, in words."""
    counts = found.counts.values()
    each = f"{min(counts)} to {max(counts)}" if len(set(counts)) > 1 else min(counts)
    side = args.image_size
    weights = f"the weights {args.weights}" if args.weights != networks.NONE else ""
    if weights and args.smoke:
        weights = "random weights for the smoke test"
    trained = found.images - (0 if others else found.images // args.folds)
    trained = min(trained, args.train_examples or trained)
    if others:
        tested = others.images
        how = (
            f"Each run trains on {trained:,} images and tests on the {tested:,} images "
            f"of {args.validation}."
        )
        if tested < found.images:
            how += (
                f" Without --validation each of the {found.images:,} images of "
                f"{args.folder} would be tested once."
            )
    else:
        tested = found.images * min(args.runs, args.folds) // args.folds
        how = (
            f"Cross-validation in {args.folds} parts: each run tests on one of them, "
            f"{tested:,} images in all, and trains on about {trained:,} images of the "
            "others."
        )
    epochs = answer.count(args.epochs, "epoch")
    if weights:
        heads = answer.count(args.head_epochs, "epoch")
        epochs = f"{heads} of the new last layer, {epochs} of all layers"
    batch = min(args.batch_size, trained)
    flips = {
        "none": "never flipped",
        "horizontal": "flipped left to right at random (digits, text: --flip none)",
        "both": "flipped left to right and upside down at random",
    }[args.flip]
    smallest = 100 * 1.96 * (DISAGREE / tested) ** 0.5
    gigabytes = 3 * side**2 * found.images / 1e9
    memory = f" They take {gigabytes:.1f} GB of memory." if gigabytes > 1 else ""
    return [
        f"{found.images:,} images of {len(counts)} classes, {each} of each, with a "
        f"median side of {found.side} pixels. They are scaled to {side}, {flips}, and "
        f"shifted by up to {args.shift} pixels.{memory}",
        f"Network {args.network}, {parameters(args, counts):.2f} million parameters, "
        f"{weights or 'from scratch'}: {epochs}, in batches of {batch}.",
        how,
        f"{len(args.compared)} methods ({', '.join(map(in_words, args.compared))}) x "
        f"{args.runs} runs: {len(args.compared) * args.runs} runs of {epochs}.",
        f"With {tested:,} test images a difference is detectable from about "
        f"{smallest:.1f} points of accuracy, however many runs are made.",
    ]


def parameters(args, counts):
    """Millions of trainable parameters of the network for these classes."""
    side = args.image_size
    try:
        network = fit.network_of(args, random_weights=True)(
            (side, side, 3), len(counts), 0.0
        )
    except ValueError as error:
        if args.network.startswith(networks.HUB):
            raise SystemExit(f"{args.network}: {error}") from None
        raise SystemExit(
            f"{args.network} does not take images of {side} pixels: {error} "
            "Pass another --image-size."
        ) from None
    return sum(int(np.prod(w.shape)) for w in network.trainable_weights) / 1e6


def command(args, argv, changes=None):
    """The complete command, with changed options."""
    changes = dict(changes or {})
    if args.smoke:  # its results are in a folder of their own
        changes = {"smoke": None, "out": None}
    elif set(changes) - {"runs", "all_runs"}:
        tag = "-".join(f"{name}-{value}" for name, value in changes.items() if value)
        changes["out"] = f"{args.out}-{tag.replace('/', '_') or 'folds'}"
    kept, skip = [], False
    flags = {f"--{name.replace('_', '-')}" for name in changes}
    for token in argv:
        if skip:
            skip = False
        elif token.split("=")[0] in flags:
            has_value = token not in ("--smoke", "--all-runs")
            skip = "=" not in token and has_value
        else:
            kept.append(token)
    # The folder comes first, where no option takes it for one of its values.
    images = parse_arguments(argv).folder
    first = next(token for token in kept if Path(token) == images)
    kept.remove(first)
    kept = [first, *(token for token in kept if token != "--")]
    for name, value in changes.items():
        if value is not None:
            flag = f"--{name.replace('_', '-')}"
            kept += [flag] if value is True else [flag, str(value)]
    return given(kept)


def given(argv):
    return f"python {shlex.join([os.path.relpath(__file__), *argv])}"


# --- The runs ------------------------------------------------------------------------


def progress_of(args):
    heads = args.head_epochs if args.weights != networks.NONE else 0
    runs = args.runs * len(args.compared)

    def smaller(left):
        if left <= LONG or args.image_size <= 64:
            return ""
        less = clock(left * (64 / args.image_size) ** 2)
        return f"With --image-size 64 it would be about {less}."

    return Progress(runs, heads + args.epochs, smaller, heads)


def check_out(args):
    """All results in a folder must have the same options and images."""
    may_change = ("out", "runs", "compared", "all_runs", "data_dir")
    folders = [args.folder, *([args.validation] if args.validation else [])]
    images = [folder.fingerprint(each) for each in folders]
    record.check_options(args, may_change, images=images)


def load(args):
    """Training and test images with labels, class names, numbers of the test images.

    `args.seed` is the number of the round.
    """
    names = [f.name for f in folder.class_folders(args.folder)]
    images, labels = folder.read(args.folder, args.image_size)
    if args.validation:
        test = folder.read(args.validation, args.image_size)
        return (images, labels), test, names, np.arange(len(test[1]))
    again, part = divmod(args.seed, args.folds)
    tested = folder.parts(labels, args.folds, seed=again) == part
    training, test = ((images[m], labels[m]) for m in (~tested, tested))
    return training, test, names, np.flatnonzero(tested)


def train_all(args):
    """`{method: [Run, ...]}`, and why it ended early, if it did.

    Finished runs are read, not repeated.
    """
    progress = progress_of(args)
    results = {method: [] for method in args.compared}
    for seed in range(args.runs):
        for method in args.compared:
            results[method].append(train_one(args, method, seed, progress))
        if seed + 1 < args.runs and not (args.all_runs or args.smoke):
            reason = answer.no_more_runs(results, args)
            if reason:
                return results, reason
    return results, None


def train_one(args, method, seed, progress):
    run = copy.copy(args)
    run.seed, run.method = seed, method
    run.out = args.out / f"{method}-{seed}"
    run.resume = run.out.exists()
    *data, numbers = load(run)
    run.batch_size = min(run.batch_size, len(data[0][1]))
    if not (run.out / "result.json").exists():
        fit.train(run, *data, extra=[progress])
        keras.utils.clear_session()
    result = answer.read_run(run.out, numbers)
    right = 100 * result.result["test"]["accuracy"]
    progress.finished(
        f"Run {seed + 1} of {args.runs}, {in_words(method)}: {right:.1f} % of "
        f"{len(numbers):,} test images"
    )
    return result


# --- The report ----------------------------------------------------------------------


def report(args, argv, about, results, reason):
    """Print the answer, and write it as one page with pictures."""
    verdict = answer.verdict(results, args)
    title = "It runs. A smoke test has no answer" if args.smoke else verdict.title
    paragraphs = {**({"Ended early": reason} if reason else {}), **verdict.paragraphs}
    if args.smoke:
        paragraphs = {"Next": "Without --smoke:"}
    next_command = command(args, argv, verdict.changes)
    if reason:
        paragraphs["Ended early"] += " Add --all-runs to make them anyway."
    absolute, differences = answer.absolute(results), answer.differences(results)
    text = [f"# {title}", *(f"{k}. {v}" for k, v in paragraphs.items())]
    absolute, differences = (
        compare.markdown(rows[0], rows[1:]) for rows in (absolute, differences)
    )
    text = "\n\n".join([*text, f"    {next_command}", absolute, BELOW, differences])
    print(f"\n{text}")
    html = as_page(args, argv, about, results, title, paragraphs, next_command)
    (args.out / "answer.md").write_text(text, encoding="utf-8")
    (args.out / "page.html").write_text(html, encoding="utf-8")
    print(f"With pictures: {args.out / 'page.html'}; each run: {args.out}/METHOD-RUN")


BELOW = (
    "Mean over all test images, ± standard deviation over the runs. NLL: mean negative "
    "log-likelihood; lower is better. One temperature: after dividing the logits by a "
    "number fitted on other test images. ECE: expected calibration error. Training "
    "accuracy: on the images as each method mixes them. Differences have 95 % "
    "intervals, the wider of those over test images and over runs, and are bold where "
    "the interval excludes zero."
)


def as_page(args, argv, about, results, title, paragraphs, next_command):
    method = answer.candidate(results)
    images, _ = folder.read(args.validation or args.folder, args.image_size)
    names = [f.name for f in folder.class_folders(args.folder)]
    runs = results[method]
    confused = pictures.draw_confused(in_words(method), runs, images, names)
    made = runs[0].result
    parts = [
        page.definitions(paragraphs),
        page.command(next_command),
        page.heading("Results"),
        page.table(answer.absolute(results)),
        page.table(answer.differences(results)),
        page.paragraph(BELOW),
        page.heading("Pictures"),
        page.figure(
            pictures.draw_curves(UNSEEN, curves_of(results)),
            "Thin: each run. Thick: their mean.",
        ),
        page.figure(
            pictures.draw_reliability(bins_of(results)), "All predictions of all runs."
        ),
        page.figure(
            confused, "Of each pair, the mistake with the highest probability."
        ),
    ]
    for name, caption in (
        ("pairs", "Images of the first run, before and after mixing."),
        ("soft_labels", "The global soft labels at the end of the first run."),
    ):
        path = args.out / f"{method}-0" / f"{name}.png"
        if path.exists():
            parts.append(page.figure(path.read_bytes(), caption))
    settings = {k: v for k, v in made["settings"].items() if k not in NOT_SHOWN}
    machine = made["machine"]
    parts += [
        page.heading("How to repeat it"),
        page.command(given(argv)),
        *map(page.paragraph, about),
        page.paragraph(", ".join(f"{k} {v}" for k, v in made["versions"].items())),
        page.paragraph(
            f"{made['backend']}, {machine['processor']}, {machine['cores']} cores"
        ),
        page.paragraph(", ".join(f"{k} {v}" for k, v in settings.items())),
    ]
    return page.page(f"{title} ({args.folder.resolve().name})", parts)


def curves_of(results):
    """The curves of each method on the test images, for `pictures.draw_curves`."""
    curves = {}
    for method, runs in results.items():
        if METHODS[method].validation_share:  # its curves are of training images
            continue
        histories = [run.history for run in runs]
        losses = [history["val_loss"] for history in histories]
        if method == "label_smoothing":  # Keras smooths the test labels too
            losses = []
        accuracies = [history["val_accuracy"] for history in histories]
        curves[in_words(method)] = accuracies, losses
    return curves


def bins_of(results):
    """The calibration of each method, over all predictions of all runs."""
    bins = {}
    for method, runs in results.items():
        logits = np.concatenate([run.logits for run in runs])
        labels = np.concatenate([run.labels for run in runs])
        p = np.exp(scores.log_probabilities(logits))
        bins[in_words(method)] = scores.calibration(p, labels)
    return bins


NOT_SHOWN = {
    "folder",
    "validation",
    "data_dir",
    "out",
    "quiet",
    "resume",
    "seed",
    "method",
    "smoke",
}


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    args = parse_arguments(argv)
    find_folders(args)
    found, others = survey(args)
    complete(args, found)
    about = plan(args, found, others)
    print("\n".join(about), flush=True)
    check_out(args)
    try:
        results, reason = train_all(args)
    except KeyboardInterrupt:
        raise SystemExit("\nStopped. The same command continues.") from None
    report(args, argv, about, results, reason)
    return results


if __name__ == "__main__":
    main()
