"""The method in slow NumPy loops, written from the equations of the method card.

Nothing here imports the package. Everything is float64.
"""

import math

import numpy as np


def partners_of(order):
    """(1) Walk around the cycle `order`: the partner of each is the next."""
    partners = [None] * len(order)
    for position, sample in enumerate(order):
        partners[sample] = order[(position + 1) % len(order)]
    return partners


def averaged(values, partners):
    """(2) and (3)."""
    values = np.asarray(values).astype("float64")
    result = np.empty_like(values)
    for i, partner in enumerate(partners):
        result[i] = (values[i] + values[partner]) / 2
    return result


def one_hot(numbers, num_classes):
    result = np.zeros((len(numbers), num_classes))
    for i, number in enumerate(np.ravel(numbers)):
        result[i, int(number)] = 1.0
    return result


def target(label, table, weight):
    """(4) and (5) for one label."""
    num_classes = len(label)
    result = []
    for k in range(num_classes):
        global_label = sum(label[c] * table[c][k] for c in np.flatnonzero(label))
        result.append((1 - weight) * label[k] + weight * global_label)
    return result


def softmax(logits):
    largest = max(logits)
    powers = [math.exp(z - largest) for z in logits]
    return [power / sum(powers) for power in powers]


def crossentropy(target_, probabilities):
    """(6) for one sample."""
    return -sum(
        t * math.log(p) for t, p in zip(target_, probabilities, strict=True) if t > 0
    )


def loss(labels, probabilities, table=None, weight=0.0, sample_weight=None):
    """(4)-(6), mean over the samples as Keras' "sum_over_batch_size"."""
    num_classes = np.shape(labels)[-1]
    labels = np.reshape(labels, (-1, num_classes))
    probabilities = np.reshape(probabilities, (-1, num_classes))
    table = np.eye(num_classes) if table is None else table
    weights = np.ones(len(labels)) if sample_weight is None else np.ravel(sample_weight)
    total = 0.0
    for label, p, w in zip(labels, probabilities, weights, strict=True):
        total += w * crossentropy(target(label, table, weight), p)
    return total / len(labels)


def is_correct(label, probabilities):
    top = max(range(len(label)), key=lambda k: probabilities[k])
    return label[top] == max(label)


def evidence(labels, probabilities, sample_weight=None, collect="correct"):
    """(7) for one batch: its contributions to N and M."""
    num_classes = np.shape(labels)[-1]
    labels = np.reshape(labels, (-1, num_classes))
    probabilities = np.reshape(probabilities, (-1, num_classes))
    weights = np.ones(len(labels)) if sample_weight is None else np.ravel(sample_weight)
    n, m = np.zeros((2, num_classes, num_classes))
    for label, p, w in zip(labels, probabilities, weights, strict=True):
        if collect == "correct" and not is_correct(label, p):
            continue
        for c in np.flatnonzero(label):
            for k in range(num_classes):
                n[c, k] += w * label[c] * p[k]
                m[c, k] += w * label[c] * label[k]
    return n, m


def updated_table(table, n, m, prior_count):
    """(8), by Gauss-Jordan elimination."""
    num_classes = len(table)
    k = prior_count + 1e-6 * sum(m[c, c] for c in range(num_classes)) / num_classes
    if k == 0:
        return np.array(table, "float64")
    left = m + k * np.eye(num_classes)
    right = n + k * np.asarray(table, "float64")
    for pivot in range(num_classes):
        right[pivot] /= left[pivot, pivot]
        left[pivot] /= left[pivot, pivot]
        for row in range(num_classes):
            if row != pivot and left[row, pivot] != 0:
                right[row] -= left[row, pivot] * right[pivot]
                left[row] -= left[row, pivot] * left[pivot]
    result = np.empty_like(right)
    for c in range(num_classes):
        positive = [max(value, 0.0) for value in right[c]]
        total = sum(positive)
        result[c] = [value / total for value in positive]
    return result


def fading(epoch, epochs, fade_out):
    """(5): the weight falls over the last `fade_out * epochs` epochs, and then is 0."""
    falling = fade_out * epochs
    left = epochs - epoch
    return left / falling if left < falling else 1.0


class Training:
    """The whole method on a linear softmax classifier, trained by plain SGD.

    `batches` is a list of (x, labels, sample weights or None), the same in every epoch.
    The weight falls over the last share `fade_out` of `epochs`; without `epochs` it is
    constant. `kernel` is (features, classes), `learning_rate` may be 0.
    """

    def __init__(
        self,
        kernel,
        learning_rate=0.0,
        global_weight=0.5,
        prior_count=1.0,
        collect="correct",
        epochs=None,
        fade_out=0.3,
        epoch=0,
    ):
        self.epochs, self.fade_out, self.epoch_number = epochs, fade_out, epoch
        self.kernel = np.array(kernel, "float64")
        num_classes = self.kernel.shape[1]
        self.table = np.eye(num_classes)
        self.n, self.m = np.zeros((2, num_classes, num_classes))
        self.learning_rate = learning_rate
        self.global_weight = global_weight
        self.prior_count = prior_count
        self.collect = collect

    def probabilities(self, x):
        return np.array([softmax(logits) for logits in np.asarray(x) @ self.kernel])

    def weight(self):
        if self.epochs is None:
            return self.global_weight
        share = fading(self.epoch_number, self.epochs, self.fade_out)
        return self.global_weight * share

    def step(self, x, labels, sample_weight=None):
        """One training step; returns its loss."""
        p = self.probabilities(x)
        weights = np.ones(len(x)) if sample_weight is None else sample_weight
        weight = self.weight()
        targets = np.array([target(y, self.table, weight) for y in labels])
        value = loss(labels, p, self.table, weight, weights)
        n, m = evidence(labels, p, weights, self.collect)
        self.n, self.m = self.n + n, self.m + m
        slope = (p * targets.sum(axis=1, keepdims=True) - targets) * weights[:, None]
        self.kernel -= self.learning_rate * np.asarray(x).T @ slope / len(x)
        return value

    def epoch(self, batches):
        """One epoch; returns its mean loss over the samples, as Keras logs it."""
        losses = [self.step(*batch) for batch in batches]
        self.end_epoch()
        return np.average(losses, weights=[len(batch[0]) for batch in batches])

    def end_epoch(self):
        self.table = updated_table(self.table, self.n, self.m, self.prior_count)
        self.n, self.m = np.zeros((2, *self.table.shape))
        self.epoch_number += 1
