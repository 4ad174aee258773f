"""Other ways to make the global soft labels, or to use the pairs: what a grid may name.

More entries for `training/methods.py`. Each overrides one part of a method, or one
method of a class of the package, and says in its docstring what it changes. `python
examples/cifar.py` does not know them; the grids do.
"""

import keras
from keras import ops
from training import mixing
from training.methods import AveragedPairs, AveragedPairsWithTable, CutMix

from keras_mixavg import GlobalSoftLabel, equations
from keras_mixavg.soft_label_table import SoftLabelTable

# --- When there are pairs ------------------------------------------------------------


class PairsOffAtTheEnd(AveragedPairsWithTable):
    """mixavg, without pairs in the last fifth of the epochs"""

    def rate(self):
        last = round(0.8 * self.args.epochs)
        return lambda epoch: self.args.rate if epoch < last else 0.0


class PairsAndCutMixInTurns(CutMix):
    """mixavg in half of the batches, drawn by chance, and CutMix in the others"""

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


class InTurnsOffAtTheEnd(PairsAndCutMixInTurns):
    """as pairs_and_cutmix, with whole images in the last fifth of the epochs"""

    mixed_share = 0.8


# --- Another table -------------------------------------------------------------------


class OtherTable(AveragedPairsWithTable):
    """A method whose loss has another table."""

    table: type[SoftLabelTable]

    def loss(self):
        loss = super().loss()
        loss.table = self.table()
        return loss


class DividedTable(SoftLabelTable):
    def end_epoch(self, prior_count):
        before = self.state()
        left_out = super().end_epoch(prior_count)
        divided = rows_by_division(
            before["table"], before["cross"], before["gram"], prior_count
        )
        self.table.assign(divided)
        return left_out


def rows_by_division(table, cross, gram, prior_count):
    """Each row of N divided by its mass, the old table as `prior_count` examples."""
    totals = gram.sum(axis=1, keepdims=True).astype("float64")
    k = prior_count + 1e-6 * totals.mean()
    rows = (cross + k * table) / (totals + k) if k else table
    return rows / rows.sum(axis=1, keepdims=True)


class RowsByDivision(OtherTable):
    """mixavg, each row of N divided by its mass instead of (8)"""

    table = DividedTable


class OffDiagonalTable(SoftLabelTable):
    def targets(self, labels):
        table = ops.convert_to_tensor(self.table)
        identity = ops.eye(table.shape[0], dtype=table.dtype)
        others = table * (1.0 - identity)
        mass = ops.sum(others, axis=1, keepdims=True)
        known = mass > 1e-6
        smoothing = ops.where(known, others / ops.where(known, mass, 1.0), identity)
        smoothed = equations.global_soft_labels(
            labels, ops.cast(smoothing, labels.dtype)
        )
        weight = ops.cast(self.weight, labels.dtype)
        return equations.targets(labels, smoothed, weight)


class FixedMass(OtherTable):
    """mixavg, S with its diagonal at zero: a fixed mass for the other classes"""

    table = OffDiagonalTable


class WithinEpochs(GlobalSoftLabel):
    """Change the table every `steps` steps, and at the epoch's end."""

    def __init__(self, steps, **settings):
        super().__init__(**settings)
        self.steps = steps

    def on_train_batch_end(self, batch, logs=None):
        table = self.model.loss.table
        if (batch + 1) % self.steps == 0:
            collected = table.state()["steps"]  # which the callback counts by epoch
            table.end_epoch(self.prior_count)
            table.steps.assign(collected)


class Every13Steps(AveragedPairsWithTable):
    """mixavg, the table changed every 13 steps"""

    def callbacks(self):
        return [WithinEpochs(13, **self.settings, collect=self.args.collect)]


# --- No table ------------------------------------------------------------------------


class Taught(keras.Model):
    """A network whose targets are in part what its moving average predicts."""

    def learn_from(self, average, weight, decay):
        """Have `average` follow the weights and statistics of this at each step."""
        self.average, self.weight, self.decay = average, weight, decay
        self.average.trainable = False

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        if training:
            # The average's own come last among the weights of this.
            for mean, value in zip(self.average.weights, self.weights, strict=False):
                mean.assign(self.decay * mean + (1 - self.decay) * value)
            predicted = ops.softmax(self.average(x, training=False))
            predicted = ops.cast(ops.stop_gradient(predicted), y.dtype)
            y = equations.targets(y, predicted, self.weight)
        return super().compute_loss(x, y, y_pred, sample_weight, training)


class MovingAverageTeacher(AveragedPairs):
    """averaged pairs, targets in part what a moving average of the network predicts"""

    global_soft_labels = {"global_weight": 0.5}
    decay = 0.99  # a step

    def loss(self):
        return keras.losses.CategoricalCrossentropy(from_logits=True)

    def callbacks(self):
        return []

    def model(self, network):
        average = keras.models.clone_model(network)
        average.set_weights(network.get_weights())
        model = Taught(network.inputs, network.outputs[0])
        model.learn_from(average, self.weight["global_weight"], self.decay)
        return model


ABLATIONS = {
    "pairs_off_at_the_end": PairsOffAtTheEnd,
    "pairs_and_cutmix": PairsAndCutMixInTurns,
    "pairs_and_cutmix_off_at_the_end": InTurnsOffAtTheEnd,
    "rows_by_division": RowsByDivision,
    "fixed_mass": FixedMass,
    "every_13_steps": Every13Steps,
    "moving_average_teacher": MovingAverageTeacher,
}
