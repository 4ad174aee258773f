"""Train a classifier of Tiny-ImageNet with MixAvg, or with what it replaces.

    python examples/tiny_imagenet.py --smoke                    # does it run? seconds
    python examples/tiny_imagenet.py --archive SUBSET.zip --network small --epochs 5
    python examples/tiny_imagenet.py                       # the full recipe, on a GPU

200 classes at 64x64 pixels. PreAct ResNet-18; SGD with Nesterov momentum 0.9, batches
of 128, a cosine from 0.1 after 5 epochs of warm-up, L2 decay of 5e-4 on kernels, 200
epochs; pad-4 crops, flips. `--method` changes the mixing and the labels and nothing
else. The data come from the official archive through the TFDS builder in datasets/, or
from an archive of the same layout. Everything goes to --out; a run that was stopped
goes on with --resume. README.md beside this file has results.
"""

import argparse
import os
import re
import shlex
import shutil
import sys
import time
from pathlib import Path

# Keras reads its backend when it is imported.
os.environ["KERAS_BACKEND"] = "".join(
    re.findall(r"--backend[= ](\w+)", " ".join(sys.argv))[-1:]
) or os.environ.get("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
import report
import tensorflow as tf
from networks import NETWORKS

from keras_mixavg import (
    GlobalSoftLabel,
    MixAvg,
    SoftLabelAccuracy,
    SoftLabelCrossentropy,
)

METHODS = {
    "erm": "nothing mixed, plain labels",
    "label_smoothing": "nothing mixed, labels smoothed by 0.1",
    "mixup": "keras.layers.MixUp, alpha 1",
    "cutmix": "keras.layers.CutMix",
    "kcv_mixup": "keras_cv.layers.MixUp, alpha 1",
    "kcv_cutmix": "keras_cv.layers.CutMix, alpha 1 (see its warning)",
    "regmixup": "each batch clean, and mixed with weights from Beta(10, 10)",
    "ols": "nothing mixed, global soft labels: Online Label Smoothing",
    "mixavg_local": "averaged pairs with local soft labels",
    "mixavg": "averaged pairs with local and global soft labels",
}
IMAGE_SIZE = 64


# --- Arguments -----------------------------------------------------------------------


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    # fmt: off
    add("--method", choices=list(METHODS), default="mixavg", metavar="METHOD",
        help="; ".join(f"{name}: {text}" for name, text in METHODS.items())
        + " (default: mixavg)")
    add("--archive", type=Path, metavar="ZIP",
        help="read this archive of the official layout instead of downloading it")
    add("--data-dir", type=Path, metavar="DIR",
        help="where TFDS has, or puts, the data (with --archive: runs/data/ZIP's name)")
    add("--train-examples", type=int, metavar="N",
        help="train on N images, as many of each class (default: all)")
    add("--network", choices=list(NETWORKS), default="preact_resnet18")
    add("--epochs", type=int, default=200)
    add("--batch-size", type=int, default=128)
    add("--learning-rate", type=float, default=0.1, help="the peak (default: 0.1)")
    add("--warmup-epochs", type=int, default=5)
    add("--momentum", type=float, default=0.9)
    add("--weight-decay", type=float, default=5e-4, help="L2, on kernels only")
    add("--rate", type=float, default=0.5, help="of mixavg: share averaged")
    add("--global-weight", type=float,
        help="of the global soft label (default: 0.1; 0.5 for ols)")
    add("--collect", choices=["correct", "all"], default="correct",
        help="the samples that the global soft labels are made from")
    add("--prior-count", type=float,
        help="examples that the old table counts for (default: 1; 0 for ols)")
    add("--mixed-precision", nargs="?", const="bfloat16",
        choices=["bfloat16", "float16"])
    add("--backend", choices=["tensorflow", "jax", "torch"])
    add("--devices", type=int, default=1, metavar="N")
    add("--seed", type=int, default=0)
    add("--out", type=Path, metavar="DIR", help="default: in runs/")
    add("--resume", action="store_true", help="go on with the run in --out")
    add("--deterministic", action="store_true",
        help="the same figures every time, at some cost in speed")
    add("--validate-every", type=int, default=1, metavar="N", help="epochs")
    add("--quiet", action="store_true", help="no progress bar")
    add("--smoke", action="store_true",
        help="two epochs of a tiny network on made-up images")
    # fmt: on
    args = parser.parse_args(argv)
    for name in (
        "epochs", "batch_size", "train_examples", "devices", "validate_every"
    ):  # fmt: skip
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    if args.batch_size % args.devices:
        parser.error("--batch-size must be a multiple of --devices")
    if args.smoke:
        args.epochs, args.warmup_epochs, args.network = 2, 1, "tiny"
        args.train_examples, args.batch_size = 200, 40
    if args.out is None:
        name = (
            "smoke-tiny_imagenet"
            if args.smoke
            else f"tiny_imagenet-{args.method}-{args.seed}"
        )
        args.out = Path("runs") / name
        if args.smoke and not args.resume:
            shutil.rmtree(args.out, ignore_errors=True)
    if (args.out / "result.json").exists():
        parser.error(f"--out {args.out} has a finished run. Choose another folder.")
    if not args.resume and args.out.exists() and any(args.out.iterdir()):
        parser.error(
            f"--out {args.out} has an unfinished run or something else in it. Go on "
            "with --resume, or choose another folder."
        )
    return args


# --- Data: uint8 images and class numbers --------------------------------------------


def load(args):
    """Training and validation arrays, and the names of the classes."""
    import tensorflow_datasets as tfds
    from datasets import tiny_imagenet  # registers the builder

    archive, data_dir = args.archive, args.data_dir
    if args.smoke:
        archive = make_archive(args.out / "made-up.zip")
    if archive and not data_dir:  # apart from the full data, and from other archives
        data_dir = args.out / "data" if args.smoke else Path("runs/data") / archive.stem
    (train, test), info = tfds.load(
        tiny_imagenet.Builder.name,
        split=["train", "validation"],
        data_dir=data_dir,
        builder_kwargs={"archive": archive},
        batch_size=-1,
        as_supervised=True,
        with_info=True,
    )
    return tfds.as_numpy(train), tfds.as_numpy(test), info.features["label"].names


def make_archive(path):
    """A small archive of the official layout, with blots of colour for images."""
    from datasets.tiny_imagenet.dummy_data.make import make

    path.parent.mkdir(parents=True, exist_ok=True)
    classes = {f"n{i:08}": f"colours {i}" for i in range(10)}
    make(path, classes, train=20, validation=5)
    return path


def few_of_each_class(images, labels, count, seed):
    """`count` examples, as many of each class as of any other, up to one."""
    if count > len(labels):
        raise SystemExit(f"--train-examples {count}: there are only {len(labels)}.")
    order = np.random.default_rng(seed).permutation(len(labels))
    rank_in_class = np.empty(len(labels), int)
    for number in np.unique(labels):
        members = order[labels[order] == number]
        rank_in_class[members] = np.arange(len(members))
    chosen = np.argsort(rank_in_class, kind="stable")[:count]
    return images[chosen], labels[chosen]


def training_batches(images, labels, args):
    """Shuffled, cropped, flipped and batched; still uint8, and class numbers."""
    crop = keras.layers.RandomCrop(
        IMAGE_SIZE, IMAGE_SIZE, seed=args.seed, dtype="uint8"
    )
    flip = keras.layers.RandomFlip("horizontal", seed=args.seed, dtype="uint8")

    def augment(image, label):
        image = tf.pad(image, [[4, 4], [4, 4], [0, 0]], "REFLECT")
        return flip(crop(image)), label

    data = tf.data.Dataset.from_tensor_slices((images, labels)).cache()
    data = data.shuffle(len(labels), seed=args.seed)
    data = data.map(augment, num_parallel_calls=tf.data.AUTOTUNE)
    return data.batch(args.batch_size, drop_remainder=True)


# --- The method: the one place where runs differ -------------------------------------


def mix(batches, args, num_classes):
    """Batches of (images, class numbers) to (images, soft labels)."""
    one_hot = MixAvg(rate=0, num_classes=num_classes)
    if args.method in ("mixavg", "mixavg_local"):
        batches = batches.map(MixAvg(args.rate, num_classes, seed=args.seed))
    elif args.method in ("erm", "label_smoothing", "ols"):
        batches = batches.map(one_hot)
    else:
        mixer = peer(args)

        def mixed(images, labels):
            images, labels = one_hot(tf.cast(images, "float32"), labels)
            batch = mixer({"images": images, "labels": labels})
            if args.method != "regmixup":
                return batch["images"], batch["labels"]
            return (
                tf.concat([images, batch["images"]], axis=0),
                tf.concat([labels, batch["labels"]], axis=0),
            )

        batches = batches.map(mixed)
    return batches.prefetch(tf.data.AUTOTUNE)


def peer(args):
    """The layer of Keras or KerasCV that a method is named after."""
    if args.method == "mixup":
        return keras.layers.MixUp(alpha=1.0, seed=args.seed, dtype="float32")
    if args.method == "regmixup":
        return keras.layers.MixUp(alpha=10.0, seed=args.seed, dtype="float32")
    if args.method == "cutmix":
        return keras.layers.CutMix(factor=1.0, seed=args.seed, dtype="float32")
    import keras_cv

    if args.method == "kcv_mixup":
        return keras_cv.layers.MixUp(alpha=1.0, seed=args.seed, dtype="float32")
    print(
        "Note: the labels of keras_cv.layers.CutMix count the whole box, also where "
        "the image's border cuts it off; README.md beside this file has the figures."
    )
    return keras_cv.layers.CutMix(alpha=1.0, seed=args.seed, dtype="float32")


def loss_and_callbacks(args):
    if args.method == "label_smoothing":
        return keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=0.1
        ), []
    if args.method not in ("ols", "mixavg"):
        return SoftLabelCrossentropy(from_logits=True), []
    weight, prior = (0.5, 0.0) if args.method == "ols" else (0.1, 1.0)
    weight = weight if args.global_weight is None else args.global_weight
    prior = prior if args.prior_count is None else args.prior_count
    loss = SoftLabelCrossentropy(global_weight=weight, from_logits=True)
    return loss, [GlobalSoftLabel(prior, args.collect, fade_out=0.0)]


