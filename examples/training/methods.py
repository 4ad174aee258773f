"""The methods to compare: how each mixes a batch, and its loss and callbacks.

Each method is a class with the same parts: `mix` and `mixed`, `loss`, `callbacks` and
`model`. To add one, write a subclass that overrides what differs, enter it in METHODS
under the name that `--method` takes, and name it for tables and pictures in NAMES.
"""

import keras

from keras_mixavg import GlobalSoftLabel, MixAvg, SoftLabelCrossentropy
from training import mixing

FIRST_DRAW = 10  # of a mixing layer; smaller numbers are those of batches.py


class Plain:
    """Plain training: no mixing, one-hot labels."""

    global_soft_labels = None  # or their settings, which flags override
    may_have_table = True  # whether --global-weight gives it global soft labels
    options = {}  # flags of this method, and their defaults
    validation_share = 0.0  # of the training images, instead of the test images
    resumes = True  # whether a run that was stopped can continue

    def __init__(self, args, num_classes):
        self.args, self.num_classes = args, num_classes
        self.one_hot = MixAvg(rate=0, num_classes=num_classes)
        names = ("global_weight", "prior_count", "fade_out")
        given = {name: getattr(args, name) for name in names}
        given = {name: value for name, value in given.items() if value is not None}
        self.settings = {**(self.global_soft_labels or {}), **given}
        weight = self.settings.pop("global_weight", None)
        self.weight = {} if weight is None else {"global_weight": weight}

    @classmethod
    def has_table(cls, args):
        """Whether it has global soft labels, of itself or by --global-weight."""
        return cls.global_soft_labels is not None or args.global_weight is not None

    def option(self, name):
        given = getattr(self.args, name)
        return self.options[name] if given is None else given

    def mix(self, batches, epoch):
        """Turn batches of (images, class numbers) into (images, soft labels).

        `epoch` is a variable with the number of the epoch, see batches.py.
        """
        return batches.map(self.one_hot)  # applied to a dataset it would average

    def rate_at(self, epoch):
        """The share of averaged samples in an epoch."""
        return 0

    def layer(self, rate):
        """The layer that `mixed` gets."""
        return self.one_hot

    def mixed(self, layer, images, labels, draws):
        """Mix one batch inside a compiled function, see on_device.py."""
        with keras.StatelessScope([(layer.generator.state, draws.next())]):
            return layer((images, labels))

    def loss(self):
        return SoftLabelCrossentropy(**self.weight, from_logits=True)

    def callbacks(self):
        if not self.has_table(self.args):
            return []
        return [GlobalSoftLabel(**self.settings, collect=self.args.collect)]

    def metrics(self):
        """Metrics in addition to those of every method."""
        return []

    def model(self, network):
        """The model to train, from a network."""
        return network


class StoppedEarly(Plain):
    """Plain training that restores the weights with the best validation NLL.

    A tenth of the training images is for validation. A run that was stopped starts
    again: Keras' callback does not keep the best weights of its earlier epochs.
    """

    may_have_table = False
    validation_share = 0.1
    resumes = False

    def metrics(self):
        return [keras.metrics.CategoricalCrossentropy("nll", from_logits=True)]

    def callbacks(self):
        return [
            keras.callbacks.EarlyStopping(
                "val_nll",
                mode="min",
                patience=self.args.epochs,  # which a cosine schedule needs
                restore_best_weights=True,
            )
        ]


class LabelSmoothing(Plain):
    """No mixing, labels smoothed by --smoothing."""

    may_have_table = False
    options = {"smoothing": 0.1}

    def loss(self):
        return keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=self.option("smoothing")
        )


class OnlineLabelSmoothing(Plain):
    """No mixing, global soft labels: Online Label Smoothing."""

    global_soft_labels = {"global_weight": 0.5, "prior_count": 0.0, "fade_out": 0.0}


class AveragedPairs(Plain):
    """Averaged pairs with local soft labels."""

    def rate(self):
        """The share of averaged samples, or a function of the epoch."""
        return self.args.rate

    def mix(self, batches, epoch):
        layer = MixAvg(self.rate(), self.num_classes, seed=self.args.seed)
        return layer(batches, epoch=epoch)

    def rate_at(self, epoch):
        rate = self.rate()
        return rate(epoch) if callable(rate) else rate

    def layer(self, rate):
        return MixAvg(rate, self.num_classes)


