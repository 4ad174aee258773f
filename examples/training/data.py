"""Which images a run trains on, with which labels. A seed repeats the choice."""

import numpy as np

HELD_OUT = 1000  # the seed of --held-out, the same in every run
VALIDATION = 2000  # added to the seed of a run, whose own draws other choices


def check(training, test, names, shift):
    """Refuse what the programs cannot train on, before anything is trained."""
    for part, (images, labels) in (("training", training), ("test", test)):
        square = images.ndim == 4 and images.shape[1] == images.shape[2]
        if images.dtype != "uint8" or not square:
            raise SystemExit(
                f"The {part} images must be uint8, of shape (images, side, side, "
                f"channels), not {images.dtype} of shape {images.shape}."
            )
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
            raise SystemExit(
                f"The {part} labels must be integers, one for each of the "
                f"{len(images)} images, not {labels.dtype} of shape {labels.shape}."
            )
        if labels.min() < 0 or labels.max() >= len(names):
            raise SystemExit(
                f"The {part} labels must be from 0 to {len(names) - 1}, since there "
                f"are {len(names)} names; they are {labels.min()} to {labels.max()}."
            )
        if shift >= images.shape[1]:
            raise SystemExit(
                f"--shift {shift} must be less than the side of the images, "
                f"{images.shape[1]} pixels."
            )


def few_of_each_class(images, labels, count, seed):
    """`count` examples, spread over the classes evenly, up to one."""
    if count > len(labels):
        raise SystemExit(f"--train-examples {count}: there are only {len(labels)}.")
    order = np.random.default_rng(seed).permutation(len(labels))
    rank_in_class = np.empty(len(labels), int)
    for number in np.unique(labels):
        members = order[labels[order] == number]
        rank_in_class[members] = np.arange(len(members))
    chosen = np.argsort(rank_in_class, kind="stable")[:count]
    return images[chosen], labels[chosen]


def split(images, labels, count, seed):
    """Split the examples at random into all but `count`, and `count`."""
    if count >= len(labels):
        raise SystemExit(f"{count} images to hold out: there are only {len(labels)}.")
    order = np.random.default_rng(seed).permutation(len(labels))
    rest, held_out = np.sort(order[count:]), np.sort(order[:count])
    return (images[rest], labels[rest]), (images[held_out], labels[held_out])


def batch_size(count, args):
    """`--batch-size`, or fewer if there are only `count` images; a share per device."""
    if count < args.devices:
        raise SystemExit(f"--devices {args.devices}: there are only {count} images.")
    return min(args.batch_size, count - count % args.devices)


def with_label_noise(labels, share, rng):
    """Give `share` of the images a wrong label, uniform over the other classes."""
    labels = labels.astype("int64")  # a copy, in which bytes do not overflow
    classes = labels.max() + 1
    chosen = rng.permutation(len(labels))[: round(share * len(labels))]
    labels[chosen] += rng.integers(1, classes, len(chosen))
    return labels % classes


def imbalanced(labels, ratio, rng):
    """The images to keep: all of class 0, 1 in `ratio` of the last, geometrically."""
    classes = labels.max() + 1
    kept = []
    for number in range(classes):
        members = rng.permutation(np.flatnonzero(labels == number))
        count = len(members) * ratio ** (-number / (classes - 1))
        kept.append(members[: max(1, round(count))])
    return np.sort(np.concatenate(kept))


def training_set(images, labels, args):
    """The images and labels that the arguments ask for."""
    if args.train_examples:
        images, labels = few_of_each_class(
            images, labels, args.train_examples, args.seed
        )
    if args.imbalance > 1:
        kept = imbalanced(labels, args.imbalance, np.random.default_rng(args.seed))
        images, labels = images[kept], labels[kept]
    if args.label_noise:
        rng = np.random.default_rng(args.seed)
        labels = with_label_noise(labels, args.label_noise, rng)
    if len(labels) < args.batch_size:
        raise SystemExit(
            f"{len(labels)} training images make no batch of {args.batch_size}: lower "
            "--batch-size or raise --train-examples."
        )
    return images, labels


def from_tfds(name, test, data_dir, **builder_kwargs):
    """`(images, labels)` of the splits "train" and `test`, and the classes' names."""
    import tensorflow_datasets as tfds

    splits, info = tfds.load(
        name,
        split=["train", test],
        data_dir=data_dir,
        batch_size=-1,
        as_supervised=True,
        with_info=True,
        builder_kwargs=builder_kwargs,
    )
    return *map(tfds.as_numpy, splits), info.features["label"].names
