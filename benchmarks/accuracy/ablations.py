"""Ablations: methods that a grid may name in addition to those of the programs.

Each overrides one part of a method in `training/methods.py`. The grids know them;
`python examples/cifar.py` does not.
"""

from training import mixing
from training.methods import AveragedPairsWithTable, CutMix, MixUpOrCutMix

from keras_mixavg import equations


class PairsOffAtTheEnd(AveragedPairsWithTable):
    """`mixavg`, with whole images in the last fifth of the epochs."""

    def rate(self):
        last = round(0.8 * self.args.epochs)
        return lambda epoch: self.args.rate if epoch < last else 0.0


class MixAvgOrCutMix(CutMix):
    """`mixavg` in a random half of the batches, and CutMix in the others."""

    global_soft_labels = {}  # the package's defaults

    def mixed_with(self, ops, images, labels, partners, draws):
        boxed = self.chance(ops, "share", draws)
        weight = self.draw_weight(ops, self.option("alpha"), draws)
        weight = ops.numpy.where(boxed, weight, 1.0)
        centre = self.draw_centre(ops, images, draws)
        images, labels = mixing.cutmix(images, labels, partners, weight, centre, ops)
        chance = ops.random.uniform(ops.shape(partners), seed=draws)
        averaged = ops.numpy.logical_and(chance < self.args.rate, ~boxed)
        samples = ops.numpy.arange(ops.shape(partners)[0])
        cyclic = equations.pairing(partners, ops.numpy)
        partners = ops.numpy.where(averaged, cyclic, samples)
        return tuple(
            equations.average(values, ops.numpy.take(values, partners, axis=0))
            for values in (images, labels)
        )


class MixAvgOrCutMixOffAtTheEnd(MixAvgOrCutMix):
    """`mixavg_or_cutmix`, with whole images in the last fifth of the epochs."""

    mixed_share = 0.8


class MixUpOrCutMixOffAtTheEnd(MixUpOrCutMix):
    """`mixup_or_cutmix`, with whole images in the last fifth of the epochs.

    As with `--mixup-off-epoch` of timm, their labels stay smoothed.
    """

    mixed_share = 0.8


ABLATIONS = {
    "mixup_or_cutmix_off_at_the_end": MixUpOrCutMixOffAtTheEnd,
    "pairs_off_at_the_end": PairsOffAtTheEnd,
    "mixavg_or_cutmix": MixAvgOrCutMix,
    "mixavg_or_cutmix_off_at_the_end": MixAvgOrCutMixOffAtTheEnd,
}