class AveragedPairsWithTable(AveragedPairs):
    """Averaged pairs with local and global soft labels."""

    global_soft_labels = {}  # the package's defaults


class Drawn(Plain):
    """A method that mixes a batch with draws from the key of the batch."""

    mixed_share = 1.0  # of the epochs; later ones have whole images

    def mixed_epochs(self):
        return round(self.mixed_share * self.args.epochs)

    def rate_at(self, epoch):
        return float(epoch < self.mixed_epochs())

    def mix(self, batches, epoch):
        import tensorflow as tf

        from training.batches import BATCHES, draw_of, keys

        layer = self.layer(1.0)
        layer.backend.set_backend("tensorflow")  # it is for tf.data alone

        def mixed(images, labels, key):
            return self.mixed(layer, images, labels, Draws(key, draw_of))

        def of_epoch(batch, key):
            if self.mixed_share == 1:
                return mixed(*batch, key)
            return tf.cond(
                key[1] < self.mixed_epochs() * BATCHES,
                lambda: mixed(*batch, key),
                lambda: self.whole(*batch),
            )

        batches = tf.data.Dataset.zip(batches, keys(self.args.seed, epoch))
        return batches.map(of_epoch, num_parallel_calls=tf.data.AUTOTUNE)

    def whole(self, images, labels):
        """Unmixed images in float32, and one-hot labels."""
        return self.one_hot(self.operations(images).cast(images, "float32"), labels)

    def operations(self, tensor):
        """Keras' operations for a tensor: those of TensorFlow in `tf.data`."""
        in_tf_data = type(tensor).__module__.startswith("tensorflow")
        name = "tensorflow" if in_tf_data else keras.backend.backend()
        return type(self.one_hot.backend)(name)


class MixUp(Drawn):
    """mixup as published: one weight from Beta(--alpha, --alpha) for a whole batch.

    It mixes a --share of the batches.
    """

    options = {"share": 1.0, "alpha": 1.0}

    def layer(self, rate):
        return MixAvg(rate, self.num_classes)

    def mixed(self, layer, images, labels, draws):
        ops = self.operations(images)
        images, labels = self.whole(images, labels)
        if layer.rate == 0:
            return images, labels
        samples = ops.numpy.arange(images.shape[0] or ops.shape(images)[0])
        partners = ops.random.shuffle(samples, seed=draws)
        return self.mixed_with(ops, images, labels, partners, draws)

    def mixed_with(self, ops, images, labels, partners, draws):
        weight = self.draw_weight(ops, self.option("alpha"), draws)
        weight = ops.numpy.where(self.chance(ops, "share", draws), weight, 1.0)
        return mixing.mixup(images, labels, partners, weight, ops)

    def draw_weight(self, ops, alpha, draws):
        return ops.random.beta((1,), alpha, alpha, "float32", seed=draws)[0]

    def chance(self, ops, option, draws):
        return ops.random.uniform((), seed=draws) < self.option(option)

    def draw_centre(self, ops, images, draws):
        height, width = images.shape[1:3]
        return [ops.random.randint((), 0, side, seed=draws) for side in (height, width)]


class CutMix(MixUp):
    """CutMix as published: one box, its area from Beta(--alpha, --alpha), for a batch.

    It mixes a --share of the batches.
    """

    options = {"share": 0.5, "alpha": 1.0}

    def mixed_with(self, ops, images, labels, partners, draws):
        weight = self.draw_weight(ops, self.option("alpha"), draws)
        weight = ops.numpy.where(self.chance(ops, "share", draws), weight, 1.0)
        centre = self.draw_centre(ops, images, draws)
        return mixing.cutmix(images, labels, partners, weight, centre, ops)


class MixUpOrCutMix(MixUp):
    """The mixing of DeiT's recipe in timm.

    Each batch by mixup (alpha 0.8) or by CutMix (alpha 1); a fair coin decides.
    Labels are smoothed by --smoothing.
    """

    options = {"smoothing": 0.1}
    alphas = {"mixup": 0.8, "cutmix": 1.0}

    def whole(self, images, labels):
        images, labels = super().whole(images, labels)
        smoothing = self.option("smoothing")
        return images, (1 - smoothing) * labels + smoothing / self.num_classes

    def mixed_with(self, ops, images, labels, partners, draws):
        first = ops.random.uniform((), seed=draws) < 0.5
        for_mixup, for_cutmix = (
            self.draw_weight(ops, alpha, draws) for alpha in self.alphas.values()
        )
        # A weight of 1 changes nothing, so one of the two leaves the batch as it is.
        for_mixup = ops.numpy.where(first, for_mixup, 1.0)
        for_cutmix = ops.numpy.where(first, 1.0, for_cutmix)
        batch = mixing.mixup(images, labels, partners, for_mixup, ops)
        centre = self.draw_centre(ops, images, draws)
        return mixing.cutmix(*batch, partners, for_cutmix, centre, ops)


