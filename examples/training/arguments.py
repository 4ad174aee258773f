"""The flags of a training program."""

import argparse
import shutil
from pathlib import Path

import keras

from training.methods import METHODS, with_names
from training.networks import ABOUT, NONE, PRESET, check_weights, of_name

OWN = {  # flags of some methods only: what they must be, and its test
    "share": ("from 0 to 1", lambda x: 0 <= x <= 1),
    "alpha": ("above 0", lambda x: x > 0),
    "smoothing": ("from 0 to 1", lambda x: 0 <= x <= 1),
}
AT_LEAST_ONE = (
    "epochs",
    "batch_size",
    "train_examples",
    "devices",
    "validate_every",
    "held_out",
    "scale_to",
)
# Peak learning rates: of SGD, and of Adam, for features of any scale.
FROM_SCRATCH, FINE_TUNING = 0.1, 1e-4
SMOKE = {
    "epochs": 2,
    "warmup_epochs": 1,
    "network": "tiny",
    "train_examples": 200,
    "batch_size": 40,
    "weights": NONE,
    "scale_to": None,
}


def parser(description, methods=METHODS):
    """A parser with the flags that all programs share."""
    result = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # `--backend` is read before this
    )
    result.set_defaults(methods=methods)
    _add_method(result, methods)
    add_training(result)
    _add_run(result)
    return result


def _add_method(parser, methods):
    add = parser.add_argument_group("the method").add_argument
    # fmt: off
    add("--method", choices=list(methods), default="mixavg", metavar="METHOD",
        help=f"{with_names(methods)} (default: mixavg)")
    add("--rate", type=float, default=0.5,
        help="for mixavg and mixavg_local: share of images that are averaged "
        "(default: %(default)s)")
    add("--share", type=float,
        help="for mixup and cutmix: share of batches that are mixed (default: 1 for "
        "mixup, 0.5 for cutmix)")
    add("--alpha", type=float,
        help="parameter of the Beta distribution, for mixup, cutmix and regmixup "
        "(default: 1; 10 for regmixup)")
    add("--smoothing", type=float,
        help="share of a label that is spread over all classes, for label_smoothing "
        "and mixup_or_cutmix (default: 0.1)")
    add("--global-weight", type=float,
        help="weight of the global soft labels, which a method gets with this flag, "
        "except label_smoothing and stopped_early (default: the package's for mixavg, "
        "0.5 for ols)")
    add("--fade-out", type=float, metavar="SHARE",
        help="last share of the epochs, over which that weight falls to 0 (default: "
        "the package's; 0 for ols)")
    add("--collect", choices=["correct", "all"], default="correct",
        help="samples that the global soft labels are made from (default: %(default)s)")
    add("--prior-count", type=float,
        help="how many samples of each class the old table counts as (default: 1; 0 "
        "for ols)")
    # fmt: on


def add_training(parser):
    add = parser.add_argument_group("data and training").add_argument
    # fmt: off
    add("--train-examples", type=int, metavar="N",
        help="train on N images, the same number of each class (default: all)")
    add("--held-out", type=int, metavar="N",
        help="hold N training images out, the same in every run, and test on them "
        "instead of the test images, to choose a setting (default: none)")
    add("--label-noise", type=float, default=0.0, metavar="SHARE",
        help="share of the training images that get a wrong label (default: "
        "%(default)s)")
    add("--imbalance", type=float, default=1.0, metavar="RATIO",
        help="keep all images of the first class, 1 in RATIO of the last, and a share "
        "that falls from class to class between them (default: %(default)s)")
    add("--flip", choices=["none", "horizontal", "both"], default="horizontal",
        help="random flips: none (for digits, text and other images with a left and a "
        "right), left to right, or upside down too (default: %(default)s)")
    add("--shift", type=int, default=4, metavar="PIXELS",
        help="largest random shift of an image (default: 4; in image_folder.py an "
        "eighth of the side)")
    add("--network", default="preact_resnet18", metavar="NAME",
        help=f"{', '.join(f'{n} ({about})' for n, about in ABOUT.items())}; or one of "
        "keras.applications, such as EfficientNetV2B0; or hub: followed by a preset of "
        "KerasHub or a folder with one (default: %(default)s)")
    add("--weights", default=NONE, metavar="WEIGHTS",
        help="for keras.applications: imagenet, which Keras downloads, or a FILE of "
        "weights without the top layer; for KerasHub: preset; none trains from scratch "
        "(default: %(default)s)")
    add("--scale-to", type=int, metavar="SIDE",
        help="with --weights of keras.applications: pixels a side of the network's "
        "input; it scales the images itself (default: as they are)")
    add("--head-epochs", type=int, default=5, metavar="N",
        help="with --weights: first train only the new last layer, for N epochs "
        "(default: %(default)s)")
    add("--epochs", type=int, default=200, help="(default: %(default)s)")
    add("--batch-size", type=int, default=128, help="(default: %(default)s)")
    add("--learning-rate", type=float,
        help=f"peak learning rate (default: {FROM_SCRATCH}, with SGD; with --weights "
        f"{FINE_TUNING}, with Adam)")
    add("--warmup-epochs", type=int, metavar="N",
        help="epochs in which the learning rate rises, before it falls (default: 5, "
        "and at most a quarter of --epochs)")
    add("--momentum", type=float, default=0.9, help="of SGD (default: %(default)s)")
    add("--weight-decay", type=float, default=5e-4,
        help="L2 on kernels, except in keras.applications (default: %(default)s)")
    add("--mixed-precision", nargs="?", const="bfloat16",
        choices=["bfloat16", "float16"], help="(default: none)")
    # fmt: on


