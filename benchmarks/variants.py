"""What a grid may ask for beyond the options of examples/cifar.py.

Each experiment changes one part of the program, or of the package, for this process.
"""

import cifar
import keras
import numpy as np
import tensorflow as tf

from keras_mixavg import MixAvg, equations, soft_label_table


def split(options):
    """The arguments of the example program, and the experiments among the options."""
    experiments = {name: options[name] for name in EXPERIMENTS if name in options}
    flags = []
    for name, value in options.items():
        if name not in experiments and value is not False:
            flags += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return flags, experiments


def check(experiments, method):
    """Refuse an experiment that would change nothing."""
    for name in experiments:
        methods = ONLY_FOR.get(name, [method])
        if method not in methods:
            raise SystemExit(
                f"{name} changes nothing for {method}: it is for {', '.join(methods)}."
            )


def train(options):
    """`(result, table)` of a run: what cifar.py returns, and its soft labels if few."""
    flags, experiments = split(options)
    args = cifar.parse_arguments(flags)
    check(experiments, args.method)
    kept = []
    make = cifar.loss_and_callbacks

    def keep(args):
        loss, callbacks = make(args)
        kept.extend(callbacks)
        return loss, callbacks

    cifar.loss_and_callbacks = keep
    for name, value in experiments.items():
        EXPERIMENTS[name](value, args)
    result = cifar.train(args)
    result["experiments"] = experiments
    figures = result["test"]
    print(f"{100 * figures['accuracy']:.2f} %, NLL {figures['nll']:.4f}")
    table = kept[0].table if kept else None
    if table is None or len(table) > 20:
        return result, None
    return result, [[round(float(value), 5) for value in row] for row in table]


# --- Data ----------------------------------------------------------------------------


def label_noise(share, args):
    """Give `share` of the training images a wrong label, any other class alike."""

    def noisy(images, labels, rng):
        labels, classes = labels.copy(), labels.max() + 1
        chosen = rng.permutation(len(labels))[: round(share * len(labels))]
        labels[chosen] += rng.integers(1, classes, len(chosen)).astype(labels.dtype)
        return images, labels % classes

    _change_training_data(noisy, args)


def imbalance(ratio, args):
    """Keep all of class 0, 1 in `ratio` of the last, and geometrically between."""

    def thinned(images, labels, rng):
        classes = labels.max() + 1
        kept = []
        for number in range(classes):
            members = rng.permutation(np.flatnonzero(labels == number))
            count = len(members) * ratio ** (-number / (classes - 1))
            kept.append(members[: max(1, round(count))])
        kept = np.sort(np.concatenate(kept))
        return images[kept], labels[kept]

    _change_training_data(thinned, args)


def _change_training_data(change, args):
    make = cifar.training_batches

    def changed(images, labels, args):
        return make(*change(images, labels, np.random.default_rng(args.seed)), args)

    cifar.training_batches = changed


# --- When and where the pairs and the soft labels count ------------------------------


class SwitchOff(keras.callbacks.Callback):
    def __init__(self, mixing, last_epoch):
        super().__init__()
        self.mixing, self.last_epoch = mixing, last_epoch

    def on_epoch_end(self, epoch, logs=None):  # before the next epoch's data are read
        if epoch >= self.last_epoch:
            self.mixing.assign(False)


def pairs_off_for_last(share, args):
    """Average no pairs in the last `share` of the epochs."""
    mixing = tf.Variable(True)
    last_epoch = round((1 - share) * args.epochs) - 1
    make_callbacks = cifar.report.callbacks

    def mix(batches, args, num_classes):
        pairs = MixAvg(args.rate, num_classes, seed=args.seed)
        one_hot = MixAvg(0, num_classes)

        def mixed(*batch):
            return tf.cond(mixing, lambda: pairs(batch), lambda: one_hot(batch))

        return batches.map(mixed).prefetch(tf.data.AUTOTUNE)

    cifar.mix = mix
    cifar.report.callbacks = lambda *args: [
        SwitchOff(mixing, last_epoch),
        *make_callbacks(*args),
    ]


def weight_schedule(kind, args):
    """`late`: 0.25 after a third of the epochs; `linear`: from 0 to 0.5 (PS-KD's)."""
    schedules = keras.optimizers.schedules
    schedule = {
        "late": schedules.PiecewiseConstantDecay([args.epochs // 3], [0.0, 0.25]),
        "linear": schedules.PolynomialDecay(0.0, args.epochs, 0.5),
    }[kind]
    make = cifar.loss_and_callbacks

    def scheduled(args):
        loss, callbacks = make(args)
        loss.global_weight = schedule
        return loss, callbacks

    cifar.loss_and_callbacks = scheduled


# --- Other readings of the global soft label -----------------------------------------


def rows_by_division(wanted, args):
    """Instead of (8), each row of N divided by its mass, the old table as there."""
    if not wanted:
        return

    def divided(table, evidence, mass, prior_count):
        totals = mass.sum(axis=1, keepdims=True).astype("float64")
        k = prior_count + 1e-6 * totals.mean()
        rows = (evidence + k * table) / (totals + k) if k else table
        return rows / rows.sum(axis=1, keepdims=True)

    equations.updated_table = divided


def soft_labels_of_pairs_only(wanted, args):
    """Instead of (5), plain labels for all but averaged pairs of two classes."""
    if not wanted:
        return
    make = soft_label_table.SoftLabelTable.targets

    def targets(self, labels):
        mixed = keras.ops.max(labels, axis=-1, keepdims=True) < 0.999
        return keras.ops.where(mixed, make(self, labels), labels)

    soft_label_table.SoftLabelTable.targets = targets


class MidpointModel(keras.Model):
    """Has the target of each pair share weight with what a softmax head makes of it."""

    def call(self, inputs, training=None, mask=None):
        logits, self.smoothing = super().call(inputs, training=training, mask=mask)
        return logits

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        if training:
            mixed = keras.ops.max(y, axis=-1, keepdims=True) < 0.999
            y = keras.ops.where(
                mixed, equations.targets(y, self.smoothing, self.head_weight), y
            )
        return super().compute_loss(x, y, y_pred, sample_weight, training)


def midpoint_head(weight, args):
    """Instead of (4), soft labels of a second head for averaged pairs of two classes.

    As the abstracts of arXiv 2012.01559 and 2106.13913 describe it: the head sits
    beside the classifier and learns, with everything else, from the one loss.
    """
    make = cifar.NETWORKS[args.network]

    def with_head(shape, num_classes, weight_decay):
        network = make(shape, num_classes, weight_decay)
        pooled = network.layers[-1].input
        smoothing = keras.layers.Dense(
            num_classes, activation="softmax", dtype="float32", name="midpoint_head"
        )(pooled)
        model = MidpointModel(network.input, [network.output, smoothing])
        model.head_weight = weight
        return model

    cifar.NETWORKS = {args.network: with_head}


EXPERIMENTS = {
    "label-noise": label_noise,
    "imbalance": imbalance,
    "pairs-off-for-last": pairs_off_for_last,
    "weight-schedule": weight_schedule,
    "rows-by-division": rows_by_division,
    "soft-labels-of-pairs-only": soft_labels_of_pairs_only,
    "midpoint-head": midpoint_head,
}
ONLY_FOR = {
    "pairs-off-for-last": ["mixavg", "mixavg_local"],
    "weight-schedule": ["mixavg", "ols"],
    "rows-by-division": ["mixavg", "ols"],
    "soft-labels-of-pairs-only": ["mixavg"],
    "midpoint-head": ["mixavg", "mixavg_local"],
}