class RegMixup(MixUp):
    """RegMixup as published: each batch twice, whole and mixed by mixup.

    One weight from Beta(--alpha, --alpha) for a whole batch. The authors' code has 10
    for CIFAR-100 and 20 for CIFAR-10.
    """

    options = {"alpha": 10.0}

    def mixed_with(self, ops, images, labels, partners, draws):
        weight = self.draw_weight(ops, self.option("alpha"), draws)
        mixed = mixing.mixup(images, labels, partners, weight, ops)
        return twice(ops, (images, labels), mixed)


def twice(ops, whole, mixed):
    """A batch that is followed by what has been mixed of it."""
    return tuple(
        ops.numpy.concatenate(both, 0) for both in zip(whole, mixed, strict=True)
    )


class KerasMixUp(Drawn):
    """keras.layers.MixUp with alpha 1: a new weight for each image."""

    def layer(self, rate):
        return keras.layers.MixUp(alpha=1.0, dtype="float32")

    def mixed(self, layer, images, labels, draws):
        images, labels = self.whole(images, labels)
        drawn = layer.get_random_transformation(images, seed=draws)
        mixed_images = layer.transform_images(images, drawn)
        mixed_labels = layer.transform_labels(labels, drawn)
        return self.put_together(
            layer.backend, images, labels, mixed_images, mixed_labels
        )

    def put_together(self, ops, images, labels, mixed_images, mixed_labels):
        return mixed_images, mixed_labels


class KerasCutMix(KerasMixUp):
    """keras.layers.CutMix: a new box for each image."""

    def layer(self, rate):
        return keras.layers.CutMix(factor=1.0, dtype="float32")


class KerasRegMixup(KerasMixUp):
    """RegMixup with keras.layers.MixUp: a new weight for each image."""

    def layer(self, rate):
        return keras.layers.MixUp(alpha=10.0, dtype="float32")

    def put_together(self, ops, images, labels, mixed_images, mixed_labels):
        return twice(ops, (images, labels), (mixed_images, mixed_labels))


class Draws(keras.random.SeedGenerator):
    """The seeds that a Keras layer asks for, derived from the key of a batch.

    Keras' own generator counts in a variable, which a resumed run would reset.
    `fold_in(key, number)` derives another key.
    """

    def __init__(self, key, fold_in):
        self.key, self.fold_in, self.drawn = key, fold_in, FIRST_DRAW

    def next(self, ordered=True):
        self.drawn += 1
        return self.fold_in(self.key, self.drawn)


METHODS = {
    "erm": Plain,
    "stopped_early": StoppedEarly,
    "label_smoothing": LabelSmoothing,
    "ols": OnlineLabelSmoothing,
    "mixup": MixUp,
    "cutmix": CutMix,
    "mixup_or_cutmix": MixUpOrCutMix,
    "regmixup": RegMixup,
    "keras_mixup": KerasMixUp,
    "keras_cutmix": KerasCutMix,
    "keras_regmixup": KerasRegMixup,
    "mixavg_local": AveragedPairs,
    "mixavg": AveragedPairsWithTable,
}

NAMES = {  # in tables, pictures and texts
    "erm": "plain training",
    "stopped_early": "plain training, stopped early",
    "label_smoothing": "label smoothing",
    "ols": "Online Label Smoothing",
    "mixup": "MixUp",
    "cutmix": "CutMix",
    "mixup_or_cutmix": "MixUp or CutMix",
    "regmixup": "RegMixup",
    "keras_mixup": "keras.layers.MixUp",
    "keras_cutmix": "keras.layers.CutMix",
    "keras_regmixup": "RegMixup with keras.layers.MixUp",
    "mixavg_local": "averaged pairs",
    "mixavg": "MixAvg with global soft labels",
}


def in_words(method):
    """The name of a method in tables, pictures and texts."""
    return NAMES.get(method, method.replace("_", " "))


def with_names(methods):
    """Methods as `--method` takes them, each with its name, for a help text."""
    return ", ".join(f"{method} ({in_words(method)})" for method in methods)