def _add_run(parser):
    add = parser.add_argument_group("the run").add_argument
    # fmt: off
    add("--backend", choices=["tensorflow", "jax", "torch"],
        help="of Keras (default: KERAS_BACKEND, or else tensorflow)")
    add("--devices", type=int, default=1, metavar="N",
        help="number of devices (default: %(default)s)")
    add("--on-device", action="store_true",
        help="keep the images on the device, and crop, flip and mix them there (JAX "
        "only, without TensorFlow)")
    add("--seed", type=int, default=0,
        help="of weights, data and mixing (default: %(default)s)")
    add("--out", type=Path, metavar="DIR", help="default: in runs/")
    add("--resume", action="store_true", help="continue the run in --out")
    add("--deterministic", action="store_true",
        help="have TensorFlow repeat its results, at some cost in speed")
    add("--validate-every", type=int, default=1, metavar="N",
        help="validate every N epochs (default: %(default)s)")
    add("--quiet", action="store_true", help="no progress bar")
    add("--smoke", action="store_true",
        help="two epochs of a tiny network, on data that need no download")
    # fmt: on


def parse(parser, name, argv=None):
    """Parse and check the arguments, and set `args.out`.

    `name` is that of the default folder: a string, or a function of the arguments.
    """
    args = parser.parse_args(argv)
    if args.smoke:
        vars(args).update(SMOKE)
    check(args, parser)
    if args.out is None:
        name = name if isinstance(name, str) else name(args)
        method = f"{args.method}-{args.seed}"
        args.out = Path("runs") / f"{name}-{'smoke' if args.smoke else method}"
        if args.smoke and not args.resume:
            shutil.rmtree(args.out, ignore_errors=True)
    if (args.out / "result.json").exists():
        parser.error(f"--out {args.out} has a finished run. Choose another folder.")
    if not args.resume and args.out.exists() and any(args.out.iterdir()):
        parser.error(
            f"--out {args.out} has an unfinished run or other files in it. Continue "
            "with --resume, or choose another folder."
        )
    return args


def check(args, parser):
    for name in AT_LEAST_ONE:
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    if not 0 <= args.label_noise <= 1:
        parser.error(f"--label-noise must be from 0 to 1, not {args.label_noise}")
    if args.imbalance < 1:
        parser.error(f"--imbalance must be at least 1, not {args.imbalance}")
    for name, (expected, right) in OWN.items():
        value = getattr(args, name)
        if value is None:
            continue
        if name not in args.methods[args.method].options:
            parser.error(f"--{name} does not apply to --method {args.method}")
        if not right(value):
            parser.error(f"--{name} must be {expected}, not {value}")
    method = args.methods[args.method]
    if args.global_weight is not None and not method.may_have_table:
        parser.error(f"--global-weight does not apply to --method {args.method}")
    if not method.has_table(args):
        for name in ("fade_out", "prior_count"):
            if getattr(args, name) is not None:
                parser.error(
                    f"--{name.replace('_', '-')} does not apply to --method "
                    f"{args.method}, which has no global soft labels"
                )
    for name in ("shift", "head_epochs", "seed"):
        value = getattr(args, name)
        if value is not None and value < 0:
            parser.error(f"--{name.replace('_', '-')} must be at least 0, not {value}")
    if args.warmup_epochs is None:
        args.warmup_epochs = min(5, args.epochs // 4)
    if not 0 <= args.warmup_epochs < args.epochs:
        parser.error(
            f"--warmup-epochs must be at least 0 and less than --epochs, "
            f"{args.epochs}, not {args.warmup_epochs}"
        )
    try:
        of_name(args.network)
        check_weights(args.network, args.weights)
    except ValueError as error:
        parser.error(f"--network {error}")
    if args.scale_to and args.weights in (NONE, PRESET):
        parser.error("--scale-to is for a network of keras.applications with --weights")
    if args.learning_rate is None:
        args.learning_rate = FROM_SCRATCH if args.weights == NONE else FINE_TUNING
    if args.backend not in (None, keras.backend.backend()):
        parser.error(
            f"--backend {args.backend} comes too late: Keras is loaded with "
            f"{keras.backend.backend()}. Set KERAS_BACKEND={args.backend} instead."
        )
    if args.on_device:
        check_on_device(args, parser)
    if args.batch_size % args.devices:
        parser.error("--batch-size must be a multiple of --devices")
    try:  # what the package refuses, before data are read and a head is trained
        method = method(args, num_classes=2)
        method.layer(method.rate_at(0)), method.loss(), method.callbacks()
    except ValueError as error:
        parser.error(f"--method {args.method}: {error}")


def check_on_device(args, parser):
    if keras.backend.backend() != "jax":
        parser.error(f"--on-device needs --backend jax, not {keras.backend.backend()}")
    if args.devices > 1 or args.deterministic:
        parser.error("--on-device needs one device, and no --deterministic")
