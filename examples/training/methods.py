"""What is compared: how a batch is mixed, and what the network learns from it.

Each method is a class with the same parts: `mix` and `mixed`, `loss`, `callbacks` and
`model`. To add one, write a subclass that overrides what differs, and an entry in
METHODS, whose name `--method` takes. Its docstring is the help.
"""

import keras

from keras_mixavg import GlobalSoftLabel, MixAvg, SoftLabelCrossentropy

FIRST_DRAW = 10  # of a mixing layer; smaller numbers are those of batches.py


class Plain:
    """nothing mixed, plain labels"""

    global_soft_labels = None  # or their settings, where no flag says otherwise

    def __init__(self, args, num_classes):
        self.args, self.num_classes = args, num_classes
        self.one_hot = MixAvg(rate=0, num_classes=num_classes)
        names = ("global_weight", "prior_count", "fade_out")
        given = {name: getattr(args, name) for name in names}
        given = {name: value for name, value in given.items() if value is not None}
        self.has_table = self.global_soft_labels is not None or "global_weight" in given
        self.settings = {**(self.global_soft_labels or {}), **given}
        self.weight = {
            name: self.settings.pop(name)
            for name in ["global_weight"]
            if name in self.settings
        }

    def mix(self, batches, epoch):
        """From batches of (images, class numbers) to (images, soft labels).

        `epoch` is a variable that holds the number of the epoch, see batches.py.
        """
        return batches.map(self.one_hot)  # on a dataset it would draw and average

    def rate_at(self, epoch):
        """The share of averaged samples in an epoch."""
        return 0

    def layer(self, rate):
        """The layer that mixes, for `mixed`."""
        return self.one_hot

    def mixed(self, layer, images, labels, draws):
        """One batch, mixed inside a compiled function, see on_device.py."""
        with keras.StatelessScope([(layer.generator.state, draws.next())]):
            return layer((images, labels))

    def loss(self):
        return SoftLabelCrossentropy(**self.weight, from_logits=True)

    def callbacks(self):
        if not self.has_table:
            return []
        return [GlobalSoftLabel(**self.settings, collect=self.args.collect)]

    def model(self, network):
        """The model to train, made of a network."""
        return network


class LabelSmoothing(Plain):
    """nothing mixed, labels smoothed by 0.1"""

    def loss(self):
        return keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=0.1
        )


class OnlineLabelSmoothing(Plain):
    """nothing mixed, global soft labels: Online Label Smoothing"""

    global_soft_labels = {"global_weight": 0.5, "prior_count": 0.0, "fade_out": 0.0}


class AveragedPairs(Plain):
    """averaged pairs with local soft labels"""

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
    """averaged pairs with local and global soft labels"""

    global_soft_labels = {}  # the package's defaults


class MixUp(Plain):
    """keras.layers.MixUp, alpha 1"""

    def layer(self, rate):
        return keras.layers.MixUp(alpha=1.0, dtype="float32")

    def mix(self, batches, epoch):
        import tensorflow as tf

        from training.batches import draw_of, keys

        layer = self.layer(0)
        layer.backend.set_backend("tensorflow")  # it is for tf.data alone

        def mixed(batch, key):
            return self.mixed(layer, *batch, Draws(key, draw_of))

        batches = tf.data.Dataset.zip(batches, keys(self.args.seed, epoch))
        return batches.map(mixed, num_parallel_calls=tf.data.AUTOTUNE)

    def mixed(self, layer, images, labels, draws):
        ops = layer.backend
        images, labels = self.one_hot(ops.cast(images, "float32"), labels)
        drawn = layer.get_random_transformation(images, seed=draws)
        mixed_images = layer.transform_images(images, drawn)
        mixed_labels = layer.transform_labels(labels, drawn)
        return self.put_together(ops, images, labels, mixed_images, mixed_labels)

    def put_together(self, ops, images, labels, mixed_images, mixed_labels):
        return mixed_images, mixed_labels


class CutMix(MixUp):
    """keras.layers.CutMix"""

    def layer(self, rate):
        return keras.layers.CutMix(factor=1.0, dtype="float32")


class RegMixup(MixUp):
    """each batch clean, and mixed with weights from Beta(10, 10)"""

    def layer(self, rate):
        return keras.layers.MixUp(alpha=10.0, dtype="float32")

    def put_together(self, ops, images, labels, mixed_images, mixed_labels):
        return (
            ops.numpy.concatenate([images, mixed_images], axis=0),
            ops.numpy.concatenate([labels, mixed_labels], axis=0),
        )


class KerasCVMixUp(Plain):
    """keras_cv.layers.MixUp, alpha 1; draws other pairs when a run is resumed"""

    def layer(self, rate):
        import keras_cv

        return keras_cv.layers.MixUp(alpha=1.0, seed=self.args.seed, dtype="float32")

    def mix(self, batches, epoch):
        layer = self.layer(0)

        def mixed(images, labels):
            import tensorflow as tf

            images, labels = self.one_hot(tf.cast(images, "float32"), labels)
            batch = layer({"images": images, "labels": labels})
            return batch["images"], batch["labels"]

        return batches.map(mixed)


class KerasCVCutMix(KerasCVMixUp):
    """keras_cv.layers.CutMix, alpha 1 (see its warning); resumed as kcv_mixup is"""

    def layer(self, rate):
        import keras_cv

        print(
            "Note: the labels of keras_cv.layers.CutMix count the whole box, also "
            "where the image's border cuts it off; README.md beside cifar.py has the "
            "figures."
        )
        return keras_cv.layers.CutMix(alpha=1.0, seed=self.args.seed, dtype="float32")


class Draws(keras.random.SeedGenerator):
    """The seeds that a layer of Keras asks for, from the key of a batch.

    Keras' own generator counts in a variable, and a resumed run would start it anew.
    `fold_in(key, number)` makes another key of one.
    """

    def __init__(self, key, fold_in):
        self.key, self.fold_in, self.drawn = key, fold_in, FIRST_DRAW

    def next(self, ordered=True):
        self.drawn += 1
        return self.fold_in(self.key, self.drawn)


METHODS = {
    "erm": Plain,
    "label_smoothing": LabelSmoothing,
    "mixup": MixUp,
    "cutmix": CutMix,
    "kcv_mixup": KerasCVMixUp,
    "kcv_cutmix": KerasCVCutMix,
    "regmixup": RegMixup,
    "ols": OnlineLabelSmoothing,
    "mixavg_local": AveragedPairs,
    "mixavg": AveragedPairsWithTable,
}

NAMES = {  # for people: in tables, pictures and texts
    "erm": "plain training",
    "label_smoothing": "label smoothing",
    "mixup": "MixUp",
    "cutmix": "CutMix",
    "kcv_mixup": "KerasCV's MixUp",
    "kcv_cutmix": "KerasCV's CutMix",
    "regmixup": "RegMixup",
    "ols": "Online Label Smoothing",
    "mixavg_local": "averaged pairs",
    "mixavg": "MixAvg with global soft labels",
}


def in_words(method):
    """The name of a method for people; that of `--method` where there is no other."""
    return NAMES.get(method, method.replace("_", " "))
