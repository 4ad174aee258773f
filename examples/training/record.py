"""What a training run writes: scores, pictures and logs.

`result.json` has the settings, the versions, the machine and the test scores;
`history.csv` a row for each epoch; `soft_labels.npy` is the table; `tensorboard/` has
the scalars and the pictures.
"""

import contextlib
import csv
import json
import os
import shutil
from pathlib import Path

import keras
import numpy as np

from keras_mixavg import plotting
from training import pictures
from training.environment import environment
from training.methods import in_words
from training.scores import calibration, ece, log_probabilities, scores


def write(args, model, test, class_names, table, batch, seconds):
    """Test the model and write everything; returns the content of `result.json`.

    Args:
        args: the arguments of the program.
        model: a trained model.
        test: images and class numbers.
        class_names: a list.
        table: the global soft labels, or None.
        batch: a `pictures.Batch` to show.
        seconds: how long `fit` took.
    """
    images, labels = test
    logits = logits_of(model, images)
    np.savez(args.out / "predictions.npz", logits=logits, labels=labels)
    model.save(args.out / "model.keras")
    drop_repeated_epochs(args.out / "history.csv")
    history = read_history(args.out)
    validates = args.methods[args.method].validation_share > 0
    curves, p = curves_of(history, validates), np.exp(log_probabilities(logits))
    about = f"{len(labels):,} test images, ECE {100 * ece(p, labels):.1f} %"
    figures = {
        "curves": pictures.draw_curves("How do accuracy and loss develop?", curves),
        "reliability": pictures.draw_reliability({about: calibration(p, labels)}),
    }
    if (pairs := pictures.draw_mixed(batch, class_names)) is not None:
        figures["pairs"] = pairs
    if table is not None:
        figures["soft_labels"] = plotting.plot_table(table, class_names)
        np.save(args.out / "soft_labels.npy", table)
    for figure in figures.values():
        add_subtitle(figure, args)
    save_pictures(args.out, figures)
    if not args.on_device:  # which is without TensorFlow
        show_in_tensorboard(args.out, figures)
    result = {
        "test": scores(logits, labels),
        "seconds": seconds,
        "seconds_per_epoch": float(np.median(history["seconds"])),
        "parameters": int(sum(np.prod(w.shape) for w in model.trainable_weights)),
        "test_images": len(labels),
        "settings": settings(args),
        **environment(),
    }
    write_json(args.out / "result.json", result)
    shutil.rmtree(args.out / "backup", ignore_errors=True)  # the run is finished
    return result


@contextlib.contextmanager
def whole_file(path):
    """A file to write, which takes its place only when it is finished."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    with open(unfinished, "w", newline="") as file:
        yield file
    os.replace(unfinished, path)


def write_json(path, content):
    with whole_file(path) as file:
        file.write(json.dumps(content, indent=1) + "\n")


def check_options(args, may_change, **more):
    """All that is in `--out` must have the same options, which `settings.json` has.

    Args:
        args: the arguments of the program.
        may_change: names of arguments that may be others.
        **more: what else must be the same, for JSON.

    Raises:
        SystemExit: if something differs, with its name.
    """
    options = settings(args) | {"backend": keras.backend.backend(), **more}
    options = {name: v for name, v in options.items() if name not in may_change}
    path = args.out / "settings.json"
    there = {file.name for file in args.out.rglob("*") if file.is_file()}
    if there <= {path.name}:  # nothing has been trained: a start may have failed
        write_json(path, options)
    before = json.loads(path.read_text())
    options = json.loads(json.dumps(options))
    changed = sorted(name for name in options if before.get(name) != options[name])
    if changed:
        same = " and ".join(["options", *more])
        raise SystemExit(
            f"{args.out} has runs with other options: {', '.join(changed)}. Choose "
            f"another --out, or use the same {same} to continue."
        )


def logits_of(model, images):
    logits = model.predict(images, batch_size=250, verbose=0)
    return logits.astype("float32")  # NumPy saves bfloat16 as bytes


def settings(args):
    """The arguments, for JSON."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(args).items()
        if name != "methods"
    }


def drop_repeated_epochs(path):
    """Keep the last row of an epoch that was not yet saved when a run stopped."""
    with open(path) as file:
        rows = {row["epoch"]: row for row in csv.DictReader(file)}
    with whole_file(path) as file:
        writer = csv.DictWriter(file, next(iter(rows.values())))
        writer.writeheader()
        writer.writerows(rows.values())


def read_history(out):
    """`history.csv` as a dict of columns. Without validation an epoch has nan."""
    with open(out / "history.csv") as file:
        rows = list(csv.DictReader(file))
    columns = {name: [] for row in rows for name in row}
    for row in rows:
        for name, values in columns.items():
            missing = row[name] in ("", "NA", None)  # a resumed run may log fewer
            values.append(float("nan") if missing else float(row[name]))
    return columns


# --- Pictures ------------------------------------------------------------------------


def add_subtitle(figure, args):
    """Name method and seed below the title."""
    subtitle = f"{in_words(args.method)}, seed {args.seed}"
    figure.suptitle(f"{figure.get_suptitle()}\n{subtitle}", fontsize="medium")


def curves_of(history, validates=False):
    """The two curves of a run, as `pictures.draw_curves` takes them.

    Args:
        history: a dict of columns.
        validates: whether the run validated on a part of its training images.
    """

    def of(*names):
        return [[history[name]] if name in history else [] for name in names]

    return {
        "training, on mixed images and soft labels": of("accuracy", "loss"),
        "validation" if validates else "test": of("val_accuracy", "val_loss"),
    }


def save_pictures(out, figures):
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png", dpi=120)


def show_in_tensorboard(out, names):
    """Add the saved pictures to the scalars."""
    import tensorflow as tf

    writer = tf.summary.create_file_writer(str(out / "tensorboard" / "pictures"))
    with writer.as_default():
        for name in names:
            pixels = tf.io.decode_png((out / f"{name}.png").read_bytes(), channels=3)
            tf.summary.image(name, pixels[None], step=0)
    writer.close()