# --- Training ------------------------------------------------------------------------


def distribution_scope(args):
    """The scope that makes a model train on `--devices`."""
    if args.devices == 1:
        return tf.distribute.get_strategy().scope()
    backend = keras.backend.backend()
    if backend == "tensorflow":
        devices = tf.config.list_logical_devices("GPU")
        devices = [d.name for d in devices or tf.config.list_logical_devices("CPU")]
    elif backend == "jax":
        devices = keras.distribution.list_devices()
    else:
        raise SystemExit("--devices: Keras trains on one device under torch.")
    if len(devices) < args.devices:
        raise SystemExit(f"--devices {args.devices}: found only {devices}.")
    devices = devices[: args.devices]
    if backend == "tensorflow":
        return tf.distribute.MirroredStrategy(devices).scope()
    return keras.distribution.DataParallel(devices=devices).scope()


def compiled_model(args, shape, num_classes, steps_per_epoch):
    loss, callbacks = loss_and_callbacks(args)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0,
        max(1, (args.epochs - args.warmup_epochs) * steps_per_epoch),
        warmup_target=args.learning_rate,
        warmup_steps=args.warmup_epochs * steps_per_epoch,
    )
    model = NETWORKS[args.network](shape, num_classes, args.weight_decay)
    optimizer = keras.optimizers.SGD(schedule, args.momentum, nesterov=True)
    model.compile(optimizer, loss, metrics=[SoftLabelAccuracy()])
    return model, callbacks


