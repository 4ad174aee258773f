"""Train a classifier of CIFAR-10 or CIFAR-100 with MixAvg, or with what it replaces.

    python examples/cifar.py --smoke                       # does it run? seconds
    python examples/cifar.py --network small --train-examples 2000 --epochs 30
    python examples/cifar.py --dataset cifar100            # the full recipe, on a GPU

PreAct ResNet-18; SGD with Nesterov momentum 0.9, batches of 128, a cosine from 0.1
after 5 epochs of warm-up, L2 decay of 5e-4 on kernels, 200 epochs; pad-4 crops, flips.
`--method` changes the mixing and the labels and nothing else. Everything goes to --out;
a run that was stopped goes on with --resume. README.md beside this file has results.
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
OLS = {"global_weight": 0.5, "prior_count": 0.0, "fade_out": 0.0}  # as published


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
    add("--dataset", choices=["cifar10", "cifar100"], default="cifar10")
    add("--data-dir", metavar="DIR", help="where TFDS has, or puts, the data")
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
        help="of the global soft label (default: the package's; 0.5 for ols); given "
        "with another method, that method gets global soft labels too")
    add("--fade-out", type=float, metavar="SHARE",
        help="of the epochs, at the end, over which that weight falls to 0 (default: "
        "the package's; 0 for ols)")
    add("--collect", choices=["correct", "all"], default="correct",
        help="the samples that the global soft labels are made from")
    add("--prior-count", type=float,
        help="examples that the old table counts for (default: 1; 0 for ols)")
    add("--mixed-precision", nargs="?", const="bfloat16",
        choices=["bfloat16", "float16"])
    add("--backend", choices=["tensorflow", "jax", "torch"])
    add("--devices", type=int, default=1, metavar="N")
    add("--seed", type=int, default=0)
    add("--out", type=Path, metavar="DIR", help="default: runs/DATASET-METHOD-SEED")
    add("--resume", action="store_true", help="go on with the run in --out")
    add("--deterministic", action="store_true",
        help="the same figures every time, at some cost in speed")
    add("--validate-every", type=int, default=1, metavar="N", help="epochs")
    add("--quiet", action="store_true", help="no progress bar")
    add("--smoke", action="store_true",
        help="two epochs of a tiny network on digits that need no download")
    # fmt: on
    args = parser.parse_args(argv)
    for name in (
        "epochs", "batch_size", "train_examples", "devices", "validate_every"
    ):  # fmt: skip
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    if args.method == "label_smoothing" and args.global_weight is not None:
        parser.error("--global-weight is not for label_smoothing")
    if args.batch_size % args.devices:
        parser.error("--batch-size must be a multiple of --devices")
    if args.smoke:
        args.epochs, args.warmup_epochs, args.network = 2, 1, "tiny"
        args.train_examples, args.batch_size = 200, 40
    if args.out is None:
        name = "smoke" if args.smoke else f"{args.dataset}-{args.method}-{args.seed}"
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
    """Training and test arrays, and the names of the classes."""
    if args.smoke:
        return load_digits()
    import tensorflow_datasets as tfds

    (train, test), info = tfds.load(
        args.dataset,
        split=["train", "test"],
        data_dir=args.data_dir,
        batch_size=-1,
        as_supervised=True,
        with_info=True,
    )
    return tfds.as_numpy(train), tfds.as_numpy(test), info.features["label"].names


def load_digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.kron(digits.images, np.ones((4, 4)))[..., None].repeat(3, axis=-1)
    images, labels = (15 * images).astype("uint8"), digits.target
    names = [str(name) for name in digits.target_names]
    return (images[300:], labels[300:]), (images[:300], labels[:300]), names


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
    """Shuffled, batched, cropped and flipped; still uint8, and class numbers."""
    data = tf.data.Dataset.from_tensor_slices((images, labels))
    data = data.shuffle(len(labels), seed=args.seed)
    data = data.batch(args.batch_size, drop_remainder=True)
    seeds = tf.data.Dataset.random(args.seed, rerandomize_each_iteration=True)
    return tf.data.Dataset.zip(data, seeds).map(
        lambda batch, seed: (crop_and_flip(batch[0], seed), batch[1]),
        num_parallel_calls=tf.data.AUTOTUNE,
    )


def crop_and_flip(images, seed, padding=4):
    """Each image of a batch by chance: shifted by up to `padding`, and flipped."""
    size, side = tf.shape(images)[0], images.shape[1]
    uniform = tf.random.stateless_uniform
    offsets = uniform((2, size, 1), (seed, 0), 0, 2 * padding + 1, "int32")
    flipped = uniform((size, 1), (seed, 1)) < 0.5
    pixels = tf.range(side)
    rows = offsets[0] + pixels
    columns = offsets[1] + tf.where(flipped, pixels[::-1], pixels)
    edges = [padding, padding]
    images = tf.pad(images, [[0, 0], edges, edges, [0, 0]], "REFLECT")
    images = tf.gather(images, rows, axis=1, batch_dims=1)
    return tf.gather(images, columns, axis=2, batch_dims=1)


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
    given = {k: getattr(args, k) for k in OLS if getattr(args, k) is not None}
    if args.method not in ("ols", "mixavg") and "global_weight" not in given:
        return SoftLabelCrossentropy(from_logits=True), []
    settings = {**(OLS if args.method == "ols" else {}), **given}
    weight = {k: settings.pop(k) for k in ["global_weight"] if k in settings}
    loss = SoftLabelCrossentropy(**weight, from_logits=True)
    return loss, [GlobalSoftLabel(**settings, collect=args.collect)]


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
        f"{args.method} on {args.dataset if not args.smoke else 'digits'}: "
        f"accuracy {100 * figures['accuracy']:.2f} %, "
        f"top-5 {100 * figures['top5_accuracy']:.2f} %, NLL {figures['nll']:.4f} nats, "
        f"ECE {100 * figures['ece']:.2f} %, {result['seconds']:.0f} s; see {args.out}"
    )
    return result


if __name__ == "__main__":
    main()