def train(args):
    """One run from data to report; returns what is in result.json."""
    keras.utils.set_random_seed(args.seed)
    if args.deterministic:  # of tf.data, whatever the backend
        tf.config.experimental.enable_op_determinism()
    if args.mixed_precision:
        keras.config.set_dtype_policy(f"mixed_{args.mixed_precision}")
    (images, labels), (test_images, test_labels), names = load(args)
    if args.train_examples:
        images, labels = few_of_each_class(
            images, labels, args.train_examples, args.seed
        )
    if len(labels) < args.batch_size:
        raise SystemExit(
            f"{len(labels)} training images make no batch of {args.batch_size}: lower "
            "--batch-size or raise --train-examples."
        )
    batches = mix(training_batches(images, labels, args), args, len(names))
    test = tf.data.Dataset.from_tensor_slices((test_images, test_labels))
    validation = test.batch(args.batch_size, drop_remainder=args.devices > 1)
    validation = validation.map(MixAvg(rate=0, num_classes=len(names))).cache()
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with distribution_scope(args):
        model, callbacks = compiled_model(
            args, images.shape[1:], len(names), len(batches)
        )
        model.fit(
            batches,
            validation_data=validation,
            validation_freq=args.validate_every,
            epochs=args.epochs,
            callbacks=[
                *callbacks,
                *report.callbacks(args.out, args.resume),
            ],
            verbose=0 if args.quiet else "auto",
            shuffle=False,
        )
    seconds = time.perf_counter() - start
    few = few_of_each_class(images, labels, 8, args.seed)
    mixed = next(iter(mix(tf.data.Dataset.from_tensors(few), args, len(names))))
    pairs = [*few, *(part.numpy()[-8:] for part in mixed)]
    soft_labels = callbacks[0].table if callbacks else None
    settings = vars(args)
    return report.write(
        args.out, settings, model, test.batch(250), names, soft_labels, pairs, seconds
    )


def main(argv=None):
    args = parse_arguments(argv)
    try:
        result = train(args)
    except KeyboardInterrupt:
        command = [a for a in sys.argv if a != "--resume"]
        if "--out" not in command:
            command += ["--out", str(args.out)]
        raise SystemExit(
            "\nStopped. Go on after the last finished epoch with\n    python "
            + shlex.join([*command, "--resume"])
        ) from None
    figures = result["test"]
    print(
        f"{args.method} on Tiny-ImageNet: "
        f"accuracy {100 * figures['accuracy']:.2f} %, "
        f"top-5 {100 * figures['top5_accuracy']:.2f} %, NLL {figures['nll']:.4f} nats, "
        f"ECE {100 * figures['ece']:.2f} %, {result['seconds']:.0f} s; see {args.out}"
    )
    return result


if __name__ == "__main__":
    main()
